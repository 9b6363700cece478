"""A model and the inputs it is run on, as the commands open them; what goes wrong in the model is told in one line."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import typer
from torch import nn

from opnp.adapters import model_failure_text
from opnp.cli.options import RunOptions, checked_device
from opnp.data import InputSet, Transform, open_inputs, unreadable_summary
from opnp.data.inputs import InputBatches
from opnp.distributed import Ranks, gathered_bytes, local_device
from opnp.errors import ModelRunError, OpnpError
from opnp.model import device_of, head_layers

__all__ = ["OpenedModel", "model_errors", "unreadable_of_all"]


@dataclass(frozen=True, eq=False, slots=True)
class OpenedModel:
    """A model, ready to be run.

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

    @classmethod
    def of(cls, name: str, options: RunOptions) -> Self:
        """Return the model of a name.

        Raises:
            OpnpError: If the options name no model, no device, or do not say how to make its inputs.

        """
        place = checked_device(options.device)
        model, transform = options.opened(name)
        return cls(model, transform, None if place is None else local_device(place), options)

    def inputs(self, path: Path, *, is_labelled: bool = True) -> InputSet:
        """Return the inputs at a path, with their labels if there are any, or without."""
        return open_inputs(path, self.transform, is_strict=self.options.strict, is_labelled=is_labelled)

    def known_inputs(self, path: Path) -> InputSet:
        """Return ID inputs at a path; without labels where these are numbered names, and not as many as classes."""
        inputs = self.inputs(path)
        names, rows = inputs.source.class_names, [len(each.weight) for each in head_layers(self.model).values()]
        is_of_model = names is None or len(names) in rows[-1:]
        return inputs if is_of_model else self.inputs(path, is_labelled=False)

    def batches(self, inputs: InputSet, *, rows: range | None = None) -> InputBatches:
        """Return batches of all rows of the inputs or of some."""
        place = self.device or str(device_of(self.model))
        return inputs.batches(
            self.options.inputs_a_batch,
            rows=rows,
            workers=self.options.workers,
            is_pinned=place.startswith("cuda"),
        )


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
