"""Models that torch has wrapped, compiled, scripted, exported or spread over ranks."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from tests.reliability.models_world import CLASSES, FEATURES, Net, body

__all__ = ["Scriptable"]


class Scriptable(nn.Module):
    """A body and a head, in words that scripts have too."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = body(), nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.fc(self.body(inputs))
        return outputs


def compiled() -> nn.Module:
    model: Any = torch.compile(Net(), backend="eager")
    return model  # type: ignore[no-any-return]  # a module


def compiled_head() -> nn.Module:
    model = Net()
    model.fc = torch.compile(model.fc, backend="eager")
    return model


def data_parallel() -> nn.Module:
    return nn.DataParallel(Net())


def _scripted(module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch wants torch.compile to be used
        warnings.simplefilter("ignore", FutureWarning)  # as above
        return torch.jit.script(module)


def scripted() -> nn.Module:
    return _scripted(Scriptable())  # type: ignore[no-any-return]  # a module


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as above
        warnings.simplefilter("ignore", FutureWarning)  # as above
        model: Any = torch.jit.trace(Scriptable().eval(), torch.zeros(2, 3, 8, 8))
        return model  # type: ignore[no-any-return]  # a module


def scripted_and_frozen() -> nn.Module:
    script = _scripted(Scriptable().eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as above
        return torch.jit.freeze(script)  # type: ignore[no-any-return]  # a module


def scripted_body() -> nn.Module:
    model = Net()
    model.body = _scripted(model.body)
    return model


def graph_module() -> nn.Module:
    return torch.fx.symbolic_trace(Scriptable())


def exported() -> nn.Module:
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(Scriptable().eval(), (torch.zeros(4, 3, 8, 8),), dynamic_shapes=shapes).module()


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return Net()


class Tagged(Tensor):
    """A tensor of another type."""


def weight_of_another_type() -> nn.Module:
    model = Net()
    model.fc.weight = nn.Parameter(model.fc.weight.detach().as_subclass(Tagged))
    return model


def distributed_data_parallel() -> nn.Module:
    return nn.parallel.DistributedDataParallel(Net())


def fully_sharded_by_the_older_way() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one rank has nothing to shard, and the older way is to go
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
