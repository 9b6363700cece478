"""A model cut in two for compiling: the layers before the head, compiled, and the head, where features are read.

Hooks inside a compiled part do not fire, so the cut is made where the hook is: the head is taken out of the model while
the rest runs, and gets the features afterwards.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opnp.errors import OptionError
from opnp.model import Head, Inputs, borrowed, find_head, unwrapped

__all__ = ["CompiledForward"]


@dataclass(frozen=True, eq=False, slots=True)
class CompiledForward:
    """A model whose layers before the head are compiled once, for batches of one size.

    Attributes:
        model: The model; it is whole outside of `opened`.
        rest: The same, compiled.
        gap: What stands in the place of the head while the rest runs.
        batch_size: Rows of the batches that it is compiled for; smaller ones are filled up with zeros.

    """

    model: nn.Module
    rest: Callable[[Tensor], object]
    gap: nn.Identity
    batch_size: int

    @classmethod
    def from_model(cls, model: nn.Module, *, batch_size: int) -> "CompiledForward":
        """Return a model ready to be compiled by its first batch.

        Raises:
            OptionError: If parts of it are compiled already.

        """
        inner = unwrapped(model)
        if any(getattr(each, "_compiled_call_impl", None) or hasattr(each, "_orig_mod") for each in inner.modules()):
            raise OptionError("the model has parts that are compiled already: give it as it was before.")
        attributes = set(vars(inner))
        rest = torch.compile(inner, dynamic=False)
        for name in set(vars(inner)) - attributes:  # torch marks the model itself
            delattr(inner, name)
        return cls(inner, rest, nn.Identity(), batch_size)

    @contextmanager
    def opened(
        self, probe: Inputs, *, head: str | None, device: torch.device | str | None
    ) -> Iterator[tuple[nn.Module, Head]]:
        """Take the head out of the model; on leaving, the model is as it was.

        Args:
            probe: Inputs that the head is found by.
            head: Its name; None to search.
            device: Where to run; None for where the model is.

        Yields:
            A model of the same answers with the head as its only layer, and the head with its name in the model.

        Raises:
            HeadNotFoundError: If the head is not found.
            OptionError: If the head's output is not the model's, or there is nothing before it.

        """
        found = find_head(self.model, probe, head=head, device=device)
        if not found.is_output or found.module is self.model:
            reason = "is all of the model" if found.is_output else "is not its last layer"
            raise OptionError(f"`compile` cuts the model before its head, and {found.label} {reason}: leave it out.")
        with borrowed(self.model, device=device), self._without(found.module):
            yield _Cut(self, found.linear), found

    def features(self, inputs: Tensor) -> object:
        """Return what the compiled layers make of inputs.

        Raises:
            OptionError: If they cannot be compiled.

        """
        from torch._dynamo.exc import TorchDynamoException  # takes seconds, and is needed for this alone

        missing = self.batch_size - len(inputs)
        filled = torch.cat([inputs, inputs.new_zeros(missing, *inputs.shape[1:])]) if missing > 0 else inputs
        try:
            found = self.rest(filled)
        except TorchDynamoException as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = " ".join(lines[:2]) or type(error).__name__
            raise OptionError(f"`compile` failed on this model ({reason}): leave it out.") from error
        return found[: len(inputs)] if isinstance(found, Tensor) else found

    @contextmanager
    def _without(self, head: nn.Module) -> Iterator[None]:
        """Put the gap where the head stands, everywhere in the model."""
        places = [
            (parent, name)
            for parent in self.model.modules()
            for name, child in parent.named_children()
            if child is head
        ]
        try:
            for parent, name in places:
                setattr(parent, name, self.gap)
            yield
        finally:
            for parent, name in places:
                setattr(parent, name, head)


class _Cut(nn.Module):
    """Compiled layers, which are no layers of this module, and the head after them."""

    def __init__(self, compiled: CompiledForward, head: nn.Module) -> None:
        super().__init__()
        self.before = compiled.features
        self.head = head

    def forward(self, inputs: Tensor) -> object:
        return self.head(self.before(inputs))
