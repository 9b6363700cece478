"""Ratios chosen on OOD validation data, as the paper chooses them, with the gain on samples that were not searched.

The search goes over the ratios of the weights in both scopes, over those of the neurons in both readings, over the best
of each together, and over their neighbours. What is maximised is the AUROC of ID against OOD validation samples.

Many settings on the same features are tried in one go, as each setting's logits come from those of the one before:
logits are linear in the head. Two settings whose heads differ in a few columns differ by a low-rank product, and two
whose heads differ in a few weights by a sparse one; only where much differs is the whole product taken again. Settings
are visited in an order that keeps neighbours close, so that a curve over a neuron ratio costs about one product in all.
Rows go through in blocks, and settings in groups, so that memory is bounded whatever their numbers.
"""

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from opnp.core.checks import require_finite
from opnp.core.masks import Masks, Scope, pruned_weight
from opnp.core.metrics import auroc
from opnp.core.scores import score_logits
from opnp.core.sensitivity import NeuronReading, product_dtype
from opnp.core.shaping import ReAct, shaped
from opnp.errors import EmptyDataError, RatioError, RatioWarning, SignedFeaturesWarning
from opnp.fitted import FittedState, Ratios, Settings, Tuning, neurons_kept, weights_kept

__all__ = ["FEWEST_TUNED", "Part", "Readout", "own_score", "swept", "tuned"]

Part = Literal["weights", "neurons"]
"""What ratios remove."""

FEWEST_TUNED = 40
"""ID and OOD samples that a search needs each: half of them are searched on, half measure the gain."""

_WEIGHTS = (
    *(Ratios(w_min=share) for share in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)),
    *(Ratios(w_max=share) for share in (0.001, 0.005, 0.01, 0.02)),
)
_NEURONS = (
    *(Ratios(o_min=share) for share in (0.1, 0.3, 0.5, 0.7)),
    *(Ratios(o_max=share) for share in (0.005, 0.01, 0.02, 0.05, 0.1, 0.3)),
)
_FINALISTS = 3

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


def tuned(
    state: FittedState,
    features: Tensor,
    ood: Tensor,
    *,
    searched: tuple[bool, bool] = (True, True),
    parts: Collection[Part] = get_args(Part),
) -> tuple[FittedState, Tensor]:
    """Return the state under the best ratios, and the ID features that were not searched, to calibrate on.

    Every second sample is searched on, the others measure what was gained over the plain energy; both are shuffled by
    a fixed seed before.

    Args:
        state: A fitted detector of the paper's method.
        features: Features of held-out ID samples, shape ``(samples, features)``.
        ood: Features of OOD validation samples, shape ``(samples, features)``.
        searched: Whether to search over the scope of the weights, and over the reading of the neurons.
        parts: What may be removed: ``weights``, ``neurons`` or both.

    Raises:
        EmptyDataError: If there are fewer than 40 samples of either kind.

    """
    for name, rows in (("validation", features), ("validation_ood", ood)):
        if len(rows) < FEWEST_TUNED:
            raise EmptyDataError(
                f"Ratios need at least {FEWEST_TUNED} samples in `{name}` to be tuned on, got {len(rows)}: half of "
                f"them are searched on, half measure the gain."
            )
    (inside, rest), (outside, ood_rest) = _halves(features), _halves(ood)
    plain = replace(state.settings, ratios=Ratios())
    found: dict[Settings, float] = {plain: _auroc(state, plain, inside, outside)}

    def attempt(candidates: Iterable[Settings]) -> None:
        fresh = [each for each in dict.fromkeys(candidates) if each not in found and _is_sound(state, each)]
        found.update(zip(fresh, _aurocs(state, fresh, inside, outside), strict=True))

    def best(of: tuple[Ratios, ...]) -> list[Settings]:
        mine = [each for each in found if each.ratios in of]
        return sorted(mine, key=lambda each: -found[each])[:_FINALISTS]

    scopes: tuple[Scope, ...] = ("layer", "class") if searched[0] else (plain.scope,)
    readings: tuple[NeuronReading, ...] = ("gradient", "aggregate") if searched[1] else (plain.neuron,)
    weights, neurons = (of if part in parts else () for part, of in (("weights", _WEIGHTS), ("neurons", _NEURONS)))
    attempt(replace(plain, ratios=each, scope=scope) for each in weights for scope in scopes)
    attempt(replace(plain, ratios=each, neuron=reading) for each in neurons for reading in readings)
    attempt(_joined(first, second) for first in best(_WEIGHTS) for second in best(_NEURONS))
    attempt(_neighbours(max(found, key=lambda each: found[each])))
    chosen = max(found, key=lambda each: (found[each], each == plain))
    tuning = Tuning(
        settings=chosen,
        tried=len(found),
        searched=(len(inside), len(outside)),
        unsearched=(len(rest), len(ood_rest)),
        auroc=_auroc(state, chosen, rest, ood_rest),
        energy_auroc=_auroc(state, replace(plain, score="energy", shaping=None), rest, ood_rest),
    )
    return replace(state.with_settings(chosen), tuning=tuning), rest


def _halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0), device="cpu").to(rows.device)
    return rows[order[::2]], rows[order[1::2]]


def _aurocs(state: FittedState, settings: list[Settings], features: Tensor, ood: Tensor) -> list[float]:
    if not settings:
        return []
    values = [0.0] * len(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RatioWarning)
        warnings.simplefilter("ignore", SignedFeaturesWarning)
        for place, (scores,) in swept(state, settings, torch.cat([features, ood]), own_score):
            values[place] = auroc(scores[: len(features)], scores[len(features) :])
    return values


def _auroc(state: FittedState, settings: Settings, features: Tensor, ood: Tensor) -> float:
    return _aurocs(state, [settings], features, ood)[0]


def _is_sound(state: FittedState, settings: Settings) -> bool:
    """Return whether the ratios leave something of this head."""
    neurons, ratios = state.weight.shape[1], settings.ratios
    weights = neurons if settings.scope == "class" else state.weight.numel()
    return (
        round(ratios.w_min * weights) + round(ratios.w_max * weights) < weights
        and round(ratios.o_min * neurons) + round(ratios.o_max * neurons) < neurons
    )


def _joined(first: Settings, second: Settings) -> Settings:
    of_weights, of_neurons = first.ratios, second.ratios
    ratios = Ratios(of_weights.w_min, of_weights.w_max, of_neurons.o_min, of_neurons.o_max)
    return replace(first, ratios=ratios, neuron=second.neuron)


def _neighbours(settings: Settings) -> Iterator[Settings]:
    """Yield the settings with one ratio half as large, or half as large again."""
    ratios = settings.ratios
    for name in Ratios.__slots__:
        share = getattr(ratios, name)
        for factor in (0.5, 1.5):
            if 0 < share * factor < 0.95:
                with contextlib.suppress(RatioError):
                    yield replace(settings, ratios=replace(ratios, **{name: round(share * factor, 6)}))


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
            torch.stack(place),
            values,
            self.weight.shape,
            device=values.device,
            is_coalesced=True,
            check_invariants=False,
        )
        self.logits += torch.sparse.mm(change, self.inputs)
        return True


def _nearby(settings: Settings) -> tuple[object, ...]:
    """Return a key that sorts settings of similar heads side by side, the innermost ratio last."""
    ratios = settings.ratios
    weights = (settings.scope, ratios.w_max, ratios.w_min)
    return (repr(settings.shaping), settings.precision, *weights, settings.neuron, ratios.o_max, ratios.o_min)
