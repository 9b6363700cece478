"""What a fitted detector knows, as values: settings, calibration, and all that scores are computed from.

`FittedState` is what a file holds and what an exported graph is made of. It has no model and no data.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple, Self, get_args

import msgspec
import torch
from torch import Tensor

from opnp.artifact import tensors_digest
from opnp.core.checks import checked_fraction, checked_temperature, require_finite
from opnp.core.conformal import (
    ALONE,
    at_least_count,
    conformal_p_value,
    flagged_rank,
    is_flagged,
    keep_threshold,
    minimum_samples,
    pool_limits,
)
from opnp.core.fusion import finite_or_infinite, fused_score, member_shares, tail_units
from opnp.core.masks import Masks, neuron_mask, pruned_weight, warn_of_lost_order, weight_mask
from opnp.core.members import MEMBERS, PANEL, PANEL_SHAPING, PRUNED_HEAD, Panel, member_scores
from opnp.core.scores import score_logits
from opnp.core.sensitivity import Sensitivity, is_held_by_float32, product, product_dtype
from opnp.core.shaping import ASHS, SCALE, ReAct, Shaping, shaped
from opnp.errors import CalibrationError, OptionError, RatioError
from opnp.model import InputAxes
from opnp.values.fit import TuningFigures
from opnp.values.origin import ModelOrigin
from opnp.values.settings import CalibratedBy, NeuronReading, Precision, Scope, ScoreName

__all__ = [
    "PANEL_RATIOS",
    "SHAPINGS",
    "Calibration",
    "CalibrationGroup",
    "Explanation",
    "FittedState",
    "PrunedHead",
    "Ratios",
    "Settings",
    "Tuning",
    "Verdict",
    "head_digest",
    "neurons_kept",
    "shaping_from_json",
    "weights_kept",
]

_MANY = 100
"""Calibration samples from which on infinite scores are no bad luck."""

_CHOICES = {"neuron": NeuronReading, "scope": Scope, "score": ScoreName, "precision": Precision}
SHAPINGS: dict[str, type[ReAct | ASHS | SCALE]] = {"react": ReAct, "ash_s": ASHS, "scale": SCALE}
"""The shapings by the names that they have in files, and, with a hyphen, on the command line."""


@dataclass(frozen=True, slots=True)
class Ratios:
    """Shares of the last layer's weights and neurons to remove, each a fraction in [0, 1).

    Attributes:
        w_min: Share of the weights with the smallest sensitivity (rho_w_min).
        w_max: Share of the weights with the largest sensitivity (rho_w_max).
        o_min: Share of the neurons with the smallest sensitivity (rho_o_min).
        o_max: Share of the neurons with the largest sensitivity (rho_o_max).

    Raises:
        RatioError: If a ratio lies outside [0, 1), or two of one layer sum to 1 or more.

    Example:
        >>> Ratios(w_min=0.3)
        Ratios(w_min=0.3, w_max=0.0, o_min=0.0, o_max=0.0)

    References:
        Chen et al., NeurIPS 2023: OPP uses the first two, ONP the last two, OPNP all four.

    """

    w_min: float = 0.0
    w_max: float = 0.0
    o_min: float = 0.0
    o_max: float = 0.0

    def __post_init__(self) -> None:
        """Check each ratio, and each pair."""
        for name, value in asdict(self).items():
            try:
                object.__setattr__(self, name, checked_fraction(value, name=name, is_zero_allowed=True))
            except OptionError as error:
                raise RatioError(str(error)) from None
        for lowest, highest in (("w_min", "w_max"), ("o_min", "o_max")):
            low, high = getattr(self, lowest), getattr(self, highest)
            if Fraction(str(low)) + Fraction(str(high)) >= 1:
                raise RatioError(
                    f"`{lowest}` = {low:g} and `{highest}` = {high:g} sum to {low + high:g}: at least one entry must "
                    f"be left. Lower one of them.",
                )


PANEL_RATIOS = Ratios(w_min=0.5)
"""What the pruned head of the fusion leaves out: the less sensitive half of the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of a detector.

    Attributes:
        members: Names of the scores that are fused; None for the paper's method, the pruned head alone.
        ratios: Pruning ratios of the pruned head. In a fusion the head that is its member `opnp`.
        neuron: Reading of the neuron sensitivity, ``"gradient"`` or ``"aggregate"``.
        scope: What the weights are ranked within, ``"layer"`` or ``"class"``.
        temperature: Temperature T of sensitivity and score, above 0.
        score: Name of the score on the pruned head's logits.
        shaping: Shaping of the features before the pruned head, or None.
        precision: Precision of products, ``"float32"`` or ``"float64"``.

    Raises:
        OptionError: If an option is out of range.

    """

    members: tuple[str, ...] | None = None
    ratios: Ratios = Ratios()
    neuron: NeuronReading = "gradient"
    scope: Scope = "layer"
    temperature: float = 1.0
    score: ScoreName = "energy"
    shaping: Shaping | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Check every option."""
        members = self.members
        if members is not None:
            names = tuple(members) if isinstance(members, list | tuple) else ()
            if not names or len(set(names)) != len(names) or not set(names) <= set(MEMBERS):
                raise OptionError(
                    f"`members` must be one or more different names among {', '.join(MEMBERS)}, got {members!r}."
                )
            object.__setattr__(self, "members", names)
        if not isinstance(self.ratios, Ratios):
            raise OptionError(f"`ratios` must be a Ratios(...), got {self.ratios!r}.")
        if self.shaping is not None and not isinstance(self.shaping, Shaping):
            raise OptionError(f"`shaping` must be None, ReAct(...), ASHS(...) or SCALE(...), got {self.shaping!r}.")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in get_args(allowed):
                choices = ", ".join(map(repr, get_args(allowed)))
                raise OptionError(f"`{name}` must be one of {choices}, got {getattr(self, name)!r}.")
        object.__setattr__(self, "temperature", checked_temperature(self.temperature))

    @classmethod
    def of_fusion(cls, members: Iterable[str] = PANEL, *, precision: Precision = "float32") -> Self:
        """Return the settings of a fusion of these members, with the pruned head that belongs to it."""
        names = [members] if isinstance(members, str) else members
        return cls(
            members=tuple(names) if isinstance(names, Iterable) else names,
            ratios=PANEL_RATIOS,
            shaping=PANEL_SHAPING,
            precision=precision,
        )

    @property
    def is_fusion(self) -> bool:
        """Whether several scores are fused; otherwise the score is that of the pruned head alone."""
        return self.members is not None

    def to_json(self) -> dict[str, object]:
        """Return the settings as JSON values, for `from_json`."""
        values: dict[str, object] = {each.name: getattr(self, each.name) for each in fields(self)[1:]}
        values["ratios"] = asdict(self.ratios)
        for name, kind in SHAPINGS.items():
            if isinstance(self.shaping, kind):
                values["shaping"] = {"name": name, "quantile": self.shaping.quantile}
        return values if self.members is None else {"members": list(self.members)} | values

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Self:
        """Return the settings that `to_json` wrote.

        Raises:
            OptionError: If a value is out of range, or the settings are those of version 0.1's automatic choice.
            TypeError: If the values are not those of settings.
            KeyError: If a shaping is unknown.

        """
        parts = dict(values)
        ratios, shaping, members = parts.get("ratios"), parts.get("shaping"), parts.get("members")
        if "auto" in (ratios, shaping):
            raise OptionError(
                'settings with "auto" left something to be chosen by a method that version 0.2 does not have: it fuses '
                "scores in place of choosing one. Fit again with `OPNP()`, or give ratios"
            )
        if isinstance(ratios, Mapping):
            parts["ratios"] = Ratios(**ratios)
        parts["shaping"] = shaping_from_json(shaping)
        if isinstance(members, list | tuple):
            parts["members"] = tuple(members)
        return cls(**parts)  # type: ignore[arg-type]  # checked one by one in __post_init__


def shaping_from_json(value: object) -> Shaping | None:
    """Return the shaping that a mapping of its name and quantile stands for; one that is none already stays.

    Raises:
        KeyError: If there is no shaping of this name.

    Example:
        >>> shaping_from_json({"name": "scale", "quantile": 0.9})
        SCALE(quantile=0.9)

    """
    if isinstance(value, Mapping):
        return SHAPINGS[value["name"]](value["quantile"])
    return value  # type: ignore[return-value]  # `Settings` refuses what is none


class Tuning(TuningFigures, frozen=True, kw_only=True):
    """How ratios were chosen on OOD validation data, and what they gained on the part that was not searched.

    Attributes:
        settings: What was chosen.
        tried: Number of settings tried.
        searched: Numbers of ID and OOD samples that were searched on.
        unsearched: Numbers of ID and OOD samples that the gain was measured on.
        auroc: AUROC of the chosen setting on those.
        energy_auroc: AUROC of the plain energy on the same.

    """

    settings: Settings

    @property
    def gain(self) -> float:
        """AUROC gained over the plain energy, on samples that were not searched."""
        return self.auroc - self.energy_auroc

    def to_json(self) -> dict[str, object]:
        """Return it as JSON values."""
        return msgspec.structs.asdict(self) | {"settings": self.settings.to_json()}


class Verdict(NamedTuple):
    """What a detector says of a batch of inputs.

    Attributes:
        predicted_class: Class predicted by the original head, shape ``(batch,)``, int64.
        score: Larger = more OOD, shape ``(batch,)``.
        p_value: Conformal p-value, small = OOD, shape ``(batch,)``, float64.
        is_ood: True = flagged, shape ``(batch,)``, bool.

    """

    predicted_class: Tensor
    score: Tensor
    p_value: Tensor
    is_ood: Tensor


class Explanation(NamedTuple):
    """What each score that was fused says of a batch of inputs: why an input looks OOD, and no test of its own.

    Attributes:
        members: Names of the scores.
        p_value: p-value of each by itself on the calibration samples, not adjusted for their number, shape
            ``(batch, members)``, float64.
        share: Share exp(z_k - S) of each in the fused score, shape ``(batch, members)``; rows sum to 1. It is 0 for
            the pruned head where that is not fused.

    """

    members: tuple[str, ...]
    p_value: Tensor
    share: Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Calibration:
    """Scores of held-out ID samples and the share of ID to keep; by predicted class, each group of classes by itself.

    Attributes:
        scores: Ascending, shape ``(n,)``, float64, on the CPU.
        keep: Share of ID that is not flagged, in expectation at least, in (0, 1).
        members: Scores of each member of a fusion, shape ``(n, members)``, each column ascending; by class, row by row
            those of `scores`. None without a fusion.
        classes: Predicted class of each of `scores`, shape ``(n,)``, int64; None where all are one group.
        groups: The groups that calibration by class makes; empty where all are one group.
        group_of_class: Place in `groups` of what judges each class, shape ``(classes,)``, int64; or None.

    """

    scores: Tensor
    keep: float
    members: Tensor | None = None
    classes: Tensor | None = None
    groups: tuple["CalibrationGroup", ...] = ()
    group_of_class: Tensor | None = None

    @classmethod
    def from_scores(cls, scores: Tensor, *, keep: float, members: Tensor | None = None) -> Self:
        """Return the calibration by these scores, in any order.

        Raises:
            OptionError: If `keep` lies outside (0, 1).
            CalibrationError: If there are too few scores for this `keep`.

        """
        rank, lost = flagged_rank(len(scores), keep=keep), int(scores.isposinf().sum())
        if lost >= rank and len(scores) >= _MANY:  # of few samples one unlucky one would do
            raise CalibrationError(
                f"{lost} of {len(scores)} calibration samples have an infinite score, so that no finite score could be "
                f"flagged at keep={keep:g}. Their features are zero or too large: leave out these samples, or by "
                f"`members=` the score that is infinite.",
            )
        columns = None if members is None else finite_or_infinite(members.detach().double().cpu()).sort(0).values
        return cls(scores=scores.detach().double().cpu().sort().values, keep=float(keep), members=columns)

    @classmethod
    def by_class(
        cls, scores: Tensor, classes: Tensor, *, keep: float, class_count: int, members: Tensor | None = None
    ) -> Self:
        """Return the calibration of each predicted class by itself, with a pooled group of those with few samples.

        Args:
            scores: Scores in any order, shape ``(n,)``.
            classes: Predicted class of each, shape ``(n,)``.
            keep: Share of ID to keep in each group, in (0, 1).
            class_count: Classes of the head.
            members: Scores of each member of a fusion, row by row those of `scores`.

        Raises:
            OptionError: If `keep` lies outside (0, 1).
            CalibrationError: If there are too few scores for this `keep`.

        """
        order = scores.detach().double().cpu().argsort(stable=True)
        scores, classes = scores.detach().double().cpu()[order], classes.cpu()[order]
        rows = None if members is None else finite_or_infinite(members.detach().double().cpu())[order]
        cls.from_scores(scores, keep=keep)  # raises if these are too few, all together
        counts = classes.bincount(minlength=class_count)
        limits = pool_limits(counts, fewest=minimum_samples(keep=keep)).tolist()
        found: dict[tuple[int, ...], list[int]] = {}
        for label, limit in enumerate(limits):
            sources = [label] if limit == ALONE else (counts <= limit).nonzero().flatten().tolist()
            found.setdefault(tuple(sources), []).append(label)
        groups, pooled = list[CalibrationGroup](), 0
        for sources, judged in found.items():
            own = torch.isin(classes, torch.tensor(sources, device="cpu"))
            each = cls.from_scores(scores[own], keep=keep, members=None if rows is None else rows[own])
            name = f"class {judged[0]}"
            if limits[judged[0]] != ALONE:
                pooled += 1
                name = "pooled" if pooled == 1 else f"pooled {pooled}"
            groups.append(CalibrationGroup(name, tuple(judged), each))
        places = torch.empty(class_count, dtype=torch.int64, device="cpu")
        for place, group in enumerate(groups):
            places[list(group.classes)] = place
        return cls(scores, float(keep), rows, classes, tuple(groups), places)

    @property
    def threshold(self) -> float:
        """The score above which an input is flagged.

        Raises:
            CalibrationError: If each group has a threshold of its own.

        """
        if self.groups:
            raise CalibrationError(
                "This detector is calibrated by predicted class, so that there is no one threshold: "
                "`calibration_groups` hold one each."
            )
        return keep_threshold(self.scores, keep=self.keep)

    def p_value(self, scores: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return the conformal p-values of scores, shape ``(batch,)`` or ``()``, float64; by class, those of `classes`.

        Raises:
            CalibrationError: If groups are judged by themselves and no classes are given.

        """
        if self.groups:
            return self._by_group(Calibration.p_value, scores, classes, dtype=torch.float64)
        return conformal_p_value(scores.reshape(-1), self.scores).reshape(scores.shape)

    def is_ood(self, scores: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return whether scores are flagged, shape ``(batch,)`` or ``()``, bool; decided by integer rank."""
        if self.groups:
            return self._by_group(Calibration.is_ood, scores, classes, dtype=torch.bool)
        return is_flagged(scores.reshape(-1), self.scores, keep=self.keep).reshape(scores.shape)

    def member_p_values(self, scores: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return the p-value of each member's scores, shape ``(batch, members)``, float64."""
        if self.groups:
            return self._by_group(Calibration.member_p_values, scores, classes, dtype=torch.float64)
        columns = self.scores[:, None] if self.members is None else self.members
        rows = finite_or_infinite(scores.double()).T.contiguous()  # torch warns of a search for numbers that lie apart
        counts = [at_least_count(mine, known) for mine, known in zip(rows, columns.T, strict=True)]
        return (1 + torch.stack(counts, 1)).double() / (len(columns) + 1)

    def _by_group(
        self,
        answer: "Callable[[Calibration, Tensor], Tensor]",
        scores: Tensor,
        classes: Tensor | None,
        *,
        dtype: torch.dtype,
    ) -> Tensor:
        """Return what the group of each row's class says of its scores, in the shape of `scores`."""
        if classes is None or self.group_of_class is None:
            raise CalibrationError("Calibration by class needs the predicted class of each score.")
        places = self.group_of_class.to(scores.device)[classes.reshape(-1).to(scores.device)]
        rows = scores.reshape(len(places), *scores.shape[1:])
        found = torch.empty(rows.shape, dtype=dtype, device=scores.device)
        for place in places.unique().tolist():
            found[places == place] = answer(self.groups[place].calibration, rows[places == place])
        return found.reshape(scores.shape)


class CalibrationGroup(NamedTuple):
    """Classes whose inputs are judged by the same calibration samples.

    Attributes:
        name: ``"class 3"``, ``"pooled"`` for classes with too few samples of their own, or ``"all"``.
        classes: Predicted classes whose inputs it judges, ascending.
        calibration: Scores, share to keep and threshold.

    """

    name: str
    classes: Sequence[int]
    calibration: Calibration

    @property
    def samples(self) -> int:
        """Number n of calibration samples."""
        return len(self.calibration.scores)

    @property
    def threshold(self) -> float:
        """Score above which an input of these classes is flagged."""
        return self.calibration.threshold


@dataclass(frozen=True, eq=False)
class PrunedHead:
    """Steps 2 and 3 of the paper's method: the head after pruning, and the score of what is left.

    Attributes:
        masks: What stays of the head.
        weight: Pruned weight, shape ``(classes, features)``.
        bias: The head's bias, or None.
        settings: Shaping, score, temperature and precision.
        react_threshold: Threshold of ReAct, where that is the shaping.

    """

    masks: Masks
    weight: Tensor
    bias: Tensor | None
    settings: Settings
    react_threshold: float | None

    def scores(self, features: Tensor) -> Tensor:
        """Return the scores of checked features, shape ``(batch, features)``, as shape ``(batch,)``."""
        return score_logits(self.logits(features), score=self.settings.score, temperature=self.settings.temperature)

    def logits(self, features: Tensor) -> Tensor:
        """Return the pruned head's logits of the shaped features, shape ``(batch, classes)``; refuse overflow."""
        rows = features.detach().to(product_dtype(features, precision=self.settings.precision))
        logits = product(shaped(rows, self.settings.shaping, threshold=self.react_threshold), self.weight, self.bias)
        require_finite(logits, name="logits", where=" of the pruned head")
        return logits


@dataclass(frozen=True, eq=False)
class FittedState:
    """A fitted detector: all that its answers are computed from, and nothing else.

    Attributes:
        settings: Every option, with nothing left to be chosen.
        weight: The head's weight as it was, shape ``(classes, features)``.
        bias: The head's bias as it was, shape ``(classes,)``, or None.
        sensitivity: Sensitivities of the head's weights and inputs.
        react_thresholds: Thresholds of ReAct in units of the features, by quantile.
        panel: What the members of a fusion need, float64; None for the paper's method.
        scales: Median and 95 % quantile of each member that is fused, shape ``(2, members)``, float64; or None.
        fused: Names of the members that are fused, in the order of `scales`; the pruned head alone without a fusion.
        left_out: Why a member that was asked for is not fused, by name.
        kept: Number of training samples that were kept out of the sums and gave the scales.
        calibration: The calibration, or None.
        tuning: How ratios were chosen on OOD validation data, or None.
        head_name: The head's dotted name in the model it was fitted on; None if fitted from features.
        axes: Number of axes of a batch of inputs; None if fitted from features.
        id_accuracy: Share of labelled samples that the head answers right, for ``training`` and ``validation`` ones.
        origin: The model by name, and how its inputs are made, where they are known; else None.
        feature_names: Names of the features, where the fit was by a table; else None.

    """

    settings: Settings
    weight: Tensor
    bias: Tensor | None
    sensitivity: Sensitivity
    react_thresholds: Mapping[float, float]
    panel: Panel | None = None
    scales: Tensor | None = None
    fused: tuple[str, ...] = (PRUNED_HEAD,)
    left_out: Mapping[str, str] = field(default_factory=dict)
    kept: int = 0
    calibration: Calibration | None = None
    tuning: Tuning | None = None
    head_name: str | None = None
    axes: InputAxes | None = None
    id_accuracy: Mapping[str, float] = field(default_factory=dict)
    origin: ModelOrigin | None = None
    feature_names: tuple[str, ...] | None = None

    @property
    def head_digest(self) -> str:
        """Digest of the head: SHA-256 over dtype, shape and values of weight and bias."""
        return head_digest(self.weight, self.bias)

    @property
    def samples(self) -> int:
        """Number of training samples seen: those in the sums, and those kept out of them."""
        return self.sensitivity.count + self.kept

    @property
    def explained(self) -> tuple[str, ...]:
        """Names of the members that `explain` speaks of: the fused ones, and the pruned head in any case."""
        return self.fused if PRUNED_HEAD in self.fused else (*self.fused, PRUNED_HEAD)

    @cached_property
    def pruned(self) -> PrunedHead:
        """The pruned head.

        Raises:
            RatioError: If the ratios leave no entry.

        Warns:
            RatioWarning: If a ratio above 0 removes no entry, or cuts among sensitivities that underflowed.

        """
        settings = self.settings
        masks = Masks(weights_kept(self.sensitivity, settings), neurons_kept(self.sensitivity, settings))
        shaping = settings.shaping
        threshold = self.react_thresholds[shaping.quantile] if isinstance(shaping, ReAct) else None
        return PrunedHead(masks, pruned_weight(self.weight, masks), self.bias, settings, threshold)

    def scores(self, features: Tensor) -> Tensor:
        """Return the scores of checked features, shape ``(batch, features)``, as shape ``(batch,)``.

        Those of a fusion are float64; +inf where a member is not finite.
        """
        if self.panel is None:
            return self.pruned.scores(features)
        return fused_score(self._units(self.member_scores(features, self.fused)))

    def member_scores(self, features: Tensor, members: tuple[str, ...] | None = None) -> Tensor:
        """Return the scores of members, shape ``(batch, members)``: of `explained`, unless others are named."""
        if self.panel is None:
            return self.pruned.scores(features)[:, None]
        rows = features.detach().to(product_dtype(features, precision=self.settings.precision))
        key = (rows.device, rows.dtype)
        if key not in self._panels:
            self._panels[key] = self.panel.mapped(lambda tensor: tensor.to(rows)).with_boundaries()
        with torch.autocast(rows.device.type, enabled=False):
            return member_scores(rows, self._panels[key], self.explained if members is None else members)

    def explanation(self, features: Tensor, calibration: Calibration) -> Explanation:
        """Return p-values and shares of the members for checked features, shape ``(batch, features)``."""
        scores = self.member_scores(features)
        share = torch.zeros_like(scores, dtype=torch.float64)
        share[:, : len(self.fused)] = member_shares(self._units(scores)) if self.panel is not None else 1.0
        p_values = calibration.member_p_values(scores, self.judged_classes(features, calibration))
        return Explanation(self.explained, p_values, share)

    def classes(self, features: Tensor) -> Tensor:
        """Return the classes that the original head predicts, shape ``(batch,)``, int64; refuse overflow."""
        rows = features.detach().to(product_dtype(features, precision=self.settings.precision))
        logits = product(rows, self.weight, self.bias)
        require_finite(logits, name="logits")
        return logits.argmax(1)

    def judged_classes(self, features: Tensor, calibration: Calibration) -> Tensor | None:
        """Return the predicted classes of checked features where a calibration is by class; else None."""
        return self.classes(features) if calibration.groups else None

    def calibrated(self, batches: Iterable[Tensor], *, keep: float, by: CalibratedBy | None = None) -> Self:
        """Return this state, calibrated on checked features of held-out ID inputs, shape ``(batch, features)`` each."""
        parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for features in batches:
            members = self.member_scores(features)
            own = members[:, 0] if self.panel is None else fused_score(self._units(members))
            labels = self.classes(features) if by else own.new_empty(0, dtype=torch.int64)
            for part, found in zip(parts, (own.double(), members, labels), strict=True):
                part.append(found.cpu())
        scores, members, classes = (torch.cat(part) for part in parts)
        columns = None if self.panel is None else members
        if by is None:
            calibration = Calibration.from_scores(scores, keep=keep, members=columns)
        else:
            count = len(self.weight)
            calibration = Calibration.by_class(scores, classes, keep=keep, class_count=count, members=columns)
        return self.restated(calibration=calibration)

    def restated(self, **facts: Any) -> Self:  # noqa: ANN401  # attributes of this class
        """Return this state with other attributes that the pruned head does not depend on; masks are not made anew."""
        state = replace(self, **facts)
        state.__dict__.update({name: made for name, made in self.__dict__.items() if name in ("pruned", "_panels")})
        return state

    def with_settings(self, settings: Settings) -> Self:
        """Return the paper's method under other settings on the same sensitivities, uncalibrated."""
        names = "head_name", "axes", "id_accuracy", "origin", "feature_names"
        kept: dict[str, Any] = {name: getattr(self, name) for name in names}
        return type(self)(settings, self.weight, self.bias, self.sensitivity, self.react_thresholds, **kept)

    @cached_property
    def _panels(self) -> dict[tuple[torch.device, torch.dtype], Panel]:
        return {}

    def _units(self, scores: Tensor) -> Tensor:
        """Return the scores of the fused members, the first of `explained`, in units of their tails."""
        scales = scores.new_empty(2, 0) if self.scales is None else self.scales
        return tail_units(scores[:, : len(self.fused)], scales.to(scores.device))


def weights_kept(sensitivity: Sensitivity, settings: Settings) -> Tensor:
    """Return the mask of the weights, shape ``(classes, features)``, under settings; warn of a cut among lost ones."""
    ratios, values = settings.ratios, sensitivity.weight
    keep = weight_mask(values, lowest=ratios.w_min, highest=ratios.w_max, scope=settings.scope)
    lost = (values <= _underflow(settings)) & (sensitivity.neuron_aggregate > 0)  # of a feature that is not dead
    rankings = len(values) if settings.scope == "class" else 1
    warn_of_lost_order(lost.reshape(rankings, -1), keep.reshape(rankings, -1))
    return keep


def neurons_kept(sensitivity: Sensitivity, settings: Settings) -> Tensor:
    """Return the mask of the neurons, shape ``(features,)``, under settings; warn of a cut among lost ones."""
    ratios, values = settings.ratios, sensitivity.neuron(settings.neuron)
    keep = neuron_mask(values, lowest=ratios.o_min, highest=ratios.o_max)
    least = _underflow(settings)
    has_lost_class = (sensitivity.weight <= least).all(1).any()  # without one, a zero is no loss: its terms cancel
    lost = has_lost_class & (values <= least) & (sensitivity.neuron_aggregate > 0)
    warn_of_lost_order(lost[None], keep[None])
    return keep


def _underflow(settings: Settings) -> float:
    """Return the largest sensitivity whose order is lost: 0, or what float32 products hold with fewer digits."""
    is_wide = settings.precision == "float64" or not is_held_by_float32(settings.temperature)
    return 0.0 if is_wide else torch.finfo(torch.float32).tiny


def head_digest(weight: Tensor, bias: Tensor | None) -> str:
    """Return the digest of a head: SHA-256 over dtype, shape and values of weight and bias."""
    return tensors_digest({"weight": weight, "bias": bias})
