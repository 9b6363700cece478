"""Many settings on the same features in one go: each setting's logits come from those of the one before.

Logits are linear in the head. Two settings whose heads differ in a few columns differ by a low-rank product, and two
whose heads differ in a few weights by a sparse one; only where much differs is the whole product taken again. Settings
are visited in an order that keeps neighbours close, so that a curve over a neuron ratio costs about one product in all.
Rows go through in blocks, and settings in groups, so that memory is bounded whatever their numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

import torch
from torch import Tensor

from opnp.core.checks import require_finite
from opnp.core.masks import Masks, pruned_weight
from opnp.core.scores import score_logits
from opnp.core.sensitivity import product_dtype
from opnp.core.shaping import ReAct, shaped
from opnp.fitted import FittedState, Settings, neurons_kept, weights_kept

__all__ = ["Readout", "own_score", "swept"]

Readout = Callable[[Tensor, Settings], tuple[Tensor, ...]]
"""Reads logits, shape ``(rows, classes)``, off under a setting: any number of tensors of shape ``(rows,)``."""

_LOGITS = 2**20
"""Logits held at once: what a processor keeps near."""
_VALUES = 2**25
"""Values read off that are held at once."""
_MASKS = 2**27
"""Entries of masks of weights that are kept for the next block of rows."""
_UPDATES = 64
"""Updates after which the whole product is taken again, so that rounding does not add up."""
_SPARSE = 0.02
"""Share of the weights below which a difference is multiplied as a sparse matrix."""


def swept(
    fitted: FittedState, settings: Sequence[Settings], features: Tensor, readout: Readout
) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Yield what is read off the logits under each setting, with its place in `settings`.

    Args:
        fitted: Sensitivities and head.
        settings: Resolved settings, all of one temperature of the sensitivities.
        features: Shape ``(batch, features)``, finite.
        readout: What to read off; called with blocks of rows.

    Yields:
        Pairs of the place and the tensors, shape ``(batch,)``, in an order of its own. Logits agree with those of one
        product to rounding.

    Raises:
        RatioError: If ratios leave nothing of the head.
        NonFiniteError: If logits are not finite.

    Warns:
        RatioWarning: If a ratio above 0 removes no entry, or cuts among sensitivities that underflowed.

    """
    heads = _Heads(fitted, {}, {})
    order = sorted(range(len(settings)), key=lambda place: _nearby(settings[place]))
    group = max(1, _VALUES // max(1, len(features)))
    for start in range(0, len(order), group):
        places = order[start : start + group]
        parts: list[list[tuple[Tensor, ...]]] = [[] for _ in places]
        for rows in features.split(max(1, _LOGITS // len(fitted.weight))):
            found = _chain(heads, [settings[place] for place in places], rows, readout)
            for part, values in zip(parts, found, strict=True):
                part.append(values)
        for place, part in zip(places, parts, strict=True):
            yield place, tuple(torch.cat(columns) for columns in zip(*part, strict=True))


def own_score(logits: Tensor, settings: Settings) -> tuple[Tensor]:
    """Read the score that settings name off logits."""
    return (score_logits(logits, score=settings.score, temperature=settings.temperature),)


@dataclass(frozen=True, eq=False, slots=True)
class _Heads:
    """The heads of settings; each mask is made once.

    Attributes:
        fitted: Sensitivities and head.
        weights: Masks of the weights by what they depend on.
        neurons: Masks of the neurons by what they depend on.

    """

    fitted: FittedState
    weights: dict[object, Tensor]
    neurons: dict[object, Tensor]

    def masks(self, settings: Settings) -> Masks:
        """Return the masks of a setting."""
        ratios = settings.ratios
        weights = (settings.scope, ratios.w_min, ratios.w_max)
        neurons = (settings.neuron, ratios.o_min, ratios.o_max)
        if weights not in self.weights:
            if len(self.weights) * self.fitted.weight.numel() > _MASKS:
                self.weights.clear()
            self.weights[weights] = weights_kept(self.fitted.sensitivity, settings)
        if neurons not in self.neurons:
            self.neurons[neurons] = neurons_kept(self.fitted.sensitivity, settings)
        return Masks(self.weights[weights], self.neurons[neurons])


def _chain(heads: _Heads, settings: Sequence[Settings], rows: Tensor, readout: Readout) -> Iterator[tuple[Tensor, ...]]:
    """Yield what is read off a block of rows under each setting, in their order."""
    for _, alike in groupby(settings, key=lambda each: (each.shaping, each.precision)):
        running: _Running | None = None
        for each in alike:
            if running is None:
                running = _Running.from_rows(heads.fitted, each, rows)
            running.move_to(heads.masks(each))
            require_finite(running.logits, name="logits", where=" of the pruned head")
            yield readout(running.logits.T, each)


@dataclass(eq=False, slots=True)
class _Running:
    """A block of rows, and its logits under the head that it was last moved to. Both lie with rows as columns.

    Attributes:
        inputs: Shaped features, shape ``(features, rows)``.
        weight: The original weight, shape ``(classes, features)``, dtype of the inputs.
        bias: The bias, shape ``(classes, 1)``, or None.
        masks: What is kept now; None before the first head.
        logits: Shape ``(classes, rows)``.
        updates: Updates since the last whole product.

    """

    inputs: Tensor
    weight: Tensor
    bias: Tensor | None
    masks: Masks | None
    logits: Tensor
    updates: int

    @classmethod
    def from_rows(cls, fitted: FittedState, settings: Settings, rows: Tensor) -> Self:
        """Return the block before its first head."""
        dtype = product_dtype(rows, precision=settings.precision)
        shaping = settings.shaping
        threshold = fitted.react_thresholds[shaping.quantile] if isinstance(shaping, ReAct) else None
        # Float64 in any case: what a large feature leaves behind when it is subtracted again would show in float32.
        inputs = shaped(rows.detach().to(dtype), shaping, threshold=threshold).double().T.contiguous()
        weight = fitted.weight.to(inputs)
        bias = None if fitted.bias is None else fitted.bias.to(inputs)[:, None]
        return cls(inputs, weight, bias, None, inputs.new_empty(len(weight), len(rows)), 0)

    def move_to(self, masks: Masks) -> None:
        """Make `logits` those of the head that these masks leave: by the difference if it is small, else anew."""
        if self.masks is None or self.updates >= _UPDATES or not self._is_moved(self.masks, masks):
            torch.mm(pruned_weight(self.weight, masks), self.inputs, out=self.logits)
            if self.bias is not None:
                self.logits += self.bias
            self.updates = 0
        else:
            self.updates += 1
        self.masks = masks

    def _is_moved(self, old: Masks, new: Masks) -> bool:
        """Update the logits by the difference of two heads, and return True; return False if it is large."""
        if old.weight is new.weight:
            columns = (old.neuron ^ new.neuron).nonzero().flatten()
            if 2 * len(columns) > len(self.inputs):
                return False
            sign = new.neuron[columns].to(self.weight) - old.neuron[columns].to(self.weight)
            change = self.weight[:, columns].masked_fill(~new.weight[:, columns], 0.0) * sign
            self.logits.addmm_(change, self.inputs[columns])
            return True
        place = (old.kept ^ new.kept).nonzero(as_tuple=True)
        if len(place[0]) > _SPARSE * self.weight.numel():
            return False
        values = self.weight[place] * (new.kept[place].to(self.weight) - old.kept[place].to(self.weight))
        change = torch.sparse_coo_tensor(
            torch.stack(place), values, self.weight.shape, is_coalesced=True, check_invariants=False
        )
        self.logits += torch.sparse.mm(change, self.inputs)
        return True


def _nearby(settings: Settings) -> tuple[object, ...]:
    """Return a key that sorts settings of similar heads side by side, the innermost ratio last."""
    ratios = settings.ratios
    weights = (settings.scope, ratios.w_max, ratios.w_min)
    return (repr(settings.shaping), settings.precision, *weights, settings.neuron, ratios.o_max, ratios.o_min)
