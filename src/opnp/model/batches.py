"""Batches: what of them the model gets and what its labels are, and how they run where memory is short.

Batches are what loaders yield. `BatchReader` reads them all, given to `fit`, `calibrate`, `score` and
the like, to `sensitivity`, and to the adapters.

=============================  ====================================================  ===================================
a batch                        the model gets                                        its labels
=============================  ====================================================  ===================================
``x``                          the tensor                                            none
``(x, y)``                     the tensor                                            ``y``, by `class_indices`
``(x, y, names, ...)``         the tensor; what is no tensor is left alone           ``y``
``(x, None)``, ``(x,)``        the tensor                                            none
``(x, m)``, ``(x, m, y)``      ``x``, and the tensor ``m`` by the name of a          none, or ``y``
                               parameter of its forward that has no default, or
                               that is called as a known input is and can be ``m``
``{"name": value, ...}``       every value by its name                               the value under ``labels`` or
                                                                                     ``label``
``(mapping, y)``               every value of the mapping by its name                ``y``
a NumPy array of numbers       the tensor of its memory; so of arrays in a mapping,  as with tensors
for ``x`` or a value           and of all arrays beside an array
=============================  ====================================================  ===================================

A tuple may be a list. Beside a tensor an array is labels or no tensor, as a list is. Which item is the labels is told
by dtype, shape and range, not by place alone. A batch that can be read in two ways, such as lengths that could be
labels, is refused, and so is one of which a tensor would reach nothing. The way out is a mapping, which says what is
what.
"""

import gc
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import chain, product
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from opnp.core.checks import as_tensor
from opnp.core.labels import LABEL_NAMES, class_indices, label_name
from opnp.errors import BatchSizeWarning, EmptyDataError, InputTypeError, InsufficientMemoryError, OpnpError
from opnp.model.borrow import unwrapped
from opnp.model.forward import Inputs, is_out_of_memory, tensors_of
from opnp.model.head import head_layers

__all__ = ["Batch", "BatchHalving", "BatchReader", "InputAxes", "axes_of", "is_empty", "opened"]

InputAxes = int | dict[str, int]
"""Number of axes of a batch of inputs, the batch axis counted: of the tensor, or of each tensor by key."""

_Result = TypeVar("_Result")
_PLAIN = (Tensor, str, int, float, type(None))
"""Kinds of values in a mapping of inputs: tensors are cut, others belong to the batch as a whole. A bool is an int."""
_SHOWN = 160
_MOST_NAMED = 4


# ------------------------------------------------------------------------------------------------------- known inputs
def _is_mask(tensor: Tensor, inputs: Tensor) -> bool:
    """Return whether a tensor can be a mask: zeros and ones, some axes as the inputs have them."""
    has_shape = tensor.ndim > 1 and tensor.shape[:2] == inputs.shape[:2]
    return has_shape and bool(((tensor == 0) | (tensor == 1)).all())


def _is_attention_mask(tensor: Tensor, inputs: Tensor) -> bool:
    """Return whether a tensor can be a mask that leaves something of each sample."""
    return _is_mask(tensor, inputs) and bool((tensor == 1).flatten(1).any(1).all())


def _is_token_types(tensor: Tensor, inputs: Tensor) -> bool:
    """Return whether a tensor can be types of tokens: zeros and ones, zero at the first token of each sample."""
    return _is_mask(tensor, inputs) and not tensor.is_floating_point() and not bool(tensor[:, 0].any())


def _is_positions(tensor: Tensor, inputs: Tensor) -> bool:
    """Return whether a tensor can be positions of tokens: integers that differ within a sample."""
    has_shape = tensor.ndim == 2 and tensor.shape[1] > 2 and tensor.shape == inputs.shape[:2]
    return has_shape and not tensor.is_floating_point() and bool((tensor.amax(1) > 1).any())


def _is_lengths(tensor: Tensor, inputs: Tensor) -> bool:
    """Return whether a tensor can be the lengths of sequences: integers above 0, no longer than the inputs."""
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.dtype == torch.bool or not tensor.numel():
        return False
    return inputs.ndim > 1 and int(tensor.min()) >= 1 and int(tensor.max()) <= max(inputs.shape[:2])


_KNOWN_INPUTS: dict[str, Callable[[Tensor, Tensor], bool]] = {
    **dict.fromkeys(("attention_mask", "attn_mask", "input_mask"), _is_attention_mask),
    **dict.fromkeys(("mask", "padding_mask", "pad_mask", "key_padding_mask", "src_key_padding_mask"), _is_mask),
    **dict.fromkeys(("token_type_ids", "segment_ids"), _is_token_types),
    "position_ids": _is_positions,
    **dict.fromkeys(
        ("lengths", "length", "lens", "seq_lengths", "seq_lens", "input_lengths", "src_lengths", "x_lengths"),
        _is_lengths,
    ),
}
"""Names of parameters that a tensor beside the inputs may go to although they have a default, and what it must be."""
_NO_INPUTS = frozenset(("label", "labels", "target", "targets", "return_feature", "return_features", "return_dict"))
"""Names of parameters that no tensor beside the inputs goes to."""


# ------------------------------------------------------------------------------------------------------------ reading
class Batch(NamedTuple):
    """A batch as it was read.

    Attributes:
        inputs: What the model gets: a tensor, or values by the names of arguments.
        labels: Class indices, shape ``(batch,)``, int64, -1 where none is known; or None.
        is_single: Whether it was one input, which got a batch axis.
        places: What each item beside the first was taken for, by its place.

    """

    inputs: Inputs
    labels: Tensor | None
    is_single: bool = False
    places: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class BatchReader:
    """Reads batches for one model, by the table above.

    Attributes:
        first: Name of the first parameter of the model's forward.
        required: Names of the other parameters without a default that a tensor may go to, in their order.
        optional: Names of the parameters with a default that a known input goes by.
        classes: Number of classes; None where that is not known yet.
        is_inside: Whether labels must be classes of the model. Those of OOD inputs are others; the number of classes
            then decides between two readings, and nothing else.
        signature: That of the model's forward, for messages.
        likely_classes: Number that decides between two readings where `classes` is not known.

    """

    first: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    classes: int | None
    is_inside: bool
    signature: inspect.Signature
    likely_classes: int | None = None

    @classmethod
    def of(cls, model: nn.Module, *, classes: int | None = None, is_inside: bool = True) -> Self:
        """Return the reader of a model's batches.

        Example:
            >>> reader = BatchReader.of(nn.Linear(3, 2), classes=2)
            >>> batch = reader.read((torch.ones(2, 3), [0, 1], ["a.png", "b.png"]))
            >>> batch.inputs.shape, batch.labels.tolist()
            (torch.Size([2, 3]), [0, 1])
            >>> sorted(reader.read({"pixel_values": torch.ones(2, 3), "label": torch.tensor([0, 1])}).inputs)
            ['pixel_values']

        """
        try:
            signature = inspect.signature(unwrapped(model).forward)
        except (TypeError, ValueError):  # of what is not written in Python
            signature = inspect.Signature()
        by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        named = [each for each in signature.parameters.values() if each.kind in (*by_place, each.KEYWORD_ONLY)]
        required = [each.name for each in named[1:] if each.default is each.empty and each.name not in _NO_INPUTS]
        optional = [each.name for each in named[1:] if each.default is not each.empty and each.name in _KNOWN_INPUTS]
        likely = None
        if classes is None and (required or optional):
            last = [*head_layers(unwrapped(model)).values()][-1:]
            likely = next(
                (each.out_features if isinstance(each, nn.Linear) else each.out_channels for each in last), None
            )
        return cls(
            first=next((each.name for each in named if each.kind in by_place), ""),
            required=tuple(required),
            optional=tuple(optional),
            classes=classes,
            is_inside=is_inside,
            signature=signature,
            likely_classes=likely,
        )

    @property
    def limit(self) -> int | None:
        """Number of classes that labels must lie in; None for any integers."""
        return self.classes if self.is_inside else None

    def read(self, batch: object, *, axes: InputAxes | None = None) -> Batch:
        """Return what the model gets of a batch, and its labels.

        Args:
            batch: A batch; or one input, which is told by `axes`.
            axes: Number of axes that a batch of inputs has, from `axes_of`; None if that is not known.

        Raises:
            InputTypeError: If it is of no form of the table, can be read in two ways, or a tensor reaches nothing.
            OptionError: If a label is no class of the model.
            ShapeError: If there is not one label a sample.

        """
        items = _with_tensors(list(batch) if isinstance(batch, tuple | list) else [batch])
        given = items[0] if items else batch
        if len(items) > 1:
            self._require_stacked(batch, items)
        named: object = None
        if isinstance(given, Mapping):
            name = label_name(given, where="The batch")
            named = None if name is None else given[name]
            inputs: Inputs = {key: value for key, value in given.items() if key != name}
        elif isinstance(given, Tensor):
            inputs = given
        else:
            empty = "an empty " if isinstance(given, Sized) and not len(given) else ""
            raise InputTypeError(
                f"A batch must be a tensor or array, a mapping of them, or a tuple (inputs, labels), got {empty}"
                f"{type(given).__name__}. Let the loader's `collate_fn` return one of those.",
            )
        inputs, is_single = self._with_batch_axis(inputs, axes)
        others = {place: item for place, item in enumerate(items[1:], start=1) if item is not None}
        if is_single:
            named = None if named is None else _as_batch_of_one(named)
            others = {place: _as_batch_of_one(item) for place, item in others.items()}
        labels = None if named is None else class_indices(named, classes=self.limit)
        if not others:
            return Batch(inputs, labels, is_single)
        found = self._reading(inputs, others)
        further: dict[str, object] = {}
        for place, name in found.items():
            if name == LABEL_NAMES[0]:
                own = class_indices(others[place], classes=self.limit)
                if labels is not None and not torch.equal(own, labels.to(own.device)):
                    raise InputTypeError(
                        "The batch holds labels both in its mapping and beside it, and they differ. Leave out one of "
                        "them."
                    )
                labels = own
            else:
                further[name] = others[place]
        if further:
            inputs = {self.first: inputs, **further}
        return Batch(inputs, labels, is_single, tuple(found.items()))

    def _with_batch_axis(self, inputs: Inputs, axes: InputAxes | None) -> tuple[Inputs, bool]:
        """Return inputs with a batch axis, and whether that had to be added because they were one input."""
        named: Mapping[str, object] = {self.first: inputs} if isinstance(inputs, Tensor) else inputs
        known = axes if isinstance(axes, dict) else {} if axes is None else {self.first: axes}
        lacking = {
            item.ndim - known[name] for name, item in named.items() if isinstance(item, Tensor) and name in known
        }
        if lacking != {-1}:
            return inputs, False
        if isinstance(inputs, Tensor):
            return inputs[None], True
        return {name: item[None] if isinstance(item, Tensor) else item for name, item in inputs.items()}, True

    def _reading(self, inputs: Inputs, others: Mapping[int, object]) -> dict[int, str]:
        """Return what the items beside the inputs are, by place: the name of a parameter, or ``labels``.

        What is no tensor is left out, unless it is the labels.
        """
        tensors = {place: item for place, item in others.items() if isinstance(item, Tensor)}
        second = {} if 1 in tensors or 1 not in others else {1: others[1]}
        try:
            for item in second.values():
                class_indices(item, classes=None)
        except OpnpError:
            if not _is_array(others[1]) and not any(_can_be_labels(each, self.limit) for each in tensors.values()):
                raise
            second = {}  # the labels are further behind
        for place, item in others.items():
            if place not in tensors and place not in second and (_is_array(item) or self._could_be_input(item, inputs)):
                raise InputTypeError(
                    f"The batch is a tuple or list of {len(others) + 1} that look like several inputs: item {place}, a "
                    f"{type(item).__name__} of numbers or tensors, would not reach the model. Go through batches one "
                    f"by one, or give the model's inputs as a mapping from names of arguments to tensors.",
                )
        found = self._readings(inputs, tensors, list(second), self.limit)
        if len(found) > 1 and self.limit is None:
            found = self._readings(inputs, tensors, list(second), self.classes or self.likely_classes)
        if len(found) == 1:
            return found[0]
        sole = next(iter(tensors.values())) if len(tensors) == 1 else None
        if sole is not None and not found and (sole.ndim == 1 or not (self.required or self.optional)):
            class_indices(sole, classes=self.limit)  # says what is wrong with labels
        raise self._refusal(others, found)

    def _readings(
        self, inputs: Inputs, tensors: Mapping[int, Tensor], second: list[int], classes: int | None
    ) -> list[dict[int, str]]:
        """Return every way to give each tensor a meaning; those that give the model all it needs, if there are any.

        What could be labels goes for certain only into a parameter whose name says what it must be.
        """
        can_be_labels = second or [place for place, each in tensors.items() if _can_be_labels(each, classes)]
        slots = {place: self._slots(each, inputs) for place, each in tensors.items()}
        found: list[dict[int, str]] = []
        for label in (*can_be_labels, *([] if second else [None])):
            places = [place for place in tensors if place != label]
            for names in product(*(slots[place] for place in places)):
                in_order = [name for name in names if name in self.required]
                is_ordered = in_order == [name for name in self.required if name in in_order]
                if is_ordered and len(set(names)) == len(names):
                    reading = dict(zip(places, names, strict=True))
                    found.append(reading if label is None else {**reading, label: LABEL_NAMES[0]})
        whole = [each for each in found if set(self.required) <= set(each.values())]
        taken = {
            place for each in whole for place, name in each.items() if name not in (*_KNOWN_INPUTS, LABEL_NAMES[0])
        }
        return [each for each in found if not whole or each in whole or taken & _labels_in(each)]

    def _slots(self, tensor: Tensor, inputs: Inputs) -> list[str]:
        """Return the names of the parameters that a tensor beside the inputs may go to; none beside a mapping."""
        if not isinstance(inputs, Tensor):
            return []
        return [
            name
            for name in (*self.required, *self.optional)
            if name not in _KNOWN_INPUTS or _KNOWN_INPUTS[name](tensor, inputs)
        ]

    def _could_be_input(self, item: object, inputs: Inputs) -> bool:
        """Return whether integers that are no tensor could be a known input of the model, such as lengths."""
        try:
            numbers = torch.as_tensor(np.asarray(item), device="cpu")
        except (TypeError, ValueError, RuntimeError):  # texts, and what has no one shape
            return False
        return isinstance(inputs, Tensor) and any(
            name in _KNOWN_INPUTS and _KNOWN_INPUTS[name](numbers, inputs) for name in (*self.required, *self.optional)
        )

    def _refusal(self, others: Mapping[int, object], found: list[dict[int, str]]) -> InputTypeError:
        """Return the error for a batch that can be read in no way, or in several."""
        kinds = ", ".join(
            f"item {place} ({str(item.dtype).removeprefix('torch.')} of shape {tuple(item.shape)})"
            for place, item in list(others.items())[:_MOST_NAMED]
            if isinstance(item, Tensor)
        )
        way_out = (
            f'Give the model\'s inputs by name, as a mapping such as `{{"{self.first or "x"}": ..., "labels": ...}}`, '
            f"and leave out what it does not take."
        )
        if not found:
            return InputTypeError(
                f"The batch holds {kinds} beside its inputs, which would not reach the model, or is no labels of it: "
                f"its forward takes {str(self.signature)[:_SHOWN]}. {way_out}",
            )
        ways = "; or ".join(
            ", ".join(f"item {place} as `{name}`" for place, name in sorted(each.items())) for each in found[:2]
        )
        return InputTypeError(f"The batch can be read in several ways: {ways}. {way_out}")

    def _require_stacked(self, batch: object, items: list[object]) -> None:
        """Raise if a batch is a list of inputs that were not stacked: tensors of floats of one shape."""
        shapes = {each.shape if isinstance(each, Tensor) and each.is_floating_point() else None for each in items}
        if len(shapes) > 1 or None in shapes or self.required:
            return
        raise InputTypeError(
            f"The batch is a {type(batch).__name__} of {len(items)} that look like several inputs, tensors of shape "
            f"{tuple(shapes.pop() or ())}. Stack single inputs, `torch.stack(batch)`; give several batches to `score` "
            f"and the like as `iter(batches)`; or give what the model takes as a mapping.",
        )


def _with_tensors(items: list[object]) -> list[object]:
    """Return the items of a batch with tensors in the place of arrays, where its inputs are arrays."""
    match items:
        case [np.ndarray() as array, *others]:
            return [as_tensor(_narrow(array)), *map(_as_tensor_if_numbers, others)]
        case [Mapping() as named, *others]:
            return [{name: _as_tensor_if_numbers(value) for name, value in named.items()}, *others]
    return items


def _as_tensor_if_numbers(item: object) -> object:
    return as_tensor(_narrow(item)) if isinstance(item, np.ndarray) and item.dtype.kind in "biufc" else item


def _narrow(array: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
    """Return an array in a type that torch computes with: it has little for unsigned integers of several bytes."""
    return array.astype(np.int64) if array.dtype.kind == "u" and array.itemsize > 1 else array


def _labels_in(reading: Mapping[int, str]) -> set[int]:
    return {place for place, name in reading.items() if name == LABEL_NAMES[0]}


def _as_batch_of_one(item: object) -> object:
    """Return what belongs to one input as what belongs to a batch of it."""
    return item[None] if isinstance(item, Tensor) else [item]


def _can_be_labels(item: object, classes: int | None) -> bool:
    """Return whether `class_indices` can read an item."""
    try:
        class_indices(item, classes=classes)
    except OpnpError:
        return False
    return True


def _is_array(item: object) -> bool:
    """Return whether an item holds numbers of more than one axis, or fractions, or tensors: no mere metadata."""
    if isinstance(item, tuple | list):
        rows = [each for each in item if isinstance(each, tuple | list)]
        return any(isinstance(each, Tensor) and each.ndim > 0 for each in item) or any(map(_holds_numbers, rows))
    if isinstance(item, Mapping):
        return any(isinstance(each, Tensor) or _is_array(each) for each in item.values())
    return isinstance(item, np.ndarray) and item.dtype.kind in "biufc" and (item.ndim > 1 or item.dtype.kind == "f")


def _holds_numbers(row: tuple[object, ...] | list[object]) -> bool:
    return bool(row) and all(isinstance(each, int | float) for each in row)


def opened(loader: Iterable[object]) -> tuple[object, Iterator[object]]:
    """Return the first batch of a loader that holds a sample, and the batches from that one on.

    Raises:
        InputTypeError: If `loader` is a tensor, or cannot be gone through.
        EmptyDataError: If it yields nothing.

    """
    if isinstance(loader, Tensor | np.ndarray | str) or not isinstance(loader, Iterable):
        hint = " For a single batch pass a list of one: `[inputs]`." if isinstance(loader, Tensor | np.ndarray) else ""
        if isinstance(loader, Dataset):
            hint = " A loader makes batches of a data set: `DataLoader(dataset, batch_size=64)`."
        raise InputTypeError(f"`loader` must be an iterable of batches, got {type(loader).__name__}.{hint}")
    iterator = iter(loader)
    for first in iterator:
        if not is_empty(first):
            return first, chain([first], iterator)
    raise EmptyDataError("`loader` yields no batch: there is nothing to read.")


def is_empty(batch: object) -> bool:
    """Return whether a batch holds no sample."""
    given = batch[0] if isinstance(batch, tuple | list) and batch else batch
    values = given.values() if isinstance(given, Mapping) else [given]
    return any(isinstance(item, Tensor | np.ndarray) and item.ndim > 0 and len(item) == 0 for item in values)


def axes_of(inputs: Inputs) -> InputAxes:
    """Return the number of axes of a batch of inputs, so that a single input can be told from a batch later."""
    if isinstance(inputs, Tensor):
        return inputs.ndim
    return {key: value.ndim for key, value in inputs.items() if isinstance(value, Tensor)}


# ------------------------------------------------------------------------------------------------------ short memory
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
