"""From a model and images to a folder of features: one pass a set, and what has been computed before is kept."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from opnp.adapters import require_odin
from opnp.bench.cache_folder import CacheFolder
from opnp.bench.feature_source import FeatureSource, SetSource, model_source
from opnp.bench.model_run import Progress
from opnp.bench.odin_caching import cache_odin
from opnp.bench.odin_file import OdinScores
from opnp.core.checks import require_class_indices
from opnp.data import FeatureSet, ImageSet, Preprocessing
from opnp.errors import DataFileError, EmptyDataError, OpnpError, OptionError
from opnp.model import HeadStream, head_stream

__all__ = ["CacheReport", "cache_features"]

_DTYPES = (torch.float16, torch.float32)
_SET_NAME = re.compile(r"train|test|ood_[\w.+-]+")


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
    sets: Mapping[str, ImageSet],
    out: str | os.PathLike[str],
    *,
    name: str,
    weights: str | os.PathLike[str] | None = None,
    head: str | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float16,
    is_odin_wanted: bool = True,
    is_replacing: bool = False,
    progress: Progress = None,
) -> CacheReport:
    """Write the features that a model has of some images, in the layout that `run_bench` and ``opnp fit`` read.

    `out` then holds ``head.safetensors``, a file of features for each set, ``source.json`` (where they come from) and,
    if wanted, ``odin.safetensors``. A set that is there already, of the same model and the same images, is kept.

    Args:
        model: Any classifier with one linear head; it comes back as it was.
        sets: Images by name: ``train`` and ``test``, whose labels are classes of the model, and ``ood_*``, whose labels
            are not stored. All have the same preprocessing.
        out: Where to write; made if it does not exist.
        name: What the model is called.
        weights: File that the model's weights came from; it is recorded by name and digest.
        head: Dotted name of the head; None to search.
        device: Where to run; None for where the model is.
        batch_size: Images a batch.
        dtype: Type to store features in: ``torch.float16`` or ``torch.float32``.
        is_odin_wanted: Whether to compute ODIN's scores of ``test`` and ``ood_*``, which takes several times as long as
            their features. Where that fails, the reason is stored instead.
        is_replacing: Whether features of another model that are in `out` are replaced; else they are refused.
        progress: Wrapper of iterables that shows progress, one step a batch.

    Returns:
        What was done.

    Raises:
        OptionError: If a name or `dtype` is none of those, labels are no classes of the model, or features are too
            large for float16.
        EmptyDataError: If there is no set.
        DataFileError: If an image cannot be read, class folders do not fit the model, or `out` holds other features.
        HeadNotFoundError: If the head is not found.
        NonFiniteError: If features are not finite.
        MissingExtraError: If pytorch-ood is needed and not installed.

    """
    preprocessing = _checked(sets, dtype)
    judged = [each for each in sets if each != "train"] if is_odin_wanted else []
    if judged:
        require_odin()
    described = model_source(model, name=name, weights=weights, head=head, dtype=dtype, preprocessing=preprocessing)
    folder = CacheFolder.opened(Path(out), described, is_replacing=is_replacing)
    images = {each: SetSource.from_images(images) for each, images in sets.items()}
    loaders = {each: given.batches(batch_size) for each, given in sets.items()}
    kept = tuple(each for each in sets if folder.holds(each, images[each]))
    for each in sets:
        if each not in kept:
            folder.forget(each)
    for each, given in sets.items():
        if each in kept:
            continue
        is_inside = not each.startswith("ood_")
        try:
            with head_stream(model, _shown(loaders[each], progress), head=head, device=device) as stream:
                _require_classes(given, stream.head.module.out_features, is_inside=is_inside)
                features, accuracy = _read(stream, is_inside=is_inside, dtype=dtype)
                folder.store(each, features, replace(images[each], accuracy=accuracy), head=stream.head)
        except OpnpError as error:
            raise type(error)(f"{each}: {error}") from error
    source = FeatureSource.read(folder.path)
    odin = None
    if judged:
        odin = cache_odin(
            model,
            {each: _shown(loaders[each], progress) for each in judged},
            folder.path,
            std=preprocessing.std,
            features_sha256={each: found.features_sha256 for each, found in source.sets.items()},
            device=device,
        )
    return CacheReport(source=source, computed=tuple(each for each in sets if each not in kept), kept=kept, odin=odin)


def _checked(sets: Mapping[str, ImageSet], dtype: torch.dtype) -> Preprocessing:
    """Return the preprocessing that all sets have."""
    if dtype not in _DTYPES:
        raise OptionError(f"`dtype` must be {' or '.join(map(str, _DTYPES))}, got {dtype}.")
    if not sets:
        raise EmptyDataError("`sets` must hold at least one set of images, got none.")
    wrong = [name for name in sets if not _SET_NAME.fullmatch(name)]
    if wrong:
        raise OptionError(
            f"`sets` must be called train, test or ood_NAME, with letters, digits and ._+- in NAME, got {wrong[0]!r}.",
        )
    first, *others = (images.preprocessing for images in sets.values())
    if any(other != first for other in others):
        raise OptionError("`sets` must all have the same preprocessing.")
    inside = [sets[name].source for name in ("train", "test") if name in sets]
    names = [source.class_names for source in inside if source.class_names is not None]
    if len(names) == 2 and names[0] != names[1]:
        raise DataFileError(
            f"{inside[0].path} and {inside[1].path} must have the same class folders, as these are numbered by their "
            f"names. Name the folders by the index of their class instead.",
        )
    return first


def _require_classes(images: ImageSet, classes: int, *, is_inside: bool) -> None:
    """Raise if the labels of ID images are no classes of the model."""
    names, labels = images.source.class_names, images.labels
    if not is_inside or labels is None:
        return
    if names is not None and len(names) != classes:
        raise DataFileError(
            f"{images.source.path} holds {len(names)} folders of classes, and the model has {classes} classes, so that "
            f"their sorted names do not tell which is which. Name the folders by the index of their class.",
        )
    require_class_indices(labels, classes=classes)


def _read(stream: HeadStream, *, is_inside: bool, dtype: torch.dtype) -> tuple[FeatureSet, float | None]:
    """Return features and labels of all batches, and the accuracy of the model on them where labels are known."""
    parts: list[Tensor] = []
    labels: list[Tensor] = []
    right = 0
    for features, logits, targets in stream.batches:
        parts.append(_stored(features.cpu(), dtype))
        if is_inside and targets is not None:
            labels.append(targets.to(device="cpu", dtype=torch.int64))
            right += int((logits.argmax(1).cpu() == labels[-1]).sum())
    read = torch.cat(parts)
    if not labels:
        return FeatureSet(read, None), None
    return FeatureSet(read, torch.cat(labels)), right / len(read)


def _stored(features: Tensor, dtype: torch.dtype) -> Tensor:
    limit, largest = torch.finfo(dtype).max, float(features.abs().max())
    if largest > limit:
        raise OptionError(
            f"a feature of {largest:.6g} is too large for {str(dtype).removeprefix('torch.')}, which ends at "
            f"{limit:.6g}: store float32 instead, `--dtype float32`.",
        )
    return features.to(dtype)


def _shown(batches: Iterable[object], progress: Progress) -> Iterable[object]:
    return batches if progress is None else progress(batches)
