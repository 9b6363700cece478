"""Streaming (features, logits) out of a model: one pre-hook on the head, removed whatever happens.

Batches are what loaders yield: a tensor, a mapping of tensors (Hugging Face), or a tuple or list whose first item is
one of those and whose second, if any, holds the labels. Where memory is short they are run in parts.
"""

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

from opnp.core.checks import require_finite
from opnp.errors import BatchSizeWarning, EmptyDataError, InputTypeError, InsufficientMemoryError, ShapeError
from opnp.model.borrow import borrowed, in_this_thread, set_eval_mode, unwrapped
from opnp.model.forward import (
    Inputs,
    LogitsSelector,
    is_out_of_memory,
    plain_tensor,
    run_model,
    sole_input,
    tensors_of,
)
from opnp.model.head import Head, OwnLogits, head_outcome, require_module
from opnp.model.search import head_run

__all__ = [
    "BatchHalving",
    "HeadStream",
    "InputAxes",
    "Tap",
    "as_batch",
    "axes_of",
    "head_stream",
    "head_tap",
    "inputs_of",
    "is_empty",
    "labels_of",
    "opened",
]

InputAxes = int | dict[str, int]
"""Number of axes of a batch of inputs, the batch axis counted: of the tensor, or of each tensor by key."""

_LABEL_KEYS = ("labels", "label")
_Result = TypeVar("_Result")
_PLAIN = (Tensor, str, int, float, type(None))
"""Kinds of values in a mapping of inputs: tensors are cut, others belong to the batch as a whole. A bool is an int."""
_SHOWN = 160


def inputs_of(batch: object) -> Inputs:
    """Return the model's inputs of a batch: the tensor, or the mapping without its labels.

    Args:
        batch: A tensor, a mapping, or a tuple or list that begins with one of those.

    Returns:
        A tensor, or a mapping of keyword arguments.

    Raises:
        InputTypeError: If `batch` is none of those, or a list of inputs that were not stacked.

    Example:
        >>> import torch
        >>> inputs_of((torch.ones(2, 3), torch.tensor([0, 1]))).shape
        torch.Size([2, 3])
        >>> sorted(inputs_of({"pixel_values": torch.ones(2, 3), "labels": torch.tensor([0, 1])}))
        ['pixel_values']

    """
    if isinstance(batch, tuple | list) and batch:
        if _is_unstacked(batch):
            raise InputTypeError(
                f"The batch is a list of {len(batch)} tensors of shape {tuple(batch[0].shape)}: of a list the first is "
                f"taken as the inputs and the second as labels. Stack them, `torch.stack(batch)`, or give what the "
                f"model takes as a mapping.",
            )
        batch = batch[0]
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key not in _LABEL_KEYS}
    empty = "an empty " if isinstance(batch, Sized) and not len(batch) else ""
    raise InputTypeError(
        f"A batch must be a tensor, a mapping of tensors, or a tuple (inputs, labels), got {empty}"
        f"{type(batch).__name__}. Let the loader's `collate_fn` return one of those.",
    )


def labels_of(batch: object) -> Tensor | None:
    """Return the integer labels of a batch, shape ``(batch,)``, or None where it carries none.

    Example:
        >>> import torch
        >>> labels_of((torch.ones(2, 3), torch.tensor([0, 1])))
        tensor([0, 1])
        >>> labels_of(torch.ones(2, 3)) is None
        True

    """
    found: object = None
    if isinstance(batch, tuple | list) and len(batch) > 1:
        found = batch[1]
    elif isinstance(batch, Mapping):
        found = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
    if isinstance(found, Tensor) and found.ndim == 1 and not found.is_floating_point():
        return found
    return None


def opened(loader: Iterable[object]) -> tuple[object, Iterator[object]]:
    """Return the first batch of a loader that holds a sample, and the batches from that one on.

    Raises:
        InputTypeError: If `loader` is a tensor, or cannot be gone through.
        EmptyDataError: If it yields nothing.

    """
    if isinstance(loader, Tensor | str) or not isinstance(loader, Iterable):
        hint = " For a single batch pass a list of one: `[inputs]`." if isinstance(loader, Tensor) else ""
        raise InputTypeError(f"`loader` must be an iterable of batches, got {type(loader).__name__}.{hint}")
    iterator = iter(loader)
    for first in iterator:
        if not is_empty(inputs_of(first)):
            return first, chain([first], iterator)
    raise EmptyDataError("`loader` yields no batch: there is nothing to read.")


def is_empty(inputs: Inputs) -> bool:
    """Return whether a batch of inputs holds no sample."""
    return any(item.ndim > 0 and len(item) == 0 for item in tensors_of(inputs))


def axes_of(inputs: Inputs) -> InputAxes:
    """Return the number of axes of a batch of inputs, so that a single input can be told from a batch later."""
    if isinstance(inputs, Tensor):
        return inputs.ndim
    return {key: value.ndim for key, value in inputs.items() if isinstance(value, Tensor)}


def as_batch(inputs: Inputs, axes: InputAxes | None) -> tuple[Inputs, bool]:
    """Return `inputs` with a batch axis, and whether that had to be added because it was one input.

    Args:
        inputs: One input or a batch of them.
        axes: Number of axes that a batch has, from `axes_of`; None if unknown, then `inputs` counts as a batch.

    Returns:
        The batch, and True if `inputs` was a single one.

    Example:
        >>> import torch
        >>> batch, is_single = as_batch(torch.ones(3, 8, 8), 4)
        >>> batch.shape, is_single
        (torch.Size([1, 3, 8, 8]), True)

    """
    if isinstance(inputs, Tensor):
        is_single = isinstance(axes, int) and inputs.ndim == axes - 1
        return (inputs[None] if is_single else inputs), is_single
    known = axes if isinstance(axes, dict) else {}
    lacking = {value.ndim - known[key] for key, value in inputs.items() if isinstance(value, Tensor) and key in known}
    if lacking != {-1}:
        return inputs, False
    return {key: value[None] if isinstance(value, Tensor) else value for key, value in inputs.items()}, True


def _is_unstacked(batch: Sequence[object]) -> bool:
    """Return whether a list is one of inputs: three or more tensors of floats of one shape; labels are not that."""
    shapes = {each.shape if isinstance(each, Tensor) and each.is_floating_point() else None for each in batch}
    return len(batch) > 2 and len(shapes) == 1 and None not in shapes


@dataclass(eq=False, slots=True)
class BatchHalving:
    """Runs batches whole, or in parts once a whole one has run out of memory.

    A part that has run out of memory is cut in half and run again, down to a single input; what was found to fit is
    kept for the batches to come. In eval mode inputs do not see each other, so that the parts make the whole.

    Attributes:
        is_on: Whether batches may be cut. If not, running out of memory is an error.
        rows: Inputs that are run at once; None for whole batches.
        apart: Inputs of the last part that was seen to give one row for each of them.

    Example:
        >>> def run(inputs):
        ...     if len(inputs) > 2:
        ...         raise MemoryError
        ...     return (2 * inputs,)
        >>> with warnings.catch_warnings(action="ignore"):
        ...     BatchHalving(is_on=True).outcome(run, torch.arange(5))
        (tensor([0, 2, 4, 6, 8]),)

    """

    is_on: bool = False
    rows: int | None = None
    apart: int | None = None

    def outcome(self, run: Callable[[Inputs], tuple[Tensor, ...]], inputs: Inputs) -> tuple[Tensor, ...]:
        """Return the tensors, with a row for each input, that `run` gives for a batch, the parts joined.

        Raises:
            InsufficientMemoryError: If the batch needs more memory than there is, and cannot be cut; as where the
                model gives other numbers of rows than inputs, because samples lie on another axis than the first.

        Warns:
            BatchSizeWarning: If it is cut.

        """
        found, stop = self._part(run, inputs, start=0)
        if stop is None:
            return found
        parts: list[tuple[Tensor, ...]] = []
        start, total = 0, _rows(inputs)
        while stop is not None:
            _require_row_each(found, stop - start)
            parts.append(tuple(each.clone() for each in found))  # a model may use the memory of its output again
            if start == 0:
                self._require_apart(run, inputs, stop)
            start = stop
            found, stop = self._part(run, inputs, start=start)
        _require_row_each(found, (total or 0) - start)
        return tuple(torch.cat(columns) for columns in zip(*parts, found, strict=True))

    def beginning(self, run: Callable[[Inputs], _Result], inputs: Inputs) -> tuple[_Result, bool]:
        """Return what `run` gives for as many inputs, from the first on, as fit, and whether that is all of the batch.

        Errors and warnings are those of `outcome`.
        """
        found, stop = self._part(run, inputs, start=0)
        return found, stop is None

    def _require_apart(self, run: Callable[[Inputs], tuple[Tensor, ...]], inputs: Inputs, stop: int) -> None:
        """Raise if a part had as many rows as inputs by chance: axis 1 is as long, and one input less changes none."""
        is_square = any(each.ndim > 1 and each.shape[1] == stop for each in tensors_of(inputs))
        if is_square and stop > 1 and self.apart != stop:
            _require_row_each(run(_cut(inputs, 0, stop - 1)), stop - 1)
            self.apart = stop

    def _part(self, run: Callable[[Inputs], _Result], inputs: Inputs, *, start: int) -> tuple[_Result, int | None]:
        """Return what `run` gives for inputs from `start` on, and where those end; None where the batch does."""
        total = _rows(inputs)
        while True:
            stop = None if total is None or self.rows is None or start + self.rows >= total else start + self.rows
            part = inputs if start == 0 and stop is None else _cut(inputs, start, stop)
            try:
                return run(part), stop
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(None if total is None else (total if stop is None else stop) - start, error)
            # After the block: the error holds on to what the model had made so far.
            del part
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    def _halve(self, rows: int | None, error: Exception) -> None:
        """Go on with half as many inputs at once, or raise."""
        batch = "a batch" if rows is None else "a batch of one input" if rows == 1 else f"a batch of {rows} inputs"
        if self.is_on and rows is not None and rows > 1:
            self.rows = rows // 2
            warnings.warn(
                f"The model ran out of memory on {batch}: it is run on {self.rows} at once from here on.",
                BatchSizeWarning,
                stacklevel=2,
            )
            return
        reason = next((line.strip(" .") for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if rows == 1:
            hint = "There is no smaller batch: give smaller inputs, or run it where there is more memory."
        elif self.is_on:
            hint = "Its inputs cannot be told apart, so that it cannot be halved: give smaller batches."
        else:
            hint = (
                "Give smaller batches, `--batch-size` on the command line; or let them be halved until they fit, "
                "`--auto-batch`, in Python `auto_batch=True`."
            )
        raise InsufficientMemoryError(f"The model ran out of memory on {batch} ({reason[:_SHOWN]}). {hint}") from error


def _require_row_each(found: tuple[Tensor, ...], inputs: int) -> None:
    """Raise if a part of a batch did not give one row for each of its inputs."""
    rows = next((len(each) for each in found if len(each) != inputs), None)
    if rows is not None:
        raise InsufficientMemoryError(
            f"The model ran out of memory on a batch, which cannot be cut: a part of {inputs} inputs gave {rows} rows. "
            f"The samples do not lie on the first axis, or there are several inputs to one. Give smaller batches, "
            f"`--batch-size` on the command line.",
        )


def _rows(inputs: Inputs) -> int | None:
    """Return the number of inputs of a batch, None where that cannot be told for sure."""
    lengths = {len(value) for value in tensors_of(inputs) if value.ndim > 0}
    is_plain = isinstance(inputs, Tensor) or all(isinstance(value, _PLAIN) for value in inputs.values())
    return lengths.pop() if is_plain and len(lengths) == 1 else None


def _cut(inputs: Inputs, start: int, stop: int | None) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs[start:stop]
    return {
        name: value[start:stop] if isinstance(value, Tensor) and value.ndim > 0 else value
        for name, value in inputs.items()
    }


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
    require_module(model)
    first, batches = opened(loader)
    outcomes: list[tuple[Tensor, Tensor]] = []
    halving = halving or BatchHalving()
    if isinstance(head, Head):
        found = head
    else:
        search = partial(head_run, model, head=head, logits=logits, device=device, labels=labels_of(first))
        (found, outcome), is_whole = halving.beginning(search, inputs_of(first))
        outcomes = [outcome] if is_whole and outcome is not None else []
        del outcome  # of the first batch nothing is kept once it is read
    with head_tap(model, found, device=device, is_checked=is_checked) as tap:

        def tapped(inputs: Inputs, labels: Tensor | None) -> tuple[Tensor, ...]:
            if outcomes:  # the first batch has run already
                return outcomes.pop()
            return halving.outcome(partial(tap, labels=labels), inputs)

        yield HeadStream(head=found, axes=axes_of(inputs_of(first)), batches=_read(tapped, batches))


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
