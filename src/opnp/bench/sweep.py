"""The ablations of the paper on cached features: curves over every setting, and what they leave behind.

Every point is one pruned head, fitted on ``train`` and judged by ``test`` against each ``ood_*``. Nothing is chosen
here: a sweep shows what each setting would have given, known with hindsight only. `OPNP()` takes nothing from it. Which
settings a curve tries is a frozen table, chosen with no look at any OOD data.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from msgspec.structs import replace
from torch import Tensor

from opnp.artifact import tensors_digest
from opnp.bench.features import ModelData, read_models, require_seed
from opnp.bench.figures import CALIBRATION_BINS, classifier_figures, head_logits
from opnp.bench.records import own_result_folder, package_versions, start_results, stored_record
from opnp.bench.tables import sweep_markdown
from opnp.core import SCORE_NAMES, NeuronReading, Scope, score_logits
from opnp.core.checks import require_finite
from opnp.detector import OPNP, Ratios, Settings
from opnp.detector.fit_pass import Progress, shown
from opnp.errors import OpnpError, OptionError
from opnp.files import write_atomically
from opnp.values.figures import HeadFigures
from opnp.values.files import SWEEP_FILE
from opnp.values.sweep import SweepBase, SweepCurve, SweepPoint, SweepRecord, SweepSettings, SweptModel, Varied

__all__ = [
    "BASE_RATIOS",
    "CURVES",
    "PAPER_RATIOS",
    "SWEEP_FILES",
    "Curve",
    "ModelSweep",
    "PlannedPoint",
    "chosen_curves",
    "equivalent",
    "run_sweep",
    "sample_sizes",
    "training_rows",
]

SWEEP_FILES = (SWEEP_FILE, "sweep.md")
"""What `run_sweep` writes, the record first."""

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


def run_sweep(
    features: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    curves: Iterable[str] | None = None,
    seed: int = 0,
    base: Ratios = BASE_RATIOS,
    scope: Scope = "layer",
    neuron: NeuronReading = "gradient",
    near: Iterable[str] = (),
    ood: Iterable[str] | None = None,
    is_resumed: bool = False,
    progress: Progress = None,
) -> SweepRecord:
    """Try settings of the paper's method on cached features, write the results to `out`, and return the record.

    `out` then holds ``sweep.json`` (the record: the same bytes each time) and ``sweep.md`` (its tables).

    Args:
        features: A folder with ``head``, ``train``, ``test`` and ``ood_*``, each ``.safetensors``, or a folder of such
            folders, one a model.
        out: Where to write; made if it does not exist.
        curves: Curves or families of curves; None for all.
        seed: Seed of the first draw of training samples; the others count up from it.
        base: Ratios at which temperature, training samples and scores are varied.
        scope: Scope of the weight ranking there.
        neuron: Reading of the neuron sensitivity there.
        near: Names of the OOD sets that are near, for every model or as ``model:set`` for one; the others are far.
        ood: Names of the OOD sets to judge by; None for all that are there.
        is_resumed: Whether a record of these data and settings that `out` holds already is kept.
        progress: Wrapper of iterables that shows progress, one step a point.

    Returns:
        The record. A setting that leaves nothing of a head is a point that says so.

    Raises:
        MissingFileError: If a folder or file is missing.
        DataFileError: If a file does not fit the others, or `out` holds one of these names and no record of opnp.
        OptionError: If a curve, the scope or the reading is unknown, or `seed` does not lie in 0 to 2^63 - 1.
        ShapeError: If a head has fewer than two classes.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from opnp.data import write_features, write_head
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     write_head(folder / "head.safetensors", torch.eye(4))
        ...     for name, largest in {"train": 9.0, "test": 9.0, "ood_blank": 0.1}.items():
        ...         rows = largest * torch.eye(4)[torch.arange(100) % 4]
        ...         write_features(folder / f"{name}.safetensors", rows, labels=torch.arange(100) % 4)
        ...     record = run_sweep(folder, folder / "results", curves=["w_min"])
        >>> [(point.varied["w_min"], point.mean.auroc) for point in record.models[0].curve("w_min")][:2]
        [(0.0, 1.0), (0.05, 1.0)]

    References:
        Chen et al., NeurIPS 2023: the rows OPP, ONP and OPNP, and Figure 3.

    """
    require_seed(seed)
    chosen = chosen_curves(curves)
    options = Settings(ratios=base, scope=scope, neuron=neuron)
    near = frozenset(near)
    models = read_models(features, near=near, ood=ood, is_tunable=False)
    out = own_result_folder(out, files=SWEEP_FILES)

    def swept(model: ModelData) -> SweptModel:
        start = SweepSettings(
            **asdict(base),
            scope=options.scope,
            neuron=options.neuron,
            temperature=options.temperature,
            score=options.score,
            training_samples=len(model.train.features),
            seed=None,
        )
        return ModelSweep(model, near).result(chosen, start, seed=seed, progress=progress)

    start = SweepRecord(
        seed=seed,
        base=SweepBase(**asdict(base), scope=options.scope, neuron=options.neuron),
        calibration_bins=CALIBRATION_BINS,
        versions=package_versions("numpy", "safetensors"),
        curves=tuple(curve.about for curve in chosen),
        models=(),
    )
    if is_resumed and (kept := stored_record(out, SweepRecord, files=SWEEP_FILES)) is not None:
        known = [replace(each, **model.facts(near)) for each, model in zip(kept.models, models, strict=False)]
        is_of_these = len(kept.models) == len(models) and kept == replace(kept, models=tuple(known))
        if is_of_these and replace(kept, models=()) == start:
            return kept
    record = replace(start, models=tuple(map(swept, models)))
    start_results(out, record, files=SWEEP_FILES)
    write_atomically(out / "sweep.md", sweep_markdown(record).encode())
    return record


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


@dataclass(eq=False, slots=True)
class ModelSweep:
    """One model, with what was fitted and scored so far.

    Attributes:
        model: Features and head.
        near: Names of the OOD sets that are near, for every model or as ``model:set`` for one.

    """

    model: ModelData
    near: frozenset[str]
    _features: Tensor = field(init=False)
    _main: OPNP = field(init=False)
    _latest: tuple[tuple[float, int, int | None], OPNP] | None = None
    _computed: dict[SweepSettings, SweepPoint] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Gather the samples, so that a setting is scored by one product, and fit on all of ``train``.

        A head that cannot be fitted is refused here.
        """
        self._features = torch.cat([each.double() for each in self.model.judged.values()])
        self._main = self._fitted(temperature=1.0, rows=None)

    def result(self, curves: Sequence[Curve], base: SweepSettings, *, seed: int, progress: Progress) -> SweptModel:
        """Return what came of the curves, in their order.

        Args:
            curves: The curves.
            base: What they are varied at.
            seed: Seed of the first draw of training samples.
            progress: Wrapper of iterables that shows progress, one step a point.

        """
        planned = [(curve.about.name, point) for curve in curves for point in curve.points(base, seed)]
        unpruned = replace(base, w_min=0.0, w_max=0.0, o_min=0.0, o_max=0.0)
        return SweptModel(
            **self.model.facts(self.near),
            energy=self.point(unpruned),
            points=tuple(
                replace(self.point(plan.settings), curve=name, varied=plan.varied)
                for name, plan in shown(planned, progress)
            ),
        )

    def point(self, settings: SweepSettings) -> SweepPoint:
        """Return what came of one setting, on no curve."""
        key = equivalent(settings)
        if key not in self._computed:
            self._computed[key] = self._outcome(settings)
        return replace(self._computed[key], settings=settings)

    def _outcome(self, settings: SweepSettings) -> SweepPoint:
        point = SweepPoint(curve="", varied={}, settings=settings, status="failed")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                ratios = Ratios(settings.w_min, settings.w_max, settings.o_min, settings.o_max)
                detector = self._detector(settings)
                detector = detector.with_ratios(ratios, neuron=settings.neuron, scope=settings.scope)
                point = self._with_figures(point, detector)
            except OpnpError as error:
                point = replace(point, reason=str(error))
        return replace(point, notes=tuple(sorted({str(each.message) for each in caught})))

    def _detector(self, settings: SweepSettings) -> OPNP:
        """Return a detector with the sensitivities that the settings ask for; the last one made is kept."""
        samples, total = settings.training_samples, len(self.model.train.features)
        if settings.temperature == 1.0 and samples == total:
            return self._main
        key = settings.temperature, samples, settings.seed
        if self._latest is None or self._latest[0] != key:
            rows = None if settings.seed is None else training_rows(total, samples, seed=settings.seed)
            self._latest = key, self._fitted(temperature=settings.temperature, rows=rows)
        return self._latest[1]

    def _fitted(self, *, temperature: float, rows: Tensor | None) -> OPNP:
        detector = OPNP(ratios=Ratios(), temperature=temperature, shaping=None, precision="float64")
        features, head = self.model.train.features, self.model.head
        return detector.fit_features(features if rows is None else features[rows], weight=head.weight, bias=head.bias)

    def _with_figures(self, point: SweepPoint, detector: OPNP) -> SweepPoint:
        settings, masks = point.settings, detector.masks
        logits = head_logits(detector.pruned_head, self._features)
        require_finite(logits, name="logits", where=" of the pruned head")
        scores = score_logits(logits, score=settings.score, temperature=settings.temperature)
        labels, lengths = self.model.test.labels, [len(each) for each in self.model.judged.values()]
        answers = None if labels is None else classifier_figures(logits[: lengths[0]], labels)
        return replace(
            point,
            status="ok",
            pruned_weights=int((~masks.weight).sum()),
            pruned_neurons=int((~masks.neuron).sum()),
            removed_share=int((~masks.kept).sum()) / masks.kept.numel(),
            mask_digest=tensors_digest({"kept": masks.kept}),
            **self.model.figures(scores.split(lengths), self.near),
            head=None if answers is None else HeadFigures(accuracy=answers.accuracy, ece=answers.ece),
        )


def equivalent(settings: SweepSettings) -> SweepSettings:
    """Return settings with the same outcome in their plainest form: what removes nothing has no scope and no reading.

    Example:
        >>> energy = SweepSettings(0.0, 0.0, 0.0, 0.0, "class", "aggregate", 1.0, "energy", 100, None)
        >>> equivalent(energy).scope, equivalent(energy).neuron
        ('layer', 'gradient')

    """
    return replace(
        settings,
        scope=settings.scope if settings.w_min or settings.w_max else "layer",
        neuron=settings.neuron if settings.o_min or settings.o_max else "gradient",
    )


def training_rows(total: int, samples: int, *, seed: int) -> Tensor:
    """Return the rows of a random draw, ascending, shape ``(samples,)``; with one seed, a smaller draw is in a larger.

    Args:
        total: Rows there are.
        samples: Rows to draw, at most `total`.
        seed: Seed of the draw.

    Example:
        >>> small, large = (set(training_rows(100, samples, seed=7).tolist()) for samples in (10, 20))
        >>> len(small), small < large
        (10, True)

    """
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[:samples].sort().values


def _with(settings: SweepSettings, ratios: Mapping[RatioName, float]) -> SweepSettings:
    """Return the settings with these ratios, the others 0."""
    return replace(settings, **{name: float(ratios.get(name, 0.0)) for name in _GRIDS})


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


def _samples(base: SweepSettings, seed: int) -> Iterable[PlannedPoint]:
    for size in sample_sizes(base.training_samples):
        is_all = size == base.training_samples
        for draw in range(_DRAWS if size <= _SMALL and not is_all else 1):
            settings = replace(base, training_samples=size, seed=None if is_all else seed + draw)
            yield PlannedPoint({"training_samples": size}, settings)


def _each(name: str, values: Sequence[Varied], *, is_pruned: bool = True) -> _Points:
    """Return the points of a curve over one setting, on the base's head or on the original one."""

    def points(base: SweepSettings, _: int) -> Iterable[PlannedPoint]:
        start = base if is_pruned else _with(base, {})
        return (PlannedPoint({name: value}, replace(start, **{name: value})) for value in values)

    return points


_ALONE = (
    *(_ratio(ratio, scope=scope) for ratio in ("w_min", "w_max") for scope in ("layer", "class")),
    *(_ratio(ratio, neuron=reading) for ratio in ("o_min", "o_max") for reading in _READINGS),
)
_FIGURE_3 = (
    _ratio("w_min", partner=("w_max", PAPER_RATIOS.w_max)),
    *(_ratio("o_min", neuron=reading, partner=("o_max", PAPER_RATIOS.o_max)) for reading in _READINGS),
)
_UNPRUNED = _each("score", SCORE_NAMES, is_pruned=False)
_TEMPERATURE_TITLE = "Temperature of sensitivities and score, at the base ratios"

CURVES: tuple[Curve, ...] = (
    _parts("parts", None, "Weights, neurons and both removed, at the base ratios"),
    _parts("parts-paper", PAPER_RATIOS, "Weights, neurons and both removed: rho_w_max = 0.005, rho_o_max = 0.3"),
    *_ALONE,
    *_FIGURE_3,
    _curve("w_min-o_min", "pairs", "Only rho_w_min and rho_o_min", _pair, "w_min", "o_min"),
    _curve("temperature", "temperature", _TEMPERATURE_TITLE, _each("temperature", _TEMPERATURES), "temperature"),
    _curve("samples", "samples", "Random training samples, at the base ratios", _samples, "training_samples"),
    _curve("scores", "scores", "Scores on the pruned head, at the base ratios", _each("score", SCORE_NAMES), "score"),
    _curve("scores-unpruned", "scores", "Scores on the original head", _UNPRUNED, "score"),
)
"""Every curve, in the order of the tables."""
