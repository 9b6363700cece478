"""Models that are hard to handle: what is right for them by a slow computation, and that they stay as they are.

A model takes images of 3 x 8 x 8 and has four classes. Right is what comes of the features that its head is given, seen
by hand in another model, and of the head's weight, seen by what it makes of unit vectors; all the rest is written
out in float64, sample by sample. Models that are adapted, wrapped, scripted or spread are made by a function each, as
``--model module:callable`` takes it.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.utils import parametrizations, parametrize, prune

from opnp import OPNP, Ratios
from opnp.bench import cache_features
from opnp.data import InputSet, open_inputs, read_features, read_head
from opnp.errors import HeadNotFoundError, MemberWarning
from tests.contract.snapshot import unchanged
from tests.unit.bench.image_world import INPUTS, class_images
from tests.unit.data.image_files import write_tensors

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
    with unchanged(model, but=case.own):
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
    with unchanged(model, but=case.own):
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
        with unchanged(model, but=case.own):
            module, given = detector.to_module(), _fresh(probe)
            logits, found, p_value = module(**given) if isinstance(given, Mapping) else module(given)
        _close(logits, right.logits("probe"), case)
        _close(found, right.scores("probe"), case)
        assert torch.equal(p_value, right.p_values)
    _check_fusion_right(case, right)
    if case.is_cached:
        with unchanged(model, but=case.own):
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
        with unchanged(model, but=case.own):
            found.fit(model, (case.inputs(batch.clone()) for batch in images("train")), **case.choice)
    assert found.members == wanted.members
    assert len(found.members) >= 5
    assert found.samples == _ROWS["train"]
    scores = wanted.score_features(right.features("probe"))
    with unchanged(model, but=case.own):
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Pass over what torch says of what it has a newer way for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Doubled(nn.Module):
    """A parametrization."""

    def forward(self, tensor: Tensor) -> Tensor:
        return 2 * tensor


def on_the_head(change: Callable[[nn.Module], object], *tripled: str) -> nn.Module:
    """Return a model with something done to its head, and parameters changed then: the weight is that of before."""
    model = Net()
    with _quiet():
        change(model.fc)
    with torch.no_grad():
        for name in tripled:
            model.fc.get_parameter(name)[:1].mul_(3)
    return model


def parametrized() -> nn.Module:
    model = on_the_head(lambda fc: parametrize.register_parametrization(fc, "weight", _Doubled()))
    parametrize.register_parametrization(model.fc, "bias", _Doubled())  # type: ignore[arg-type]  # a module
    return model


def older_weight_norm() -> nn.Module:
    return on_the_head(nn.utils.weight_norm, "weight_g")


def older_spectral_norm() -> nn.Module:
    return on_the_head(nn.utils.spectral_norm, "weight_orig")


def spectral_norm() -> nn.Module:
    return on_the_head(parametrizations.spectral_norm)


def pruned_by_its_owner() -> nn.Module:
    def pruned(fc: nn.Module) -> None:
        prune.l1_unstructured(fc, "weight", amount=0.3)
        prune.l1_unstructured(fc, "bias", amount=0.5)

    return on_the_head(pruned, "weight_orig", "bias_orig")


def quantised(model: nn.Module | None = None) -> Any:
    with _quiet():
        return torch.ao.quantization.quantize_dynamic((model or Net()).eval(), {nn.Linear}, dtype=torch.qint8)


def quantised_body() -> nn.Module:
    model = Net().eval()
    model.body = quantised(model.body)
    return model


def lora(*modules: str, **options: Any) -> Any:
    """Return a model with an adapter that does something."""
    targets = list(modules or ["fc"])
    return peft.get_peft_model(Net(), peft.LoraConfig(r=2, init_lora_weights=False, target_modules=targets, **options))


def lora_merged() -> Any:
    model = lora("body.1", "fc")
    model.merge_adapter()
    return model


def lora_with_a_trained_head() -> Any:
    model = lora("body.1", modules_to_save=["fc"])
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.3
    return model


class Scriptable(nn.Module):
    """A body and a head, in words that scripts have too."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = body(), nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.fc(self.body(inputs))
        return outputs


def compiled() -> Any:
    return torch.compile(Net(), backend="eager")


def compiled_head() -> nn.Module:
    model = Net()
    model.fc = torch.compile(model.fc, backend="eager")
    return model


def scripted(module: nn.Module | None = None) -> Any:
    with _quiet():
        return torch.jit.script(module or Scriptable())


def scripted_body() -> nn.Module:
    model = Net()
    model.body = scripted(model.body)
    return model


def traced() -> Any:
    with _quiet():
        return torch.jit.trace(Scriptable().eval(), torch.zeros(2, 3, 8, 8))


def exported() -> nn.Module:
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(Scriptable().eval(), (torch.zeros(4, 3, 8, 8),), dynamic_shapes=shapes).module()


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return Net()


class _Tagged(Tensor):
    """A tensor of another type."""


def weight_of_another_type() -> nn.Module:
    model = Net()
    model.fc.weight = nn.Parameter(model.fc.weight.detach().as_subclass(_Tagged))
    return model


def fully_sharded_by_the_older_way() -> nn.Module:
    with _quiet():
        return FullyShardedDataParallel(Net(), device_id=torch.device("cpu"), use_orig_params=True)


def fully_sharded() -> nn.Module:
    model, mesh = Net(), init_device_mesh("cpu", (1,))
    fully_shard(model.fc, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def head_in_parts_by_columns() -> nn.Module:
    model = Net()
    parallelize_module(model.fc, init_device_mesh("cpu", (1,)), ColwiseParallel(output_layouts=Replicate()))
    return model


def on_the_meta_device() -> nn.Module:
    with torch.device("meta"):
        return Net()


def drops_a_sample() -> nn.Module:
    return Net(lambda model, inputs: model.fc(model.body(inputs[1:])))


class Needs(Net):
    """Needs a second argument, as its signature says."""

    def forward(self, inputs: Tensor, scale: Tensor) -> Any:  # type: ignore[override]  # the test
        return super().forward(inputs * scale[:, None, None, None])


class ByKeyword(Net):
    """Takes its inputs by keyword alone."""

    def forward(self, *, inputs: Tensor) -> Any:  # type: ignore[override]  # the test
        return super().forward(inputs)
