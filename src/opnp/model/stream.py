"""Streaming (features, logits) out of a model: one pre-hook on the head, removed whatever happens."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from opnp.core.checks import require_finite
from opnp.errors import ShapeError
from opnp.model.batches import Batch, BatchHalving, BatchReader, InputAxes, axes_of, opened
from opnp.model.borrow import borrowed, in_this_thread, set_eval_mode, unwrapped
from opnp.model.forward import Inputs, LogitsSelector, plain_tensor, run_model, sole_input
from opnp.model.head import Head, OwnLogits, head_outcome, require_module
from opnp.model.search import head_run

__all__ = ["HeadStream", "Tap", "head_stream", "head_tap"]

Tap = Callable[..., tuple[Tensor, Tensor]]
"""Runs the model on one batch of inputs, and returns its (features, logits).

Labels, `labels=`, where there are any, say how many samples there are.
"""


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
    is_inside: bool = True,
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
        is_inside: Whether labels must be classes of the model, as those of ID inputs are.

    Yields:
        The open stream.

    Raises:
        EmptyDataError: If `loader` yields nothing.
        HeadNotFoundError: If the head is not found; while reading, if the logits are not its own.
        OptionError: If `logits` leads nowhere, or a label is no class of the model.
        NonFiniteError: While reading, if features or logits are not finite; the message counts batches from 0.
        ShapeError: While reading, if a batch holds another number of labels than of inputs.
        InputTypeError: If `model` is no module, `loader` is a tensor, or a batch is of a kind that cannot be read.
        InsufficientMemoryError: If the model, or a batch in it, needs more memory than there is.

    """
    require_module(model)
    first, batches = opened(loader)
    halving = halving or BatchHalving()
    outcomes: list[tuple[Tensor, Tensor]] = []
    classes = len(head.weight) if isinstance(head, Head) else None
    reader = BatchReader.of(model, classes=classes, is_inside=is_inside)
    batch = reader.read(first)
    found, named = (head, None) if isinstance(head, Head) else (None, head)
    while found is None:
        search = partial(head_run, model, head=named, logits=logits, device=device, labels=batch.labels)
        (found, outcome), is_whole = halving.beginning(search, batch.inputs)
        reader = replace(reader, classes=len(found.weight))
        again = reader.read(first)  # by the number of classes, which is known now
        if again.places != batch.places:
            found, batch = None, again
            continue
        outcomes = [outcome] if is_whole and outcome is not None else []
        del outcome  # of the first batch nothing is kept once it is read
    axes = axes_of(batch.inputs)
    del first, batch
    with head_tap(model, found, device=device, is_checked=is_checked) as tap:

        def tapped(batch: Batch) -> tuple[Tensor, ...]:
            if outcomes:  # the first batch has run already
                return outcomes.pop()
            return halving.outcome(partial(tap, labels=batch.labels), batch.inputs)

        yield HeadStream(head=found, axes=axes, batches=_read(tapped, map(reader.read, batches)))


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
    own = OwnLogits(head) if is_checked else None

    def capture(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        # A copy: the model may write to it after the layer has run.
        captured.append(plain_tensor(sole_input(args, kwargs)).detach().clone())

    hook = in_this_thread(capture)
    with (
        borrowed(inner, device=device) as target,
        head.module.register_forward_pre_hook(hook, with_kwargs=True),
    ):
        modules = list(inner.modules())

        def tap(inputs: Inputs, *, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
            captured.clear()
            set_eval_mode(modules)
            output = run_model(inner, inputs, device=target)
            outcome = head_outcome(head, captured, output, inputs, labels)
            if own is not None:
                own.require(*outcome)
            captured.clear()
            return outcome

        yield tap


def _read(
    tap: Callable[[Batch], tuple[Tensor, ...]], batches: Iterable[Batch]
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    for index, batch in enumerate(batches):
        features, logits = tap(batch)
        where = f" in batch {index}"
        require_finite(features, name="features", where=where)
        require_finite(logits, name="logits", where=where)
        if batch.labels is not None and len(batch.labels) != len(features):
            raise ShapeError(
                f"Batch {index} holds {len(batch.labels)} labels for {len(features)} inputs: one each is needed."
            )
        yield features, logits, batch.labels
