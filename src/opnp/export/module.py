"""A detector as `nn.Module`: its pruned head alone, or model and detector as one, which `torch.export` takes."""

import copy
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp import __version__
from opnp.core.checks import two_class_head
from opnp.core.conformal import flagged_rank
from opnp.core.fusion import fused_score, tail_units
from opnp.core.masks import Masks
from opnp.core.members import Panel, member_scores
from opnp.core.scores import LARGEST_FLOAT32_TEMPERATURE, energy_rows, score_logits
from opnp.core.sensitivity import product_dtype, with_float64
from opnp.core.shaping import shaped_rows
from opnp.errors import HeadNotFoundError, InputTypeError, NotCalibratedError, ShapeError
from opnp.fitted import Calibration, FittedState, Settings
from opnp.model import Head, unwrapped

__all__ = ["CompactHead", "DetectorModule", "FeatureJudge", "plain_head"]


def plain_head(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a new, plain `nn.Linear` with copies of weight and bias and no gradient."""
    head: nn.Linear = nn.utils.skip_init(nn.Linear, 1, len(weight), bias=bias is not None)  # torch warns of 0 inputs
    head.in_features = weight.shape[1]
    head.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
    if bias is not None:
        head.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return head


class CompactHead(nn.Module):
    """A head that reads some of the features: those at `index`, by the smaller layer `head`.

    It is a module like any other: it moves between devices with its index, and its state holds both.

    Args:
        head: The layer of the features that are read.
        index: Their positions among all features, ascending, shape ``(kept,)``, int64.
        features: How many there are in all.

    Example:
        >>> import torch
        >>> head = CompactHead(nn.Linear(2, 1, bias=False), torch.tensor([0, 2]), features=3)
        >>> _ = nn.init.ones_(head.head.weight)
        >>> head(torch.tensor([[1.0, 10.0, 100.0]])).tolist()
        [[101.0]]

    """

    index: Tensor

    def __init__(self, head: nn.Linear, index: Tensor, *, features: int) -> None:
        super().__init__()
        self.head = head
        self.features = features
        self.register_buffer("index", index)

    @classmethod
    def from_head(cls, pruned: nn.Linear, masks: Masks) -> Self:
        """Return the compact form of a pruned head, with copies of what it keeps.

        Dropped are the columns of pruned neurons, and those whose weights are all pruned one by one. The bias stays.

        Args:
            pruned: The head in full size, with zeros where it is pruned.
            masks: What was kept of it.

        Returns:
            The head, in dtype and on the device of `pruned`, without gradients.

        Example:
            >>> import torch
            >>> pruned = nn.Linear(3, 2)
            >>> masks = Masks(torch.ones(2, 3, dtype=torch.bool), torch.tensor([True, False, True]))
            >>> compact = CompactHead.from_head(pruned, masks)
            >>> compact.index.tolist(), compact.head
            ([0, 2], Linear(in_features=2, out_features=2, bias=True))

        """
        weight = pruned.weight.detach()
        index = masks.kept.any(0).nonzero().flatten().to(weight.device)
        return cls(plain_head(weight[:, index], pruned.bias), index, features=weight.shape[1])

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of full features, shape ``(..., features)``, as shape ``(..., classes)``.

        Raises:
            ShapeError: If there are more or fewer features than the head was made for.

        """
        if features.shape[-1:] != (self.features,):
            raise ShapeError(
                f"`features` must have shape (..., {self.features}), got {tuple(features.shape)}: give all features, "
                f"the head picks its own. Features that are picked already go to `.head`.",
            )
        logits: Tensor = self.head(features.index_select(-1, self.index))
        return logits

    def extra_repr(self) -> str:
        """Return how many features are read."""
        return f"reads {len(self.index)} of {self.features} features"


class FeatureJudge(nn.Module):
    """What is said of features: score, p-value and verdict, by tensor operations alone.

    The p-value is a count of comparisons with every calibration score; it takes memory for batch times n flags. Of a
    detector that is calibrated by class the scores that count, and the threshold, are those of the group of the class
    that the logits are largest for: its answers need the logits of the original head too. Where
    features are not finite, or of the paper's method the pruned head's logits, the score is NaN, the p-value the least
    there is, and the input is flagged.

    What scores are computed from and the calibration are buffers. They move with the module, and keep their dtype when
    it is cast: `half()` makes the model half, and not the calibration.

    Args:
        state: A fitted, calibrated detector.
        device: Where the buffers shall be.

    """

    calibration: Tensor
    threshold: Tensor
    scales: Tensor
    group_of_class: Tensor
    group_of_score: Tensor
    samples: Tensor

    def __init__(self, state: FittedState, *, device: torch.device | None = None) -> None:
        """Make the buffers."""
        super().__init__()
        calibration = state.calibration
        if calibration is None:
            raise NotCalibratedError("The detector is not calibrated: it gives no p-value, and cannot be exported.")
        self.settings = settings = state.settings
        self.fused = state.fused
        dtype = product_dtype(state.weight, precision=settings.precision)
        parts = _judging(calibration, is_narrow=state.panel is None)
        self.is_by_class = "samples" in parts
        if state.panel is None:
            pruned, self.numbers = state.pruned, {}
            self.react_threshold = pruned.react_threshold
            parts["weight"] = pruned.weight.to(dtype)
            if pruned.bias is not None:
                parts["bias"] = pruned.bias.to(dtype)
        else:
            panel = state.panel.mapped(lambda tensor: tensor.to(dtype)).with_boundaries()
            self.numbers, self.react_threshold = panel.numbers(), None
            parts |= {name.replace(".", "__"): tensor for name, tensor in panel.tensors().items()}
            if state.scales is not None:
                parts["scales"] = state.scales
        for name, tensor in parts.items():
            self.register_buffer(name, tensor.detach().to(device, copy=True))

    def forward(self, features: Tensor, logits: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return (score, p_value, is_ood) of features, shape ``(batch, features)``.

        Args:
            features: What the head takes in.
            logits: Those of the original head, shape ``(batch, classes)``; for a calibration by class alone.

        """
        score = self.score(features)
        return score, self.p_value(score, logits), self.is_ood(score, logits)

    def score(self, features: Tensor) -> Tensor:
        """Return the scores of features, shape ``(batch, features)``, as shape ``(batch,)``: float32 or float64."""
        inputs = features.to(product_dtype(features, precision=self.settings.precision))
        if self.settings.is_fusion:
            return torch.where(torch.isfinite(inputs).all(1), fused_score(self.units(inputs)), torch.nan)
        buffers, settings = self._numbers(inputs.dtype), self.settings
        with _without_autocast(inputs):
            shaped = shaped_rows(inputs, settings.shaping, threshold=self.react_threshold)
            logits = linear(shaped, buffers["weight"], buffers.get("bias"))
        is_sound = torch.isfinite(inputs).all(1) & torch.isfinite(logits).all(1)
        return torch.where(is_sound, _score_rows(logits, settings), torch.nan)

    def units(self, features: Tensor) -> Tensor:
        """Return what the members of a fusion say of features, in units of their tails, shape ``(batch, members)``."""
        inputs = features.to(product_dtype(features, precision=self.settings.precision))
        with _without_autocast(inputs):
            panel = Panel.from_parts(self._numbers(inputs.dtype), self.numbers)
            return tail_units(member_scores(inputs, panel, self.fused), self.scales)

    def p_value(self, score: Tensor, logits: Tensor | None = None) -> Tensor:
        """Return the p-values (1 + #{calibration >= s}) / (n + 1) of scores, shape ``(batch,)``, float64."""
        is_counted = self.calibration >= score[:, None]
        if not self.is_by_class:
            return (1 + is_counted.sum(1, dtype=torch.int32)).double() / (len(self.calibration) + 1)
        group = self._group(logits)
        count = (is_counted & (self.group_of_score == group[:, None])).sum(1, dtype=torch.int32)
        return (1 + count).double() / (self.samples[group] + 1)

    def is_ood(self, score: Tensor, logits: Tensor | None = None) -> Tensor:
        """Return whether scores lie above the threshold or are NaN, shape ``(batch,)``, bool."""
        return ~(score <= (self.threshold[self._group(logits)] if self.is_by_class else self.threshold))

    def _group(self, logits: Tensor | None) -> Tensor:
        """Return the place of the group that judges each row of the original head's logits, shape ``(batch,)``."""
        if logits is None:
            raise InputTypeError("A detector that is calibrated by class needs the logits of the original head.")
        return self.group_of_class[logits.argmax(1)]

    def _numbers(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return what scores are computed from, by name, in this dtype."""
        buffers = self.named_buffers(recurse=False)
        return {name.replace("__", "."): tensor.to(dtype) for name, tensor in buffers}

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
        model: The model.
        head: Its head, whose weights are those of the state.
        state: A fitted, calibrated detector.

    Attributes:
        model: The copy.
        judge: What is said of its features.
        facts: What a file says of the detector: version, keep, threshold (by class one of each group, as JSON),
            settings and digest of the head, as text.
        is_averaged: Whether the head is a convolution whose output is averaged over positions.

    Raises:
        InputTypeError: If the model cannot be copied.
        NotCalibratedError: If the state is not calibrated.

    """

    def __init__(self, model: nn.Module, head: Head, state: FittedState) -> None:
        """Copy the model, and listen at the head of the copy."""
        super().__init__()
        self.model = _copied(unwrapped(model))
        layer = dict(self.model.named_modules(remove_duplicate=False))[head.name]
        for parent in list(self.model.modules()):
            for name, child in list(parent.named_children()):
                if unwrapped(child) is not child:
                    setattr(parent, name, unwrapped(child))  # what is compiled, by what it was compiled from
        layer.register_forward_pre_hook(_catch, with_kwargs=True)
        self.is_averaged = head.is_averaged
        self.judge = FeatureJudge(state, device=with_float64(layer.weight).device)
        self.facts: dict[str, str] = {}
        if state.calibration is not None:
            groups = state.calibration.groups
            self.facts = {
                "opnp_version": __version__,
                "opnp_keep": f"{state.calibration.keep:g}",
                "opnp_threshold": json.dumps({group.name: repr(group.threshold) for group in groups})
                if groups
                else repr(state.calibration.threshold),
                "opnp_calibration_samples": str(len(state.calibration.scores)),
                "opnp_settings": json.dumps(state.settings.to_json(), sort_keys=True),
                "opnp_head_sha256": state.head_digest,
            }
        self.eval()

    def forward(
        self, first: Tensor | None = None, /, *others: Tensor, **named: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (logits, score, p_value) of a batch.

        Args:
            first: What the model takes first by position, if anything.
            others: What else it takes by position.
            named: What it takes by keyword.

        Returns:
            Logits of the original head, shape ``(batch, classes)``; scores, larger = more OOD, shape ``(batch,)``; and
            p-values, small = OOD, shape ``(batch,)``, float64.

        Raises:
            HeadNotFoundError: If the head does not run exactly once.
            ShapeError: If it gets more than one vector a sample.

        """
        inputs = others if first is None else (first, *others)
        features, logits = self.features_and_logits(*inputs, **named)
        score = self.judge.score(with_float64(features))
        return logits, score, self.judge.p_value(score, logits)

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
        if features.ndim > 2 and all(length == 1 for length in features.shape[1:-1]):
            features = features.flatten(1)
        if features.ndim != 2:
            raise ShapeError(
                f"The head received features of shape {tuple(features.shape)}: it must get one vector a sample."
            )
        dtype = _common(features.dtype, weight.dtype)  # a model may run in autocast of its own
        weight, bias = two_class_head(weight.flatten(1).to(dtype), None if bias is None else bias.to(dtype))
        return features, linear(features.to(dtype), weight, bias)

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


def _score_rows(logits: Tensor, settings: Settings) -> Tensor:
    """Return the score of finite logits, as `opnp.core.score_logits` does, in one graph."""
    if settings.score != "energy":
        return score_logits(logits, score=settings.score, temperature=settings.temperature)
    is_wide = settings.temperature > LARGEST_FLOAT32_TEMPERATURE
    return energy_rows(logits.double() if is_wide else logits, temperature=settings.temperature)


def _judging(calibration: Calibration, *, is_narrow: bool) -> dict[str, Tensor]:
    """Return what p-values and verdicts are made of, group after group where they are by class."""
    groups = [group.calibration for group in calibration.groups] or [calibration]
    samples = torch.tensor([len(group.scores) for group in groups], device="cpu")
    scores = torch.cat([group.scores for group in groups])
    last = [int(count) - flagged_rank(int(count), keep=calibration.keep) for count in samples]
    scores = _narrow(scores) if is_narrow else scores
    parts = {"calibration": scores, "threshold": scores[samples.cumsum(0) - samples + torch.tensor(last, device="cpu")]}
    if calibration.group_of_class is not None:
        places = torch.arange(len(groups), device="cpu").repeat_interleave(samples)
        parts |= {"group_of_class": calibration.group_of_class, "group_of_score": places, "samples": samples}
    return parts


def _narrow(scores: Tensor) -> Tensor:
    """Return scores as float32 where that loses nothing of any."""
    narrow = scores.float()
    return narrow if bool((narrow.double() == scores).all()) else scores


def _without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
