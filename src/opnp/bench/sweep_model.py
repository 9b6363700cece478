"""The settings of a sweep on one model: each fitted, pruned and scored once, however many curves it lies on."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from opnp.artifact import tensors_digest
from opnp.bench.bench_record import DetectionFigures, Nearness
from opnp.bench.feature_folder import ModelData
from opnp.bench.figures import classifier_figures, detection_figures, mean_figures
from opnp.bench.model_run import Progress
from opnp.bench.sweep_curves import Curve
from opnp.bench.sweep_record import HeadFigures, SweepPoint, SweepSettings, SweptModel
from opnp.core import score_logits
from opnp.core.checks import require_finite
from opnp.detector import OPNP, Ratios
from opnp.errors import OpnpError

__all__ = ["ModelSweep", "equivalent", "training_rows"]


@dataclass(frozen=True, eq=False, slots=True)
class _Samples:
    """Features of ``test`` and of every OOD set in one matrix, so that a setting is scored by one product.

    Attributes:
        features: Shape ``(batch, features)``, float64.
        lengths: Rows by set, in the order of the matrix, ``test`` first.

    """

    features: Tensor
    lengths: dict[str, int]

    @classmethod
    def from_model(cls, model: ModelData) -> Self:
        """Return the samples that a model is judged by."""
        sets = {"test": model.test.features, **{f"ood_{name}": features for name, features in model.ood.items()}}
        return cls(
            features=torch.cat([features.double() for features in sets.values()]),
            lengths={name: len(features) for name, features in sets.items()},
        )

    def parts(self, values: Tensor) -> dict[str, Tensor]:
        """Return values of all rows by set."""
        return dict(zip(self.lengths, values.split(list(self.lengths.values())), strict=True))


@dataclass(eq=False, slots=True)
class ModelSweep:
    """One model, with what was fitted and scored so far.

    Attributes:
        model: Features and head.
        near: Names of the OOD sets that are near, for every model or as ``model:set`` for one.

    """

    model: ModelData
    near: frozenset[str]
    _samples: _Samples = field(init=False)
    _main: OPNP = field(init=False)
    _latest: tuple[tuple[float, int, int | None], OPNP] | None = None
    _computed: dict[SweepSettings, SweepPoint] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Gather the samples, and fit on all of ``train``: a head that cannot be fitted is refused here."""
        self._samples = _Samples.from_model(self.model)
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
        model = self.model
        unpruned = replace(base, w_min=0.0, w_max=0.0, o_min=0.0, o_max=0.0)
        return SweptModel(
            model=model.name,
            classes=model.classes,
            features=model.features,
            data=model.sources,
            nearness={name: self._nearness(name) for name in model.ood},
            energy=self.point(unpruned),
            points=tuple(
                replace(self.point(plan.settings), curve=name, varied=plan.varied)
                for name, plan in (planned if progress is None else progress(planned))
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
                point = self._with_figures(point, self._pruned(settings))
            except OpnpError as error:
                point = replace(point, reason=str(error))
        return replace(point, notes=tuple(sorted({str(each.message) for each in caught})))

    def _pruned(self, settings: SweepSettings) -> OPNP:
        ratios = Ratios(settings.w_min, settings.w_max, settings.o_min, settings.o_max)
        return self._detector(settings).with_ratios(ratios, neuron=settings.neuron, scope=settings.scope)

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
        settings, masks, head = point.settings, detector.masks, detector.pruned_head
        bias = None if head.bias is None else head.bias.double()
        logits = linear(self._samples.features, head.weight.double(), bias)
        require_finite(logits, name="logits", where=" of the pruned head")
        scores = self._samples.parts(score_logits(logits, score=settings.score, temperature=settings.temperature))
        inside = scores.pop("test")
        detection = {name.removeprefix("ood_"): detection_figures(inside, outside) for name, outside in scores.items()}
        return replace(
            point,
            status="ok",
            pruned_weights=int((~masks.weight).sum()),
            pruned_neurons=int((~masks.neuron).sum()),
            removed_share=int((~masks.kept).sum()) / masks.kept.numel(),
            mask_digest=tensors_digest({"kept": masks.kept}),
            detection=detection,
            mean=mean_figures(list(detection.values())),
            near=self._mean(detection, "near"),
            far=self._mean(detection, "far"),
            head=self._head_figures(self._samples.parts(logits)["test"]),
        )

    def _mean(self, detection: dict[str, DetectionFigures], nearness: Nearness) -> DetectionFigures | None:
        return mean_figures([each for name, each in detection.items() if self._nearness(name) == nearness])

    def _head_figures(self, logits: Tensor) -> HeadFigures | None:
        labels = self.model.test.labels
        if labels is None:
            return None
        figures = classifier_figures(logits, labels)
        return HeadFigures(accuracy=figures.accuracy, ece=figures.ece)

    def _nearness(self, name: str) -> Nearness:
        return "near" if self.near & {name, f"{self.model.name}:{name}"} else "far"


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
