"""ONNX files: graphs made node by node, and networks of torch; what they and their models answer."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # the package ships no types
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from opnp.model import head_layers

__all__ = [
    "BIAS",
    "WEIGHT",
    "X",
    "answers",
    "features_and_logits",
    "made",
    "node",
    "written",
    "written_by_torch",
]

_RANDOM = np.random.default_rng(0)
WEIGHT = _RANDOM.normal(size=(5, 3)).astype(np.float32)
"""Of shape (features, classes), as MatMul takes it."""
BIAS = _RANDOM.normal(size=3).astype(np.float32)

X = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
"""Inputs of the graphs that `made` makes, where they take features."""

_MORE = {
    "turned": WEIGHT.T.copy(),
    "row": BIAS[None],
    "column": BIAS[:, None],
    "one": np.float32(0.5),
    "narrow": WEIGHT[:, :1].copy(),
    "squares": _RANDOM.normal(size=(5, 5)).astype(np.float32),
    "same": np.array([-1, 3], dtype=np.int64),
    "kept": np.array([0, -1], dtype=np.int64),
    "mixed": np.array([1, -1], dtype=np.int64),
    "axis": np.array([1], dtype=np.int64),
    "yes": np.array(True),  # a tensor of one truth
    "no": np.array(False),  # as above
    "half": np.float32(0.5),
    "ones": np.ones(5, dtype=np.float32),
    "zeros": np.zeros(5, dtype=np.float32),
}

node = helper.make_node


def made(
    nodes: Sequence[Any],
    *,
    outputs: Sequence[str] = ("out",),
    inputs: Mapping[str, tuple[int, Sequence[int | str]]] | None = None,
    opset: int = 17,
) -> Any:
    """Return a model of nodes, with the constants above; its input is ``x`` of shape (n, 5) unless others are given."""
    given = {"x": (TensorProto.FLOAT, ("n", 5))} if inputs is None else inputs
    tensors = {"weight": WEIGHT, "bias": BIAS, **_MORE}
    read = {name for each in nodes for name in each.input}
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, (kind, shape) in given.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items() if name in read],
    )
    sets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=sets, ir_version=8)


def written(path: Path, nodes: Sequence[Any], **options: Any) -> Path:
    """Write a model of nodes, and return the path."""
    onnx.save_model(made(nodes, **options), path)
    return path


def written_by_torch(
    path: Path, model: nn.Module, example: Tensor | dict[str, Tensor], *, axes: int = 1, **options: Any
) -> Path:
    """Write a network as torch does, its first axes of any length, and return the path."""
    args, named = ((example,), None) if isinstance(example, Tensor) else ((), example)
    shapes: Any = [dict.fromkeys(range(axes), torch.export.Dim.DYNAMIC)] * len(args or named or ())
    dynamic = tuple(shapes) if named is None else dict(zip(named, shapes, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        torch.onnx.export(
            model.eval(),
            args,
            path,
            kwargs=named,
            dynamo=True,
            dynamic_shapes=dynamic if axes else None,
            verbose=False,
            **options,
        )
    return path


def features_and_logits(model: nn.Module, inputs: Any, *, head: str = "head") -> tuple[Tensor, Tensor]:
    """Return what the head of a model gets and what the model answers."""
    received: list[Tensor] = []
    layer = head_layers(model)[head]
    handle = layer.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    with torch.no_grad():
        answer = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    handle.remove()
    return received[0], getattr(answer, "logits", answer)


def answers(path: Path, **feeds: Any) -> list[Any]:
    """Return what onnxruntime makes of the graph itself."""
    found: list[Any] = onnxruntime.InferenceSession(path).run(None, feeds)
    return found
