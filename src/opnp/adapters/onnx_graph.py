"""ONNX graphs: read with their tensors, cut at any value, and followed back from an output to the last linear layer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from opnp.errors import DataFileError, HeadNotFoundError, OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

__all__ = ["LinearEnd", "OnnxGraph", "cpu_session", "linear_end", "read_model"]

_LOGITS = "logits"
_ML = "ai.onnx.ml."
"""What the names of operators outside of ONNX's own set begin with here, as their domain."""

_LABELS = frozenset(
    ("ArgMax", "TopK", "Cast", "Identity", "Reshape", "Squeeze", f"{_ML}ArrayFeatureExtractor", f"{_ML}ZipMap")
)
"""What may stand between a head and an output that names classes."""

_RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)
_LARGEST = 2**31 - 2**20
"""Bytes that a graph may have: a protocol buffer holds 2 GiB."""


def cpu_session(content: bytes) -> Any:  # noqa: ANN401  # the package ships no types
    """Return a session on the CPU, with as many threads as torch has."""
    import onnxruntime  # type: ignore[import-untyped]  # the package ships no types

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise DataFileError(f"onnxruntime refuses the graph: {' '.join(str(error).split())}") from error


# ----------------------------------------------------------------------------------------------------------- the graph
def read_model(path: Path, digest: Callable[[bytes], object]) -> "ModelProto":
    """Return the model in a file, with all its tensors, and give every byte that was read to `digest`.

    Raises:
        DataFileError: If it is no ONNX file, or a file of its tensors is missing or damaged.
        OptionError: If it has more than 2 GiB.

    """
    import onnx
    import onnx.inliner
    from onnx import external_data_helper as external

    content = path.read_bytes()
    digest(content)
    try:
        model = onnx.load_from_string(content)
        tensors = [tensor for tensor in _tensors(model.graph) if external.uses_external_data(tensor)]
        external.load_external_data_for_model(model, str(path.absolute().parent))
        model = onnx.inliner.inline_local_functions(model) if model.functions else model
    except Exception as error:
        reason = " ".join(str(error).split())
        raise DataFileError(f"{path} is no readable ONNX file ({type(error).__name__}: {reason}).") from error
    for tensor in tensors:
        digest(tensor.raw_data)
    size = len(content) + sum(len(tensor.raw_data) for tensor in tensors)
    if size > _LARGEST:
        raise OptionError(f"{path} has {size:,} bytes with its tensors, and at most 2 GiB can be run as one graph.")
    if not model.graph.node:
        raise DataFileError(f"{path} is no ONNX file, or an empty one: it holds no nodes.")
    return model


def _tensors(graph: "GraphProto") -> "Iterator[TensorProto]":
    """Yield the tensors that a graph holds, those of its subgraphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


@dataclass(frozen=True, eq=False)
class OnnxGraph:
    """A graph whose nodes are found by what they make.

    Attributes:
        model: The model; it is not changed.
        path: Where it was read, for messages.
        makers: By name of a value, the node that makes it.

    """

    model: "ModelProto"
    path: Path
    makers: "dict[str, NodeProto]" = field(init=False)

    def __post_init__(self) -> None:
        """Sort the nodes by what they make."""
        makers = {name: node for node in self.model.graph.node for name in node.output if name}
        object.__setattr__(self, "makers", makers)

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return [item.name for item in self.model.graph.output]

    def needed(self, name: str) -> set[str]:
        """Return the names of all values that a value is made from, itself among them."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            each = waiting.pop()
            if each not in found:
                found.add(each)
                waiting.extend(_read_by(self.makers[each]) if each in self.makers else ())
        return found

    def is_constant(self, name: str) -> bool:
        """Return whether a value is the same whatever the inputs are."""
        constants = {item.name for item in self.model.graph.initializer}
        inputs = {item.name for item in self.model.graph.input} - constants
        return not inputs & self.needed(name)

    def constant(self, name: str) -> "NDArray[Any]":
        """Return a value that is constant."""
        (found,) = cpu_session(self.until(name)).run(None, {})
        return np.asarray(found)

    def until(self, name: str) -> bytes:
        """Return a model that makes this value alone, of the inputs that it is made from."""
        import onnx
        from onnx import helper

        graph, needed = self.model.graph, self.needed(name)
        result = f"{name}__features"
        cut = onnx.GraphProto(name=graph.name or "graph")
        cut.node.extend(node for node in graph.node if needed & set(node.output))
        cut.node.append(helper.make_node("Identity", [name], [result]))
        cut.input.extend(item for item in graph.input if item.name in needed)
        cut.initializer.extend(item for item in graph.initializer if item.name in needed)
        cut.sparse_initializer.extend(item for item in graph.sparse_initializer if item.values.name in needed)
        cut.output.append(helper.make_empty_tensor_value_info(result))
        made = onnx.ModelProto(ir_version=self.model.ir_version, graph=cut)
        made.opset_import.extend(self.model.opset_import)
        content: bytes = made.SerializeToString()
        return content

    def require_repeatable(self, name: str) -> None:
        """Raise if a value is made by random numbers, or by statistics of the batch."""
        needed = self.needed(name)
        for node in self.model.graph.node:
            if not needed & set(node.output):
                continue
            kind, is_training = _kind(node), bool(_attribute(node, "training_mode", 0))
            if kind == "Dropout" and len(node.input) > 2 and node.input[2]:
                is_training = not self.is_constant(node.input[2]) or bool(self.constant(node.input[2]).any())
            if kind in _RANDOM or is_training:
                reason = "takes mean and variance of the batch" if kind == "BatchNormalization" else "is random"
                raise OptionError(
                    f"{self.path}: the node {_named(node)} {reason}, so that an input has other features in each run: "
                    f"export the model in evaluation mode."
                )


def _read_by(node: "NodeProto") -> set[str]:
    """Return the names of values that a node reads, in its subgraphs too."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names |= {item.name for item in graph.output}.union(*map(_read_by, graph.node))
    return names - {""}


def _kind(node: "NodeProto") -> str:
    """Return the operator of a node, with its domain where that is not ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _named(node: "NodeProto") -> str:
    return f"{node.name or node.output[0]!r} ({_kind(node)})"


def _attribute(node: "NodeProto", name: str, default: Any) -> Any:  # noqa: ANN401  # of any type
    from onnx import helper

    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


# ------------------------------------------------------------------------------------------------------ the linear end
_CLASSIFIER = f"{_ML}LinearClassifier"
_LINEAR = ("Gemm", "MatMul", "Add", _CLASSIFIER)
_ANSWERS = ("Softmax", "LogSoftmax", "Sigmoid")
_PASSED = frozenset((*_ANSWERS, "Identity", "Cast", "Flatten", "Reshape", f"{_ML}Normalizer", f"{_ML}ZipMap"))
"""What may stand between the linear layer and the output, where it changes no logit."""
_FLOATS = (1, 10, 11, 16)
"""ONNX's numbers of float32, float16, float64 and bfloat16."""


class _NotLinearError(Exception):
    """A node is no linear layer; the message goes on behind its name."""


@dataclass(frozen=True, eq=False, slots=True)
class LinearEnd:
    """The linear layer that a graph ends in.

    Attributes:
        made: Name of what it makes.
        features: Name of what it gets.
        weight: Shape ``(classes, features)``.
        bias: Shape ``(classes,)``, or None.

    """

    made: str
    features: str
    weight: "NDArray[Any]"
    bias: "NDArray[Any] | None"


def linear_end(graph: OnnxGraph, output: str | None) -> LinearEnd:
    """Return the linear layer of an output, or of all.

    Raises:
        HeadNotFoundError: If there is none, or outputs come from different layers.
        OptionError: If there is no such output.

    """
    names = graph.outputs
    if output is not None and output not in names:
        raise OptionError(f"`output` must be an output of {graph.path}, one of {', '.join(names)}, got {output!r}.")
    chosen = output or (_LOGITS if _LOGITS in names else names[0] if len(names) == 1 else None)
    if chosen is not None:
        return _end_of(graph, chosen)
    ends: dict[str, LinearEnd] = {}
    others: dict[str, HeadNotFoundError] = {}
    for name in names:
        try:
            end = _end_of(graph, name)
        except HeadNotFoundError as error:
            others[name] = error
        else:
            ends[end.made] = end
    if not ends:
        raise others[names[0]]
    end, *more = [
        end for end in ends.values() if not any(end.made in graph.needed(other.features) for other in ends.values())
    ]
    if more or not all(_is_beside(graph, name, end) for name in others):
        raise HeadNotFoundError(
            f"{graph.path} has {len(names)} outputs, {', '.join(names)}: which of them are the logits cannot be told. "
            f"Rename that output to `{_LOGITS}`, or name it in Python: `onnx_model(path, output=...)`."
        )
    return end


def _is_beside(graph: OnnxGraph, name: str, end: LinearEnd) -> bool:
    """Return whether an output is a value on the way to the head, or no more than the class that the head chose."""
    if name in graph.needed(end.features):
        return True
    while (node := graph.makers.get(name)) is not None and end.made not in node.output:
        if _kind(node) not in _LABELS | _PASSED:
            return False
        name = next((each for each in node.input if not graph.is_constant(each)), "")
    return node is not None


def _end_of(graph: OnnxGraph, output: str) -> LinearEnd:
    """Return the linear layer that an output comes from.

    Raises:
        HeadNotFoundError: If there is none; the message names the node where the walk back ends, and why.

    """
    name = output
    passed: list[NodeProto] = []
    while (node := graph.makers.get(name)) is not None:
        kind = _kind(node)
        is_second = kind in _ANSWERS and any(_kind(each) in _ANSWERS for each in passed)
        if kind in _LINEAR:
            break
        if kind not in _PASSED or is_second:
            raise _refusal(graph, output, node, "is no linear layer")
        passed.append(node)
        name = node.input[0]
    else:
        raise HeadNotFoundError(f"The output {output!r} of {graph.path} is {name!r} as it came in: no layer makes it.")
    try:
        end = _classifier(node) if _kind(node) == _CLASSIFIER else _product(graph, node)
    except _NotLinearError as error:
        raise _refusal(graph, output, node, str(error)) from None
    for each in passed:
        reason = _change(graph, each, end, is_classifier=_kind(node) == _CLASSIFIER)
        if reason is not None:
            raise _refusal(graph, output, each, reason)
    return end


def _refusal(graph: OnnxGraph, output: str, node: "NodeProto", reason: str) -> HeadNotFoundError:
    return HeadNotFoundError(
        f"The output {output!r} of {graph.path} comes from the node {_named(node)}, which {reason}. A graph must end "
        f"in Gemm, MatMul with Add, or LinearClassifier, with constant weights and at most a Softmax behind."
    )


def _change(graph: OnnxGraph, node: "NodeProto", end: LinearEnd, *, is_classifier: bool) -> str | None:
    """Return what a node behind the linear layer does to the logits, in words; None for nothing that matters."""
    kind, classes = _kind(node), len(end.weight)
    if kind in ("Softmax", "LogSoftmax"):
        return None if _attribute(node, "axis", -1) in (1, -1) else "is not over the classes"
    if kind == "Sigmoid":
        several = f"is taken of {classes} logits one by one, as for labels that do not exclude each other"
        return None if classes == 1 else several
    if kind == "Cast":
        return None if _attribute(node, "to", 0) in _FLOATS else "makes no fractions of the logits"
    if kind == "Flatten":
        return None if _attribute(node, "axis", 1) in (1, -1) else "puts the logits into another shape"
    if kind == "Reshape":
        shape = graph.constant(node.input[1]).tolist() if graph.is_constant(node.input[1]) else []
        same = ([-1, classes], [0, classes], [0, -1])
        return None if shape in same else "puts the logits into a shape that may be another"
    return None if kind == "Identity" or is_classifier else "changes the logits"


def _product(graph: OnnxGraph, node: "NodeProto") -> LinearEnd:
    """Return the linear layer of Gemm, of MatMul, or of Add on one of them.

    Raises:
        _NotLinearError: If it is none.

    """
    kind, made = _kind(node), node.output[0]
    if kind == "Add":
        constants = [name for name in node.input if graph.is_constant(name)]
        inner = next((graph.makers.get(name) for name in node.input if name not in constants), None)
        if len(constants) != 1 or inner is None or _kind(inner) not in ("Gemm", "MatMul"):
            raise _NotLinearError("adds other than a constant bias to a MatMul")
        end = _product(graph, inner)
        added = _row(graph.constant(constants[0]), len(end.weight))
        return LinearEnd(made, end.features, end.weight, added if end.bias is None else end.bias + added)
    features, factor, *rest = node.input
    if graph.is_constant(features) or not graph.is_constant(factor):
        raise _NotLinearError("is no product of features with a constant weight")
    weight = graph.constant(factor)
    if weight.ndim != 2 or weight.dtype.kind != "f":
        raise _NotLinearError(f"has a weight of shape {weight.shape} and type {weight.dtype}")
    if kind == "MatMul":
        return LinearEnd(made, features, weight.T, None)
    if _attribute(node, "transA", 0):
        raise _NotLinearError("turns its features round (transA)")
    weight = _attribute(node, "alpha", 1.0) * (weight if _attribute(node, "transB", 0) else weight.T)
    if not rest or not rest[0]:
        return LinearEnd(made, features, weight, None)
    if not graph.is_constant(rest[0]):
        raise _NotLinearError("adds other than a constant bias")
    return LinearEnd(made, features, weight, _attribute(node, "beta", 1.0) * _row(graph.constant(rest[0]), len(weight)))


def _row(bias: "NDArray[Any]", classes: int) -> "NDArray[Any]":
    """Return a bias as one number a class.

    Raises:
        _NotLinearError: If it is not the same for all rows.

    """
    if bias.size not in (1, classes) or bias.size != (bias.shape[-1] if bias.ndim else 1):
        raise _NotLinearError(f"adds a bias of shape {bias.shape} to {classes} logits")
    return np.broadcast_to(bias.reshape(-1), (classes,))


def _classifier(node: "NodeProto") -> LinearEnd:
    """Return the linear layer of a LinearClassifier.

    Two classes of which each has its own sigmoid, of -z and z, are one logit z.

    Raises:
        _NotLinearError: If it is none.

    """
    coefficients = np.array(_attribute(node, "coefficients", []), dtype=np.float32)
    intercepts = np.array(_attribute(node, "intercepts", []), dtype=np.float32)
    transform = _attribute(node, "post_transform", b"NONE").decode()
    labels = _attribute(node, "classlabels_ints", []) or _attribute(node, "classlabels_strings", [])
    rows = len(intercepts) or len(labels)
    if transform not in ("NONE", "SOFTMAX", "LOGISTIC"):
        raise _NotLinearError(f"has the answers of {transform}")
    if not rows or not len(coefficients) or len(coefficients) % rows:
        raise _NotLinearError(f"has {len(coefficients)} coefficients for {rows} classes")
    weight = coefficients.reshape(rows, -1)
    bias = intercepts if len(intercepts) else None
    is_mirrored = rows == 2 and np.array_equal(weight[0], -weight[1]) and (bias is None or bias[0] == -bias[1])
    if transform == "LOGISTIC" and is_mirrored:
        weight, bias = weight[1:], None if bias is None else bias[1:]
    return LinearEnd(node.output[0], node.input[0], weight, bias)
