"""Classifiers as ONNX graphs: onnxruntime runs the graph up to its last linear layer, which becomes an `nn.Linear`.

The end is found by walking back from the output: an optional Softmax, then Gemm, MatMul with Add, or the linear
classifier of ``ai.onnx.ml``. The file stays as it is.
"""

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from opnp.adapters.onnx_graph import OnnxGraph, cpu_session, linear_end, read_model
from opnp.errors import (
    InputTypeError,
    MissingFileError,
    ModelRunError,
    OptionError,
    ShapeError,
    require_installed,
)
from opnp.export.module import plain_head

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OnnxClassifier", "onnx_model"]

_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int16)": torch.int16,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}
"""Types of a graph's inputs by the names that onnxruntime has for them."""


# ------------------------------------------------------------------------------------------------------------ the model
class _Input(NamedTuple):
    """One input of a graph.

    Attributes:
        name: Its name in the graph.
        parameter: The same as a name of Python.
        dtype: The type that it takes.
        shape: Its axes after that of the batch: a length, or None for any.

    """

    name: str
    parameter: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]


class OnnxClassifier(nn.Module):
    """A classifier of which onnxruntime runs everything before the head, on the CPU; `head` is an `nn.Linear`.

    It is called with the graph's inputs: tensors in their order, or by their names. Each is brought to the type that
    the graph takes. A graph for batches of one size gets batches of that size. There is no gradient to the inputs.

    The state dict holds the head, and the digest of the file. Copies, in other processes too, start a session of their
    own when they are run.

    Args:
        content: The graph up to the head, with one output: the features.
        weight: The head's weight, shape ``(classes, features)``.
        bias: The head's bias, shape ``(classes,)``, or None.
        digest: SHA-256 of the file.

    Attributes:
        head: The head.
        inputs: The inputs of the graph.
        batch_size: Inputs that the graph takes at once; None for any number.

    Raises:
        DataFileError: If onnxruntime refuses the graph.
        OptionError: If it takes inputs that no tensors can be, or without an axis of the batch.

    """

    graph_sha256: Tensor

    def __init__(self, content: bytes, weight: Tensor, bias: Tensor | None, *, digest: bytes) -> None:
        """Start a session, and make the head."""
        super().__init__()
        self.head = plain_head(weight, bias)
        self.register_buffer("graph_sha256", torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        self._content = content
        self._session: Any = cpu_session(content)
        given = self._session.get_inputs()
        self.inputs = tuple(map(_input, given, _parameters([item.name for item in given])))
        self.batch_size = _fixed_batch(given)

    @property
    def forward(self) -> Callable[..., Tensor]:  # type: ignore[override]  # so that its signature has the graph's names
        """Return the function from inputs to logits, shape ``(batch, classes)``; parameters are the graph's inputs."""
        logits: Any = partial(self._logits)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        logits.__signature__ = inspect.Signature([inspect.Parameter(item.parameter, kind) for item in self.inputs])
        return logits  # type: ignore[no-any-return]  # as above

    def _logits(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            raise ModelRunError(
                "a graph of ONNX is run by onnxruntime, which torch cannot look into: export it to ONNX, which joins "
                "the detector to the graph"
            )
        logits: Tensor = self.head(torch.from_numpy(self._features(self.feeds(*inputs, **named))).to(self.head.weight))
        return logits

    def feeds(self, *inputs: Tensor, **named: Tensor) -> "dict[str, NDArray[Any]]":
        """Return the inputs of a call as the graph takes them, by the names that it has for them.

        Raises:
            TypeError: If they are not the inputs of the graph.
            InputTypeError: If one is no tensor, or would lose values in the type of the graph.
            ShapeError: If one has another shape, or they differ in rows.
            ModelRunError: If a gradient to them is asked for.

        """
        names = {item.name: item.parameter for item in self.inputs}
        given = {names.get(name, name): tensor for name, tensor in named.items()}
        bound = self.forward.__signature__.bind(*inputs, **given).arguments  # type: ignore[attr-defined]  # set above
        if torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in bound.values()):
            raise ModelRunError("a graph of ONNX has no gradient to its inputs: give them without `requires_grad`")
        fitting = {item.name: _fitting(bound[item.parameter], item) for item in self.inputs}
        counts = {name: len(values) for name, values in fitting.items()}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            raise ShapeError(f"All inputs of the graph must have as many rows, and at least one, got {counts}.")
        return fitting

    def graph_before_head(self) -> bytes:
        """Return the ONNX model from inputs to features.

        Raises:
            OptionError: If it is made for batches of one size.

        """
        if self.batch_size is not None:
            raise OptionError(
                f"The graph takes batches of {self.batch_size} alone, and what is exported must take any: give its "
                f"first axis a name in place of that number, or export it anew so."
            )
        return self._content

    def _features(self, feeds: Mapping[str, "NDArray[Any]"]) -> "NDArray[Any]":
        """Return the features of a batch, run as often as its size asks for."""
        rows = len(next(iter(feeds.values())))
        size = self.batch_size or rows
        parts = []
        for start in range(0, rows, size):
            part = {name: values[start : start + size] for name, values in feeds.items()}
            count = min(size, rows - start)
            if count < size:  # the last one once more: rows of a model in evaluation do not see each other
                part = {
                    name: np.concatenate([values, np.repeat(values[-1:], size - count, axis=0)])
                    for name, values in part.items()
                }
            parts.append(self._run(part, size)[:count])
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _run(self, feeds: Mapping[str, "NDArray[Any]"], rows: int) -> "NDArray[Any]":
        if self._session is None:
            self._session = cpu_session(self._content)
        try:
            (features,) = self._session.run(None, feeds)
        except Exception as error:
            if "Failed to allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise
        if features.ndim < 2 or len(features) != rows:
            raise ShapeError(
                f"The graph makes features of shape {features.shape} of {rows} inputs: its last linear layer must get "
                f"one row for each input."
            )
        found: NDArray[Any] = features
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: no session, which cannot be copied."""
        return {**self.__dict__, "_session": None}

    def extra_repr(self) -> str:
        """Return what the graph takes."""
        return ", ".join(f"{item.name}: {_shown_shape(item, self.batch_size)}" for item in self.inputs)


def onnx_model(path: str | Path, *, output: str | None = None) -> OnnxClassifier:
    """Return the classifier in an ONNX file: the graph up to its last linear layer, and that layer as `nn.Linear`.

    Walking back from the output, Softmax, LogSoftmax, or Sigmoid on one logit may come first, and Identity, Cast,
    Flatten and Reshape where they change no logit. Then it must be Gemm, MatMul with or without Add, or
    LinearClassifier, with weights that are constants of the graph. The logits are those before the Softmax.

    Args:
        path: The file, with its files of external data beside it; all of it is read, and nothing is written.
        output: Name of the output that is or comes from the logits. None for the only one, the one called ``logits``,
            or any, where all come from the same layer.

    Returns:
        The model, in eval mode.

    Raises:
        MissingExtraError: If onnx or onnxruntime is not installed.
        MissingFileError: If there is no such file.
        DataFileError: If it is no ONNX file, or onnxruntime refuses the graph.
        HeadNotFoundError: If the graph does not end in a linear layer; the message names the node that it ends in.
        OptionError: If there is no such output, the graph has more than 2 GiB, draws random numbers or takes inputs
            that no batch of tensors can be.

    """
    path = Path(path)
    require_installed("`onnx:` models need", "onnx", "onnxruntime", extra="onnx")
    if not path.is_file():
        raise MissingFileError(f"`onnx:FILE` must name an ONNX file, and {path} is none.")
    digest = hashlib.sha256()
    graph = OnnxGraph(read_model(path, digest.update), path)
    end = linear_end(graph, output)
    graph.require_repeatable(end.features)
    bias = None if end.bias is None else _tensor(end.bias)
    return OnnxClassifier(graph.until(end.features), _tensor(end.weight), bias, digest=digest.digest()).eval()


# -------------------------------------------------------------------------------------------------------------- inputs
def _parameters(names: Sequence[str]) -> list[str]:
    """Return names of inputs as names of parameters that differ.

    Example:
        >>> _parameters(["x", "input.1", "serving:0", "input_1", "class"])
        ['x', 'input_1', 'serving_0', 'input_1_', 'class_']

    """
    found: list[str] = []
    for name in names:
        known = re.sub(r"\W", "_", name)
        known = known if known.isidentifier() else f"_{known}"
        while known in found or iskeyword(known):
            known += "_"
        found.append(known)
    return found


def _input(item: Any, parameter: str) -> _Input:  # noqa: ANN401  # the package ships no types
    """Return an input of a session.

    Raises:
        OptionError: If no batch of tensors can be given to it.

    """
    dtype = _DTYPES.get(item.type)
    if dtype is None:
        raise OptionError(
            f"The graph takes {item.name!r} as {item.type}: inputs must be numbers, as one of {', '.join(_DTYPES)}."
        )
    if not item.shape:
        raise OptionError(
            f"The graph takes {item.name!r} without an axis of the batch: fix it to a constant in the graph."
        )
    return _Input(item.name, parameter, dtype, tuple(_length(axis) for axis in item.shape[1:]))


def _length(axis: object) -> int | None:
    return axis if isinstance(axis, int) and axis > 0 else None


def _fixed_batch(inputs: Iterable[Any]) -> int | None:
    """Return how many inputs a graph takes at once, or None for any number.

    Raises:
        OptionError: If it takes other numbers of some inputs than of others.

    """
    sizes = {item.name: _length(item.shape[0]) for item in inputs}
    fixed = {size for size in sizes.values() if size is not None}
    if len(fixed) > 1:
        raise OptionError(f"The graph takes batches of different sizes, {sizes}: the first axis must be the batch's.")
    return next(iter(fixed), None)


def _fitting(tensor: Tensor, item: _Input) -> "NDArray[Any]":
    """Return a tensor as the graph takes it: its type, and channels last where the graph has them there.

    Raises:
        InputTypeError: If it is no tensor, images in uint8, or its values are lost in the type of the graph.
        ShapeError: If it has another shape.

    """
    if not isinstance(tensor, Tensor):
        raise InputTypeError(f"The graph's {item.name!r} must be a tensor, got {type(tensor).__name__}.")
    values = tensor.detach().cpu()
    if not _has_shape(values, item.shape):
        moved = values.movedim(1, -1) if values.ndim == 4 else values
        if not _has_shape(moved, item.shape):
            raise ShapeError(
                f"The graph takes {item.name!r} of shape {_shown_shape(item)}, got {tuple(values.shape)}. With images "
                f"on the command line, `--image-size` says their size."
            )
        values = moved
    if values.dtype == torch.uint8 and item.dtype.is_floating_point:
        raise InputTypeError(
            f"The graph takes {item.name!r} as {_shown(item.dtype)}, got uint8. If these are images, scale them first, "
            f"as in training: `images.float() / 255`, then normalise."
        )
    made = values.to(item.dtype)
    if not item.dtype.is_floating_point and not torch.equal(made.to(values.dtype), values):
        raise InputTypeError(
            f"The graph takes {item.name!r} as {_shown(item.dtype)}, and values of this {_shown(values.dtype)} tensor "
            f"are lost in that, such as fractions: give what the graph was trained on."
        )
    array: NDArray[Any] = made.contiguous().numpy()
    return array


def _has_shape(tensor: Tensor, shape: Sequence[int | None]) -> bool:
    return tensor.ndim == len(shape) + 1 and all(
        wanted in (None, length) for wanted, length in zip(shape, tensor.shape[1:], strict=True)
    )


def _shown_shape(item: _Input, batch_size: int | None = None) -> str:
    axes = (batch_size or "batch", *("any" if length is None else length for length in item.shape))
    return f"({', '.join(map(str, axes))}{',' if len(axes) == 1 else ''})"


def _shown(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tensor(array: "NDArray[Any]") -> Tensor:
    """Return numbers as a tensor; half precision as float32, which holds them exactly and which a CPU multiplies."""
    found = torch.from_numpy(np.array(array, order="C"))
    return found.float() if found.dtype == torch.float16 else found
