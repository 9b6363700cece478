"""All that a detector must leave as it found it: of a model, and of the process."""

import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

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
def unchanged(
    owned: nn.Module | Callable[[], dict[str, object]], doing: str = "it", *, but: tuple[str, ...] = ()
) -> Iterator[None]:
    """Assert that what happens inside changes nothing, whether or not it raises.

    Args:
        owned: A model, or what returns the facts that must stay.
        doing: What happens.
        but: Parts of names of facts that may change.

    """
    take = partial(snapshot, owned) if isinstance(owned, nn.Module) else owned
    before = take()
    try:
        yield
    finally:
        after = take()
        names = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        changed = sorted(name for name in names if not any(part in name for part in but))
        assert not changed, f"{doing} changed {changed}"


def _content(tensor: Tensor | None) -> object:
    """Return the bits of a tensor of any layout, of all its parts where it is spread; the kind of one that has none."""
    if tensor is None:
        return None
    whole: Any = getattr(tensor, "full_tensor", lambda: tensor)()
    if nn.parameter.is_lazy(whole) or whole.is_meta:
        return type(whole)
    plain = whole.detach().to_dense() if whole.layout is not torch.strided else whole.detach()
    bits = plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return plain.dtype, tuple(plain.shape), str(plain.device), bits


def _tensors(model: nn.Module) -> dict[str, object]:
    facts: dict[str, object] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        has_place = type(parameter) is nn.Parameter and parameter.layout is torch.strided
        place = parameter.data_ptr() if has_place else None
        facts[f"parameter {name}"] = id(parameter), place, _content(parameter), parameter.requires_grad
        facts[f"gradient of {name}"] = id(parameter.grad), _content(parameter.grad)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        facts[f"buffer {name}"] = id(buffer), _content(buffer)
    return facts


def _modules(model: nn.Module) -> dict[str, object]:
    facts: dict[str, object] = {}
    for name, module in model.named_modules():
        facts[f"mode of {name!r}"] = getattr(module, "training", None)
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
