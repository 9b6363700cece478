"""Detectors, adapters, exports and surfaces that each break one promise, to see that the contract notices."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Self, cast
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from opnp import OPNP, Explanation, Ratios, SensitivitySum
from opnp.adapters.openood import OPNPPostprocessor
from opnp.adapters.scikit_learn import OPNPOutlierDetector
from opnp.errors import NotCalibratedError
from tests.contract.library_shells import (
    Features,
    FusedFeatures,
    FusedInputs,
    FusedJudge,
    Inputs,
    Judge,
    Module,
    Onnx,
)
from tests.contract.shell import Shell, breaks
from tests.contract.surface_shells import Command
from tests.contract.toolkit_shells import (
    FusedScikitLearn,
    Odin,
    OpenOod,
    ScikitLearn,
)
from tests.contract.world import head_of, known

__all__: list[str] = []

BOTH = (Inputs, FusedInputs)
"""Detectors of the library are broken in both kinds: of the paper, and fused."""


# ------------------------------------------------------------------------------------------------ the model


def _moved(model: nn.Module) -> None:
    """Leave equal values at another address, where an optimiser or a tied layer would miss them."""
    head_of(model).bias.data = head_of(model).bias.data.clone()


MEDDLING: dict[str, Callable[[nn.Module], object]] = {
    "PrunesTheModel": lambda model: head_of(model).weight.data[0, :1].zero_(),
    "LeavesAHook": lambda model: model.register_forward_pre_hook(lambda _module, _args: None),
    "LeavesEvalMode": lambda model: model.eval(),
    "LeavesTrainMode": lambda model: model.train(),
    "Freezes": lambda model: model.requires_grad_(requires_grad=False),
    "ClearsGradients": lambda model: model.zero_grad(),
    "DrawsRandomNumbers": lambda _: torch.rand(1),
    "DrawsRandomNumbersOfNumpy": lambda _: np.random.rand(1),  # noqa: NPY002  # the global state is what must stay
    "SwitchesGradOff": lambda _: torch.set_grad_enabled(False),
    "RunsInTheModeOfBefore": lambda model: model(known()[:32]),
    "MovesTheBias": _moved,
}


def _meddling(meddle: Callable[[nn.Module], object]) -> type[OPNP]:
    class Meddling(OPNP):
        def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
            super().fit(model, loader, **options)
            meddle(model)
            return self

    return Meddling


for _name, _meddle in MEDDLING.items():
    breaks("check_nothing_of_the_users_changes", of=BOTH)(type(_name, (_meddling(_meddle),), {}))


@breaks("check_nothing_of_the_users_changes", "check_every_call_changes_nothing", of=BOTH)
class PrunesWhatItScores(OPNP):
    def score(self, inputs: object) -> Tensor:
        MEDDLING["PrunesTheModel"](self._linked().model)
        return super().score(inputs)


@breaks("check_nothing_of_the_users_changes", of=BOTH)
class PrunesByOtherRatios(OPNP):
    def with_ratios(self, ratios: Ratios, **options: Any) -> Self:
        MEDDLING["PrunesTheModel"](self._linked().model)
        return super().with_ratios(ratios, **options)


@breaks("check_nothing_of_the_users_changes")
class ClearsGradientsOfWhatItCopies(Inputs):
    def copied(self) -> Shell:
        self.model.zero_grad()
        return super().copied()


@breaks("check_nothing_of_the_users_changes")
class PrunesTheHeadThatIsExported(Module):
    def make(self) -> Any:
        head_of(self.model).weight.data.mul_(self.detector.masks.kept)
        return super().make()


@breaks("check_nothing_of_the_users_changes")
class LeavesGradients(Odin):
    def scores(self, inputs: Tensor) -> Tensor:
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return super().scores(inputs)


@breaks("check_nothing_of_the_users_changes")
class WritesToItsInputs(Features):
    def scores(self, inputs: Tensor) -> Tensor:
        found = super().scores(inputs)
        inputs.mul_(0.5)
        return found


@breaks("check_nothing_of_the_users_changes", of=(ScikitLearn,))
class FitsTheEstimatorThatWasGiven(OPNPOutlierDetector):
    def fit(self, X: object, y: object = None) -> Self:  # noqa: N803  # scikit-learn's name
        self.estimator.fit(X, y)
        return super().fit(X, y)


@breaks("check_nothing_of_the_users_changes", of=(ScikitLearn,))
class ChangesItsParameters(OPNPOutlierDetector):
    def fit(self, X: object, y: object = None) -> Self:  # noqa: N803  # scikit-learn's name
        super().fit(X, y)
        self.contamination = float(np.float32(self.contamination))
        return self


@breaks("check_failures_change_nothing", of=BOTH)
class TidiesUpOnSuccessAlone(OPNP):
    def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
        modes = {module: module.training for module in model.modules()}
        model.eval()
        super().fit(model, loader, **options)
        for module, mode in modes.items():
            module.training = mode
        return self


@breaks("check_failures_change_nothing", "check_a_failing_model_changes_nothing", of=BOTH)
class SwallowsErrorsOfAFit(OPNP):
    def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
        try:
            return super().fit(model, loader, **options)
        except (ValueError, RuntimeError):
            return self

    def calibrate(self, loader: Iterable[object], **options: Any) -> Self:
        return super().calibrate(loader, **options) if self.is_fitted else self


@breaks("check_failures_change_nothing", of=BOTH)
class ForgetsOnFailure(OPNP):
    def calibrate(self, loader: Iterable[object], **options: Any) -> Self:
        state, self._state = self._fitted(), None
        self._state = replace(state, calibration=None)
        return super().calibrate(loader, **options)


@breaks("check_a_failing_model_changes_nothing", of=BOTH)
class SwallowsErrorsOfTheModel(OPNP):
    def score(self, inputs: object) -> Tensor:
        try:
            return super().score(inputs)
        except RuntimeError:
            return torch.zeros(len(cast("Tensor", inputs)))


@breaks("check_two_detectors_get_along", of=BOTH)
class AnswersForTheLatest(OPNP):
    latest: OPNP

    def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
        super().fit(model, loader, **options)
        type(self).latest = self
        return self

    def score(self, inputs: object) -> Tensor:
        return OPNP.score(type(self).latest, inputs)


# ------------------------------------------------------------------------------------------------ answers


@breaks("check_larger_scores_mean_what_is_declared", of=BOTH)
class WrongSign(OPNP):
    def score(self, inputs: object) -> Tensor:
        return -super().score(inputs)


@breaks("check_larger_scores_mean_what_is_declared", of=(OpenOod,))
class WrongSignForOpenOod(OPNPPostprocessor):
    def postprocess(self, net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        classes, confidences = super().postprocess(net, data)
        return classes, -confidences


@breaks("check_scores_are_those_of_opnp")
class OffByATouch(Onnx):
    def answers(self, inputs: Tensor) -> tuple[Tensor, ...]:
        logits, score, *rest = super().answers(inputs)
        return logits, score * 1.0001, *rest


@breaks("check_scores_are_those_of_opnp", "check_the_batch_of_an_input_does_not_matter")
class AnswersInTheOrderOfScores(Command):
    def _run(self, inputs: Tensor, labels: Tensor | None) -> list[dict[str, Any]]:
        return sorted(super()._run(inputs, labels), key=lambda row: row["score"])


@breaks("check_scores_are_those_of_opnp", of=(FusedScikitLearn,))
class PrunesInPlaceOfFusing(OPNPOutlierDetector):
    def _unfitted(self) -> OPNP:
        return OPNP(ratios=Ratios(), precision="float64")


@breaks("check_scores_are_those_of_opnp")
class ScalesOfAnotherFusion(FusedJudge):
    def make(self) -> nn.Module:
        judge: Any = super().make()
        judge.scales[1].mul_(1.001)
        return cast("nn.Module", judge)


@breaks("check_verdicts_are_those_of_opnp", "check_the_share_flagged_of_the_calibration_is_exact")
class JudgesByAnotherThreshold(Judge):
    def make(self) -> nn.Module:
        judge: Any = super().make()
        judge.threshold.add_(0.2)
        return cast("nn.Module", judge)


@breaks("check_p_values_are_those_of_opnp")
class PValuesTheOtherWay(Features):
    def p_values(self, inputs: Tensor) -> Tensor:
        return 1 - super().p_values(inputs)


@breaks("check_inputs_and_features_agree", "check_classes_are_those_of_the_whole_head", of=BOTH)
class ClassOfThePrunedHead(OPNP):
    def verdict(self, inputs: object) -> Any:
        found = super().verdict(inputs)
        return found._replace(predicted_class=found.predicted_class * 0)


@breaks("check_inputs_and_features_agree", of=BOTH)
class ReadsAnotherLayer(OPNP):
    def score_features(self, features: Any) -> Tensor:
        return super().score_features(features * 1.0001)


@breaks("check_the_share_flagged_of_the_calibration_is_exact", "check_verdicts", of=BOTH)
class VerdictsInFloats(OPNP):
    def predict(self, inputs: object) -> Tensor:
        return self.p_value(inputs) < 1 - self.keep


@breaks("check_the_same_question_has_the_same_answer", of=BOTH)
class Rolls(OPNP):
    def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
        super().fit(model, loader, **options)
        self._noise = float(torch.rand(1))
        return self

    def score(self, inputs: object) -> Tensor:
        return super().score(inputs) + self._noise


@breaks("check_the_mode_does_not_matter", of=BOTH)
class ScoresInTrainMode(OPNP):
    def score(self, inputs: object) -> Tensor:
        return super().score(inputs) + float(sum(module.training for module in self._linked().model.modules()))


@breaks("check_the_mode_does_not_matter")
class TrainableModule(Module):
    """A module whose copy of the model goes into training mode with it."""

    def switch_to_training(self) -> None:
        for module in self.made.modules():
            module.training = True


@breaks("check_the_batch_of_an_input_does_not_matter")
class DoublesABatchOfOne(Features):
    def scores(self, inputs: Tensor) -> Tensor:
        found = super().scores(inputs)
        return 2 * found if len(found) == 1 else found


@breaks("check_the_batch_of_an_input_does_not_matter")
class NormalisesByTheBatch(Features):
    def scores(self, inputs: Tensor) -> Tensor:
        found = super().scores(inputs)
        return found - 1e-3 * found.mean()


@breaks("check_scores_are_those_of_opnp", "check_the_batch_of_an_input_does_not_matter")
class OneAtATime(Onnx):
    """An ONNX file whose batch axis is fixed to 1."""

    def content(self) -> bytes:
        import onnx

        proto = onnx.load_from_string(super().content())
        for item in (*proto.graph.input, *proto.graph.output):
            item.type.tensor_type.shape.dim[0].dim_value = 1
        return cast("bytes", proto.SerializeToString())


@breaks("check_no_inputs_are_answered_as_documented")
class AnswersNothingWithZero(Features):
    def scores(self, inputs: Tensor) -> Tensor:
        return super().scores(inputs) if len(inputs) else torch.zeros(1)


@breaks("check_nan_is_answered_as_documented")
class PassesOverNan(Features):
    def scores(self, inputs: Tensor) -> Tensor:
        return super().scores(inputs.nan_to_num())


@breaks("check_labels_of_what_is_scored_are_not_read", of=(OpenOod,))
class ReadsTestLabels(OPNPPostprocessor):
    def inference(self, net: nn.Module, data_loader: Any, progress: bool = True) -> Any:
        classes, confidences, labels = super().inference(net, data_loader, progress)
        return classes, confidences + 0.1 * (classes == labels).astype(confidences.dtype), labels


@breaks("check_answers_are_plain_tensors", of=BOTH)
class BuildsAGraph(OPNP):
    def score_features(self, features: Any) -> Tensor:
        rows: Tensor = features
        return super().score_features(rows) + 0 * rows.sum()


@breaks("check_answers_are_plain_tensors", "check_answers_carry_no_graph", of=BOTH)
class ReturnsInferenceTensors(OPNP):
    def score(self, inputs: object) -> Tensor:
        with torch.inference_mode():
            return super().score(inputs)


@breaks("check_answers_carry_no_graph")
class KeepsTheGraph(Features):
    def scores(self, inputs: Tensor) -> Tensor:
        return super().scores(inputs) + 0 * head_of(self.model).weight.sum()


@breaks("check_several_at_once_get_the_answers_of_one")
class SharesOneDesk(Features):
    """Puts what it scores on the object, where another thread finds it."""

    def scores(self, inputs: Tensor) -> Tensor:
        self._desk = inputs
        time.sleep(0.01)
        return super().scores(self._desk)


@breaks("check_explanations", of=BOTH)
class ExplainsTheOtherWay(OPNP):
    def explain(self, inputs: object) -> Explanation:
        found = super().explain(inputs)
        return found._replace(p_value=1 - found.p_value)


@breaks("check_explanations", of=BOTH)
class SharesMoreThanThereIs(OPNP):
    def explain(self, inputs: object) -> Explanation:
        found = super().explain(inputs)
        return found._replace(share=2 * found.share)


@breaks("check_single_inputs", of=BOTH)
class IgnoresSingleInputs(OPNP):
    def score(self, inputs: object) -> Tensor:
        return super().score(inputs).reshape(-1)


# ------------------------------------------------------------------------------------------------ fits and files


@breaks("check_the_unfitted_is_told", "check_what_is_missing_is_told", of=BOTH)
class AnswersUnfitted(OPNP):
    def score(self, inputs: object) -> Tensor:
        return super().score(inputs) if self.is_fitted else torch.zeros(len(cast("Tensor", inputs)))


@breaks("check_what_is_missing_is_told", of=BOTH)
class JudgesUncalibrated(OPNP):
    def predict(self, inputs: object) -> Tensor:
        try:
            return super().predict(inputs)
        except NotCalibratedError:
            return self.score(inputs) > 0


@breaks("check_scoring_fits_nothing", of=BOTH)
class MovesTheThresholdByWhatItScores(OPNP):
    def score(self, inputs: object) -> Tensor:
        found = super().score(inputs)
        if self.is_calibrated:
            state, features = self._fitted(), self._linked().features_of(inputs)[0]
            self._state = state.calibrated([features], keep=self.keep)
        return found


@breaks("check_scoring_fits_nothing", of=(Features, FusedFeatures))
class FitsWhatItScores(OPNP):
    """Adds what it scores to the sensitivities."""

    def score_features(self, features: Any) -> Tensor:
        found = super().score_features(features)
        self._fitted().sensitivity.weight.add_(1e-6 * features.double().abs().mean(0))
        return found


@breaks("check_a_second_fit_replaces_the_first", of=BOTH)
class AddsToTheFirstFit(OPNP):
    def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
        self._seen = [*getattr(self, "_seen", []), *loader]
        return super().fit(model, self._seen, **options)


@breaks("check_a_second_fit_replaces_the_first", of=BOTH)
class KeepsItsFirstFit(OPNP):
    def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
        return self if self.is_fitted else super().fit(model, loader, **options)


@breaks("check_other_ratios_take_effect", "check_with_ratios", of=BOTH)
class StaleMask(OPNP):
    def with_ratios(self, ratios: Ratios, **options: Any) -> Self:
        changed = super().with_ratios(ratios, **options)
        state = changed._fitted()
        vars(state)["pruned"] = replace(self._fitted().pruned, settings=state.settings)
        return changed


@breaks("check_with_ratios", of=BOTH)
class KeepsCalibrationOfOtherRatios(OPNP):
    def with_ratios(self, ratios: Ratios, **options: Any) -> Self:
        changed = super().with_ratios(ratios, **options)
        object.__setattr__(changed._fitted(), "calibration", self._fitted().calibration)
        return changed


@breaks("check_other_ratios_take_effect")
class StaleThreshold(Features):
    def set_ratios(self, ratios: Ratios) -> None:
        before = self.detector._calibration()
        super().set_ratios(ratios)
        object.__setattr__(self.detector._fitted(), "calibration", before)


@breaks("check_other_ratios_take_effect")
class StaleModule(Module):
    def set_ratios(self, ratios: Ratios) -> None:
        made = self.made
        super().set_ratios(ratios)
        self.made = made


@breaks("check_sums_are_float64", of=BOTH)
class SumsInFloat32(OPNP):
    def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
        def zeros(classes: int, features: int, *, device: object = None) -> SensitivitySum:  # as the true one
            return SensitivitySum(torch.zeros(classes, features), torch.zeros(features), 0)

        with patch.object(SensitivitySum, "zeros", zeros):
            super().fit(model, loader, **options)
        sensitivity = self._fitted().sensitivity
        for name in ("weight", "neuron_gradient", "neuron_aggregate"):
            object.__setattr__(sensitivity, name, getattr(sensitivity, name).double())
        return self


@breaks("check_cutting_does_not_matter", of=BOTH)
class FirstBatchOnly(OPNP):
    def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
        return super().fit(model, [next(iter(loader))], **options)


@breaks("check_saved_detector_answers_alike", "check_another_process_answers_alike", of=BOTH)
class RoundsWhatItSaves(OPNP):
    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module | None = None) -> Self:
        detector = super().load(path, model)
        state = detector._fitted()
        (state.pruned.weight if state.scales is None else state.scales).mul_(1.001)
        return detector


@breaks("check_saved_detector_answers_alike", "check_a_copy_answers_alike_and_apart", of=BOTH)
class LosesCalibration(OPNP):
    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module | None = None) -> Self:
        detector = super().load(path, model)
        detector._state = replace(detector._fitted(), calibration=None)
        return detector


@breaks("check_a_copy_answers_alike_and_apart")
class CopiesByReference(Features):
    def copied(self) -> Shell:
        return self
