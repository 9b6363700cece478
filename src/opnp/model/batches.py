"""Batches as loaders yield them: what goes into the model, and in parts where memory is short.

A batch may be a tensor, a mapping of tensors (Hugging Face), or a tuple or list whose first item is one of those and
whose second, if any, holds the labels.
"""

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from opnp.errors import BatchSizeWarning, EmptyDataError, InputTypeError, InsufficientMemoryError
from opnp.model.forward import Inputs, is_out_of_memory

__all__ = ["BatchHalving", "InputAxes", "as_batch", "axes_of", "inputs_of", "is_empty", "labels_of", "opened"]

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
    raise InputTypeError(
        f"A batch must be a tensor, a mapping of tensors, or a tuple (inputs, labels), got {_described(batch)}. Let "
        f"the loader's `collate_fn` return one of those.",
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
    tensors = [inputs] if isinstance(inputs, Tensor) else [item for item in inputs.values() if isinstance(item, Tensor)]
    return any(item.ndim > 0 and len(item) == 0 for item in tensors)


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
    if not isinstance(axes, dict):
        return inputs, False
    tensors = {key: value for key, value in inputs.items() if isinstance(value, Tensor) and key in axes}
    is_single = bool(tensors) and all(value.ndim == axes[key] - 1 for key, value in tensors.items())
    if not is_single:
        return inputs, False
    return {key: value[None] if isinstance(value, Tensor) else value for key, value in inputs.items()}, True


def _described(batch: object) -> str:
    if isinstance(batch, tuple | list):
        return f"an empty {type(batch).__name__}" if not batch else f"a {type(batch).__name__} in its first place"
    return type(batch).__name__


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
        while True:
            for each in found:
                _require_row_each(len(each), ((total or 0) if stop is None else stop) - start)
            parts.append(found)
            if stop is None:
                break
            parts[-1] = tuple(each.clone() for each in found)  # a model may use the memory of its output again
            if start == 0:
                self._require_apart(run, inputs, stop)
            start = stop
            found, stop = self._part(run, inputs, start=start)
        return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))

    def beginning(
        self,
        run: Callable[[Inputs], _Result],
        inputs: Inputs,
        *,
        rows: Callable[[_Result], int | None] = lambda _: None,
    ) -> tuple[_Result, bool]:
        """Return what `run` gives for as many inputs, from the first on, as fit, and whether that is all of the batch.

        Errors and warnings are those of `outcome`; `rows` says how many rows there are in what `run` gave.
        """
        found, stop = self._part(run, inputs, start=0)
        count = rows(found)
        if stop is not None and count is not None:
            _require_row_each(count, stop)
        return found, stop is None

    def _require_apart(self, run: Callable[[Inputs], tuple[Tensor, ...]], inputs: Inputs, stop: int) -> None:
        """Raise if a part had as many rows as inputs by chance: axis 1 is as long, and one input less changes none."""
        values = [inputs] if isinstance(inputs, Tensor) else [*inputs.values()]
        is_square = any(isinstance(each, Tensor) and each.ndim > 1 and each.shape[1] == stop for each in values)
        if is_square and stop > 1 and self.apart != stop:
            for each in run(_cut(inputs, 0, stop - 1)):
                _require_row_each(len(each), stop - 1)
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


def _require_row_each(rows: int, inputs: int) -> None:
    """Raise if a part of a batch did not give one row for each of its inputs."""
    if rows != inputs:
        raise InsufficientMemoryError(
            f"The model ran out of memory on a batch, which cannot be cut: a part of {inputs} inputs gave {rows} rows. "
            f"The samples do not lie on the first axis, or there are several inputs to one. Give smaller batches, "
            f"`--batch-size` on the command line.",
        )


def _rows(inputs: Inputs) -> int | None:
    """Return the number of inputs of a batch, None where that cannot be told for sure."""
    values = [inputs] if isinstance(inputs, Tensor) else [*inputs.values()]
    lengths = {len(value) for value in values if isinstance(value, Tensor) and value.ndim > 0}
    is_plain = all(isinstance(value, _PLAIN) for value in values)
    return lengths.pop() if is_plain and len(lengths) == 1 else None


def _cut(inputs: Inputs, start: int, stop: int | None) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs[start:stop]
    return {
        name: value[start:stop] if isinstance(value, Tensor) and value.ndim > 0 else value
        for name, value in inputs.items()
    }
