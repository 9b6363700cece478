"""Inputs made ready for a model, as a data set of torch: what cannot be read is left out and listed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from opnp.data.file_names import shown_text
from opnp.data.input_batches import InputBatches
from opnp.data.input_source import InputSource
from opnp.data.transform import ModelInputs, SampleKind, Transform
from opnp.errors import DataFileError, EmptyDataError, InputTypeError, ModelRunError, OpnpError

__all__ = ["INPUT_FORMS", "InputSet", "unreadable_summary"]

INPUT_FORMS: dict[SampleKind, str] = {
    "image": "a folder of images, a list of files (.txt, .csv), .safetensors, .npy, .npz, or a saved data set",
    "text": "a .jsonl or .csv file with `text`, or a saved data set",
}
"""Where inputs may come from."""

_SHOWN = 5


class InputSet(Dataset[object]):
    """Inputs made ready for a model: items are ``(input, label)``, or inputs alone where there are no labels.

    Args:
        source: The samples.
        transform: What is done to each.
        is_strict: Whether the first sample that cannot be read is an error; else such ones are left out of batches, and
            are in `unreadable` afterwards.

    Raises:
        InputTypeError: If the samples are images and the transform takes texts, or the reverse.

    """

    def __init__(self, source: InputSource, transform: Transform, *, is_strict: bool = False) -> None:
        """Keep the arguments."""
        if source.kind != transform.kind:
            raise InputTypeError(
                f"{source.path} holds {source.kind}s, and the model takes {transform.kind}s: expected "
                f"{INPUT_FORMS[transform.kind]}.",
            )
        self.source = source
        self.transform = transform
        self.is_strict = is_strict
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        """Return the number of samples, those that cannot be read counted too."""
        return len(self.source)

    def __getitem__(self, index: int) -> ModelInputs | tuple[ModelInputs, int]:
        """Return one input, with its label where that is known.

        Raises:
            DataFileError: If the sample cannot be read.

        """
        if not -len(self) <= index < len(self):
            message = f"index {index} of {len(self)} inputs"
            raise IndexError(message)  # ends a loop over the set
        row = index % len(self)
        try:
            inputs = self.read(row)
        except DataFileError as error:
            raise self._error(row, str(error)) from error
        return inputs if self.source.labels is None else (inputs, self.source.labels[row])

    @property
    def names(self) -> Sequence[str]:
        """What each sample is called."""
        return self.source.names

    @property
    def labels(self) -> Tensor | None:
        """Classes of all samples, shape ``(inputs,)``, int64, or None; those of what was read: ``labels[readable]``."""
        labels = self.source.labels
        return None if labels is None else torch.tensor(labels, dtype=torch.int64)

    @property
    def reasons(self) -> Mapping[int, str]:
        """Why samples could not be read, by row in ascending order: of those that batches came upon so far."""
        return dict(sorted(self._reasons.items()))

    @property
    def unreadable(self) -> tuple[tuple[str, str], ...]:
        """Names of the samples that batches could not read so far, in the order of rows, each with the reason."""
        return tuple((self.names[row], reason) for row, reason in self.reasons.items())

    @property
    def readable(self) -> Tensor:
        """Rows that are not known to be unreadable, int64: after a pass, those that were read."""
        is_readable = torch.ones(len(self), dtype=torch.bool)
        is_readable[list(self._reasons)] = False
        return is_readable.nonzero()[:, 0]

    def batches(
        self, batch_size: int, *, rows: range | None = None, workers: int = 0, is_pinned: bool = False
    ) -> InputBatches:
        """Return the batches of all inputs in their order; torch's global random state is left alone.

        A batch is ``(inputs, labels)``, or the inputs alone where there are no labels. Samples that cannot be read are
        left out, of later batches too, so that every pass has the same rows.

        Args:
            batch_size: Inputs a batch.
            rows: Which inputs; None for all.
            workers: Processes that read and prepare inputs ahead of time; 0 to do so here. The batches are the same.
            is_pinned: Whether batches lie in page-locked memory, for a CUDA device.

        Raises:
            OptionError: If `batch_size` is below 1, or `workers` does not lie in 0 to 1024.

        """
        chosen: Sequence[int] = range(len(self)) if rows is None else rows
        if self._reasons:
            chosen = [row for row in chosen if row not in self._reasons]
        return InputBatches(self, chosen, batch_size, workers=workers, is_pinned=is_pinned)

    def first_batch(self) -> Any:  # noqa: ANN401  # as batches are
        """Return a batch of the first input that can be read; what cannot is not counted as unreadable yet.

        Raises:
            EmptyDataError: If none can be read.
            DataFileError: If the first one cannot be read, and `is_strict`.

        """
        reasons = {}
        for row in range(len(self)):
            if row in self._reasons:
                continue
            try:
                return self.stacked([row], [self.read(row)])
            except DataFileError as error:
                if self.is_strict:
                    raise self._error(row, str(error)) from error
                reasons[row] = str(error)
        self._reasons |= reasons
        self.require_some()
        raise EmptyDataError(f"{self.source.path} holds no input.")

    def read(self, row: int) -> ModelInputs:
        """Return the input of a row, without a batch axis.

        Raises:
            DataFileError: If the sample cannot be read, or the transform fails on it for its values or for want of
                memory; its text is the reason alone.
            ModelRunError: If the transform fails otherwise; the message names the sample.

        """
        sample = self.source.sample(row)
        try:
            return self.transform(sample)
        except OpnpError:
            raise
        except (OSError, ValueError, MemoryError) as error:
            raise DataFileError(str(error).partition("\n")[0] or type(error).__name__) from error
        except Exception as error:
            raise ModelRunError(
                f"{self.source.path}: what makes the model's inputs failed on {shown_text(self.names[row])}: "
                f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            ) from error

    def stacked(self, rows: Sequence[int], contents: Sequence[ModelInputs]) -> Any:  # noqa: ANN401  # as batches are
        """Return the batch of inputs that were read of some rows."""
        inputs = self.transform.batch(contents)
        labels = self.source.labels
        if labels is None:
            return inputs
        return inputs, torch.tensor([labels[row] for row in rows], dtype=torch.int64)

    def skip(self, row: int, reason: str) -> None:
        """Count a row as unreadable from now on.

        Raises:
            DataFileError: If `is_strict`.

        """
        if self.is_strict:
            raise self._error(row, reason)
        self._reasons[row] = reason

    def require_some(self) -> None:
        """Raise if every sample is known to be unreadable.

        Raises:
            EmptyDataError: If so.

        """
        if self._reasons and len(self._reasons) == len(self):
            summary = unreadable_summary(self.unreadable, total=len(self))
            raise EmptyDataError(f"{self.source.path} holds nothing to work on: {summary}")

    def _error(self, row: int, reason: str) -> DataFileError:
        name, why = shown_text(self.names[row]), shown_text(reason)
        return DataFileError(f"{self.source.path}: {name} cannot be read ({why}): mend or remove it.")


def unreadable_summary(unreadable: Sequence[tuple[str, str]], *, total: int) -> str:
    """Return one line about samples that could not be read, the first five by name, or an empty text for none.

    Args:
        unreadable: Names and reasons.
        total: Number of all samples.

    Example:
        >>> unreadable_summary([("a.png", "truncated"), ("b.png", "no image")], total=9)
        '2 of 9 inputs could not be read: a.png (truncated), b.png (no image)'

    """
    if not unreadable:
        return ""
    shown = ", ".join(f"{shown_text(name)} ({shown_text(reason)})" for name, reason in unreadable[:_SHOWN])
    more = ", ..." if len(unreadable) > _SHOWN else ""
    return f"{len(unreadable)} of {total} inputs could not be read: {shown}{more}"
