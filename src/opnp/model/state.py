"""The user's model, borrowed and given back as it was: wrappers looked through, modes and device restored."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from opnp.errors import InsufficientMemoryError
from opnp.model.batch_halving import is_out_of_memory
from opnp.model.kept_buffers import KeptBuffers
from opnp.model.undisturbed import Undisturbed

__all__ = ["borrowed", "device_of", "unwrapped"]

_LOCK = threading.Lock()
_LOANS: dict[nn.Module, tuple[int, bool, KeptBuffers]] = {}
"""Modules on loan: how many loans, the mode to give each back in, and where its buffers are kept."""


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile`, `DataParallel` and `DistributedDataParallel` wrappers.

    Hooks on a compiled module never fire, and the replicas of a `DataParallel` have none; the module inside is the
    same model, with the same weights.

    Example:
        >>> from torch import nn
        >>> inner = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(inner)) is inner
        True

    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
            continue
        inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def device_of(model: nn.Module) -> torch.device | None:
    """Return the device of the model's first parameter or buffer that has values, None if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_meta:
            return tensor.device
    return None


@contextmanager
def borrowed(model: nn.Module, *, device: torch.device | str | None = None) -> Iterator[torch.device | None]:
    """Hold the model in eval mode, without autograd, on `device`; then give each module back as it was.

    The mode is set module by module and not through `eval()`, so that code a model runs there has no effect. Buffers
    of the state dict that the model writes to meanwhile, such as a counter of batches, get their values back; a copy
    of them is held until then. Buffers outside of the state dict are caches of the model, and stay as it left them.

    Args:
        model: An unwrapped model.
        device: Where to run; None for where the model is. A model that is moved is moved back.

    Yields:
        The device that inputs belong on.

    Raises:
        InsufficientMemoryError: If there is not enough memory for the model on `device`.

    Warns:
        OpnpWarning: If the model wrote to its parameters, of which no copy is held.

    """
    home = device_of(model)
    target = home if device is None else torch.device(device)
    is_moved = home is not None and target is not None and torch.empty(0, device=target).device != home
    is_differentiating = torch.is_grad_enabled()
    try:
        with torch.no_grad(), _eager(model):
            try:
                if is_moved:
                    _move(model, target)
                with _in_eval_mode(model):
                    yield target
            finally:
                if is_moved:
                    with Undisturbed():
                        model.to(home)
    finally:
        torch.set_grad_enabled(is_differentiating)  # Ctrl-C may fall between a context's first step and its beginning


def _move(model: nn.Module, target: torch.device | None) -> None:
    try:
        model.to(target)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise InsufficientMemoryError(
                f"There is not enough memory on {target} for the model itself ({str(error)[:160]}). Run it where there "
                f"is more."
            ) from error
        raise


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Hold each module in eval mode until the last of the loans that overlap has ended, in whatever thread."""
    modules = list(model.modules())
    is_lent = False
    try:
        with Undisturbed():
            _lend(modules)
            is_lent = True
        yield
    finally:
        if is_lent:
            with Undisturbed():
                _take_back(modules)


def _lend(modules: list[nn.Module]) -> None:
    with _LOCK:
        kept = KeptBuffers.of(module for module in modules if module not in _LOANS)
        for module in modules:
            loans, was_training, keeper = _LOANS.get(module, (0, module.training, kept))
            _LOANS[module] = loans + 1, was_training, keeper
        for module in modules:  # after all modes are known: a compiled wrapper shares its module's
            module.training = False


def _take_back(modules: list[nn.Module]) -> None:
    with _LOCK:
        ended: list[KeptBuffers] = []
        for module in modules:
            loans, was_training, keeper = _LOANS.pop(module)
            if loans > 1:
                _LOANS[module] = loans - 1, was_training, keeper
                continue
            module.training = was_training
            keeper.modules.discard(module)
            if not keeper.modules:
                ended.append(keeper)
        for keeper in ended:
            keeper.give_back()


def _eager(model: nn.Module) -> AbstractContextManager[object]:
    """Return a context in which parts of the model that are compiled run as written, so that hooks fire."""
    is_compiled = any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()
