"""One pass over the training data: sums that add up over batches, runs and ranks, and what they leave.

For the paper's method every row goes into the sums. For a fusion at most 2000 rows, a fifth of smaller data, stay out
of them: those with the smallest content hashes, so that which ones does not depend on the order. They give the scales
of the members. Rows inside the sums could not: with one image a class their distance to the class mean is nothing.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from opnp.core.checks import checked_matrix, require_finite
from opnp.core.histogram import ValueHistogram
from opnp.core.kept_rows import KeptRows
from opnp.core.members import REACT_QUANTILE
from opnp.core.moments import FeatureMoments
from opnp.core.sensitivity import BLOCK_ROWS, SensitivitySum, product_dtype, row_blocks
from opnp.core.shaping import ReAct
from opnp.detector.blocks import FeatureBlocks, width_message
from opnp.detector.checkpoint import Checkpoint, Progressed, read_checkpoint, require_like, write_checkpoint
from opnp.detector.members import fitted_fusion
from opnp.detector.progress import Progress, shown
from opnp.distributed import Ranks, gathered, require_equal, summed
from opnp.errors import CheckpointError, EmptyDataError, InputTypeError, NonFiniteError, OptionError, ShapeError
from opnp.fitted import FittedState, Settings, head_digest, product

__all__ = ["KEPT_ROWS", "FitSum", "added_up", "checked_head", "summed_blocks"]

KEPT_ROWS = 2000
"""Rows that give the scales of a fusion, at most."""
_KEPT_SHARE = 5
"""One row in so many is kept out of the sums of smaller data."""
_FEWEST_KEPT = 20
"""Rows with a 95 % quantile that is not their maximum: as many are kept if half of the data are."""
_BYTES_OF_FLOAT32 = 4
_UNSURE = 1e-4
"""Margin between two logits, relative to their size, that rounding of float32 may have turned."""


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

    """

    weight: Tensor
    bias: Tensor | None
    settings: Settings
    sensitivity: SensitivitySum
    histogram: ValueHistogram | None
    moments: FeatureMoments | None
    kept: KeptRows | None

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
        )

    @classmethod
    def of(
        cls,
        batches: Iterable[tuple[Tensor, Tensor | None]],
        weight: Tensor,
        bias: Tensor | None,
        settings: Settings,
    ) -> Self:
        """Return the sum over a stream of (features, logits or None), however it is cut into batches.

        Args:
            batches: Features, shape ``(batch, features)``, with logits, shape ``(batch, classes)``, or None.
            weight: The head's weight, shape ``(classes, features)``.
            bias: The head's bias, shape ``(classes,)``, or None.
            settings: What is to be fitted.

        Raises:
            ShapeError: If features and head do not fit together.
            NonFiniteError: If computed logits are not finite.

        """
        total = cls.zeros(weight, bias, settings)
        pairs = ((features,) if logits is None else (features, logits) for features, logits in batches)
        for block in row_blocks(pairs):
            total.add_(*block)
        return total

    def add_(self, features: Tensor, logits: Tensor | None = None) -> Self:
        """Add a block of rows in place, and return this sum: a fusion's sample takes its rows first.

        Args:
            features: Shape ``(rows, features)``; at most `BLOCK_ROWS` rows, as for `SensitivitySum.add_`.
            logits: Shape ``(rows, classes)``, or None to have them computed. Those of half precision are computed anew,
                as they have lost digits that the features have; in precision ``"float64"`` and for a fusion all are.

        Raises:
            ShapeError: If features and head do not fit together.
            NonFiniteError: If computed logits are not finite.

        """
        weight, settings = self.weight, self.settings
        if features.shape[1:] != weight.shape[1:]:
            raise ShapeError(width_message(tuple(features.shape), weight))
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
        )

    def fitted(self) -> FittedState:
        """Return the detector that the samples give.

        Raises:
            EmptyDataError: If there was no sample, or no score can be fused.
            NonFiniteError: If sums or thresholds are not finite.
            RatioError: If the ratios leave nothing of the head.

        """
        if self.kept is not None:
            return self._fitted_fusion(self.kept)
        if self.sensitivity.count == 0:
            raise EmptyDataError("There are no training samples: sensitivities need at least one.")
        shaping = self.settings.shaping
        quantiles = [shaping.quantile] if isinstance(shaping, ReAct) else []
        state = FittedState(
            settings=self.settings,
            weight=self.weight,
            bias=self.bias,
            sensitivity=self.sensitivity.mean(),
            react_thresholds={quantile: self.threshold(quantile) for quantile in quantiles},
        )
        state.pruned  # noqa: B018  # ratios that leave nothing are refused here, not at the first score
        return state

    def _fitted_fusion(self, sample: KeptRows) -> FittedState:
        seen = self.sensitivity.count + len(sample)
        if seen == 0:
            raise EmptyDataError("There are no training samples: a detector needs at least two.")
        count = min(KEPT_ROWS, max(seen // _KEPT_SHARE, min(_FEWEST_KEPT, seen // 2)))
        own = self.with_tensors({name: tensor.clone() for name, tensor in self.to_tensors().items()}, None)
        total, kept = own.enter_(sample.others(count)), sample.smallest(count)
        if total.moments is None:
            raise EmptyDataError("The sums of a fusion have no moments.")
        return fitted_fusion(
            total.moments,
            kept,
            weight=self.weight,
            bias=self.bias,
            sensitivity=total.sensitivity.mean(),
            react_threshold=total.threshold(REACT_QUANTILE),
            settings=self.settings,
        )

    def threshold(self, quantile: float) -> float:
        """Return the threshold of ReAct: a quantile of the training features."""
        if self.histogram is None:
            raise EmptyDataError("The features' values were not counted.")
        threshold = self.histogram.quantile(quantile)
        if not math.isfinite(threshold):
            raise NonFiniteError(
                f"The threshold of ReAct must lie within float32, which ends at 3.4e38, got {threshold} at the "
                f"quantile {quantile:g}. Scale the features down."
            )
        return threshold


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
    total, done = zeros, 0
    run = {} if checkpoint is None else _run(blocks, zeros, ranks)
    if checkpoint is not None:
        found = read_checkpoint(checkpoint, ranks, run=run)
        if found is not None:
            total, done = _resumed(found, zeros, blocks, path=checkpoint.file(ranks)), found.blocks
    for rows in shown(blocks.after(done), progress):
        for block in rows.split(BLOCK_ROWS):
            total.add_(block)
        done += 1
        if checkpoint is not None and done % checkpoint.every == 0:
            write_checkpoint(checkpoint, ranks, run=run, state=Progressed(done, total.to_tensors() | _kept(total)))
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


def checked_head(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias if they are those of a classifier's head, else say what is wrong.

    Raises:
        ShapeError: If the shapes are wrong, or there are fewer than two classes.
        InputTypeError: If they are no floating-point tensors.
        NonFiniteError: If they hold NaN or infinite values.

    """
    checked_matrix(weight, name="weight", axes="(classes, features)")
    if len(weight) < 2:
        raise ShapeError(
            f"`weight` must have a row for each of at least two classes, got {len(weight)}. One logit z says the same "
            f"as the two logits -z/2 and z/2: use `torch.cat([-weight, weight]) / 2`, and the bias alike.",
        )
    require_finite(weight.detach(), name="weight")
    if bias is not None:
        if not isinstance(bias, Tensor) or not bias.is_floating_point():
            got = bias.dtype if isinstance(bias, Tensor) else type(bias).__name__
            raise InputTypeError(f"`bias` must be a floating-point torch.Tensor of shape (classes,), got {got}.")
        if bias.shape != weight.shape[:1]:
            raise ShapeError(f"`bias` must have shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}.")
        if not bool(torch.isfinite(bias).all()):
            raise NonFiniteError(
                f"`bias` must be finite, got {int((~torch.isfinite(bias)).sum())} entries that are not."
            )
    return weight, bias


def _predicted(features: Tensor, logits: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the predicted class of each row, shape ``(batch,)``; by float64 where float32 cannot tell two apart."""
    first = logits.topk(2, dim=1)
    margin = first.values[:, 0] - first.values[:, 1]
    predicted = first.indices[:, 0].clone()
    close = (margin <= _UNSURE * (1 + logits.abs().amax(1))).nonzero().flatten()
    if len(close):
        predicted[close] = product(features[close].double(), weight, bias).argmax(1)
    return predicted


def _kept(total: FitSum) -> dict[str, Tensor]:
    return {} if total.kept is None else {"kept.hashes": total.kept.hashes, "kept.rows": total.kept.rows}


def _run(blocks: FeatureBlocks, zeros: FitSum, ranks: Ranks) -> dict[str, object]:
    """Return what makes this pass the same as another, by name, as JSON values."""
    source = blocks.source
    return {
        "batch size": blocks.size,
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


def _resumed(found: Progressed, zeros: FitSum, blocks: FeatureBlocks, *, path: Path) -> FitSum:
    """Return the sum of a checkpoint."""
    require_like(found.tensors, zeros.to_tensors() | _kept(zeros), path=path)
    if found.blocks > len(blocks):
        raise CheckpointError(f"{path} speaks of more data than there are. Remove it to start over.")
    tensors = {name: tensor.to(blocks.weight.device, copy=True) for name, tensor in found.tensors.items()}
    kept = KeptRows(tensors["kept.hashes"], tensors["kept.rows"]) if "kept.rows" in tensors else None
    total = zeros.with_tensors(tensors, kept)
    if total.sensitivity.count + (0 if kept is None else len(kept)) < 1:
        raise CheckpointError(f"{path} speaks of other data than there are. Remove it to start over.")
    return total
