"""All that a detector must leave as it found it: of a model, and of the process."""

import logging
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

__all__ = ["snapshot", "unchanged"]

_OF_TORCH = "TORCHINDUCTOR_CACHE_DIR"
"""What torch itself sets when `torch.func.grad` is called for the first time."""


def snapshot(model: nn.Module) -> dict[str, object]:
    """Return every fact about the model and the process by name, in values that compare by ``==``."""
    return {**_tensors(model), **_modules(model), **_process()}


@contextmanager
def unchanged(model: nn.Module, doing: str) -> Iterator[None]:
    """Assert that what happens inside changes nothing, whether or not it raises."""
    before = snapshot(model)
    try:
        yield
    finally:
        after = snapshot(model)
        changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        assert not changed, f"{doing} changed {sorted(changed)}"


def _bytes(tensor: Tensor | None) -> object:
    if tensor is None:
        return None
    return tensor.dtype, tuple(tensor.shape), str(tensor.device), tensor.detach().cpu().numpy().tobytes()


def _tensors(model: nn.Module) -> dict[str, object]:
    facts: dict[str, object] = {f"state_dict {name}": _bytes(value) for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        facts[f"parameter {name}"] = id(parameter), parameter.data_ptr(), _bytes(parameter), parameter.requires_grad
        facts[f"gradient of {name}"] = id(parameter.grad), _bytes(parameter.grad)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        facts[f"buffer {name}"] = id(buffer), _bytes(buffer)
    return facts


def _modules(model: nn.Module) -> dict[str, object]:
    facts: dict[str, object] = {}
    for name, module in model.named_modules():
        facts[f"mode of {name!r}"] = module.training
        facts[f"type of {name!r}"] = type(module)
        facts[f"attributes of {name!r}"] = sorted(vars(module))
        for attribute, value in vars(module).items():
            if "hook" in attribute and isinstance(value, Mapping):
                facts[f"{attribute} of {name!r}"] = [(key, id(hook)) for key, hook in value.items()]
    return facts


def _process() -> dict[str, object]:
    facts: dict[str, object] = {
        "random numbers of torch": torch.random.get_rng_state().numpy().tobytes(),
        "random numbers of Python": hash(random.getstate()),
        "random numbers of numpy": hash(repr(np.random.get_state())),  # noqa: NPY002  # the global ones, which must stay
        "default device": str(torch.get_default_device()),
        "precision of products": torch.get_float32_matmul_precision(),
        "filters of warnings": tuple(warnings.filters),
        "logging": (logging.root.level, logging.root.disabled, len(logging.root.handlers)),
        "environment": {name: value for name, value in os.environ.items() if name != _OF_TORCH},
        "current folder": str(Path.cwd()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }
    for name, value in vars(torch_module).items():
        if name.startswith("_global_") and isinstance(value, Mapping):
            facts[f"torch's {name}"] = list(value)
    return facts
