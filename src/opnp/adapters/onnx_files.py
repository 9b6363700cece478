"""Detectors as ONNX files: the model, its scores, the calibration and the threshold in one graph."""

import json
import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from opnp.detector import OPNP
from opnp.detector.exported import DetectorModule
from opnp.detector.program import (
    OUTPUT_NAMES,
    arguments,
    exported_program,
    first_line,
    input_names,
    on_cpu,
    require_repeatable,
    rows,
    worst_difference,
)
from opnp.detector.quiet_torch import quiet_torch
from opnp.errors import MissingExtraError, ModelRunError, OptionError
from opnp.files import write_atomically

__all__ = ["require_onnx", "write_onnx"]

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_LARGEST = 2**31 - 2**20
"""Bytes of tensors that one ONNX file can hold, less what the graph itself takes."""
_AXES = ("batch", "length")


def write_onnx(
    path: str | os.PathLike[str],
    detector: OPNP,
    example: Tensor | Mapping[str, Any],
    *,
    model: nn.Module | None = None,
    is_length_dynamic: bool = False,
    tolerance: float = 1e-5,
) -> None:
    """Write detector and model as one ONNX file, once onnxruntime has given the same numbers as torch.

    Outputs are ``logits``, ``score``, ``p_value`` (float64) and ``is_ood``, for any batch size; inputs have the names
    that the model gives them. The file's metadata hold the version of opnp, keep, threshold, settings and the digest
    of the head.

    Args:
        path: File to write; an existing one is replaced.
        detector: A calibrated detector.
        example: A batch of at least two inputs: a tensor, or tensors by the model's keywords.
        model: The model that the detector was fitted on; None for the one it is tied to.
        is_length_dynamic: Whether the second axis is of any length too, as that of tokens is.
        tolerance: How far logits and scores may lie from torch's, relative to the largest of them; a score S of a
            fusion, which has no largest, in units of 1 + |S|.

    Raises:
        MissingExtraError: If onnx, onnxscript or onnxruntime is not installed.
        NotCalibratedError: If the detector is not calibrated.
        InputTypeError: If the example holds fewer than two inputs.
        ModelRunError: If the model cannot be exported, gives other numbers in each run, or the graph gives other
            numbers than torch.
        OptionError: If the model is too large for one ONNX file, or `tolerance` is no share.
        OSError: If the file cannot be written; then nothing is left behind.

    """
    require_onnx()
    if not 0 <= tolerance < 1:
        raise OptionError(f"`tolerance` must be a share in [0, 1), such as 1e-5, got {tolerance:g}.")
    module = detector.to_module(model).cpu()
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > _LARGEST:
        raise OptionError(
            f"The model has {size:,} bytes of tensors, and one ONNX file holds 2 GiB: use the torch format."
        )
    batch = on_cpu(example)
    content = _content(module, batch, facts=_facts(detector), is_length_dynamic=is_length_dynamic)
    require_repeatable(module, batch)
    for other in (batch, rows(batch, [0]), rows(batch, [1, 0, 1])):
        _require_equal(content, module, other, tolerance=tolerance)
    write_atomically(path, content)


def require_onnx() -> None:
    """Raise if a package that writing and checking ONNX files takes is not installed.

    Raises:
        MissingExtraError: If one is not; the message names the command that installs it.

    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"ONNX files need {' and '.join(missing)}, which is not installed: `pip install 'opnp[onnx]'`.",
        )


def _content(
    module: DetectorModule, batch: Tensor | Mapping[str, Any], *, facts: Mapping[str, str], is_length_dynamic: bool
) -> bytes:
    """Return the bytes of an ONNX file, checked by the rules of the format."""
    import onnx

    program = exported_program(module, batch, is_length_dynamic=is_length_dynamic)
    names = input_names(program)
    try:
        with quiet_torch():
            graph: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=names, output_names=list(OUTPUT_NAMES)
            )
        proto = graph.model_proto
        _name_axes(proto)
        for node in proto.graph.node:
            del node.metadata_props[:]  # what torch notes of the model's code, paths of this machine among it
        onnx.helper.set_model_props(proto, dict(facts))
        onnx.checker.check_model(proto)
    except Exception as error:
        raise ModelRunError(f"torch.onnx refuses this model: {first_line(error)}") from error
    content: bytes = proto.SerializeToString()
    return content


def _name_axes(proto: Any) -> None:  # noqa: ANN401  # a protocol buffer
    """Call the axes of any length ``batch`` and ``length`` instead of by torch's symbols."""
    axes = [item.type.tensor_type.shape.dim[:2] for item in proto.graph.input]
    symbols = {dim.dim_param: name for dims in axes for dim, name in zip(dims, _AXES, strict=False) if dim.dim_param}
    for item in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in item.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda match: symbols.get(match[0], match[0]), dim.dim_param)


def _require_equal(
    content: bytes, module: DetectorModule, batch: Tensor | Mapping[str, Any], *, tolerance: float
) -> None:
    """Raise unless onnxruntime gives torch's logits and scores, and the p-values and verdicts of its own scores."""
    import onnxruntime  # type: ignore[import-untyped]  # the package ships no types

    args, named = arguments(module, batch)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        feeds = zip([item.name for item in session.get_inputs()], (*args, *named.values()), strict=True)
        found = session.run(list(OUTPUT_NAMES), {name: tensor.numpy() for name, tensor in feeds})
    except Exception as error:
        raise ModelRunError(f"onnxruntime refuses the graph of this model: {first_line(error)}") from error
    logits, score, p_value, is_ood = (torch.from_numpy(values) for values in found)
    with torch.no_grad():
        expected = module(*args, **named)
    for name, got, wanted in zip(OUTPUT_NAMES, (logits, score), expected, strict=False):
        is_fused = name == "score" and module.judge.settings.is_fusion
        worst = worst_difference(got, wanted, is_fused=is_fused)
        if not worst <= tolerance:
            unit = "1 + |score|" if is_fused else "the largest"
            raise ModelRunError(
                f"The graph's {name} lie up to {worst:.2g} of {unit} from torch's, and {tolerance:g} is allowed. "
                f"Nothing was written. A larger `tolerance` lets rounding pass; where it is more, the graph is another "
                f"function than the model.",
            )
    if not torch.equal(p_value, module.judge.p_value(score)) or not torch.equal(is_ood, module.judge.is_ood(score)):
        raise ModelRunError("The graph's p-values or verdicts are not those of its scores. Nothing was written.")


def _facts(detector: OPNP) -> dict[str, str]:
    """Return what a file says of itself."""
    return {
        "opnp_version": version("opnp"),
        "opnp_keep": f"{detector.keep:g}",
        "opnp_threshold": repr(detector.threshold),
        "opnp_calibration_samples": str(len(detector.calibration_scores)),
        "opnp_settings": json.dumps(detector.settings.to_json(), sort_keys=True),
        "opnp_head_sha256": detector.head_digest,
    }
