"""A model and the inputs it is run on, as the commands open them; what goes wrong in the model is told in one line."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from torch import nn

from opnp.adapters import model_failure_text
from opnp.bench.cache import target_device
from opnp.cli.model_options import ModelOptions, checked_device
from opnp.data import InputSet, Transform, open_inputs, unreadable_summary
from opnp.data.inputs import InputBatches
from opnp.distributed import Ranks, gathered_bytes, local_device
from opnp.errors import ModelRunError, OpnpError, OptionError

__all__ = ["OpenedModel", "RunOptions", "model_errors", "require_form", "unreadable_of_all"]

_INPUTS = 64
"""Inputs a batch where nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a model is run on inputs.

    Attributes:
        model: What was said of the model.
        data: Path of the inputs.
        device: Where to run, or None for the CPU.
        batch_size: Inputs a batch, or None for 64.
        workers: Processes that read inputs ahead of time; 0 for none.
        is_strict: Whether an input that cannot be read is an error.
        auto_batch: Whether a batch that needs more memory than there is is run in halves.

    """

    model: ModelOptions
    data: Path
    device: str | None
    batch_size: int | None
    workers: int
    is_strict: bool
    auto_batch: bool

    def opened(self) -> "OpenedModel":
        """Return the model, ready to be run.

        Raises:
            OpnpError: If the options name no model, no device, or do not say how to make its inputs.

        """
        place = checked_device(self.device)
        model, transform = self.model.opened()
        return OpenedModel(model, transform, None if place is None else local_device(place), self)


@dataclass(frozen=True, eq=False, slots=True)
class OpenedModel:
    """A model with what makes its inputs.

    Attributes:
        model: The model.
        transform: What makes its inputs.
        device: Where to run; None for where the model is.
        options: How it is run.

    """

    model: nn.Module
    transform: Transform
    device: str | None
    options: RunOptions

    def inputs(self, path: Path, *, is_labelled: bool = True) -> InputSet:
        """Return the inputs at a path, with their labels if there are any, or without."""
        return open_inputs(path, self.transform, is_strict=self.options.is_strict, is_labelled=is_labelled)

    def batches(self, inputs: InputSet, *, rows: range | None = None, is_labelled: bool = True) -> "Batches":
        """Return batches of all rows of the inputs or of some, with their labels or without."""
        size = self.options.batch_size
        made = inputs.batches(
            _INPUTS if size is None else size,
            rows=rows,
            workers=self.options.workers,
            is_pinned=target_device(self.model, self.device).type == "cuda",
        )
        return Batches(made, is_labelled=is_labelled or inputs.labels is None)


@dataclass(frozen=True, eq=False, slots=True)
class Batches:
    """Batches of inputs, of which the labels may be left out.

    Attributes:
        made: The batches as the input set makes them.
        is_labelled: Whether labels, if there are any, are passed on.

    """

    made: InputBatches
    is_labelled: bool

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.made)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches."""
        return iter(self.made) if self.is_labelled else (inputs for inputs, _ in self.made)


@contextmanager
def model_errors(model: nn.Module, place: Path) -> Iterator[None]:
    """Turn what the model itself raises on the inputs at a path into one message; leaving the process, too.

    Raises:
        ModelRunError: If it raises anything but an error of opnp or of the file system.

    """
    try:
        yield
    except (OpnpError, OSError):
        raise
    except (Exception, SystemExit) as error:
        raise ModelRunError(model_failure_text(error, model, place=place)) from error


def unreadable_of_all(inputs: InputSet, ranks: Ranks) -> int:
    """Return how many inputs the ranks together could not read; the first rank says which, on standard error."""
    mine = json.dumps([*inputs.reasons.items()]).encode()
    reasons = {row: reason for part in gathered_bytes(mine, ranks) for row, reason in json.loads(part)}
    if reasons and ranks.is_first:
        pairs = [(inputs.names[row], reasons[row]) for row in sorted(reasons)]
        typer.echo(f"opnp: {inputs.source.path}: {unreadable_summary(pairs, total=len(inputs))}", err=True)
    return len(reasons)


def require_form(
    *, features: object, model: object, of_features: Mapping[str, object], of_model: Mapping[str, object]
) -> None:
    """Raise unless exactly one of ``--features`` and ``--model`` is given, with options of its own form alone.

    Args:
        features: What was given for ``--features``, or None.
        model: What was given for ``--model``, or None.
        of_features: Options that belong to ``--features``; those not given are None, 0 or False.
        of_model: Options that belong to ``--model``, in the same way.

    Raises:
        OptionError: If so.

    Example:
        >>> require_form(features="a.safetensors", model=None, of_features={"--checkpoint": "b"}, of_model={})

    """
    if (features is None) == (model is None):
        raise OptionError(
            f"Give exactly one of `--features FILE`, for features that are there, and `--model NAME` with `--data "
            f"PATH`, to run the model: got {'neither' if features is None else 'both'}.",
        )
    here, foreign = ("--model", of_features) if features is None else ("--features", of_model)
    other = "--features" if features is None else "--model"
    wrong = _given(foreign.items())
    if wrong:
        raise OptionError(f"{', '.join(wrong)} cannot go with `{here}`: only `{other}` has a use for it.")


def _given(options: Iterable[tuple[str, object]]) -> list[str]:
    return [name for name, value in options if value is not None and value is not False and value != 0]
