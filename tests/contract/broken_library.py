"""Ways of asking `OPNP` that each break one promise."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios
from tests.contract import broken
from tests.contract.library_shells import FeatureWay, FusedInputWay, HeadShell, InputWay, LoadedWay
from tests.contract.shell import Shell, head_of

__all__ = [
    "AddsToTheFirstFit",
    "AnswersNothingWithZero",
    "ClearsGradientsOfWhatItCopies",
    "CopiesByReference",
    "DoublesABatchOfOne",
    "FloatVerdicts",
    "ForgetsEval",
    "FusedSumsInFloat32",
    "KeepsTheGraph",
    "LosesItsCalibration",
    "MovesTheThresholdByWhatItScores",
    "MutatesTheModel",
    "NormalisesByTheBatch",
    "PValuesTheOtherWay",
    "PassesNanOn",
    "Rolls",
    "RoundsWhatItLoads",
    "SharesOneDesk",
    "SortsItsAnswers",
    "StaleHead",
    "StaleMask",
    "StaleThreshold",
    "SumsInFloat32",
    "SwallowsAFailingFit",
    "SwallowsAFailingModel",
    "VerdictsOfAnotherShare",
    "VerdictsTheOtherWay",
    "WritesToItsInputs",
]


class _Meddling(OPNP):
    """Does something to the model whenever it scores."""

    def score(self, inputs: object) -> Tensor:
        found = super().score(inputs)
        self.meddle(self._linked().model)
        return found

    def meddle(self, model: nn.Module) -> None:
        raise NotImplementedError


class _Pruning(_Meddling):
    def meddle(self, model: nn.Module) -> None:
        head_of(model).weight.data[0, 0] = 0.0


class MutatesTheModel(InputWay):
    made_of = _Pruning


class _Forgetting(OPNP):
    def score(self, inputs: object) -> Tensor:
        bias = float(sum(module.training for module in self._linked().model.modules()))
        return super().score(inputs) + bias


class ForgetsEval(InputWay):
    made_of = _Forgetting


class SumsInFloat32(InputWay):
    made_of = broken.SumsInFloat32


class FusedSumsInFloat32(FusedInputWay):
    made_of = broken.SumsInFloat32


class MovesTheThresholdByWhatItScores(InputWay):
    made_of = broken.MovesTheThresholdByWhatItScores


class _Adding(OPNP):
    def fit(self, model: nn.Module, loader: Iterable[object], **options: Any) -> Self:
        self._seen = [*getattr(self, "_seen", []), *loader]
        return super().fit(model, self._seen, **options)


class AddsToTheFirstFit(InputWay):
    made_of = _Adding


class _Swallowing(OPNP):
    def fit(self, *arguments: Any, **options: Any) -> Self:
        try:
            return super().fit(*arguments, **options)
        except RuntimeError:
            return self

    def calibrate(self, *arguments: Any, **options: Any) -> Self:
        return super().calibrate(*arguments, **options) if self.is_fitted else self


class SwallowsAFailingFit(InputWay):
    made_of = _Swallowing


class _Calm(OPNP):
    def score(self, inputs: object) -> Tensor:
        try:
            return super().score(inputs)
        except RuntimeError:
            return torch.zeros(len(cast("Tensor", inputs)))


class SwallowsAFailingModel(InputWay):
    made_of = _Calm


class StaleMask(FeatureWay):
    def set_ratios(self, ratios: Ratios) -> None:
        self.ratios = ratios


class StaleThreshold(FeatureWay):
    def set_ratios(self, ratios: Ratios) -> None:
        before = self.detector._calibration()
        super().set_ratios(ratios)
        object.__setattr__(self.detector._fitted(), "calibration", before)


class FloatVerdicts(FeatureWay):
    def verdicts(self, inputs: Tensor) -> Tensor:
        return self.p_values(inputs) < 0.1


class VerdictsTheOtherWay(FeatureWay):
    def verdicts(self, inputs: Tensor) -> Tensor:
        return ~super().verdicts(inputs)


class PValuesTheOtherWay(FeatureWay):
    def p_values(self, inputs: Tensor) -> Tensor:
        return 1 - super().p_values(inputs)


class VerdictsOfAnotherShare(FeatureWay):
    def verdicts(self, inputs: Tensor) -> Tensor:
        return self.p_values(inputs) <= 0.2


class NormalisesByTheBatch(FeatureWay):
    def scores(self, inputs: Tensor) -> Tensor:
        found = super().scores(inputs)
        return found - 1e-3 * found.mean()


class DoublesABatchOfOne(FeatureWay):
    def scores(self, inputs: Tensor) -> Tensor:
        found = super().scores(inputs)
        return 2 * found if len(found) == 1 else found


class SortsItsAnswers(FeatureWay):
    def scores(self, inputs: Tensor) -> Tensor:
        return super().scores(inputs).sort().values


class AnswersNothingWithZero(FeatureWay):
    def scores(self, inputs: Tensor) -> Tensor:
        return super().scores(inputs) if len(inputs) else torch.zeros(1)


class KeepsTheGraph(FeatureWay):
    def scores(self, inputs: Tensor) -> Tensor:
        return super().scores(inputs) + 0 * head_of(self.model).weight.sum()


class WritesToItsInputs(FeatureWay):
    def scores(self, inputs: Tensor) -> Tensor:
        found = super().scores(inputs)
        inputs.mul_(0.5)
        return found


class PassesNanOn(FeatureWay):
    def scores(self, inputs: Tensor) -> Tensor:
        return super().scores(inputs.nan_to_num())


class SharesOneDesk(FeatureWay):
    """Puts what it scores on the object, where another thread finds it."""

    def scores(self, inputs: Tensor) -> Tensor:
        self._desk = inputs
        time.sleep(0.01)
        return super().scores(self._desk)


class Rolls(FeatureWay):
    def fit(self, training: Tensor | None = None, held_out: Tensor | None = None) -> Self:
        super().fit(training, held_out)
        self._noise = float(torch.rand(1))
        return self

    def scores(self, inputs: Tensor) -> Tensor:
        return super().scores(inputs) + getattr(self, "_noise", 0.0)


class RoundsWhatItLoads(FeatureWay):
    @classmethod
    def received(cls, folder: Path) -> Shell:
        other = cast("RoundsWhatItLoads", super().received(folder))
        other.detector._fitted().pruned.weight.mul_(1.001)
        return other


class LosesItsCalibration(LoadedWay):
    def copied(self) -> Shell:
        other = cast("LosesItsCalibration", super().copied())
        other.detector._state = replace(other.detector._fitted(), calibration=None)
        return other

    def verdicts(self, inputs: Tensor) -> Tensor:
        return super().verdicts(inputs) if self.detector.is_calibrated else torch.zeros(len(inputs), dtype=torch.bool)


class ClearsGradientsOfWhatItCopies(InputWay):
    def copied(self) -> Shell:
        self.model.zero_grad()
        return super().copied()


class CopiesByReference(FeatureWay):
    def copied(self) -> Shell:
        return self


# ------------------------------------------------------------------------------------------------ heads
class StaleHead(HeadShell):
    def set_ratios(self, ratios: Ratios) -> None:
        self.ratios = ratios
        self.detector = self.detector.with_ratios(ratios)
