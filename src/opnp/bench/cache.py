"""From a model and images or texts to a folder of features: one pass a set, and what was computed before is kept."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp.adapters import model_failure_text, require_odin
from opnp.bench.odin import OdinScores, cache_odin
from opnp.bench.origin import (
    SOURCE_FILE,
    CacheFolder,
    FeatureSource,
    ModelSource,
    SetSource,
    model_source,
    require_set_names,
)
from opnp.core.checks import require_class_indices
from opnp.data import FeatureSet, InputSet, Transform, channel_std
from opnp.detector.fit_pass import Progress, shown
from opnp.distributed import Ranks, gathered, gathered_bytes, require_equal, sent_by_first, together
from opnp.errors import DataFileError, EmptyDataError, ModelRunError, OpnpError, OptionError
from opnp.model import BatchHalving, Head, HeadStream, borrowed, device_of, head_stream, unwrapped

__all__ = ["Amp", "CacheReport", "FeaturePass", "Forward", "cache_features", "target_device"]

Amp = Literal["none", "bf16"]
"""Precision of the forward pass: as the model is, or bfloat16 where autocast of torch takes it for safe."""

_DTYPES = (torch.float16, torch.float32)
_PIECE = 1 << 24
"""Bytes of features that each rank sends at once."""


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
    workers: int | None = 0,
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
        sets: Inputs by name: ``train`` and ``test``, whose labels are classes of the model; ``ood_*``, and
            ``validation_ood`` to tune ratios by, whose labels are not stored. All have the same transform.
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
    judged = [each for each in sets if each not in ("train", "validation_ood")] if is_odin_wanted else []
    with together(ranks):
        transform = _checked(sets, dtype)
        std = channel_std(transform)
        if judged and std is not None:
            if not ranks.is_alone:
                raise OptionError(
                    "ODIN's scores are computed by one process: run several without them (`is_odin_wanted=False`, "
                    "`--no-odin`), and one process afterwards, which keeps the features and adds the scores.",
                )
            require_odin()
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
            found, features, accuracy = passing.result(sets[each], is_inside=each in ("train", "test"))
            with together(ranks):
                if folder is not None and features is not None:
                    unreadable = sets[each].unreadable
                    made = replace(
                        sources[each],
                        samples=sources[each].total - len(unreadable),
                        unreadable=unreadable,
                        accuracy=accuracy,
                    )
                    folder.store(each, features, made, head=found)
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


@dataclass(frozen=True, slots=True)
class Forward:
    """Options of a forward pass. Each changes the last bits of features, ``bf16`` more than those.

    Attributes:
        amp: Precision.
        is_channels_last: Whether images and the weights of convolutions lie in memory channels last.

    Raises:
        OptionError: If `amp` is none of its values.

    Example:
        >>> Forward().facts, Forward(amp="bf16").facts
        ({}, {'amp': 'bf16'})

    """

    amp: Amp = "none"
    is_channels_last: bool = False

    def __post_init__(self) -> None:
        """Check the precision."""
        if self.amp not in get_args(Amp):
            raise OptionError(f"`amp` must be {' or '.join(get_args(Amp))}, got {self.amp!r}.")

    @property
    def facts(self) -> dict[str, object]:
        """What differs from the defaults, as JSON values, so that features of one kind are not taken for another's."""
        chosen = {
            "amp": self.amp if self.amp != "none" else None,
            "channels_last": self.is_channels_last,
        }
        return {name: value for name, value in chosen.items() if value}

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context that the model runs in on a device."""
        if self.amp == "none":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def laid_out(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return the context in which the model's weights lie as asked; on leaving they are those from before."""
        return _channels_last(unwrapped(model)) if self.is_channels_last else nullcontext()

    def moved(self, batches: Iterable[Any], device: torch.device) -> Iterator[object]:
        """Yield the batches with inputs on a device, laid out as asked; pinned ones are copied without waiting."""
        for batch in batches:
            is_labelled = isinstance(batch, tuple | list)
            yield (self._moved(batch[0], device), *batch[1:]) if is_labelled else self._moved(batch, device)

    def _moved(self, inputs: object, device: torch.device) -> object:
        if isinstance(inputs, Mapping):
            return {name: self._moved(value, device) for name, value in inputs.items()}
        if not isinstance(inputs, Tensor):
            return inputs
        is_turned = self.is_channels_last and inputs.ndim == 4
        layout = torch.channels_last if is_turned else torch.preserve_format
        return inputs.to(device, non_blocking=True, memory_format=layout)


@dataclass(frozen=True, eq=False, slots=True)
class FeaturePass:
    """A model and how it is run.

    Attributes:
        model: The model; it comes back as it was.
        head: Dotted name of its head; None to search.
        logits: Where the logits are in its output: an index, a key or attribute; None where that is plain.
        device: Where to run; None for where the model is.
        forward: Options of the forward pass.
        batch_size: Inputs a batch.
        workers: Processes that read and prepare inputs; 0 to do so here.
        dtype: Type of the features.
        ranks: This process's place among those that share the work.
        halving: How batches are run that need more memory than there is.
        progress: Wrapper of iterables that shows progress, or None.

    """

    model: nn.Module
    head: str | None
    logits: int | str | None
    device: torch.device | str | None
    forward: Forward
    batch_size: int
    workers: int | None
    dtype: torch.dtype
    ranks: Ranks
    halving: BatchHalving
    progress: Progress

    def batches(self, inputs: InputSet, rows: range | None = None) -> Iterable[Any]:
        """Return the batches of inputs, of all rows or of some, with progress shown."""
        is_pinned = target_device(self.model, self.device).type == "cuda" and torch.cuda.is_available()
        batches = inputs.batches(self.batch_size, rows=rows, workers=self.workers, is_pinned=is_pinned)
        return shown(batches, self.progress)

    def result(self, inputs: InputSet, *, is_inside: bool) -> tuple[Head, FeatureSet | None, float | None]:
        """Return the head, and features, labels and accuracy of inputs, computed by all ranks together.

        Features are those of all inputs that could be read, in their order, and None on ranks that do not write; the
        accuracy is None where labels are not known, or OOD. Afterwards the set of every rank knows what could not be
        read by any.

        Raises:
            OpnpError: If that fails here.
            DistributedError: If it fails on another rank.

        """
        with together(self.ranks):
            rows = range(*self.ranks.part(len(inputs)))
            head, features, right = self._part(inputs, rows, is_inside=is_inside)
        own = [(row, reason) for row, reason in inputs.reasons.items() if row in rows]
        for told in gathered_bytes(json.dumps(own).encode(), self.ranks):
            for row, reason in json.loads(told):
                inputs.skip(row, reason)
        whole = _joined(features, self.ranks)
        right = sum(int(each) for each in gathered(torch.tensor(right, device="cpu"), self.ranks))
        readable = inputs.readable
        labels = inputs.labels[readable] if is_inside and inputs.labels is not None else None
        accuracy = None if labels is None else right / len(readable)
        return head, None if whole is None else FeatureSet(whole, labels), accuracy

    def _part(self, inputs: InputSet, rows: range, *, is_inside: bool) -> tuple[Head, Tensor, int]:
        """Return the head, the features of some rows, and how many of these the model answers right."""
        target = target_device(self.model, self.device)
        with self.forward.laid_out(self.model), self.forward.autocast(target):
            batches = self.forward.moved(self._own_or_first(inputs, rows), target)
            try:
                with head_stream(
                    self.model,
                    batches,
                    head=self.head,
                    logits=self.logits,
                    device=self.device,
                    halving=self.halving,
                    is_inside=is_inside,
                ) as stream:
                    head = stream.head
                    _require_classes(inputs, len(head.weight), is_inside=is_inside)
                    features, right = self._read(stream, max(1, len(rows)), is_inside=is_inside)
            except (OpnpError, OSError):
                raise
            except (Exception, SystemExit) as error:
                raise ModelRunError(model_failure_text(error, self.model, place=inputs.source.path)) from error
        read = sum(row not in inputs.reasons for row in rows)
        return head, features[:read], right if read else 0

    def _own_or_first(self, inputs: InputSet, rows: range) -> Iterator[Any]:
        """Yield the batches of some rows; where there are none, the first of all, for head and width alone."""
        is_any = False
        for batch in self.batches(inputs, rows):
            is_any = True
            yield batch
        if not is_any:
            yield inputs.first_batch()

    def _read(self, stream: HeadStream, rows: int, *, is_inside: bool) -> tuple[Tensor, int]:
        features, filled, right = torch.empty(0, dtype=self.dtype, device="cpu"), 0, 0
        for inputs, logits, targets in stream.batches:
            if filled == 0:
                features = torch.empty(rows, inputs.shape[1], dtype=self.dtype, device="cpu")
            stop = filled + len(inputs)
            features[filled:stop] = _stored(inputs.cpu(), self.dtype)
            filled = stop
            if is_inside and targets is not None:
                # bfloat16 has too few digits to tell close logits apart
                answers = logits if self.forward.amp == "none" else _exact_logits(inputs, stream.head)
                right += int((answers.argmax(1).cpu() == targets.cpu()).sum())
        return features, right


def target_device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """Return the device that a model will run on: the one given, else where it is."""
    if device is not None:
        return torch.device(device)
    return device_of(unwrapped(model)) or torch.device("cpu")


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


@contextmanager
def _channels_last(model: nn.Module) -> Iterator[None]:
    """Lay the weights of convolutions out channels last, and put the very same memory back afterwards."""
    with borrowed(unwrapped(model)):  # so that no other pass lays them out meanwhile
        tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
        held = [(tensor, tensor.data) for tensor in tensors if tensor.ndim == 4]
        try:
            for tensor, content in held:
                tensor.data = content.contiguous(memory_format=torch.channels_last)
            yield
        finally:
            for tensor, content in held:
                tensor.data = content


def _exact_logits(features: Tensor, head: Head) -> Tensor:
    """Return the logits in the precision of the head's weights."""
    with torch.autocast(features.device.type, enabled=False):
        return linear(features.to(head.weight.dtype), head.weight, head.bias)


def _joined(part: Tensor, ranks: Ranks) -> Tensor | None:
    """Return the features of all ranks in the order of the ranks, on rank 0; others hold a piece at a time."""
    if ranks.is_alone:
        return part
    width = part.shape[1]
    step = max(1, _PIECE // max(1, width * part.element_size()))
    lengths = [
        int(each) for each in gathered(torch.tensor(len(part), device="cpu"), ranks)
    ]  # what could be read differs
    starts = [0, *accumulate(lengths)]
    whole = torch.empty(starts[-1], width, dtype=part.dtype, device="cpu") if ranks.is_first else None
    for offset in range(0, max(lengths), step):
        for rank, piece in enumerate(gathered(part[offset : offset + step], ranks)):
            if whole is not None:
                start = starts[rank] + offset
                whole[start : start + len(piece)] = piece
    return whole


def _require_classes(inputs: InputSet, classes: int, *, is_inside: bool) -> None:
    """Raise if the labels of ID inputs are no classes of the model."""
    names, labels = inputs.source.class_names, inputs.labels
    if not is_inside or labels is None:
        return
    if names is not None and len(names) != classes:
        raise DataFileError(
            f"{inputs.source.path} names {len(names)} classes, and the model has {classes}, so that the order of the "
            f"names does not tell which is which. Name the classes by their index in the model instead.",
        )
    require_class_indices(labels, classes=classes)


def _stored(features: Tensor, dtype: torch.dtype) -> Tensor:
    limit, largest = torch.finfo(dtype).max, float(features.abs().max())
    if largest > limit:
        raise OptionError(
            f"a feature of {largest:.6g} is too large for {str(dtype).removeprefix('torch.')}, which ends at "
            f"{limit:.6g}: store float32 instead, `--dtype float32`.",
        )
    return features.to(dtype)
