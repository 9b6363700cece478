"""The methods on one model: fitted, scored, measured; what fails becomes a row that says why."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from opnp.bench.bench_record import ClassifierFigures, MethodRow, ModelResult, Nearness, Split
from opnp.bench.feature_folder import ModelData
from opnp.bench.figures import classifier_figures, detection_figures, mean_figures
from opnp.bench.measure import Measurement, measured
from opnp.bench.methods import FittedMethod, Method, Part
from opnp.bench.model_gallery import model_gallery
from opnp.bench.opnp_methods import PRODUCT, FittedOpnp
from opnp.bench.picture_record import ModelPictures
from opnp.bench.pictures import detector_pictures
from opnp.bench.score_file import ScoreBlock
from opnp.bench.splitting import IdSplit
from opnp.data import InputSet
from opnp.detector import OPNP
from opnp.errors import NonFiniteError, OpnpError

__all__ = ["ModelRun", "Progress"]

Progress = Callable[[Iterable[Any]], Iterable[Any]] | None


@dataclass(frozen=True, eq=False, slots=True)
class _Outputs:
    """What a method answers.

    Attributes:
        inside: Scores of the ID samples.
        outside: Scores by OOD set.
        logits: The logits of the ID samples that their scores were read off, or None.

    """

    inside: Tensor
    outside: dict[str, Tensor]
    logits: Tensor | None


@dataclass(eq=False, slots=True)
class ModelRun:
    """One model, with the scores and times that its methods leave.

    Attributes:
        model: Features and head.
        split: Rows of ``test`` for validation, and the rest.
        seed: Seed of the global random state while a method runs; it is left as it was.
        near: Names of the OOD sets that are near, for every model or as ``model:set`` for one.
        inputs: What the features were made of, by set, for a gallery; empty where that is not at hand.
        scores: Scores of every method so far.
        pictures: What figures of the product's head are drawn from, once it has run.
        timings: Seconds and bytes of fit and of scoring by method; methods whose scores were stored have none.

    """

    model: ModelData
    split: IdSplit
    seed: int
    near: frozenset[str]
    inputs: Mapping[str, InputSet] = field(default_factory=dict)
    scores: list[ScoreBlock] = field(default_factory=list)
    pictures: list[ModelPictures] = field(default_factory=list)
    timings: dict[str, dict[str, float | int | None]] = field(default_factory=dict)
    _before: dict[Split, ClassifierFigures | None] = field(default_factory=dict)

    def result(self, methods: Sequence[Method], progress: Progress = None) -> ModelResult:
        """Return what came of the methods, in their order."""
        model = self.model
        return ModelResult(
            model=model.name,
            classes=model.classes,
            features=model.features,
            data=model.sources,
            nearness={name: self._nearness(name) for name in model.ood},
            id_samples={"test": len(model.test.features), "rest": len(self.split.rest)},
            validation_samples=len(self.split.validation),
            methods=tuple(self._row(method) for method in (methods if progress is None else progress(methods))),
        )

    def _row(self, method: Method) -> MethodRow:
        row = MethodRow(
            method=method.name,
            group=method.group,
            source=method.source,
            citation=method.citation,
            settings=dict(method.settings),
            split=method.split,
            status="failed",
            before=self._classifier_before(method.split),
        )
        with warnings.catch_warnings(record=True) as caught, torch.random.fork_rng(devices=[]):
            warnings.simplefilter("always")
            torch.manual_seed(self.seed)
            try:
                row = self._with_figures(row, *self._run(method))
            except OpnpError as error:
                row = replace(row, reason=str(error))
            except Exception as error:  # noqa: BLE001  # a foreign method may fail as it likes: that is its result
                row = replace(row, reason=f"{method.source} raised {type(error).__name__}: {error}")
        return replace(row, notes=tuple(sorted({str(each.message) for each in caught})))

    def _run(self, method: Method) -> tuple[Mapping[str, object], _Outputs]:
        fitted, fit = measured(lambda: method.fit(self.model, self.split))
        outputs, scoring = measured(lambda: self._outputs(fitted, method.split))
        if not method.is_stored:
            self.timings[method.name] = _timing(fit, scoring)
        if method.name == PRODUCT and isinstance(fitted, FittedOpnp):
            self.pictures.append(self._pictures(fitted.detector, method))
        return fitted.chosen, outputs

    def _pictures(self, detector: OPNP, method: Method) -> ModelPictures:
        pictures = detector_pictures(detector, self.model.head.weight, model=self.model.name, method=method.name)
        gallery = model_gallery(detector, self.model, self.inputs, rows=self._rows(method.split))
        return replace(pictures, gallery=gallery)

    def _outputs(self, fitted: FittedMethod, split: Split) -> _Outputs:
        rows = self._rows(split)
        inside, logits = fitted.output(Part("test", rows, self.model.test.features[rows]))
        _require_scores(inside, "test")
        outside = {}
        for name, features in self.model.ood.items():
            outside[name], _ = fitted.output(Part(f"ood_{name}", torch.arange(len(features)), features))
            _require_scores(outside[name], f"ood_{name}")
        return _Outputs(inside, outside, logits)

    def _with_figures(self, row: MethodRow, chosen: Mapping[str, object], outputs: _Outputs) -> MethodRow:
        """Return the row with its figures, and keep the scores."""
        sets = {f"ood_{name}": (torch.arange(len(scores)), scores) for name, scores in outputs.outside.items()}
        for name, (index, scores) in {"test": (self._rows(row.split), outputs.inside), **sets}.items():
            self.scores.append(ScoreBlock(self.model.name, name, row.method, index, scores))
        detection = {name: detection_figures(outputs.inside, scores) for name, scores in outputs.outside.items()}
        return replace(
            row,
            settings=dict(chosen),
            status="ok",
            detection=detection,
            mean=mean_figures(list(detection.values())),
            near=mean_figures([each for name, each in detection.items() if self._nearness(name) == "near"]),
            far=mean_figures([each for name, each in detection.items() if self._nearness(name) == "far"]),
            after=self._classifier(outputs.logits, row.split),
        )

    def _nearness(self, name: str) -> Nearness:
        return "near" if self.near & {name, f"{self.model.name}:{name}"} else "far"

    def _rows(self, split: Split) -> Tensor:
        return torch.arange(len(self.model.test.features)) if split == "test" else self.split.rest

    def _classifier_before(self, split: Split) -> ClassifierFigures | None:
        """Return the original head's figures, taken once a split."""
        if split not in self._before:
            head = self.model.head
            features = self.model.test.features[self._rows(split)].double()
            logits = linear(features, head.weight.double(), None if head.bias is None else head.bias.double())
            self._before[split] = self._classifier(logits, split)
        return self._before[split]

    def _classifier(self, logits: Tensor | None, split: Split) -> ClassifierFigures | None:
        labels = self.model.test.labels
        if logits is None or labels is None:
            return None
        return classifier_figures(logits, labels[self._rows(split)])


def _require_scores(scores: Tensor, name: str) -> None:
    if bool(scores.isnan().any()):
        raise NonFiniteError(f"{int(scores.isnan().sum())} of {len(scores)} scores on {name} are NaN.")


def _timing(fit: Measurement, scoring: Measurement) -> dict[str, float | int | None]:
    return {
        "fit_seconds": fit.seconds,
        "fit_peak_bytes": fit.peak_bytes,
        "score_seconds": scoring.seconds,
        "score_peak_bytes": scoring.peak_bytes,
    }
