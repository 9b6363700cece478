"""A detector and its model as one `nn.Module`, for `torch.export` and for whatever takes a module."""

import copy
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp.core.conformal import flagged_rank
from opnp.core.sensitivity import product_dtype
from opnp.core.shaping import ReAct
from opnp.detector.exportable import exportable_score, exportable_shaping
from opnp.detector.link import ModelLink
from opnp.detector.scoring import Scorer
from opnp.detector.verdicts import Calibration
from opnp.errors import HeadNotFoundError, InputTypeError, ShapeError
from opnp.model import unwrapped

__all__ = ["DetectorModule", "FeatureJudge"]


class FeatureJudge(nn.Module):
    """What is said of features: score, p-value and verdict, by tensor operations alone.

    The p-value is a count of comparisons with every calibration score; it takes memory for batch times n flags. Where
    features or the pruned head's logits are not finite, the score is NaN, the p-value the least there is, and the
    input is flagged.

    The pruned head and the calibration are buffers. They move with the module, and keep their dtype when it is cast:
    `half()` makes the model half, and not the calibration.

    Args:
        scorer: The pruned head with its settings.
        calibration: Calibration scores and the share of ID to keep.
        device: Where the buffers shall be.

    """

    weight: Tensor
    bias: Tensor | None
    calibration: Tensor
    threshold: Tensor

    def __init__(self, scorer: Scorer, calibration: Calibration, *, device: torch.device | None = None) -> None:
        """Make the buffers."""
        super().__init__()
        self.settings = settings = scorer.settings
        fitted, shaping = scorer.fitted, settings.fixed_shaping
        self.react_threshold = fitted.react_thresholds[shaping.quantile] if isinstance(shaping, ReAct) else None
        self.flagged_rank = flagged_rank(len(calibration.scores), keep=calibration.keep)
        dtype = product_dtype(scorer.weight, precision=settings.precision)
        bias = None if fitted.bias is None else fitted.bias.detach().to(device, dtype, copy=True)
        scores = _narrow(calibration.scores)
        threshold = scores[len(scores) - self.flagged_rank].reshape(1)
        self.register_buffer("weight", scorer.weight.detach().to(device, dtype, copy=True))
        self.register_buffer("bias", bias)
        self.register_buffer("calibration", scores.to(device, copy=True))
        self.register_buffer("threshold", threshold.to(device, copy=True))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (score, p_value, is_ood) of features, shape ``(batch, features)``."""
        score = self.score(features)
        return score, self.p_value(score), self.is_ood(score)

    def score(self, features: Tensor) -> Tensor:
        """Return the scores of features, shape ``(batch, features)``, as shape ``(batch,)``: float32 or float64."""
        settings = self.settings
        inputs = features.to(product_dtype(features, precision=settings.precision))
        shaped = exportable_shaping(inputs, settings.fixed_shaping, threshold=self.react_threshold)
        with _without_autocast(inputs):
            logits = linear(
                shaped, self.weight.to(inputs.dtype), None if self.bias is None else self.bias.to(inputs.dtype)
            )
        found = exportable_score(logits, score=settings.score, temperature=settings.temperature)
        is_sound = torch.isfinite(inputs).all(1) & torch.isfinite(logits).all(1)
        return torch.where(is_sound, found, torch.nan)

    def p_value(self, score: Tensor) -> Tensor:
        """Return the p-values (1 + #{calibration >= s}) / (n + 1) of scores, shape ``(batch,)``, float64."""
        count = (self.calibration >= score[:, None]).sum(1, dtype=torch.int32)
        return (1 + count).double() / (len(self.calibration) + 1)

    def is_ood(self, score: Tensor) -> Tensor:
        """Return whether scores lie above the threshold or are NaN, shape ``(batch,)``, bool."""
        return ~(score <= self.threshold)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002  # torch's signature
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        for name, buffer in before.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


class DetectorModule(nn.Module):
    """A model with its detector: inputs in, (logits, score, p_value) out.

    It holds a copy of the model, in eval mode, which `train()` leaves as it is. Weights, calibration scores and
    threshold are in its `state_dict`. Numbers are those of the detector; a graph raises no errors, so an input whose
    features are not finite has the score NaN, the least p-value, and counts as OOD.

    Args:
        link: The model and its head.
        scorer: The pruned head with its settings.
        calibration: Calibration scores and the share of ID to keep.

    Attributes:
        model: The copy.
        judge: What is said of its features.
        is_averaged: Whether the head is a convolution whose output is averaged over positions.

    Raises:
        HeadMismatchError: If the model's head has changed since the fit.
        InputTypeError: If the model cannot be copied.

    """

    def __init__(self, link: ModelLink, scorer: Scorer, calibration: Calibration) -> None:
        """Copy the model, and listen at the head of the copy."""
        super().__init__()
        link.require_unchanged()
        self.model = _copied(unwrapped(link.model))
        head = dict(self.model.named_modules(remove_duplicate=False))[link.head.name]
        self.model = _as_written(self.model)
        head.register_forward_pre_hook(_catch, with_kwargs=True)
        self.is_averaged = link.head.is_averaged
        self.judge = FeatureJudge(scorer, calibration, device=head.weight.device)
        self.eval()

    def forward(self, *inputs: Tensor, **named: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (logits, score, p_value) of a batch.

        Args:
            inputs: What the model takes by position.
            named: What it takes by keyword.

        Returns:
            Logits of the original head, shape ``(batch, classes)``; scores, larger = more OOD, shape ``(batch,)``; and
            p-values, small = OOD, shape ``(batch,)``, float64.

        Raises:
            HeadNotFoundError: If the head does not run exactly once.
            ShapeError: If it gets more than one vector a sample.

        """
        features, logits = self.features_and_logits(*inputs, **named)
        score = self.judge.score(features)
        return logits, score, self.judge.p_value(score)

    def features_and_logits(self, *inputs: Tensor, **named: Tensor) -> tuple[Tensor, Tensor]:
        """Return the head's (features, logits), shapes ``(batch, features)`` and ``(batch, classes)``."""
        caught: list[_Call] = []
        outer, _CAUGHT.calls = _CAUGHT.calls, caught
        try:
            self.model(*inputs, **named)
        finally:
            _CAUGHT.calls = outer
        if len(caught) != 1:
            raise HeadNotFoundError(f"The head ran {len(caught)} times in one forward pass: it must run once.")
        features, weight, bias = caught[0]
        if weight.ndim == 4 and features.ndim == 4 and (self.is_averaged or features.shape[2] * features.shape[3] == 1):
            features = features.mean((2, 3))
        if features.ndim != 2:
            raise ShapeError(
                f"The head received features of shape {tuple(features.shape)}: it must get one vector a sample."
            )
        dtype = _common(features.dtype, weight.dtype)  # a model may run in autocast of its own
        bias = None if bias is None else bias.to(dtype)
        return features, linear(features.to(dtype), weight.flatten(1).to(dtype), bias)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002, FBT001, FBT002  # torch's signature
        """Leave the module in eval mode, and return it: dropout or batch statistics would be those of no detector."""
        for module in self.modules():  # by itself, as a layer may have a `train` of its own that leaves it in training
            module.training = False
        return self


def _common(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """Return what `torch.promote_types` does of two floating dtypes: a call that torch 2.6 cannot read from a file."""
    if one != other and one.itemsize == other.itemsize:
        return torch.float32  # of float16 and bfloat16
    return one if one.itemsize >= other.itemsize else other


_Call = tuple[Tensor, Tensor, Tensor | None]
"""What a head got, its weight and its bias."""


class _Caught(threading.local):
    """Where the hook puts what the head gets: a list of the forward pass that runs in this thread."""

    calls: list[_Call] | None = None


_CAUGHT = _Caught()


def _catch(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
    if _CAUGHT.calls is not None:
        given = (args[0] if args else kwargs["input"]).clone()  # the model may write to it afterwards
        _CAUGHT.calls.append((given, module.weight, module.bias))  # type: ignore[arg-type]  # tensors


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy without gradients."""
    try:
        result = copy.deepcopy(model)
    except Exception as error:
        raise InputTypeError(
            f"The model cannot be copied: copy.deepcopy raised {type(error).__name__}: {error}. A module needs a copy "
            f"of its own, so that the model stays as it is.",
        ) from error
    for parameter in result.parameters():
        parameter.detach_()  # those of a scripted part are copied with a graph
        parameter.requires_grad = False
        parameter.grad = None
    return result


def _as_written(model: nn.Module) -> nn.Module:
    """Return the model with every part of it that is compiled replaced by the part itself."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if unwrapped(child) is not child:
                setattr(parent, name, unwrapped(child))
    return model


def _narrow(scores: Tensor) -> Tensor:
    """Return scores as float32 where that loses nothing of any."""
    narrow = scores.float()
    return narrow if bool((narrow.double() == scores).all()) else scores


def _without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
