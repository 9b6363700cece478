"""Streaming (features, logits) out of a model: one pre-hook on the head, removed whatever happens."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from opnp.core.checks import require_finite
from opnp.errors import EmptyDataError, InputTypeError, ShapeError
from opnp.model.batch_halving import BatchHalving
from opnp.model.batches import InputAxes, Inputs, axes_of, inputs_of, is_empty, labels_of, run_model
from opnp.model.head import Head
from opnp.model.head_outcome import OwnLogits, head_outcome
from opnp.model.head_search import HeadRun, head_run
from opnp.model.listening import given_input, remove_hooks, set_eval_mode
from opnp.model.outputs import LogitsSelector
from opnp.model.state import borrowed, unwrapped
from opnp.model.undisturbed import Undisturbed

__all__ = ["HeadStream", "Tap", "head_stream", "head_tap"]


class Tap(Protocol):
    """Runs the model on one batch of inputs; returns its (features, logits)."""

    def __call__(self, inputs: Inputs, *, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return them; labels, where there are any, say how many samples there are."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class HeadStream:
    """A model opened for reading.

    Attributes:
        head: The head that was found.
        axes: Number of axes of a batch of inputs.
        batches: Iterator of (features, logits, labels or None), to be consumed while the stream is open.

    """

    head: Head
    axes: InputAxes
    batches: Iterator[tuple[Tensor, Tensor, Tensor | None]]


@contextmanager
def head_stream(
    model: nn.Module,
    loader: Iterable[object],
    *,
    head: str | nn.Module | Head | None = None,
    logits: LogitsSelector | None = None,
    device: torch.device | str | None = None,
    halving: BatchHalving | None = None,
    is_checked: bool = True,
) -> Iterator[HeadStream]:
    """Open a model for one pass over `loader`; on leaving, hooks are gone and the model is as it was.

    Args:
        model: Any classifier.
        loader: Iterable of batches; read once, so a generator will do.
        head: The head or its dotted name; None to search. A `Head` that was found before is taken as it is.
        logits: Where the logits are in the model's output, as for `find_head`.
        device: Where to run; None for where the model is.
        halving: How batches are run that need more memory than there is; None to refuse them.
        is_checked: Whether the model's logits must be what the head makes of the features, as where they are used.

    Yields:
        The open stream.

    Raises:
        EmptyDataError: If `loader` yields nothing.
        HeadNotFoundError: If the head is not found; while reading, if the logits are not its own.
        OptionError: If `logits` leads nowhere.
        NonFiniteError: While reading, if features or logits are not finite; the message counts batches from 0.
        ShapeError: While reading, if a batch holds another number of labels than of inputs.
        InputTypeError: If `model` is no module, `loader` is a tensor, or a batch is of a kind that cannot be read.
        InsufficientMemoryError: If the model, or a batch in it, needs more memory than there is.

    """
    if isinstance(loader, Tensor | str) or not isinstance(loader, Iterable):
        hint = " For a single batch pass a list of one: `[inputs]`." if isinstance(loader, Tensor) else ""
        raise InputTypeError(f"`loader` must be an iterable of batches, got {type(loader).__name__}.{hint}")
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
    iterator = iter(loader)
    for first in iterator:
        inputs = inputs_of(first)
        if not is_empty(inputs):
            break
    else:
        raise EmptyDataError("`loader` yields no batch: there is nothing to read.")
    outcomes: list[tuple[Tensor, Tensor]] = []
    halving = halving or BatchHalving()
    if isinstance(head, Head):
        found = head
    else:
        search = partial(head_run, model, head=head, logits=logits, device=device, labels=labels_of(first))
        run, is_whole = halving.beginning(search, inputs, rows=_rows)
        found, outcomes = run.head, [run.outcome] if is_whole and run.outcome is not None else []
        del run  # of the first batch nothing is kept once it is read
    with head_tap(model, found, device=device, is_checked=is_checked) as tap:

        def tapped(inputs: Inputs, labels: Tensor | None) -> tuple[Tensor, ...]:
            if outcomes:  # the first batch has run already
                return outcomes.pop()
            return halving.outcome(partial(tap, labels=labels), inputs)

        yield HeadStream(head=found, axes=axes_of(inputs), batches=_read(tapped, chain([first], iterator)))


@contextmanager
def head_tap(
    model: nn.Module, head: Head, *, device: torch.device | str | None = None, is_checked: bool = True
) -> Iterator[Tap]:
    """Hold the model in eval mode with one pre-hook on its head; on leaving, it is as it was.

    Args:
        model: The model of the head.
        head: Its head.
        device: Where to run; None for where the model is.
        is_checked: Whether the model's logits must be what the head makes of the features.

    Yields:
        A function from a batch of inputs to (features, logits), of shapes ``(batch, features)`` and
        ``(batch, classes)``, on the model's device, without autograd.

    """
    inner = unwrapped(model)
    captured: list[Tensor] = []
    owner = threading.get_ident()
    own = OwnLogits(head) if is_checked else None

    def capture(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if threading.get_ident() == owner:
            captured.append(given_input(args, kwargs))

    with borrowed(inner, device=device) as target:
        modules = list(inner.modules())
        handles: list[RemovableHandle] = []

        def tap(inputs: Inputs, *, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
            captured.clear()
            set_eval_mode(modules)
            output = run_model(inner, inputs, device=target)
            outcome = head_outcome(head, captured, output, inputs, labels)
            if own is not None:
                own.require(*outcome)
            captured.clear()
            return outcome

        try:
            with Undisturbed():
                handles.append(head.module.register_forward_pre_hook(capture, with_kwargs=True))
            yield tap
        finally:
            with Undisturbed():
                remove_hooks(handles, inner)
            captured.clear()


def _rows(run: HeadRun) -> int | None:
    """Return how many samples a run that found the head had, as far as it is known."""
    return None if run.outcome is None else len(run.outcome[0])


def _read(
    tap: Callable[[Inputs, Tensor | None], tuple[Tensor, ...]], batches: Iterable[object]
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    for index, batch in enumerate(batches):
        labels = labels_of(batch)
        features, logits = tap(inputs_of(batch), labels)
        where = f" in batch {index}"
        require_finite(features, name="features", where=where)
        require_finite(logits, name="logits", where=where)
        if labels is not None and len(labels) != len(features):
            raise ShapeError(
                f"Batch {index} holds {len(labels)} labels for {len(features)} inputs: one each is needed."
            )
        yield features, logits, labels
