"""From a model and images or texts to a folder of features: one pass a set, and what was computed before is kept."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn

from opnp.adapters import require_odin
from opnp.bench.cache_folder import CacheFolder
from opnp.bench.feature_pass import FeaturePass
from opnp.bench.feature_source import (
    SOURCE_FILE,
    FeatureSource,
    ModelSource,
    SetSource,
    model_source,
    require_set_names,
)
from opnp.bench.forward import Amp, Forward
from opnp.bench.model_run import Progress
from opnp.bench.odin_caching import cache_odin
from opnp.bench.odin_file import OdinScores
from opnp.data import InputSet, Transform, channel_std
from opnp.distributed import Ranks, require_equal, sent_by_first, together
from opnp.errors import DataFileError, EmptyDataError, OpnpError, OptionError
from opnp.model import BatchHalving

__all__ = ["CacheReport", "cache_features"]

_DTYPES = (torch.float16, torch.float32)


@dataclass(frozen=True, eq=False, slots=True)
class CacheReport:
    """What a folder of features holds now, and what of it is new.

    Attributes:
        source: Where the features come from.
        computed: Names of the sets whose features were computed now.
        kept: Names of the sets that were asked for and there already.
        odin: ODIN's scores, or why there are none; None where they were not asked for.

    """

    source: FeatureSource
    computed: tuple[str, ...]
    kept: tuple[str, ...]
    odin: OdinScores | None


def cache_features(
    model: nn.Module,
    sets: Mapping[str, InputSet],
    out: str | os.PathLike[str],
    *,
    name: str,
    weights: str | os.PathLike[str] | None = None,
    head: str | None = None,
    logits: int | str | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float16,
    is_odin_wanted: bool = True,
    is_replacing: bool = False,
    workers: int = 0,
    amp: Amp = "none",
    is_channels_last: bool = False,
    auto_batch: bool = False,
    distributed: bool = False,
    progress: Progress = None,
) -> CacheReport:
    """Write the features that a model has of some inputs, in the layout that `run_bench` and ``opnp fit`` read.

    `out` then holds ``head.safetensors``, a file of features for each set, ``source.json`` (where they come from) and,
    if wanted, ``odin.safetensors``. A set that is there already, of the same model and the same inputs, is kept.

    Inputs that cannot be read are left out of features, labels and accuracy, and listed in the record, unless their set
    is strict.

    Args:
        model: Any classifier with one linear head; it comes back as it was.
        sets: Inputs by name: ``train`` and ``test``, whose labels are classes of the model, and ``ood_*``, whose labels
            are not stored. All have the same transform.
        out: Where to write; made if it does not exist.
        name: What the model is called.
        weights: File that the model's weights came from; it is recorded by name and digest.
        head: Dotted name of the head; None to search.
        logits: Where the logits are in the model's output, as for `OPNP.fit`: an index, a key or attribute; None where
            that is plain. ODIN needs it to be plain.
        device: Where to run; None for where the model is.
        batch_size: Inputs a batch.
        dtype: Type to store features in: ``torch.float16`` or ``torch.float32``.
        is_odin_wanted: Whether to compute ODIN's scores of ``test`` and ``ood_*``, which takes several times as long as
            their features. Where that fails, or inputs are no images with a known `std`, the reason is stored instead.
        is_replacing: Whether features of another model that are in `out` are replaced; else they are refused.
        workers: Processes that read and prepare inputs ahead of time; the features are the same with any number.
        amp: ``bf16`` to run the model in bfloat16 where autocast of torch takes it for safe. The head's weights, and
            ODIN, stay as they are.
        is_channels_last: Whether images and weights of convolutions lie in memory channels last while the model runs.
        auto_batch: Whether to run a batch that needs more memory than there is in halves, with a warning.
        distributed: Whether this is one of several processes of a process group of torch, each of which calls this
            with the same arguments, computes a part of every set, and sends it to rank 0, which writes.
        progress: Wrapper of iterables that shows progress, one step a batch.

    Returns:
        What was done.

    Raises:
        OptionError: If a name, `dtype` or `amp` is none of those, labels are no classes of the model, features are too
            large for float16, or ODIN is wanted of several processes.
        EmptyDataError: If there is no set, or nothing of one can be read.
        DataFileError: If an input of a strict set cannot be read, names of classes do not fit the model, or `out` holds
            other features.
        HeadNotFoundError: If the head is not found.
        NonFiniteError: If features are not finite.
        InsufficientMemoryError: If the model, or a batch in it, needs more memory than there is.
        MissingExtraError: If pytorch-ood is needed and not installed.
        DistributedError: If another rank failed or is lost, or has another model or other inputs.

    """
    ranks = Ranks.joined() if distributed else Ranks()
    forward = Forward(amp=amp, is_channels_last=is_channels_last)
    judged = [each for each in sets if each != "train"] if is_odin_wanted else []
    with together(ranks):
        transform = _checked(sets, dtype)
        std = channel_std(transform)
        if judged and std is not None:
            _require_odin(ranks)
        passing = FeaturePass(
            model=model,
            head=head,
            logits=logits,
            device=device,
            forward=forward,
            batch_size=batch_size,
            workers=workers,
            dtype=dtype,
            ranks=ranks,
            halving=BatchHalving(is_on=auto_batch),
            progress=progress,
        )
        for inputs in sets.values():
            inputs.batches(batch_size, workers=workers)  # the numbers are checked before anything is removed
        described = model_source(
            model,
            name=name,
            weights=weights,
            head=head,
            dtype=dtype,
            transform=transform,
            forward=forward.facts | ({} if logits is None else {"logits": logits}),
        )
    lengths = {each: len(inputs) for each, inputs in sets.items()}
    require_equal(sha256(repr(described).encode()).hexdigest(), ranks, what="a model and options of digest")
    require_equal(str(lengths), ranks, what="sets of inputs of lengths")
    folder, sources, kept = _opened(Path(out), described, sets, ranks, is_replacing=is_replacing)
    computed = tuple(each for each in sets if each not in kept)
    for each in computed:
        try:
            result = passing.result(sets[each], is_inside=not each.startswith("ood_"))
            with together(ranks):
                if folder is not None and result.features is not None:
                    described_set = sources[each].after_pass(unreadable=sets[each].unreadable, accuracy=result.accuracy)
                    folder.store(each, result.features, described_set, head=result.head)
        except OpnpError as error:
            raise type(error)(f"{each}: {error}") from error
    source = _source(Path(out), ranks)
    odin = None
    if judged and (std is not None or ranks.is_first):
        odin = cache_odin(
            model,
            {each: passing.batches(sets[each]) for each in judged},
            Path(out),
            std=std,
            samples={each: found.samples for each, found in source.sets.items()},
            features_sha256={each: found.features_sha256 for each, found in source.sets.items()},
            device=device,
            halving=passing.halving,
        )
    return CacheReport(source=source, computed=computed, kept=kept, odin=odin)


def _opened(
    out: Path, described: ModelSource, sets: Mapping[str, InputSet], ranks: Ranks, *, is_replacing: bool
) -> tuple[CacheFolder | None, dict[str, SetSource], tuple[str, ...]]:
    """Return the folder and what the inputs are, both on rank 0 alone, and which sets are there; others are removed."""
    folder, sources, kept = None, {}, []
    with together(ranks):
        if ranks.is_first:
            folder = CacheFolder.opened(out, described, is_replacing=is_replacing)
            sources = {each: SetSource.from_inputs(given) for each, given in sets.items()}
            kept = [each for each in sets if folder.holds(each, sources[each])]
            folder.require_readable([each for each in kept if sets[each].is_strict])
            for each in sets:
                if each not in kept:
                    folder.forget(each)
    return folder, sources, tuple(json.loads(sent_by_first(json.dumps(kept).encode(), ranks)))


def _source(out: Path, ranks: Ranks) -> FeatureSource:
    """Return the record that rank 0 has written, which need not be within the reach of the others."""
    content = b""
    with together(ranks):
        if ranks.is_first:
            content = FeatureSource.read(out).content()
    return FeatureSource.from_content(sent_by_first(content, ranks), path=out / SOURCE_FILE)


def _require_odin(ranks: Ranks) -> None:
    """Raise if ODIN's scores cannot be computed."""
    if not ranks.is_alone:
        raise OptionError(
            "ODIN's scores are computed by one process: run several without them (`is_odin_wanted=False`, "
            "`--no-odin`), and one process afterwards, which keeps the features and adds the scores.",
        )
    require_odin()


def _checked(sets: Mapping[str, InputSet], dtype: torch.dtype) -> Transform:
    """Return the transform that all sets have."""
    if dtype not in _DTYPES:
        raise OptionError(f"`dtype` must be {' or '.join(map(str, _DTYPES))}, got {dtype}.")
    if not sets:
        raise EmptyDataError("`sets` must hold at least one set of inputs, got none.")
    require_set_names(sets)
    first, *others = (inputs.transform for inputs in sets.values())
    if any(other is not first and (other.kind, other.facts()) != (first.kind, first.facts()) for other in others):
        raise OptionError("`sets` must all have the same transform.")
    inside = [sets[name].source for name in ("train", "test") if name in sets]
    names = [source.class_names for source in inside if source.class_names is not None]
    if len(names) == 2 and names[0] != names[1]:
        raise DataFileError(
            f"{inside[0].path} and {inside[1].path} must have the same names of classes, as these are numbered by "
            f"them. Name the classes by their index in the model instead.",
        )
    return first
