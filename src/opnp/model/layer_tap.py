"""What layers are given and what comes back to them: their inputs, and the energy's gradients for their outputs.

In eval mode the samples of a batch do not see one another, so that one backward pass from the sum of their energies
gives each sample's own gradient at every layer. That they do not is checked: when the energies of a part of the batch
are left out, nothing may arrive at their rows, and nothing may change at the others.

The graph begins at the first layer under watch, for frozen weights as for others, and no gradient of a weight is asked
for: no `.grad` is written. Gradients are handed on while the backward pass is under way, layer by layer.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from opnp.core.checks import checked_matrix, require_finite
from opnp.core.layer_sensitivity import energy_gradient
from opnp.errors import EmptyDataError, HeadNotFoundError, LayerError, ShapeError
from opnp.model.batches import Inputs, run_model
from opnp.model.head import Head
from opnp.model.layers import Layer, is_as_its_kind
from opnp.model.listening import sole_input
from opnp.model.outputs import LogitsSelector, logits_of, no_logits_message
from opnp.model.state import borrowed
from opnp.model.undisturbed import Undisturbed

__all__ = ["Deliver", "LayerTap", "Use", "Watch", "layer_tap"]

_SAME = 1e-3
"""How far the size of a sample's gradient may move when other samples' energies are left out: rounding."""
_NOTHING = 1e-6
"""How much gradient a sample may have, relative to the largest, when its own energy is left out: rounding."""


@dataclass(eq=False, slots=True)
class Use:
    """One run of a layer on a batch.

    Attributes:
        module: The layer that ran.
        inputs: What it was given, samples along the first axis.
        version: How often that had been written to by then.
        gradient: The gradient of the energy for its output, of the output's shape; None until it arrives.
        partial_norms: The size of each sample's gradient when a part of the energies counts; None if not taken.

    """

    module: nn.Linear | nn.Conv2d
    inputs: Tensor
    version: int
    gradient: Tensor | None = None
    partial_norms: Tensor | None = None


@dataclass(eq=False, slots=True)
class Watch:
    """A weight under watch.

    Attributes:
        layer: A layer with this weight.
        uses: What the layers with this weight did on the present batch.
        has_run: Whether one of them ran on any batch.
        is_reached: Whether a gradient arrived on any batch.
        problem: Why the gradient cannot be had; empty if it can.
        checked: Rows a sample, use by use, for which the samples were seen to be independent.

    """

    layer: Layer
    uses: list[Use] = field(default_factory=list)
    has_run: bool = False
    is_reached: bool = False
    problem: str = ""
    checked: set[tuple[int, ...]] = field(default_factory=set)


Deliver = Callable[[Watch, list[Use], int], None]
"""Takes what the layers with one weight did on a batch, and the number of samples."""
LayerTap = Callable[[Inputs, str], int]
"""Runs the model on one batch of inputs, named in words; returns its number of samples."""


@contextmanager
def layer_tap(
    model: nn.Module,
    watches: Sequence[Watch],
    deliver: Deliver,
    *,
    temperature: float = 1.0,
    head: Head | None = None,
    logits: LogitsSelector | None = None,
    is_strict: bool = True,
    device: torch.device | str | None = None,
) -> Iterator[LayerTap]:
    """Hold the model in eval mode with one hook on each layer under watch; on leaving, it is as it was.

    Args:
        model: An unwrapped model.
        watches: One for each weight.
        deliver: Called for each weight and batch, with the uses at which a gradient has arrived.
        temperature: Temperature T of the energy, above 0.
        head: The layer whose output are the logits; None where they are the model's output.
        logits: Where in the model's output they are.
        is_strict: Whether a layer whose gradient cannot be had is an error. If not, its watch notes the problem.
        device: Where to run; None for where the model is.

    Yields:
        A function that runs one batch. It raises `LayerError` where the gradients are not those of single samples.

    """
    handles = []
    with torch.inference_mode(mode=False), borrowed(model, device=device) as target:
        tap = _Tap(
            model,
            watches,
            deliver,
            temperature=temperature,
            head=head,
            selector=logits,
            is_strict=is_strict,
            device=target,
        )
        try:
            with Undisturbed():
                if head is not None:
                    handles.append(head.module.register_forward_hook(tap.keep_logits, prepend=True))
                for watch in watches:
                    for module in watch.layer.sharing:  # before other hooks, which may replace the output
                        hook = partial(tap.record, watch)
                        handles.append(module.register_forward_hook(hook, prepend=True, with_kwargs=True))
            yield tap.run
        finally:
            with Undisturbed():
                for handle in handles:
                    handle.remove()
            tap.clear()


class _Tap:
    """The state of one batch: forward, then one or two passes backward."""

    def __init__(
        self,
        model: nn.Module,
        watches: Sequence[Watch],
        deliver: Deliver,
        *,
        temperature: float,
        head: Head | None,
        selector: LogitsSelector | None,
        is_strict: bool,
        device: torch.device | None,
    ) -> None:
        self.model, self.watches, self.deliver = model, watches, deliver
        self.temperature, self.is_strict, self.device = temperature, is_strict, device
        self.head, self.selector = head, selector
        self._token = torch.zeros((), requires_grad=True)
        self._owner = threading.get_ident()
        self._logits: Tensor | None = None
        self._stage: Literal["none", "forward", "partial", "whole"] = "none"
        self._samples = 0

    def run(self, inputs: Inputs, where: str) -> int:
        """Run one batch; return its number of samples."""
        try:
            self._stage = "forward"
            with torch.set_grad_enabled(mode=False):  # a hook turns it on, from the first layer under watch
                output = run_model(self.model, _usable(inputs), device=self.device)
            self._stage = "none"
            logits = self._checked(output, where)
            del output
            self._samples = len(logits)
            for watch in self.watches:
                self._count_rows(watch)
            if any(watch.uses for watch in self.watches):
                self._go_back(logits)
        finally:
            self.clear()
        return self._samples

    def record(
        self,
        watch: Watch,
        module: nn.Linear | nn.Conv2d,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Tensor],
        output: Tensor,
    ) -> Tensor | None:
        """Note what a layer was given, and mark its output: the forward hook."""
        if threading.get_ident() != self._owner or self._stage != "forward" or watch.problem:
            return None
        has_begun = any(other.uses for other in self.watches)
        if torch.is_inference_mode_enabled() or (has_begun and not torch.is_grad_enabled()):
            raise LayerError(
                f"The model's forward turns autograd off (`torch.no_grad()` or `torch.inference_mode()`) round "
                f"{watch.layer.name!r}, or between it and a layer before it: there is no gradient across that. Name "
                f"layers of one side, with `layers=[...]`.",
            )
        watch.has_run = True
        inputs = sole_input(args, kwargs).detach()
        if not is_as_its_kind(module, inputs, output):
            self._refuse(
                watch, f"{type(module).__name__} has a forward of its own, which changes weight or input first"
            )
            return None
        torch.set_grad_enabled(mode=True)
        use = Use(module=module, inputs=inputs, version=_version(inputs))
        watch.uses.append(use)
        marked: Tensor = _Mark.apply(output, self._token, partial(self._receive, watch, use))
        return marked

    def keep_logits(self, _module: nn.Module, _args: object, output: Tensor) -> Tensor | None:
        """Keep the head's output: a forward hook. The model goes on with a copy, which it may write to."""
        if threading.get_ident() != self._owner or self._stage != "forward":
            return None
        self._logits = output if self.head is None else self.head.logits_from(output)
        return output.clone()

    def clear(self) -> None:
        """Let go of everything that belongs to a batch."""
        self._logits, self._stage = None, "none"
        for watch in self.watches:
            watch.uses = []

    def _checked(self, output: object, where: str) -> Tensor:
        logits = logits_of(output, self.selector) if self.head is None else self._logits
        if logits is None:
            raise HeadNotFoundError(
                f"{no_logits_message(output)} Or name the layer whose output are the logits: `head=...`.",
            )
        checked_matrix(logits, name="logits", axes="(batch, classes)")
        if logits.shape[1] < 2:
            raise ShapeError("The model has one output: the energy needs the logits of at least two classes.")
        if len(logits) == 0:
            raise EmptyDataError(f"The model made no logits of the inputs{where}.")
        require_finite(logits, name="logits", where=where)
        return logits

    def _count_rows(self, watch: Watch) -> None:
        """Refuse a layer whose input does not hold the same number of rows for each sample."""
        for use in watch.uses:
            is_unbatched = use.inputs.ndim == (3 if isinstance(use.module, nn.Conv2d) else 1)
            if is_unbatched:
                use.inputs = use.inputs[None]
            if len(use.inputs) % self._samples:
                self._refuse(
                    watch,
                    f"it was given {len(use.inputs)} rows for a batch of {self._samples} samples, so that a sample's "
                    f"own cannot be told",
                )
                return

    def _go_back(self, logits: Tensor) -> None:
        """Send the energy's gradient back: for a part of the samples where that is still to be seen, then for all."""
        if not logits.requires_grad:
            raise LayerError(
                "The logits do not depend on any of the layers in a way that autograd can follow. Does the model's "
                "forward detach its features, or run under `torch.no_grad()`?",
            )
        gradient = energy_gradient(logits, temperature=self.temperature)
        to_check = [watch for watch in self.watches if watch.uses and self._rows(watch) not in watch.checked]
        if to_check and self._samples > 1:
            part = torch.arange(self._samples, device=logits.device) < self._part
            self._stage = "partial"
            self._backward(logits, gradient * part[:, None], is_last=False)
        self._stage = "whole"
        self._backward(logits, gradient, is_last=True)
        self._stage = "none"
        for watch in self.watches:
            self._hand_on(watch)

    def _backward(self, logits: Tensor, gradient: Tensor, *, is_last: bool) -> None:
        try:
            torch.autograd.grad(logits, self._token, gradient, retain_graph=not is_last, allow_unused=True)
        except RuntimeError as error:
            if "inplace operation" in str(error):
                raise LayerError(
                    f"The model writes in place to something that the gradient is made of: {error}",
                ) from error
            raise

    def _receive(self, watch: Watch, use: Use, gradient: Tensor) -> None:
        """Take the gradient for a layer's output, during the backward pass."""
        if watch.problem:
            return
        if gradient.ndim < use.inputs.ndim:  # the layer ran on a single input without batch axis
            gradient = gradient[None]
        if self._stage == "partial":
            use.partial_norms = self._norms(gradient)
            return
        if use.version != _version(use.inputs):
            self._refuse(watch, "the model wrote in place to what the layer had been given, so that it is lost")
            return
        if use.partial_norms is not None and not self._is_apart(use.partial_norms, self._norms(gradient)):
            self._refuse(
                watch,
                "the rows that it is given are not those of one sample after the other, or samples of a batch "
                "influence one another. The batch must be the first axis (`batch_first=True`); or use batches of one",
            )
            return
        use.gradient = gradient
        if all(other.gradient is not None for other in watch.uses):
            self._hand_on(watch)

    def _hand_on(self, watch: Watch) -> None:
        """Deliver the uses at which a gradient has arrived, and forget all."""
        arrived = [use for use in watch.uses if use.gradient is not None]
        if arrived and not watch.problem:
            if self._samples > 1:
                watch.checked.add(self._rows(watch))
            watch.is_reached = True
            self.deliver(watch, arrived, self._samples)
        watch.uses = []

    def _refuse(self, watch: Watch, problem: str) -> None:
        if self.is_strict:
            raise LayerError(f"The sensitivity of {watch.layer.name!r} cannot be taken: {problem}.")
        watch.problem = problem
        watch.uses = []

    @property
    def _part(self) -> int:
        return max(1, self._samples // 3)

    def _rows(self, watch: Watch) -> tuple[int, ...]:
        return tuple(len(use.inputs) // self._samples for use in watch.uses)

    def _norms(self, gradient: Tensor) -> Tensor:
        """Return the size of each sample's gradient, shape (batch,)."""
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        norms: Tensor = torch.linalg.vector_norm(gradient.reshape(self._samples, -1), ord=1, dim=1, dtype=dtype)
        return norms

    def _is_apart(self, partial_norms: Tensor, norms: Tensor) -> bool:
        """Return whether gradients of the part are those of the whole, and those of the rest are zero."""
        if not bool(norms.isfinite().all()):
            return True  # the sums will show it
        expected = norms.clone()
        expected[self._part :] = 0
        tolerance = _SAME * expected + _NOTHING * norms.amax()
        return bool(((partial_norms - expected).abs() <= tolerance).all())


class _Mark(torch.autograd.Function):
    """The identity. A gradient that comes back through it is handed to a function; the token makes it come back.

    The output shares the input's memory without being its view, so that what follows may write to it in place.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, token: Tensor, receive: Callable[[Tensor], None]) -> Tensor:  # noqa: ANN401, ARG004  # torch's context has no public type; the token is there for autograd
        ctx.receive = receive
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401  # as above
        gradient: Tensor = gradients[0]
        ctx.receive(gradient)
        return gradient, None, None


def _usable(inputs: Inputs) -> Inputs:
    """Return inputs that autograd may keep: copies of tensors that were made under inference mode."""
    if isinstance(inputs, Tensor):
        return inputs.clone() if inputs.is_inference() else inputs
    return {
        name: value.clone() if isinstance(value, Tensor) and value.is_inference() else value
        for name, value in inputs.items()
    }


def _version(tensor: Tensor) -> int:
    """Return how often the tensor was written to; 0 where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001  # torch's only counter of in-place changes
