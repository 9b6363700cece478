"""Detectors that each break one promise, to see that the contract notices."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor, nn

from opnp import OPNP, Explanation, Ratios, SensitivitySum
from opnp.errors import NotCalibratedError, NotFittedError
from tests.contract.world import HEAD

__all__ = ["BROKEN", "MovesTheThresholdByWhatItScores", "SumsInFloat32"]

Broken = type[OPNP]


def _zeros(count: int) -> Tensor:
    return torch.zeros(count)


class WrongSign(OPNP):
    def score(self, inputs: object) -> Tensor:
        return -super().score(inputs)

    def score_features(self, features: Tensor) -> Tensor:
        return -super().score_features(features)


class _AfterFit(OPNP):
    """Does something to the model once it is fitted."""

    def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
        super().fit(model, loader, **options)
        self.meddle(model)
        return self

    def meddle(self, model: nn.Module) -> None:
        raise NotImplementedError


class PrunesTheUsersModel(_AfterFit):
    def meddle(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                with torch.no_grad():
                    module.weight[0, 0] = 0.0


class LeavesAHook(_AfterFit):
    def meddle(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(lambda _module, _args: None)


class LeavesEvalMode(_AfterFit):
    def meddle(self, model: nn.Module) -> None:
        model.eval()


class LeavesTrainMode(_AfterFit):
    def meddle(self, model: nn.Module) -> None:
        model.train()


class Freezes(_AfterFit):
    def meddle(self, model: nn.Module) -> None:
        model.requires_grad_(requires_grad=False)


class ClearsGradients(_AfterFit):
    def meddle(self, model: nn.Module) -> None:
        model.zero_grad()


class DrawsRandomNumbers(_AfterFit):
    def meddle(self, model: nn.Module) -> None:
        torch.rand(1)


class SwitchesGradOff(_AfterFit):
    def meddle(self, model: nn.Module) -> None:
        torch.set_grad_enabled(False)


class ForgetsEval(OPNP):
    def fit(self, model: nn.Module, loader: Iterable[Any], **options: Any) -> Self:
        held = list(loader)
        with torch.no_grad():
            model(held[0])
        return super().fit(model, held, **options)


class TidiesUpOnSuccessAlone(OPNP):
    def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
        modes = {module: module.training for module in model.modules()}
        model.eval()
        super().fit(model, loader, **options)
        for module, mode in modes.items():
            module.training = mode
        return self


class SwallowsErrors(OPNP):
    def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
        try:
            return super().fit(model, loader, **options)
        except ValueError:
            return self


class ForgetsOnFailure(OPNP):
    def calibrate(self, loader: Iterable[object], **options: Any) -> Self:
        state, self._state = self._fitted(), None
        self._state = replace(state, calibration=None)
        return super().calibrate(loader, **options)


class ScoresInTrainMode(OPNP):
    def score(self, inputs: object) -> Tensor:
        model = self._linked().model
        bias = float(sum(module.training for module in model.modules()))
        return super().score(inputs) + bias


class Scatterbrained(OPNP):
    latest: OPNP | None = None

    def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
        super().fit(model, loader, **options)
        type(self).latest = self
        return self

    def score(self, inputs: object) -> Tensor:
        latest = type(self).latest
        if latest is None:
            raise NotFittedError
        return OPNP.score(latest, inputs)


class Rolls(OPNP):
    def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
        super().fit(model, loader, **options)
        self._noise = float(torch.rand(1))
        return self

    def score(self, inputs: object) -> Tensor:
        return super().score(inputs) + self._noise


class RoundsWhatItSaves(OPNP):
    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module | None = None) -> Self:
        detector = super().load(path, model)
        state = detector._fitted()
        (state.pruned.weight if state.scales is None else state.scales).mul_(1.001)
        return detector


class LosesCalibration(OPNP):
    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module | None = None) -> Self:
        detector = super().load(path, model)
        detector._state = replace(detector._fitted(), calibration=None)
        return detector


class AnswersUnfitted(OPNP):
    def score(self, inputs: object) -> Tensor:
        if not self.is_fitted and isinstance(inputs, Tensor):
            return _zeros(len(inputs))
        return super().score(inputs)


class JudgesUncalibrated(OPNP):
    def predict(self, inputs: object) -> Tensor:
        try:
            return super().predict(inputs)
        except NotCalibratedError:
            return self.score(inputs) > 0


class ReadsAnotherLayer(OPNP):
    def score_features(self, features: Tensor) -> Tensor:
        return super().score_features(features * 1.0001)


class ClassOfThePrunedHead(OPNP):
    def verdict(self, inputs: object) -> Any:
        found = super().verdict(inputs)
        return found._replace(predicted_class=found.predicted_class * 0)


class BuildsAGraph(OPNP):
    def score_features(self, features: Tensor) -> Tensor:
        return super().score_features(features) + 0 * features.sum()


class ReturnsInferenceTensors(OPNP):
    def score(self, inputs: object) -> Tensor:
        with torch.inference_mode():
            return super().score(inputs)


class StaleMask(OPNP):
    def with_ratios(self, ratios: Ratios, **options: Any) -> Self:
        changed = super().with_ratios(ratios, **options)
        state = changed._fitted()
        vars(state)["pruned"] = replace(self._fitted().pruned, settings=state.settings)
        return changed


class KeepsCalibrationOfOtherRatios(OPNP):
    def with_ratios(self, ratios: Ratios, **options: Any) -> Self:
        changed = super().with_ratios(ratios, **options)
        object.__setattr__(changed._fitted(), "calibration", self._fitted().calibration)
        return changed


class FloatVerdicts(OPNP):
    def predict(self, inputs: object) -> Tensor:
        return self.p_value(inputs) < 1 - self.keep


class ExplainsTheOtherWay(OPNP):
    def explain(self, inputs: object) -> Explanation:
        found = super().explain(inputs)
        return found._replace(p_value=1 - found.p_value)


class SharesMoreThanThereIs(OPNP):
    def explain(self, inputs: object) -> Explanation:
        found = super().explain(inputs)
        return found._replace(share=2 * found.share)


class IgnoresSingleInputs(OPNP):
    def score(self, inputs: object) -> Tensor:
        return super().score(inputs).reshape(-1)


class FirstBatchOnly(OPNP):
    def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
        return super().fit(model, [next(iter(loader))], **options)


class MovesTheBias(OPNP):
    """Leaves equal values at another address, where an optimiser or a tied layer would miss them."""

    def predict(self, inputs: object) -> Tensor:
        head = self._linked().model.get_submodule(HEAD)
        assert isinstance(head, nn.Linear)
        assert head.bias is not None
        head.bias.data = head.bias.data.clone()
        return super().predict(inputs)


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


class MovesTheThresholdByWhatItScores(OPNP):
    def score(self, inputs: object) -> Tensor:
        found = super().score(inputs)
        if self.is_calibrated:
            state, features = self._fitted(), self._linked().features_of(inputs)[0]
            self._state = state.calibrated([features], keep=self.keep)
        return found


class FitsWhatItScores(OPNP):
    """Adds what it scores to the sensitivities."""

    def score_features(self, features: Tensor) -> Tensor:
        found = super().score_features(features)
        self._fitted().sensitivity.weight.add_(1e-6 * features.double().abs().mean(0))
        return found


BROKEN: dict[str, tuple[Callable[..., OPNP], ...]] = {
    "check_calls_change_nothing": (
        PrunesTheUsersModel,
        LeavesAHook,
        LeavesEvalMode,
        LeavesTrainMode,
        Freezes,
        ClearsGradients,
        DrawsRandomNumbers,
        SwitchesGradOff,
        ForgetsEval,
        MovesTheBias,
    ),
    "check_failures_change_nothing": (TidiesUpOnSuccessAlone, SwallowsErrors, ForgetsOnFailure),
    "check_modes_do_not_matter": (ScoresInTrainMode,),
    "check_two_detectors_get_along": (Scatterbrained,),
    "check_determinism": (Rolls,),
    "check_sign": (WrongSign,),
    "check_saved_detector_answers_alike": (RoundsWhatItSaves, LosesCalibration),
    "check_unfitted": (AnswersUnfitted,),
    "check_uncalibrated": (JudgesUncalibrated,),
    "check_inputs_and_features_agree": (ReadsAnotherLayer, ClassOfThePrunedHead),
    "check_answers_are_plain_tensors": (BuildsAGraph, ReturnsInferenceTensors),
    "check_with_ratios": (StaleMask, KeepsCalibrationOfOtherRatios),
    "check_verdicts": (FloatVerdicts,),
    "check_explanations": (ExplainsTheOtherWay, SharesMoreThanThereIs),
    "check_single_inputs": (IgnoresSingleInputs,),
    "check_cutting_does_not_matter": (FirstBatchOnly,),
    "check_scoring_fits_nothing": (MovesTheThresholdByWhatItScores, FitsWhatItScores),
    "check_sums_are_float64": (SumsInFloat32,),
}
"""By the name of the check that must fail: the detectors that fail it."""
