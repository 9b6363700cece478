"""Batches that need more memory than there is: run in parts of half the size, or told in one message."""

import gc
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from opnp.errors import BatchSizeWarning, InsufficientMemoryError
from opnp.model.batches import Inputs

__all__ = ["BatchHalving", "is_out_of_memory"]

_Result = TypeVar("_Result")
_PLAIN = (Tensor, str, int, float, type(None))
"""Kinds of values in a mapping of inputs: tensors are cut, others belong to the batch as a whole. A bool is an int."""
_SHORTAGE = re.compile(r"out of memory|can't allocate memory|not enough memory|_STATUS_ALLOC_FAILED")
_SHOWN = 160


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


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch or of Python says that memory ran out, on whatever device.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory")), is_out_of_memory(OSError())
        (True, False)

    """
    if isinstance(error, InsufficientMemoryError):  # has said so already
        return False
    is_plain = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_plain or (isinstance(error, RuntimeError) and _SHORTAGE.search(str(error)) is not None)


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
