"""Models that are ONNX graphs themselves: what a detector makes of their features is joined to their own graph."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from opnp.errors import ModelRunError
from opnp.export.module import DetectorModule

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

__all__ = ["GraphModel", "head_part", "joined"]

_PREFIX = "opnp/"


@runtime_checkable
class GraphModel(Protocol):
    """A model of which a graph makes the features; its `head` is a layer of torch."""

    def graph_before_head(self) -> bytes:
        """Return the ONNX model from inputs to features, for batches of any size."""

    def feeds(self, *inputs: Tensor, **named: Tensor) -> "dict[str, NDArray[Any]]":
        """Return the inputs of a call as the graph takes them, by the names that it has for them."""


def head_part(
    module: DetectorModule, args: tuple[Tensor, ...], named: Mapping[str, Tensor]
) -> tuple[DetectorModule, Tensor]:
    """Return the module of a detector from the head on, and the features of a call, which it takes."""
    with torch.no_grad():
        features, _ = module.features_and_logits(*args, **named)
    part = copy.deepcopy(module)
    part.model = part.model.get_submodule("head")
    return part, features


def joined(before: bytes, after: "ModelProto") -> "ModelProto":
    """Return two models as one: the features that the first makes are what the second takes.

    Both get the later one of their versions of ONNX's operators.

    Raises:
        ModelRunError: If onnx cannot do so.

    """
    import onnx
    from onnx import compose, helper, version_converter

    after = compose.add_prefix(after, _PREFIX, rename_outputs=False)
    (taken,) = after.graph.input
    model = onnx.load_from_string(before)
    (made,) = model.graph.output
    kind = taken.type.tensor_type.elem_type
    flat = f"{_PREFIX}{made.name}"
    model.graph.node.append(helper.make_node("Flatten", [made.name], [flat], axis=1))
    model.graph.node.append(helper.make_node("Cast", [flat], [f"{flat}/cast"], to=kind))
    made.CopyFrom(helper.make_tensor_value_info(f"{flat}/cast", kind, None))
    for item in model.graph.input:
        item.type.tensor_type.shape.dim[0].dim_param = taken.type.tensor_type.shape.dim[0].dim_param
    version = max(map(_version, (model, after)))
    try:
        model, after = (
            each if _version(each) == version else version_converter.convert_version(each, version)
            for each in (model, after)
        )
        after.ir_version = model.ir_version = max(model.ir_version, after.ir_version)
        return compose.merge_models(model, after, io_map=[(model.graph.output[0].name, taken.name)])
    except Exception as error:
        raise ModelRunError(
            f"onnx cannot join the detector to this graph, with operators of version {version}: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _version(model: "ModelProto") -> int:
    found: int = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    return found
