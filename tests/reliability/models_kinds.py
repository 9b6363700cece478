"""Models that are adapted, wrapped, scripted or spread, each in a function, as ``--model module:callable`` takes it."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.utils import parametrizations, parametrize, prune

from tests.reliability.models_world import CLASSES, FEATURES, Net, body

__all__ = ["Scriptable", "on_the_head"]


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
