"""One pass over the training data: sums that add up over batches, runs and ranks, and what they leave.

For the paper's method every row goes into the sums. For a fusion at most 2000 rows, a fifth of smaller data, stay out
of them: those with the smallest content hashes, so that which ones does not depend on the order. They give the scales
of the members. Rows inside the sums could not: with one image a class their distance to the class mean is nothing.

Cached features come in blocks, and how far a pass over them has come can be written down, so that a killed run goes on
where it was.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from opnp.artifact import read_artifact, tensors_digest, write_artifact
from opnp.core.checks import TRANSPOSED, Array, as_tensor, checked_matrix, require_finite
from opnp.core.histogram import ValueHistogram
from opnp.core.kept_rows import KeptRows
from opnp.core.labels import NO_LABEL, AnswerSum, class_indices
from opnp.core.members import REACT_QUANTILE
from opnp.core.moments import FeatureMoments
from opnp.core.sensitivity import BLOCK_ROWS, SensitivitySum, product, product_dtype, row_blocks
from opnp.core.shaping import ReAct
from opnp.data import FeatureSource, block_edges, feature_names_of
from opnp.detector.members import fitted_fusion
from opnp.distributed import Ranks, gathered, require_equal, summed
from opnp.errors import (
    ArtifactError,
    CheckpointError,
    DataFileError,
    EmptyDataError,
    InputTypeError,
    NonFiniteError,
    OptionError,
    ShapeError,
)
from opnp.files import remove_parts
from opnp.fitted import FittedState, Settings, head_digest

__all__ = [
    "BATCH_ROWS",
    "KEPT_ROWS",
    "Checkpoint",
    "FeatureBlocks",
    "FitSum",
    "Progress",
    "added_up",
    "counted",
    "feature_blocks",
    "require_same_names",
    "shown",
    "summed_blocks",
]

BATCH_ROWS = 8192
"""Rows of features that are read at once where nothing else is asked for."""
KEPT_ROWS = 2000
"""Rows that give the scales of a fusion, at most."""
_KEPT_SHARE = 5
"""One row in so many is kept out of the sums of smaller data."""
_FEWEST_KEPT = 20
"""Rows with a 95 % quantile that is not their maximum: as many are kept if half of the data are."""
_BYTES_OF_FLOAT32 = 4
_UNSURE = 1e-4
"""Margin between two logits, relative to their size, that rounding of float32 may have turned."""

FORMAT_VERSION = 3
_KIND = "fit checkpoint"
_SHOWN = 200

Progress = Callable[[Iterable[Any]], Iterable[Any]] | bool | None
"""A function that wraps an iterable and shows how far it is; True for a bar of rich, None or False for nothing."""


def shown(items: Iterable[Any], progress: Progress) -> Iterable[Any]:
    """Return `items`, wrapped so that `progress` sees them pass.

    Raises:
        InputTypeError: If `progress` is neither a function, a bool nor None.

    Example:
        >>> list(shown([1, 2], lambda items: (print("seen", item) or item for item in items)))
        seen 1
        seen 2
        [1, 2]

    """
    if progress is None or progress is False:
        return items
    if progress is True:
        from rich.progress import track  # noqa: PLC0415  # slow to import, and most passes show nothing

        return track(items, description="reading")
    if callable(progress):
        return progress(items)
    raise InputTypeError(
        f"`progress` must be a function that wraps an iterable, such as tqdm.tqdm, or True, got {progress!r}."
    )


@dataclass(frozen=True, eq=False, slots=True)
class FitSum:
    """What a pass leaves of the samples seen so far, for one head: a value that adds up.

    Attributes:
        weight: The head's weight, shape ``(classes, features)``.
        bias: The head's bias, shape ``(classes,)``, or None.
        settings: What is to be fitted.
        sensitivity: Sums of absolute gradients.
        histogram: Counts of the features' values, for thresholds of ReAct; None where none is needed.
        moments: Sums that the members of a fusion follow from; None for the paper's method.
        kept: Rows that are in none of the sums; None for the paper's method.
        answers: How the head answers the samples whose labels are known.

    """

    weight: Tensor
    bias: Tensor | None
    settings: Settings
    sensitivity: SensitivitySum
    histogram: ValueHistogram | None
    moments: FeatureMoments | None
    kept: KeptRows | None
    answers: AnswerSum

    @classmethod
    def zeros(cls, weight: Tensor, bias: Tensor | None, settings: Settings) -> Self:
        """Return the empty sum for a head."""
        device, (classes, features), members = weight.device, weight.shape, settings.members or ()
        sample = moments = None
        if settings.is_fusion:
            sample = KeptRows.empty(KEPT_ROWS, features=features, dtype=torch.float64, device=device)
            moments = FeatureMoments.zeros(
                classes=classes,
                features=features,
                has_product="vim" in members,
                has_directions="mahalanobis" in members or "relative_mahalanobis" in members,
                device=device,
            )
        is_counting = settings.is_fusion or isinstance(settings.shaping, ReAct)
        return cls(
            weight=weight,
            bias=bias,
            settings=settings,
            sensitivity=SensitivitySum.zeros(classes, features, device=device),
            histogram=ValueHistogram.zeros(device=device) if is_counting else None,
            moments=moments,
            kept=sample,
            answers=AnswerSum.zeros(classes, device=device),
        )

    @classmethod
    def of(
        cls,
        batches: Iterable[tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, Tensor | None]],
        weight: Tensor,
        bias: Tensor | None,
        settings: Settings,
    ) -> Self:
        """Return the sum over a stream of features, however it is cut into batches.

        Args:
            batches: Features, shape ``(batch, features)``, with logits, shape ``(batch, classes)``, or None; and, where
                some are known, labels, class indices of shape ``(batch,)``, or None.
            weight: The head's weight, shape ``(classes, features)``.
            bias: The head's bias, shape ``(classes,)``, or None.
            settings: What is to be fitted.

        Raises:
            ShapeError: If features and head do not fit together.
            NonFiniteError: If computed logits are not finite.

        """
        total = cls.zeros(weight, bias, settings)
        for features, labels, *logits in row_blocks(_as_columns(*batch) for batch in batches):
            total.add_(features, logits[0] if logits else None, labels=labels[:, 0])
        return total

    def add_(self, features: Tensor, logits: Tensor | None = None, *, labels: Tensor | None = None) -> Self:
        """Add a block of rows in place, and return this sum: a fusion's sample takes its rows first.

        Args:
            features: Shape ``(rows, features)``; at most `BLOCK_ROWS` rows, as for `SensitivitySum.add_`.
            logits: Shape ``(rows, classes)``, or None to have them computed. Those of half precision are computed anew,
                as they have lost digits that the features have; in precision ``"float64"`` and for a fusion all are.
            labels: Class indices, shape ``(rows,)``, -1 where none is known; or None.

        Raises:
            ShapeError: If features and head do not fit together.
            NonFiniteError: If computed logits are not finite.

        """
        weight, settings = self.weight, self.settings
        if features.shape[1:] != weight.shape[1:]:
            raise ShapeError(_width_message(tuple(features.shape), weight))
        if labels is not None and bool((labels != NO_LABEL).any()):
            self.answers.add_(_answers(features, weight, self.bias) if logits is None else logits, labels)
        if self.kept is not None:
            features, logits = self.kept.add_(features), None
        if logits is None or settings.precision == "float64" or logits.dtype.itemsize < _BYTES_OF_FLOAT32:
            rows = features.to(product_dtype(features, precision=settings.precision))
            logits = product(rows, weight, self.bias)
            require_finite(logits, name="logits")
        if self.histogram is not None:
            self.histogram.add_(features)
        self.sensitivity.add_(features, logits, weight, temperature=settings.temperature, precision=settings.precision)
        if self.moments is not None:
            self.moments.add_(features, _predicted(features, logits, weight, self.bias))
        return self

    def __add__(self, other: object) -> "FitSum":
        """Return the sum over both parts of the data: parts of one head under equal settings."""
        if not isinstance(other, FitSum):
            return NotImplemented
        if self.settings != other.settings or not torch.equal(self.weight, other.weight.to(self.weight.device)):
            raise OptionError("Sums can be merged only if head and settings are the same, and these differ.")
        more = other.to_tensors()
        total = self.with_tensors({name: mine + more[name] for name, mine in self.to_tensors().items()}, None)
        if self.kept is None or other.kept is None:
            return total
        kept = KeptRows(self.kept.hashes.clone(), self.kept.rows.clone())
        displaced = kept.merge_(other.kept)
        return replace(total.enter_(displaced), kept=kept)

    def enter_(self, rows: Tensor) -> Self:
        """Add rows, shape ``(rows, features)``, that go past the sample to the sums in place, and return this sum."""
        past = replace(self, kept=None)  # the sums are those of this one
        for block in rows.split(BLOCK_ROWS):
            past.add_(block)
        return self

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the sums as tensors by name, each of which adds up by itself, for `with_tensors`."""
        count = torch.tensor([self.sensitivity.count], device=self.weight.device)
        tensors = {"weight": self.sensitivity.weight, "neuron": self.sensitivity.neuron, "count": count}
        tensors |= self.answers.to_tensors()
        if self.histogram is not None:
            tensors["histogram"] = self.histogram.counts
        return tensors if self.moments is None else tensors | self.moments.to_tensors()

    def with_tensors(self, tensors: Mapping[str, Tensor], kept: KeptRows | None) -> Self:
        """Return this sum with what `to_tensors` gave, and another sample.

        Raises:
            KeyError: If a tensor is missing.

        """
        count = int(tensors["count"])
        return replace(
            self,
            sensitivity=SensitivitySum(weight=tensors["weight"], neuron=tensors["neuron"], count=count),
            histogram=None if self.histogram is None else ValueHistogram(tensors["histogram"]),
            moments=None if self.moments is None else FeatureMoments.from_tensors(tensors, count=count),
            kept=kept,
            answers=AnswerSum.from_tensors(tensors),
        )

    def carried(self) -> dict[str, Tensor]:
        """Return all of this sum as tensors by name, the sample as well, for `with_carried`."""
        kept = {} if self.kept is None else {"kept.hashes": self.kept.hashes, "kept.rows": self.kept.rows}
        return self.to_tensors() | kept

    def with_carried(self, tensors: Mapping[str, Tensor]) -> Self:
        """Return this sum with what `carried` gave.

        Raises:
            KeyError: If a tensor is missing.

        """
        kept = None if self.kept is None else KeptRows(tensors["kept.hashes"], tensors["kept.rows"])
        return self.with_tensors(tensors, kept)

    @property
    def seen(self) -> int:
        """Number of samples: those in the sums, and those kept out of them."""
        return self.sensitivity.count + (0 if self.kept is None else len(self.kept))

    def fitted(self) -> FittedState:
        """Return the detector that the samples give.

        Raises:
            EmptyDataError: If there was no sample, or no score can be fused.
            NonFiniteError: If sums or thresholds are not finite.
            RatioError: If the ratios leave nothing of the head.

        """
        if self.seen == 0:
            raise EmptyDataError("There are no training samples: a detector needs at least one, and a fusion two.")
        total, rows, shaping = self, None, self.settings.shaping
        thresholds: dict[float, float] = {}
        if self.kept is not None:
            count = min(KEPT_ROWS, max(self.seen // _KEPT_SHARE, min(_FEWEST_KEPT, self.seen // 2)))
            own = self.with_tensors({name: tensor.clone() for name, tensor in self.to_tensors().items()}, None)
            total, rows = own.enter_(self.kept.others(count)), self.kept.smallest(count)
            thresholds = {REACT_QUANTILE: total.react_threshold(REACT_QUANTILE)}
        elif isinstance(shaping, ReAct):
            thresholds = {shaping.quantile: self.react_threshold(shaping.quantile)}
        state = FittedState(
            settings=self.settings,
            weight=self.weight,
            bias=self.bias,
            sensitivity=total.sensitivity.mean(),
            react_thresholds=thresholds,
        )
        if rows is not None and total.moments is not None:
            return fitted_fusion(state, total.moments, rows)
        state.pruned  # noqa: B018  # ratios that leave nothing are refused here, not at the first score
        return state

    def react_threshold(self, quantile: float) -> float:
        """Return the threshold of ReAct, a quantile of the training features."""
        if self.histogram is None:
            raise EmptyDataError("The features' values were not counted.")
        threshold = self.histogram.quantile(quantile)
        if not math.isfinite(threshold):
            raise NonFiniteError(
                f"The threshold of ReAct must lie within float32, which ends at 3.4e38, got {threshold} at the "
                f"quantile {quantile:g}. Scale the features down."
            )
        return threshold


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where and how often a pass over cached features is written down.

    The file is written whole or not at all. A run that finds it goes on from it, if data, columns, head, settings,
    block size, ranks and threads are the same; otherwise it is refused. What comes of the pass is the same, bit for
    bit, as if it had never been interrupted. Each rank of several has a file of its own, ``FILE.rank0`` and so on.

    Attributes:
        path: The file.
        every: Number of blocks of rows between two writings.

    Raises:
        OptionError: If `every` is no positive integer.

    Example:
        >>> Checkpoint("fit.checkpoint", every=4).file(Ranks(rank=1, world=2)).name
        'fit.checkpoint.rank1'

    """

    path: str | os.PathLike[str]
    every: int = 16

    def __post_init__(self) -> None:
        """Check the number."""
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise OptionError(f"`Checkpoint.every` must be a positive number of blocks, got {self.every!r}.")

    def file(self, ranks: Ranks) -> Path:
        """Return the file of one rank."""
        path = Path(self.path)
        return path if ranks.is_alone else path.with_name(f"{path.name}.rank{ranks.rank}")

    def remove(self, ranks: Ranks | None = None) -> None:
        """Remove the file, if there is one: the run is over, and its detector saved.

        Args:
            ranks: This process's place among ranks; None for a process of its own.

        """
        path = self.file(ranks or Ranks())
        path.unlink(missing_ok=True)
        remove_parts(path)


@dataclass(frozen=True, eq=False, slots=True)
class _TensorFeatures:
    """A feature matrix in memory, shape ``(batch, features)``, as a `FeatureSource` without labels."""

    features: Tensor
    is_labelled = False
    first_row = 0

    @property
    def rows(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        return self.features.shape[1]

    def read(self, start: int, stop: int) -> tuple[Tensor, None]:
        return self.features[start:stop].detach(), None

    def digest(self) -> str:
        return tensors_digest({"features": self.features, "labels": None})


@dataclass(frozen=True, eq=False, slots=True)
class FeatureBlocks:
    """The rows of a source as blocks on the device of a head, checked as they pass, with the labels that it has.

    Attributes:
        source: Where the rows come from.
        weight: The head's weight, shape ``(classes, features)``.
        name: Name of the argument, for messages.
        size: Rows of a block, at most.
        done: Number of blocks to leave out at the beginning.
        is_inside: Whether labels must be classes of the head, as those of ID samples are; others are left out.

    Raises:
        NonFiniteError: While iterating, if a block holds NaN or infinite values.
        OptionError: While iterating, if a label is no class index of the head.
        DataFileError: While iterating, if the source gives other rows than it was asked for.

    """

    source: FeatureSource
    weight: Tensor
    name: str = "features"
    size: int = BATCH_ROWS
    done: int = 0
    is_inside: bool = True

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self._edges())

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the blocks, shape ``(rows, features)``."""
        return (rows for rows, _ in self.labelled())

    def labelled(self) -> "LabelledBlocks":
        """Return the same blocks with their labels, of as many blocks."""
        return LabelledBlocks(self)

    def read(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield blocks and labels."""
        for start, stop in self._edges():
            rows, labels = self.source.read(start, stop)
            yield rows.to(self.weight.device), self._checked_labels(rows, labels, start, stop)

    def _edges(self) -> list[tuple[int, int]]:
        return block_edges(self.source.rows, size=self.size, first_row=self.source.first_row)[self.done :]

    def _checked_labels(self, rows: Tensor, labels: object, start: int, stop: int) -> Tensor | None:
        """Return the labels of rows that are as they must be."""
        if rows.shape != (stop - start, self.weight.shape[1]) or not rows.is_floating_point():
            raise DataFileError(
                f"`{self.name}` must give floating-point features of shape {(stop - start, self.weight.shape[1])} for "
                f"rows {start} to {stop}, got {rows.dtype} of shape {tuple(rows.shape)}."
            )
        require_finite(rows, name=self.name, first_row=self.source.first_row + start)
        if labels is None or not self.is_inside:
            return None
        indices = class_indices(labels, classes=len(self.weight))
        if indices.shape != (len(rows),):
            raise ShapeError(f"`labels` must have shape ({len(rows)},), one a sample, got {tuple(indices.shape)}.")
        return indices


@dataclass(frozen=True, eq=False, slots=True)
class LabelledBlocks:
    """Blocks with the labels of their rows, class indices of shape ``(rows,)``, or None; errors are those of blocks."""

    blocks: FeatureBlocks

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self.blocks)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield blocks and labels."""
        return self.blocks.read()


def feature_blocks(
    features: Array | FeatureSource,
    weight: Tensor,
    *,
    name: str = "features",
    size: int = BATCH_ROWS,
    is_part: bool = False,
    is_inside: bool = True,
    feature_names: tuple[str, ...] | None = None,
) -> FeatureBlocks:
    """Return features in memory or in a source as blocks for a head.

    Args:
        features: A matrix of shape ``(batch, features)``, or a source.
        weight: The head's weight, shape ``(classes, features)``.
        name: Name of the argument, for messages.
        size: Rows of a block, at most.
        is_part: Whether there may be no rows, as a rank among others may have none.
        is_inside: Whether labels must be classes of the head.
        feature_names: Names of the features of the fit, where they have names.

    Raises:
        EmptyDataError: If there are no rows.
        OptionError: If the features have other names than those of the fit, or another order.
        ShapeError: If the width is not the head's.
        InputTypeError: If `features` is neither floating-point numbers nor a source.

    """
    if isinstance(features, Tensor) or not isinstance(features, FeatureSource):
        source: FeatureSource = _TensorFeatures(
            checked_matrix(as_tensor(features), name=name, axes="(batch, features)")
        )
    else:
        source = features
    require_same_names(features, feature_names, name=name)
    if source.width != weight.shape[1]:
        raise ShapeError(_width_message((source.rows, source.width), weight, name=name))
    if source.rows == 0 and not is_part:
        raise EmptyDataError(f"`{name}` has no rows: at least one sample is needed.")
    block_edges(0, size=size)
    return FeatureBlocks(source, weight, name=name, size=size, is_inside=is_inside)


def require_same_names(features: object, names: tuple[str, ...] | None, *, name: str) -> None:
    """Raise unless features with names have those of the fit, in its order.

    Raises:
        OptionError: If not.

    """
    found = feature_names_of(features)
    if names is None or found is None or found == names:
        return
    what = "the columns of the fit in another order" if sorted(found) == sorted(names) else "other columns than the fit"
    is_frame = hasattr(features, "columns")
    call = (
        "frame[[*detector.feature_names]]" if is_frame else "open_features(path, feature_names=detector.feature_names)"
    )
    raise OptionError(f"`{name}` has {what}: take them by the names of the fit, `{call}`.")


def summed_blocks(
    blocks: FeatureBlocks,
    zeros: FitSum,
    *,
    ranks: Ranks,
    checkpoint: Checkpoint | None = None,
    progress: Progress = None,
) -> FitSum:
    """Return the sum over cached features, block by block; with a checkpoint, on from where it was.

    A pass that was interrupted between two blocks comes to the same bits as one that was not.
    """
    total, done, run = zeros, 0, {}
    if checkpoint is not None:
        run = _run(blocks, zeros, ranks)
        total, done = _resumed(checkpoint, blocks, zeros, ranks, run=run)
    for rows, labels in shown(replace(blocks, done=done).labelled(), progress):
        for start in range(0, len(rows), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            total.add_(rows[part], labels=None if labels is None else labels[part])
        done += 1
        if checkpoint is not None and done % checkpoint.every == 0:
            write_artifact(
                checkpoint.file(ranks),
                kind=_KIND,
                format_version=FORMAT_VERSION,
                tensors=total.carried(),
                metadata={"run": run, "blocks": done},
            )
    return total


def added_up(total: FitSum, ranks: Ranks) -> FitSum:
    """Return the sum over all ranks, the same on each."""
    if ranks.is_alone:
        return total
    require_equal(head_digest(total.weight, total.bias)[:12], ranks, what="a head with digest")
    sums = total.with_tensors(summed(total.to_tensors(), ranks), None)
    if total.kept is None:
        return sums
    kept = KeptRows.empty(KEPT_ROWS, features=total.weight.shape[1], dtype=torch.float64, device=total.weight.device)
    parts = zip(gathered(total.kept.hashes, ranks), gathered(total.kept.rows, ranks), strict=True)
    displaced = [kept.merge_(KeptRows(hashes, rows)) for hashes, rows in parts]
    return replace(sums.enter_(torch.cat(displaced)), kept=kept)


def _width_message(shape: tuple[int, ...], weight: Tensor, *, name: str = "features") -> str:
    """Return what to say of features whose width is not that of the head."""
    is_transposed = weight.shape[1] != weight.shape[0] == shape[-1]
    hint = TRANSPOSED if is_transposed else "Take them where the head takes its input."
    return f"`{name}` must have {weight.shape[1]} columns, one for each input of the head, got shape {shape}. {hint}"


def counted(
    batches: Iterable[tuple[Tensor, Tensor | None]], answers: AnswerSum, weight: Tensor, bias: Tensor | None
) -> Iterator[Tensor]:
    """Yield the features of labelled batches, and add to `answers` how a head answers those with labels."""
    for features, labels in batches:
        if labels is not None:
            answers.add_(_answers(features, weight, bias), labels)
        yield features


def _answers(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a head's logits of features, float32 at least."""
    return product(features.to(product_dtype(features, precision="float32")), weight, bias)


def _as_columns(features: Tensor, logits: Tensor | None, labels: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return features, labels (-1 where none is known) and logits, if there are any, as matrices."""
    if labels is None:
        labels = torch.full((len(features),), NO_LABEL, device=features.device)
    return (features, labels[:, None]) if logits is None else (features, labels[:, None], logits)


def _predicted(features: Tensor, logits: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the predicted class of each row, shape ``(batch,)``; by float64 where float32 cannot tell two apart."""
    first = logits.topk(2, dim=1)
    margin = first.values[:, 0] - first.values[:, 1]
    predicted = first.indices[:, 0].clone()
    close = (margin <= _UNSURE * (1 + logits.abs().amax(1))).nonzero().flatten()
    if len(close):
        predicted[close] = product(features[close].double(), weight, bias).argmax(1)
    return predicted


def _run(blocks: FeatureBlocks, zeros: FitSum, ranks: Ranks) -> dict[str, object]:
    """Return what makes this pass the same as another, by name, as JSON values."""
    source = blocks.source
    names = feature_names_of(source)
    return {
        "batch size": blocks.size,
        "columns": None if names is None else [*names],
        "data": source.digest(),
        "device": blocks.weight.device.type,
        "head": head_digest(zeros.weight, zeros.bias),
        "rank": ranks.rank,
        "ranks": ranks.world,
        "rows": [source.first_row, source.first_row + source.rows],
        "settings": zeros.settings.to_json(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _resumed(
    checkpoint: Checkpoint, blocks: FeatureBlocks, zeros: FitSum, ranks: Ranks, *, run: Mapping[str, object]
) -> tuple[FitSum, int]:
    """Return the sum of this very run and the number of blocks in it, or the empty one if nothing was written down.

    Raises:
        CheckpointError: If the file is damaged, no checkpoint, or one of another run; the message says what differs.

    """
    own = checkpoint.file(ranks)
    remove_parts(own)
    other = checkpoint.file(Ranks(world=2) if ranks.is_alone else Ranks())  # what a run of several, or of one, wrote
    path = next((path for path in (own, other) if path.exists()), None)
    if path is None:
        return zeros, 0
    try:
        tensors, metadata = read_artifact(path, kind=_KIND, format_version=FORMAT_VERSION)
    except (ArtifactError, OSError) as error:
        raise CheckpointError(
            f"{str(error).removesuffix(' Write it again.')} If it is a checkpoint, remove it to start over; if not, "
            f"give another file for the checkpoint."
        ) from error
    written, done = metadata.get("run"), metadata.get("blocks")
    if not isinstance(written, dict) or isinstance(done, bool) or not isinstance(done, int) or done < 1:
        raise CheckpointError(f"{path} lacks something that a checkpoint must hold. Remove it to start over.")
    differing = [name for name in sorted({*run, *written}) if run.get(name) != written.get(name)]
    if differing:
        told = "; ".join(
            f"{name}: {_short(written.get(name))} there, {_short(run.get(name))} here" for name in differing
        )
        raise CheckpointError(
            f"{path} is a checkpoint of another run ({told}). Finish that run as it was begun, or remove the file to "
            f"start over."
        )
    layouts = [{name: (each.shape, each.dtype) for name, each in some.items()} for some in (tensors, zeros.carried())]
    if layouts[0] != layouts[1]:
        raise CheckpointError(f"{path} holds other sums than those of this run. Remove it to start over.")
    moved = {name: tensor.to(blocks.weight.device, copy=True) for name, tensor in tensors.items()}
    total = zeros.with_carried(moved)
    if done > len(blocks) or total.seen < 1:
        raise CheckpointError(f"{path} speaks of other data than there are. Remove it to start over.")
    return total, done


def _short(value: object) -> str:
    """Return a value in words, a digest by its first digits."""
    text = str(value)[:_SHOWN]
    is_digest = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return text[:12] if is_digest else text
