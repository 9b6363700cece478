"""Models that are hard to handle: what is right for them by a slow computation, and that they stay as they are.

A model takes images of 3 x 8 x 8 and has four classes. Right is what comes of the features that its head is given, seen
by hand in another model, and of the head's weight, seen by what it makes of unit vectors; all the rest is written
out in float64, sample by sample.
"""

import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios
from opnp.bench import cache_features
from opnp.data import InputSet, open_inputs, read_features, read_head
from opnp.errors import HeadNotFoundError, MemberWarning
from tests.unit.bench.image_world import INPUTS, class_images
from tests.unit.data.image_files import write_tensors

__all__ = [
    "CLASSES",
    "FEATURES",
    "Case",
    "Net",
    "after",
    "body",
    "built",
    "check",
    "fitted",
    "image_sets",
    "images",
    "linear",
    "paper",
    "untouched",
]

CLASSES, FEATURES = 4, 12
_SHARE, _KEEP, _BATCH = 0.25, 0.95, 16
_ROWS = {"train": 48, "test": 40, "probe": 10}


def body() -> nn.Sequential:
    """Return the layers before the head."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, FEATURES), nn.ReLU())


def linear(inputs: int = FEATURES, outputs: int = CLASSES, **options: Any) -> nn.Linear:
    """Return a head."""
    return nn.Linear(inputs, outputs, **options)


def after(change: Callable[[Tensor], object]) -> Callable[[Any, Tensor], object]:
    """Return a forward that does something to the head's output."""
    return lambda model, inputs: change(model.fc(model.body(inputs)))


class Net(nn.Module):
    """A body and a head, with a forward of any kind and what it needs, which may keep things in the model."""

    def __init__(
        self,
        made: Callable[[Any, Tensor], Any] | None = None,
        *,
        fc: nn.Module | None = None,
        **parts: nn.Module | Tensor,
    ) -> None:
        super().__init__()
        self.body, self.made, self.runs = body(), made, 0
        self.fc: Any = linear() if fc is None else fc
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part, persistent=name != "place")
            else:
                setattr(self, name, part)

    def forward(self, inputs: Tensor) -> Any:
        return self.fc(self.body(inputs)) if self.made is None else self.made(self, inputs)


@dataclass(frozen=True, slots=True)
class Case:
    """A model and what is expected of it.

    Attributes:
        name: Of the case.
        build: Makes the model.
        message: Pattern of the error's message where it is refused; empty where its scores are right.
        error: Kind of that error.
        head: Name of the head that is found, for what is right.
        choice: `head=` and `logits=`.
        inputs: What the model's loader makes of a batch of images.
        is_cached: Whether the features can be cached, as those of images in float32 can.
        is_copied: Whether `to_module` can copy the model.
        own: Parts of names of facts that the model itself changes in its forward.
        tolerance: Relative to the largest value.
        plain: Makes the same model without what is done to it, for what is right; None for `build` itself.

    """

    name: str
    build: Callable[[], nn.Module]
    message: str = ""
    error: type[Exception] = HeadNotFoundError
    head: str = "fc"
    choice: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[[Tensor], Any] = lambda batch: batch
    is_cached: bool = True
    is_copied: bool = True
    own: tuple[str, ...] = ()
    tolerance: float = 1e-5
    plain: Callable[[], nn.Module] | None = None


def built(build: Callable[[], Any]) -> Any:
    """Return the model, the same numbers each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


@cache
def images(name: str) -> tuple[Tensor, ...]:
    """Return the batches of a set as the model gets them."""
    made, _ = class_images(_ROWS[name], seed=sorted(_ROWS).index(name))
    mean, std = torch.tensor(INPUTS.mean), torch.tensor(INPUTS.std)
    inputs = ((made.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    return tuple(inputs[start : start + _BATCH] for start in range(0, len(inputs), _BATCH))


def image_sets(folder: Path) -> dict[str, InputSet]:
    """Return training and test images as files."""
    return {
        name: open_inputs(
            write_tensors(folder / f"{name}.safetensors", *class_images(_ROWS[name], seed=sorted(_ROWS).index(name))),
            INPUTS,
        )
        for name in ("train", "test")
    }


@contextmanager
def untouched(model: nn.Module, *, own: tuple[str, ...] = ()) -> Iterator[None]:
    """Assert that model and process are bit for bit what they were, whether or not something is raised inside."""
    before = _facts(model)
    try:
        yield
    finally:
        after = _facts(model)
        changed = [
            name
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name) and not any(part in name for part in own)
        ]
        assert not changed, f"changed: {changed}"


def paper() -> OPNP:
    """Return the detector whose scores are computed slowly, too."""
    return OPNP(ratios=Ratios(w_min=_SHARE), shaping=None)


def fitted(model: nn.Module) -> OPNP:
    """Return the detector fitted on a model that is as it should be."""
    return paper().fit(model, images("train"))


def check(case: Case, folder: Path) -> None:
    """Check that scores are right, or else that fitting and caching refuse in words; and that the model stays."""
    if not case.message:
        _check_right(case, folder)
        return
    model = built(case.build)
    loader = [case.inputs(batch.clone()) for batch in images("train")]
    with untouched(model, own=case.own):
        with pytest.raises(case.error, match=case.message):
            paper().fit(model, loader, **case.choice)
        if case.is_cached:
            with pytest.raises(case.error, match=case.message):
                _cached(model, case, folder)


def _check_right(case: Case, folder: Path) -> None:
    """Check every way to a score against the slow one, and that the model is as it was after each."""
    model, right = built(case.build), _Right(case)
    model.train()
    probe = case.inputs(images("probe")[0].clone())
    detector = paper()
    with untouched(model, own=case.own):
        detector.fit(model, (case.inputs(batch.clone()) for batch in images("train")), **case.choice)
        detector.calibrate([case.inputs(batch.clone()) for batch in images("test")], keep=_KEEP)
        scores = detector.score(_fresh(probe))
        _close(detector.sensitivity.weight, right.sensitivity, case)
        assert torch.equal(detector.masks.weight, right.kept)
        _close(scores, right.scores("probe"), case)
        assert torch.equal(detector.p_value(_fresh(probe)), right.p_values)
        assert torch.equal(detector.predict(_fresh(probe)), right.p_values <= 1 - _KEEP + 1e-12)
        detector.save(folder / "detector.safetensors")
        loaded = OPNP.load(folder / "detector.safetensors", model)
        torch.testing.assert_close(loaded.score(_fresh(probe)), scores, rtol=0, atol=0)
    if case.is_copied:
        with untouched(model, own=case.own):
            module, given = detector.to_module(), _fresh(probe)
            logits, found, p_value = module(**given) if isinstance(given, Mapping) else module(given)
        _close(logits, right.logits("probe"), case)
        _close(found, right.scores("probe"), case)
        assert torch.equal(p_value, right.p_values)
    _check_fusion_right(case, right)
    if case.is_cached:
        with untouched(model, own=case.own):
            _cached(model, case, folder)
        _close(read_features(folder / "cache" / "train.safetensors").features, right.features("train"), case)
        _close(read_head(folder / "cache" / "head.safetensors").weight, right.weight, case)


def _check_fusion_right(case: Case, right: "_Right") -> None:
    """Check the fusion on a model against one on the features that its head is given, seen by hand."""
    wanted, found, model = OPNP(precision="float64"), OPNP(), built(case.build)
    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MemberWarning)  # a random head may leave nothing to a member
        wanted.fit_features(right.features("train"), weight=right.weight, bias=right.bias)
        with untouched(model, own=case.own):
            found.fit(model, (case.inputs(batch.clone()) for batch in images("train")), **case.choice)
    assert found.members == wanted.members
    assert len(found.members) >= 5
    assert found.samples == _ROWS["train"]
    scores = wanted.score_features(right.features("probe"))
    with untouched(model, own=case.own):
        said = found.score(_fresh(case.inputs(images("probe")[0].clone())))
    off = (said - scores.to(said)).abs() / (1 + scores.to(said).abs())
    assert float(off.max()) <= 30 * case.tolerance, f"{case.name}: fused scores are off by {float(off.max()):.2g}"


class _Right:
    """What is right, from a model of its own."""

    def __init__(self, case: Case) -> None:
        self.case, self.model = case, built(case.plain or case.build).eval()
        self.head = self.model.get_submodule(case.head)
        self._features: dict[str, Tensor] = {}
        dtype = next((each.dtype for each in self.head.parameters() if each.is_floating_point()), torch.float32)
        with torch.no_grad():
            bias = self.head(torch.zeros(1, FEATURES, dtype=dtype)).double()
            self.weight = (self.head(torch.eye(FEATURES, dtype=dtype)).double() - bias).T
        self.bias = bias[0]
        total = torch.zeros(CLASSES, FEATURES, dtype=torch.float64)
        for features, logits in zip(self.features("train"), self.logits("train"), strict=True):
            shares = (logits - logits.max()).exp()
            for row, share in enumerate(shares / shares.sum()):
                total[row] += share * features.abs()
        self.sensitivity = total / len(self.features("train"))
        order = sorted(range(total.numel()), key=lambda place: (float(total.flatten()[place]), place))
        kept = torch.ones(total.numel(), dtype=torch.bool)
        kept[order[: round(_SHARE * total.numel())]] = False
        self.kept = kept.reshape(total.shape)
        known = self.scores("test").tolist()
        counts = [sum(other >= score for other in known) for score in self.scores("probe").tolist()]
        self.p_values = torch.tensor([(1 + count) / (len(known) + 1) for count in counts], dtype=torch.float64)

    def features(self, name: str) -> Tensor:
        """Return what the head is given of a set, batch by batch as the detector gets them."""
        if name not in self._features:
            caught: list[Tensor] = []
            handle = self.head.register_forward_pre_hook(
                lambda _module, args, kwargs: caught.append(
                    (args[0] if args else kwargs["input"]).detach().double().clone()
                ),
                with_kwargs=True,
            )
            with torch.no_grad():
                for batch in images(name):
                    self._run(self.case.inputs(batch.clone()))
            handle.remove()
            self._features[name] = torch.cat(caught)
        return self._features[name]

    def logits(self, name: str) -> Tensor:
        logits: Tensor = self.features(name) @ self.weight.T + self.bias
        return logits

    def scores(self, name: str) -> Tensor:
        pruned = self.features(name) @ (self.weight * self.kept).T + self.bias
        return -torch.tensor([math.log(sum(map(math.exp, row))) for row in pruned.tolist()], dtype=torch.float64)

    def _run(self, inputs: Any) -> None:
        self.model.eval()
        if isinstance(inputs, Mapping):
            self.model(**inputs)
        else:
            self.model(inputs[0] if isinstance(inputs, tuple) else inputs)


def _cached(model: nn.Module, case: Case, folder: Path) -> None:
    options = {"name": "a:model", "dtype": torch.float32, "batch_size": _BATCH, "is_odin_wanted": False}
    cache_features(model, image_sets(folder), folder / "cache", **options, **case.choice)  # type: ignore[arg-type]  # options of many kinds


def _fresh(inputs: Any) -> Any:
    """Return a copy of inputs, since some models write to theirs."""
    if isinstance(inputs, Tensor):
        return inputs.clone()
    if isinstance(inputs, Mapping):
        return {name: _fresh(value) for name, value in inputs.items()}
    return tuple(map(_fresh, inputs)) if isinstance(inputs, tuple) else inputs


def _close(found: Tensor, right: Tensor, case: Case) -> None:
    atol = case.tolerance * float(right.abs().max())
    torch.testing.assert_close(found.double(), right.double(), rtol=0, atol=atol, check_device=False)


def _facts(model: nn.Module) -> dict[str, object]:
    facts: dict[str, object] = {
        "process": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu")),
        "random numbers": (torch.random.get_rng_state().numpy().tobytes(), random.getstate()),
    }
    for name, parameter in model.named_parameters(remove_duplicate=False):
        facts[f"parameter {name}"] = id(parameter), _content(parameter), parameter.requires_grad, id(parameter.grad)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        facts[f"buffer {name}"] = id(buffer), _content(buffer)
    for name, module in model.named_modules():
        facts[f"mode of {name}"] = getattr(module, "training", None), type(module)
        facts[f"attributes of {name}"] = sorted(vars(module))
        for attribute, value in vars(module).items():
            if "hook" in attribute and isinstance(value, Mapping):
                facts[f"{attribute} of {name}"] = [(key, id(hook)) for key, hook in value.items()]
    return facts


def _content(tensor: Tensor) -> object:
    whole: Any = getattr(tensor, "full_tensor", lambda: tensor)()
    if nn.parameter.is_lazy(whole) or whole.is_meta:
        return type(whole)
    plain = whole.detach().to_dense() if whole.layout is not torch.strided else whole.detach()
    return plain.dtype, tuple(plain.shape), plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
