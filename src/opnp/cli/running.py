"""A model and the inputs it is run on, as the commands open them; what goes wrong in the model is told in one line."""

import json
import warnings
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
from opnp.data.class_order import model_class_names
from opnp.data.inputs import InputBatches
from opnp.detector import OPNP
from opnp.distributed import Ranks, gathered_bytes, local_device
from opnp.errors import ClassOrderWarning, ModelRunError, OpnpError
from opnp.model import device_of, find_head


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
        return cls(*options.opened(name), _place(options), options)

    @classmethod
    def of_detector(cls, detector: OPNP, file: Path, name: str | None, options: RunOptions, *, is_forced: bool) -> Self:
        """Return the model of a detector, tied to it.

        Raises:
            OpnpError: If there is no such model or device, or the model is not that of the fit.

        """
        place = _place(options)
        model, transform = options.opened_for(detector, file, name, is_forced=is_forced)
        detector.attach(model, device=place, auto_batch=options.auto_batch)
        return cls(model, transform, place, options)

    def inputs(self, path: Path, *, is_labelled: bool = True) -> InputSet:
        """Return the inputs at a path, with their labels if there are any, or without."""
        return open_inputs(
            path,
            self.transform,
            is_strict=self.options.strict,
            is_labelled=is_labelled,
            class_names=model_class_names(self.model),
        )

    def batches(self, inputs: InputSet, *, rows: range | None = None) -> "_Listed":
        """Return batches of all rows of the inputs or of some."""
        place = self.device or str(device_of(self.model))
        made = inputs.batches(
            self.options.inputs_a_batch,
            rows=rows,
            workers=self.options.workers,
            is_pinned=place.startswith("cuda"),
        )
        return _Listed(made, has_labels=inputs.labels is not None)


@dataclass(frozen=True, eq=False, slots=True)
class _Listed:
    """Batches whose labels are lists, so that they are never taken for an input of a model that needs another."""

    made: InputBatches
    has_labels: bool

    def __len__(self) -> int:
        return len(self.made)

    def __iter__(self) -> Iterator[object]:
        return ((inputs, labels.tolist()) for inputs, labels in self.made) if self.has_labels else iter(self.made)


def _place(options: RunOptions) -> str | None:
    named = checked_device(options.device)
    return None if named is None else local_device(named)


def with_known_order(inputs: InputSet, opened: OpenedModel, *, head: str | None, logits: int | str | None) -> InputSet:
    """Return the inputs, without labels that are names of another number of classes than the model has.

    Names are numbered by their letters, which is the model's order only where all of its classes are named. The model
    is run on two of the inputs to find its head.

    Warns:
        ClassOrderWarning: If labels are left out.

    """
    source, names = inputs.source, inputs.source.class_names
    if names is None:
        return inputs
    fresh = InputSet(source, inputs.transform, is_strict=inputs.is_strict)  # counts what is unreadable by itself
    first, _ = next(iter(fresh.batches(2)))
    with model_errors(opened.model, source.path):
        classes = len(find_head(opened.model, first, head=head, logits=logits, device=opened.device).weight)
    if len(names) == classes:
        return inputs
    warnings.warn(
        f"{source.path} names {len(names)} classes, and the model has {classes}, so that the order of the names does "
        f"not tell which is which: its labels are left out.",
        ClassOrderWarning,
        stacklevel=2,
    )
    return inputs.with_labels(None, None)


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
