"""Which settings each curve of a sweep tries: a frozen table, chosen with no look at any OOD data."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from opnp.bench.sweep_record import SweepCurve, SweepSettings, Varied
from opnp.core import SCORE_NAMES, NeuronReading, Scope
from opnp.detector import Ratios
from opnp.errors import OptionError

__all__ = ["BASE_RATIOS", "CURVES", "PAPER_RATIOS", "Curve", "PlannedPoint", "chosen_curves", "sample_sizes"]

BASE_RATIOS = Ratios(w_min=0.3, o_min=0.1)
"""Ratios that the other settings are varied at.

Removing the least sensitive is the mild direction: the energy of training samples changes least by it. The share of
the weights is that of `PRUNED_RATIOS`; that of the neurons is smaller, as a neuron takes one weight of every class.
"""

PAPER_RATIOS = Ratios(w_max=0.005, o_max=0.3)
"""What the paper holds fixed on ImageNet with ResNet-50 while it varies a smallest share (captions of its Figure 3)."""

_DRAWS = 5
"""Draws of training samples at each size that is no more than `_SMALL`; one at each larger size."""

_SMALL = 20_000
_FEWEST = 100

_Points = Callable[[SweepSettings, int], Iterable["PlannedPoint"]]
RatioName = Literal["w_min", "w_max", "o_min", "o_max"]
_GRIDS: Mapping[RatioName, tuple[float, ...]] = {
    "w_min": (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    "w_max": (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    "o_min": (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "o_max": (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5),
}
_READINGS: tuple[NeuronReading, ...] = ("gradient", "aggregate")
_PAIR = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
_TEMPERATURES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


@dataclass(frozen=True, slots=True)
class PlannedPoint:
    """A point to be.

    Attributes:
        varied: What the curve varies, and its value here.
        settings: Every setting.

    """

    varied: Mapping[str, Varied]
    settings: SweepSettings


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve to be.

    Attributes:
        about: Its name and what it varies.
        points: Its points, given the base settings (those of all training samples) and the seed of the first draw.

    """

    about: SweepCurve
    points: _Points


def sample_sizes(samples: int) -> list[int]:
    """Return the numbers of training samples to try: 100, 200, 500, 1000, ... and all.

    Example:
        >>> sample_sizes(1000), sample_sizes(60)
        ([100, 200, 500, 1000], [60])

    """
    sizes, decade = [], _FEWEST
    while decade < samples:
        sizes += [step * decade for step in (1, 2, 5) if step * decade < samples]
        decade *= 10
    return [*sizes, samples]


def chosen_curves(names: Iterable[str] | None) -> tuple[Curve, ...]:
    """Return the curves that some names choose, in the order of `CURVES`.

    Args:
        names: Curves or families of curves; None for all.

    Returns:
        The chosen curves.

    Raises:
        OptionError: If a name is unknown, or there is none; the message lists the known ones.

    Example:
        >>> [curve.about.name for curve in chosen_curves(["temperature", "parts"])]
        ['parts', 'temperature']

    """
    if names is None:
        return CURVES
    wanted = list(names)
    known = {name for curve in CURVES for name in (curve.about.name, curve.about.family)}
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        families = dict.fromkeys(curve.about.family for curve in CURVES)
        got = f"got {', '.join(map(repr, unknown))}" if unknown else "got none"
        raise OptionError(
            f"`curves` must be families ({', '.join(families)}) or curves "
            f"({', '.join(curve.about.name for curve in CURVES)}), {got}.",
        )
    return tuple(curve for curve in CURVES if {curve.about.name, curve.about.family} & set(wanted))


def _with(settings: SweepSettings, ratios: Mapping[RatioName, float]) -> SweepSettings:
    """Return the settings with these ratios, the others 0."""
    return replace(settings, **{name: float(ratios.get(name, 0.0)) for name in _GRIDS})  # type: ignore[arg-type]  # the names of the four


def _parts(name: str, ratios: Ratios | None, title: str) -> Curve:
    """Return energy, OPP, ONP and OPNP at some ratios; at those of the base where there are none given."""

    def points(base: SweepSettings, _: int) -> Iterable[PlannedPoint]:
        source = base if ratios is None else ratios
        weights: dict[RatioName, float] = {"w_min": source.w_min, "w_max": source.w_max}
        neurons: dict[RatioName, float] = {"o_min": source.o_min, "o_max": source.o_max}
        yield PlannedPoint({"part": "Energy"}, _with(base, {}))
        yield PlannedPoint({"part": "OPP"}, _with(base, weights))
        for part, removed in (("ONP", neurons), ("OPNP", weights | neurons)):
            for reading in _READINGS:
                yield PlannedPoint({"part": f"{part} {reading}"}, replace(_with(base, removed), neuron=reading))

    family = "parts" if ratios is None else "paper"
    return Curve(SweepCurve(name, family, title, ("part",)), points)


def _ratio(
    ratio: RatioName,
    *,
    scope: Scope = "layer",
    neuron: NeuronReading = "gradient",
    partner: tuple[RatioName, float] | None = None,
) -> Curve:
    """Return a curve over one ratio, by itself or with a partner that stays; the base's value is among its points."""
    kind = f"{scope} scope" if ratio.startswith("w") else f"{neuron} reading"
    words = [ratio, *(["paper"] if partner else []), *([scope] if scope == "class" else [])]
    words += [neuron] if neuron == "aggregate" else []
    fixed = {} if partner is None else dict([partner])
    only = f"As in the paper's Figure 3: rho_{partner[0]} = {partner[1]:g} and" if partner else "Only"
    about = SweepCurve(
        name="-".join(words),
        family="paper" if partner else "ratios",
        title=f"{only} rho_{ratio}, {kind}",
        varies=(ratio,),
    )

    def points(base: SweepSettings, _: int) -> Iterable[PlannedPoint]:
        for value in sorted({*_GRIDS[ratio], getattr(base, ratio)}):
            if value + sum(fixed.values()) < 1 - 1e-9:
                settings = replace(_with(base, {ratio: value, **fixed}), scope=scope, neuron=neuron)
                yield PlannedPoint({ratio: value}, settings)

    return Curve(about, points)


def _curve(name: str, family: str, title: str, points: _Points, *varies: str) -> Curve:
    return Curve(SweepCurve(name, family, title, varies), points)


def _pair(base: SweepSettings, _: int) -> Iterable[PlannedPoint]:
    for w_min in sorted({*_PAIR, base.w_min}):
        for o_min in sorted({*_PAIR, base.o_min}):
            settings = _with(base, {"w_min": w_min, "o_min": o_min})
            yield PlannedPoint({"w_min": w_min, "o_min": o_min}, settings)


def _temperatures(base: SweepSettings, _: int) -> Iterable[PlannedPoint]:
    for temperature in _TEMPERATURES:
        yield PlannedPoint({"temperature": temperature}, replace(base, temperature=temperature))


def _samples(base: SweepSettings, seed: int) -> Iterable[PlannedPoint]:
    for size in sample_sizes(base.training_samples):
        is_all = size == base.training_samples
        for draw in range(_DRAWS if size <= _SMALL and not is_all else 1):
            settings = replace(base, training_samples=size, seed=None if is_all else seed + draw)
            yield PlannedPoint({"training_samples": size}, settings)


def _scores(base: SweepSettings, _: int) -> Iterable[PlannedPoint]:
    for score in SCORE_NAMES:
        yield PlannedPoint({"score": score}, replace(base, score=score))


def _scores_unpruned(base: SweepSettings, seed: int) -> Iterable[PlannedPoint]:
    return _scores(_with(base, {}), seed)


_ALONE = (
    *(_ratio(ratio, scope=scope) for ratio in ("w_min", "w_max") for scope in ("layer", "class")),
    *(_ratio(ratio, neuron=reading) for ratio in ("o_min", "o_max") for reading in _READINGS),
)
_FIGURE_3 = (
    _ratio("w_min", partner=("w_max", PAPER_RATIOS.w_max)),
    *(_ratio("o_min", neuron=reading, partner=("o_max", PAPER_RATIOS.o_max)) for reading in _READINGS),
)

CURVES: tuple[Curve, ...] = (
    _parts("parts", None, "Weights, neurons and both removed, at the base ratios"),
    _parts("parts-paper", PAPER_RATIOS, "Weights, neurons and both removed: rho_w_max = 0.005, rho_o_max = 0.3"),
    *_ALONE,
    *_FIGURE_3,
    _curve("w_min-o_min", "pairs", "Only rho_w_min and rho_o_min", _pair, "w_min", "o_min"),
    _curve(
        "temperature",
        "temperature",
        "Temperature of sensitivities and score, at the base ratios",
        _temperatures,
        "temperature",
    ),
    _curve("samples", "samples", "Random training samples, at the base ratios", _samples, "training_samples"),
    _curve("scores", "scores", "Scores on the pruned head, at the base ratios", _scores, "score"),
    _curve("scores-unpruned", "scores", "Scores on the original head", _scores_unpruned, "score"),
)
"""Every curve, in the order of the tables."""
