"""Detectors joined to the graphs of models that are ONNX graphs themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # the package ships no types
import pytest
import torch
from onnx import TensorProto

from opnp import OPNP, Ratios
from opnp.adapters import OnnxClassifier, onnx_model
from opnp.errors import ModelRunError, OptionError
from opnp.export import write_onnx
from opnp.export.graph_models import GraphModel
from tests.unit.adapters.onnx_graphs import node, written

_FIRST = [node("MatMul", ["x", "squares"], ["a"]), node("Tanh", ["a"], ["h"])]
_HEAD = node("Gemm", ["h", "weight", "bias"], ["out"])
_SCALED = [
    node("Scaler", ["x"], ["h"], domain="ai.onnx.ml", offset=[0.5] * 5, scale=[2.0] * 5),
    node(
        "LinearClassifier",
        ["h"],
        ["label", "out"],
        domain="ai.onnx.ml",
        coefficients=np.linspace(-1, 1, 15).tolist(),
        intercepts=[0.1, 0.2, 0.3],
        classlabels_ints=[0, 1, 2],
        post_transform="SOFTMAX",
    ),
]


def fitted(path: Path, *, is_fused: bool = False) -> tuple[OnnxClassifier, OPNP]:
    """Return the model in a file, and a calibrated detector."""
    model = onnx_model(path)
    training = torch.randn(300, 5)
    detector = OPNP() if is_fused else OPNP(ratios=Ratios(w_min=0.2), shaping=None)
    return model, detector.fit(model, [training]).calibrate([torch.randn(100, 5)])


def halves(kind: int) -> list[Any]:
    """Return nodes that compute in another precision."""
    casts = [node("Cast", [name], [f"{name}_"], to=kind) for name in ("x", "weight", "bias")]
    ends = [node("Gemm", ["x_", "weight_", "bias_"], ["z"]), node("Cast", ["z"], ["out"], to=TensorProto.FLOAT)]
    return [*casts, *ends]


@pytest.mark.parametrize(
    ("nodes", "opset", "is_fused"),
    [
        ([*_FIRST, _HEAD, node("Softmax", ["out"], ["chances"])], 9, True),
        ([*_FIRST, _HEAD], 21, False),
        (_SCALED, 15, False),
        (halves(TensorProto.FLOAT16), 17, False),
        ([*_FIRST, node("Unsqueeze", ["h", "axis"], ["wide"]), node("MatMul", ["wide", "weight"], ["out"])], 17, False),
    ],
)
def test_a_file_holds_the_graph_and_what_the_detector_says(
    nodes: list[Any], opset: int, is_fused: bool, tmp_path: Path
) -> None:
    outputs = ("chances",) if nodes[-1].op_type == "Softmax" else ("out",)
    path = written(tmp_path / "net.onnx", nodes, opset=opset, outputs=outputs)
    model, detector = fitted(path, is_fused=is_fused)
    assert isinstance(model, GraphModel)
    module = detector.to_module(model)
    before = path.read_bytes()
    write_onnx(tmp_path / "detector.onnx", module, torch.randn(3, 5))
    assert path.read_bytes() == before
    inputs = torch.randn(9, 5)
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx")
    logits, score, p_value, is_ood = session.run(None, {"x": inputs.numpy()})
    with torch.no_grad():
        expected = module(inputs)
    np.testing.assert_allclose(logits, expected[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(score, expected[1].numpy(), rtol=1e-4, atol=1e-5)
    assert p_value.shape == is_ood.shape == (9,)
    assert [item.shape for item in session.get_inputs()] == [["batch", 5]]
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["opnp_head_sha256"] == detector.head_digest


def test_inputs_of_a_graph_go_by_their_names(tmp_path: Path) -> None:
    kind = (TensorProto.FLOAT, ("n", 5))
    nodes = [node("Sub", ["one.a", "one.b"], ["h"]), _HEAD]
    path = written(tmp_path / "net.onnx", nodes, inputs={"one.a": kind, "one.b": kind})
    model = onnx_model(path)
    batch = {"one.b": torch.randn(300, 5), "one.a": torch.randn(300, 5)}
    detector = OPNP(ratios=Ratios(w_min=0.2), shaping=None).fit(model, [batch]).calibrate([batch])
    write_onnx(tmp_path / "detector.onnx", detector.to_module(), {name: each[:3] for name, each in batch.items()})
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx")
    (score,) = session.run(["score"], {name: each.numpy() for name, each in batch.items()})
    np.testing.assert_allclose(score, detector.score(batch).numpy(), rtol=1e-5)


def test_what_cannot_be_joined_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    example = torch.randn(3, 5)
    fixed = written(tmp_path / "fixed.onnx", [*_FIRST, _HEAD], inputs={"x": (TensorProto.FLOAT, (4, 5))})
    model, detector = fitted(fixed)
    with pytest.raises(OptionError, match="takes batches of 4 alone, and what is exported must take any"):
        write_onnx(tmp_path / "detector.onnx", detector.to_module(model), example)
    named = [node("Tanh", ["x"], ["score"]), node("Gemm", ["score", "weight", "bias"], ["out"])]
    model, detector = fitted(written(tmp_path / "named.onnx", named))
    with pytest.raises(ModelRunError, match=r"onnx cannot join the detector to this graph, .*score"):
        write_onnx(tmp_path / "detector.onnx", detector.to_module(model), example)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["fixed.onnx", "named.onnx"]
