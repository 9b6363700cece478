"""Adapters, exports and surfaces that each break one promise, as they could go wrong."""

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios
from opnp.adapters.openood import OPNPPostprocessor
from opnp.adapters.pytorch_ood import OPNPDetector
from opnp.adapters.scikit_learn import OPNPOutlierDetector, classifier_features
from tests.contract.adapter_shells import (
    BaselineShell,
    OdinShell,
    OpenOodShell,
    PytorchOodFeatureShell,
    PytorchOodShell,
)
from tests.contract.export_shells import FusedJudgeShell, JudgeShell, ModuleShell, OnnxShell, ProgramShell
from tests.contract.scikit_learn_shells import FrozenShell, FusedScikitLearnShell, ScikitLearnShell
from tests.contract.shell import head_of
from tests.contract.surface_shells import CommandShell, RefusedError, ServiceShell

__all__ = [
    "AnswersInTheOrderOfScores",
    "AnswersUnfitted",
    "AnswersWhatItCannotScore",
    "ChangesItsHyperparameters",
    "ChangesItsParameters",
    "ClassesOfThePrunedHead",
    "DrawsFromTheGlobalGenerator",
    "FitsTheEstimatorThatWasGiven",
    "ForgetsEvalForPytorchOod",
    "JudgesByAnotherThreshold",
    "LeavesGradients",
    "OffByATouch",
    "OneAtATime",
    "PickledByName",
    "PrunesInPlaceOfFusing",
    "PrunesTheHeadInPlace",
    "ReadsTestLabels",
    "RefitsWhenItScores",
    "ScalesOfAnotherFusion",
    "ServesInTrainingMode",
    "StaleMaskForPytorchOod",
    "StaleModule",
    "StaleProgram",
    "TrainableModule",
    "WrongSignForOpenOod",
    "WrongSignForPytorchOod",
    "WrongSignForScikitLearn",
]


# ------------------------------------------------------------------------------------------------ pytorch-ood, OpenOOD
class _Confident(OPNPDetector):
    def predict(self, x: Tensor) -> Tensor:
        return -super().predict(x)


class WrongSignForPytorchOod(PytorchOodShell):
    made_of = _Confident


class _Forgetful(OPNPDetector):
    def predict(self, x: Tensor) -> Tensor:
        encoder = self._encoder()
        with torch.no_grad():
            return self.opnp.score_features(encoder(x.clone()))


class ForgetsEvalForPytorchOod(PytorchOodShell):
    made_of = _Forgetful


class _Sticky(OPNPDetector):
    def set_hyperparameters(self, **hyperparameters: object) -> Self:
        ready = self._ready
        super().set_hyperparameters(**hyperparameters)
        self._ready = {self._settings(): detector for detector in ready.values()} or {self._settings(): self.opnp}
        return self


class StaleMaskForPytorchOod(PytorchOodFeatureShell):
    made_of = _Sticky


class _Resolving(OPNPDetector):
    def fit(self, data_loader: Iterable[object]) -> Self:
        super().fit(data_loader)
        self.w_min = 0.25
        return self


class ChangesItsHyperparameters(PytorchOodShell):
    made_of = _Resolving


class _Positive(OPNPPostprocessor):
    def postprocess(self, net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        classes, confidences = super().postprocess(net, data)
        return classes, -confidences


class WrongSignForOpenOod(OpenOodShell):
    made_of = _Positive


class _Peeking(OPNPPostprocessor):
    def inference(self, net: nn.Module, data_loader: Any, progress: bool = True) -> Any:
        classes, confidences, labels = super().inference(net, data_loader, progress)
        return classes, confidences + 0.1 * (classes == labels).astype(confidences.dtype), labels


class ReadsTestLabels(OpenOodShell):
    made_of = _Peeking


class _OfPruned(OPNPPostprocessor):
    def postprocess(self, net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        classes, confidences = super().postprocess(net, data)
        return (classes + (confidences < confidences.median())) % 4, confidences


class ClassesOfThePrunedHead(OpenOodShell):
    made_of = _OfPruned


class AnswersUnfitted(BaselineShell):
    def scores(self, inputs: Tensor) -> Tensor:
        self.method._is_fitted = True
        return super().scores(inputs)


class LeavesGradients(OdinShell):
    def scores(self, inputs: Tensor) -> Tensor:
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return super().scores(inputs)


# ------------------------------------------------------------------------------------------------ scikit-learn
class _Resolved(OPNPOutlierDetector):
    def fit(self, X: object, y: object = None) -> Self:  # noqa: N803  # scikit-learn's name
        super().fit(X, y)
        self.contamination = float(np.float32(self.contamination))
        return self


class ChangesItsParameters(ScikitLearnShell):
    made_of = _Resolved


class _InPlace(OPNPOutlierDetector):
    def fit(self, X: object, y: object = None) -> Self:  # noqa: N803  # scikit-learn's name
        self.estimator.fit(X, y)
        return super().fit(X, y)


class FitsTheEstimatorThatWasGiven(ScikitLearnShell):
    made_of = _InPlace


class _Refitting(OPNPOutlierDetector):
    def score_samples(self, X: object) -> np.ndarray:  # noqa: N803  # scikit-learn's name
        found = super().score_samples(X)
        if len(found) > 20:
            features = classifier_features(self.estimator_, X)
            self.detector_.calibrate_features(features.read(0, features.rows)[0], keep=0.9)
            self.offset_ = -self.detector_.threshold
        return found


class RefitsWhenItScores(FrozenShell):
    made_of = _Refitting


class _Distant(OPNPOutlierDetector):
    def score_samples(self, X: object) -> np.ndarray:  # noqa: N803  # scikit-learn's name
        return -super().score_samples(X)


class WrongSignForScikitLearn(ScikitLearnShell):
    made_of = _Distant

    def verdicts(self, inputs: Tensor) -> Tensor:
        return super().verdicts(inputs)


class _Seeding(OPNPOutlierDetector):
    def fit(self, X: object, y: object = None) -> Self:  # noqa: N803  # scikit-learn's name
        np.random.rand(1)  # noqa: NPY002  # the global state is what must stay
        return super().fit(X, y)


class DrawsFromTheGlobalGenerator(ScikitLearnShell):
    made_of = _Seeding


class _Alone(OPNPOutlierDetector):
    def _unfitted(self) -> OPNP:
        return OPNP(ratios=Ratios(), precision="float64")


class PrunesInPlaceOfFusing(FusedScikitLearnShell):
    made_of = _Alone


# ------------------------------------------------------------------------------------------------ exports
class ScalesOfAnotherFusion(FusedJudgeShell):
    def exported(self) -> nn.Module:
        judge: Any = super().exported()
        judge.scales[1].mul_(1.001)
        return cast("nn.Module", judge)


class StaleModule(ModuleShell):
    def set_ratios(self, ratios: Ratios) -> None:
        made = self._made
        super().set_ratios(ratios)
        self._made = made


class TrainableModule(ModuleShell):
    """A module whose copy of the model goes into training mode with it."""

    def switch_to_training(self) -> None:
        nn.Module.train(self.made)
        for module in self.made.modules():
            module.training = True


class PrunesTheHeadInPlace(ModuleShell):
    def exported(self) -> Any:
        module = super().exported()
        head_of(self.model).weight.data.mul_(self.detector.masks.kept)
        return module


class JudgesByAnotherThreshold(JudgeShell):
    def exported(self) -> nn.Module:
        judge: Any = super().exported()
        judge.threshold.add_(0.2)
        return cast("nn.Module", judge)


class StaleProgram(ProgramShell):
    def set_ratios(self, ratios: Ratios) -> None:
        made = self._made
        self.detector = self.detector.with_ratios(ratios)
        self.ratios, self._made = ratios, made


class OneAtATime(OnnxShell):
    """An ONNX file whose batch axis is fixed to 1."""

    def content(self) -> bytes:
        import onnx

        proto = onnx.load_from_string(super().content())
        for item in (*proto.graph.input, *proto.graph.output):
            item.type.tensor_type.shape.dim[0].dim_value = 1
        return cast("bytes", proto.SerializeToString())


class OffByATouch(OnnxShell):
    def answers(self, inputs: Tensor) -> tuple[Tensor, ...]:
        logits, score, *rest = super().answers(inputs)
        return logits, score * 1.0001, *rest


# ------------------------------------------------------------------------------------------------ surfaces
class AnswersInTheOrderOfScores(CommandShell):
    def _run(self, inputs: Tensor, labels: Tensor | None) -> list[dict[str, Any]]:
        return sorted(super()._run(inputs, labels), key=lambda row: row["score"])


class ServesInTrainingMode(ServiceShell):
    def scores(self, inputs: Tensor) -> Tensor:
        bias = float(sum(module.training for module in self.model.modules()))
        return super().scores(inputs) + bias


class AnswersWhatItCannotScore(ServiceShell):
    def scores(self, inputs: Tensor) -> Tensor:
        try:
            return super().scores(inputs)
        except RefusedError:
            return torch.zeros(len(inputs), dtype=torch.float64)


class PickledByName(PytorchOodFeatureShell):
    """Another process gets the options, and fits to what it finds."""

    def sent(self, folder: Path) -> None:
        twin = type(self)(Ratios(w_min=0.1)).fit()
        (folder / "pickle").write_bytes(pickle.dumps(twin.detector))
