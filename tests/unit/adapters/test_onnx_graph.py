"""Ends of ONNX graphs: the last linear layer is found, or the node that stands there instead is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # the package ships no types
import pytest
import torch
from onnx import TensorProto
from torch import Tensor

from opnp.adapters import (
    onnx_model,
)
from opnp.errors import (
    HeadNotFoundError,
    OptionError,
)
from opnp.model import Head, find_head
from tests.unit.adapters.onnx_graphs import (
    BIAS,
    WEIGHT,
    X,
    answers,
    features_and_logits,
    made,
    node,
    written,
)

_ML = "ai.onnx.ml"


def logits_of(head: Head, features: Tensor) -> Tensor:
    """Return the logits that a head, read as that of at least two classes, makes of features."""
    assert head.bias is not None
    return features @ head.weight.T + head.bias


@pytest.mark.parametrize(
    "nodes",
    [
        [node("MatMul", ["h", "weight"], ["z"]), node("Add", ["z", "bias"], ["out"])],
        [node("MatMul", ["h", "weight"], ["z"]), node("Add", ["row", "z"], ["y"]), node("Softmax", ["y"], ["out"])],
        [node("Gemm", ["h", "turned", "bias"], ["out"], alpha=0.5, beta=2.0, transB=1)],
        [node("Gemm", ["h", "weight", "one"], ["z"]), node("Add", ["z", "bias"], ["out"])],
        [node("Gemm", ["h", "weight"], ["z"]), node("LogSoftmax", ["z"], ["out"], axis=1)],
        [node("Transpose", ["turned"], ["w"]), node("MatMul", ["h", "w"], ["out"])],
        [
            node("Gemm", ["h", "weight"], ["a"]),
            node("Identity", ["a"], ["b"]),
            node("Cast", ["b"], ["c"], to=TensorProto.DOUBLE),
            node("Flatten", ["c"], ["d"]),
            node("Reshape", ["d", "same"], ["e"]),
            node("Reshape", ["e", "kept"], ["f"]),
            node("Softmax", ["f"], ["out"]),
        ],
    ],
)
def test_the_linear_end_of_a_graph_is_its_head(nodes: list[Any], tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", [node("Tanh", ["x"], ["h"]), *nodes])
    model = onnx_model(path)
    features, logits = features_and_logits(model, X)
    torch.testing.assert_close(features, X.tanh(), rtol=0, atol=1e-6)
    (found,) = answers(path, x=X.numpy())
    ends = {"Softmax": logits.softmax(1), "LogSoftmax": logits.log_softmax(1)}
    expected = ends.get(nodes[-1].op_type, logits)
    torch.testing.assert_close(torch.from_numpy(found).float(), expected, rtol=0, atol=1e-5)
    assert model.head.weight.shape == (3, 5)


def _functions(graph: Any) -> None:
    body = [node("Tanh", ["given"], ["t"]), node("Gemm", ["t", "w", "b"], ["answer"])]
    own = onnx.helper.make_function("own", "Layer", ["given", "w", "b"], ["answer"], body, graph.opset_import[:1])
    graph.functions.append(own)
    graph.opset_import.append(onnx.helper.make_opsetid("own", 1))


def _branches(graph: Any) -> None:
    parts = [
        onnx.helper.make_graph(
            [node("Tanh", ["x"], [f"{name}_t"]), node("Identity", [f"{name}_t"], [name])],
            name,
            [],
            [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 5])],
        )
        for name in ("then", "else")
    ]
    graph.graph.node.insert(0, node("If", ["yes"], ["h"], then_branch=parts[0], else_branch=parts[1]))
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([True]), "yes"))


def _old_inputs(graph: Any) -> None:
    graph.graph.node.insert(0, node("Tanh", ["x"], ["h"]))
    graph.graph.input.append(onnx.helper.make_tensor_value_info("weight", TensorProto.FLOAT, [5, 3]))


@pytest.mark.parametrize(
    ("end", "change"),
    [
        (node("Layer", ["x", "weight", "bias"], ["out"], domain="own"), _functions),
        (node("Gemm", ["h", "weight", "bias"], ["out"]), _branches),
        (node("Gemm", ["h", "weight", "bias"], ["out"]), _old_inputs),
    ],
)
def test_functions_branches_and_constants_among_the_inputs_are_followed(
    end: Any, change: Callable[[Any], None], tmp_path: Path
) -> None:
    graph = made([end])
    change(graph)
    path = tmp_path / "net.onnx"
    onnx.save_model(graph, path)
    features, logits = features_and_logits(onnx_model(path), X)
    torch.testing.assert_close(features, X.tanh(), rtol=0, atol=1e-6)
    torch.testing.assert_close(logits, torch.from_numpy(answers(path, x=X.numpy())[0]), rtol=0, atol=1e-5)


def test_one_logit_behind_a_sigmoid_is_read_as_two_classes(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "narrow"], ["z"]), node("Add", ["z", "one"], ["y"]), node("Sigmoid", ["y"], ["out"])]
    path = written(tmp_path / "net.onnx", nodes)
    model = onnx_model(path)
    (chance,) = answers(path, x=X.numpy())
    head = find_head(model, X)
    torch.testing.assert_close(logits_of(head, X).softmax(1)[:, 1:], torch.from_numpy(chance), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "transform", "labels"),
    [(3, "SOFTMAX", 3), (3, "NONE", 3), (2, "LOGISTIC", 2), (2, "SOFTMAX", 2), (1, "LOGISTIC", 2)],
)
def test_linear_classifiers_of_scikit_learn_keep_their_probabilities(
    rows: int, transform: str, labels: int, tmp_path: Path
) -> None:
    weight, bias = WEIGHT.T[:rows], BIAS[:rows]
    if (rows, transform) == (2, "LOGISTIC"):  # as the converter writes two classes
        weight, bias = np.stack([-weight[0], weight[0]]), np.array([-bias[0], bias[0]])
    classifier = node(
        "LinearClassifier",
        ["scaled"],
        ["label", "raw"],
        domain=_ML,
        coefficients=weight.flatten().tolist(),
        intercepts=bias.tolist(),
        classlabels_ints=list(range(labels)),
        post_transform=transform,
    )
    scaler = node("Scaler", ["x"], ["scaled"], domain=_ML, offset=[0.5] * 5, scale=[2.0] * 5)
    ends = [
        node("Cast", ["label"], ["out"], to=TensorProto.INT64),
        node("Normalizer", ["raw"], ["chances"], domain=_ML, norm="L1"),
    ]
    path = written(tmp_path / "net.onnx", [scaler, classifier, *ends], outputs=("out", "chances", "raw"))
    model = onnx_model(path)
    found, _, raw = answers(path, x=X.numpy())
    logits = logits_of(find_head(model, X), 2 * (X - 0.5))
    assert logits.argmax(1).tolist() == found.tolist()
    expected = logits if transform == "NONE" else logits.softmax(1)
    torch.testing.assert_close(torch.from_numpy(raw), expected, rtol=0, atol=1e-6)


_GEMM = node("Gemm", ["x", "weight", "bias"], ["z"], name="head")
_SAME = node("Gemm", ["x", "squares"], ["h"], name="middle")


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([_GEMM, node("Relu", ["z"], ["out"], name="last")], r"'last' \(Relu\), which is no linear layer"),
        ([node("TreeEnsembleClassifier", ["x"], ["label", "out"], domain=_ML)], r"\(ai\.onnx\.ml\.TreeEnsembleClass"),
        ([_GEMM, node("Softmax", ["z"], ["a"]), node("Softmax", ["a"], ["out"])], r"'a' \(Softmax\), which is no"),
        ([_GEMM, node("Sigmoid", ["z"], ["out"])], r"\(Sigmoid\), which is taken of 3 logits one by one"),
        ([_GEMM, node("Softmax", ["z"], ["out"], axis=0)], r"\(Softmax\), which is not over the classes"),
        ([_GEMM, node("Cast", ["z"], ["out"], to=TensorProto.INT64)], r"makes no fractions of the logits"),
        ([_GEMM, node("Flatten", ["z"], ["out"], axis=0)], r"\(Flatten\), which puts the logits into another shape"),
        ([_GEMM, node("Reshape", ["z", "mixed"], ["out"])], r"\(Reshape\), which puts the logits into a shape"),
        ([_GEMM, node("Normalizer", ["z"], ["out"], domain=_ML)], r"Normalizer\), which changes the logits"),
        ([node("Gemm", ["x", "x"], ["out"], transB=1)], r"is no product of features with a constant weight"),
        ([node("MatMul", ["squares", "x"], ["out"])], r"is no product of features with a constant weight"),
        ([node("MatMul", ["x", "ones"], ["out"])], r"has a weight of shape \(5,\) and type float32"),
        ([node("Gemm", ["x", "weight"], ["out"], transA=1)], r"turns its features round"),
        ([_SAME, node("Add", ["h", "x"], ["out"])], r"\(Add\), which adds other than a constant bias to a MatMul"),
        ([_GEMM, node("Gemm", ["x", "weight", "z"], ["out"])], r"\(Gemm\), which adds other than a constant bias"),
        ([node("Gemm", ["x", "weight", "column"], ["out"])], r"adds a bias of shape \(3, 1\) to 3 logits"),
        ([node("Identity", ["x"], ["out"])], r"is 'x' as it came in: no layer makes it"),
        ([node("LinearClassifier", ["x"], ["l", "out"], domain=_ML)], r"has 0 coefficients for 0 classes"),
        (
            [node("LinearClassifier", ["x"], ["l", "out"], domain=_ML, post_transform="PROBIT", intercepts=[1.0])],
            r"has the answers of PROBIT",
        ),
    ],
)
def test_a_graph_with_another_end_is_refused_by_its_last_node(nodes: list[Any], reason: str, tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", nodes)
    with pytest.raises(HeadNotFoundError, match=rf"The output 'out' of .*net\.onnx .*{reason}"):
        onnx_model(path)


def test_of_several_outputs_the_logits_are_taken_where_that_is_plain(tmp_path: Path) -> None:
    other = node("Gemm", ["h", "weight"], ["other"], name="other")
    best = [node("ArgMax", ["out"], ["best"], axis=1), node("Softmax", ["out"], ["chances"])]
    head = node("Gemm", ["h", "weight", "bias"], ["out"])
    hidden = [_SAME, node("Tanh", ["h"], ["t"]), node("Gemm", ["t", "weight", "bias"], ["out"])]
    plain = written(tmp_path / "plain.onnx", [*hidden, *best], outputs=("best", "h", "t", "chances", "out"))
    with torch.no_grad():
        logits = onnx_model(plain)(X)
    torch.testing.assert_close(logits, torch.from_numpy(answers(plain, x=X.numpy())[4]), rtol=0, atol=1e-5)
    for name, nodes, outputs in (
        ("two", [_SAME, head, other], ("out", "other")),
        ("boxes", [_SAME, head, node("Relu", ["h"], ["boxes"])], ("out", "boxes")),
        ("embedding", [_SAME, node("Gemm", ["h", "squares"], ["out"]), node("Tanh", ["out"], ["x2"])], ("out", "x2")),
    ):
        path = written(tmp_path / f"{name}.onnx", nodes, outputs=outputs)
        with pytest.raises(HeadNotFoundError, match=r"has 2 outputs, .*Rename that output to `logits`, or name it"):
            onnx_model(path)
        with torch.no_grad():
            chosen = onnx_model(path, output="out")(X)
        torch.testing.assert_close(chosen, torch.from_numpy(answers(path, x=X.numpy())[0]), rtol=0, atol=1e-5)
        with pytest.raises(OptionError, match=rf"one of out, {outputs[1]}, got 'lost'"):
            onnx_model(path, output="lost")
    named = [_SAME, head, node("Gemm", ["h", "weight"], ["logits"])]
    model = onnx_model(written(tmp_path / "named.onnx", named, outputs=("out", "logits")))
    assert model.head.bias is None
    path = written(tmp_path / "none.onnx", [node("Relu", ["x"], ["a"]), node("Tanh", ["x"], ["b"])], outputs=("a", "b"))
    with pytest.raises(HeadNotFoundError, match=r"The output 'a' of .* comes from the node 'a' \(Relu\)"):
        onnx_model(path)


_OTHERS = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
"""Graphs of well-known networks that come with onnx, made by Caffe2, with weights that are all alike."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception_v2", "shufflenet"])
def test_graphs_of_other_frameworks_give_their_own_answers(name: str) -> None:
    path = _OTHERS / f"light_{name}.onnx"
    model = onnx_model(path)
    (item,) = model.inputs
    inputs = torch.rand(2, 3, 224, 224)
    assert (model.batch_size, item.shape) == (1, (3, 224, 224))
    with torch.no_grad():
        logits = model(inputs)
    session = onnxruntime.InferenceSession(path)
    expected = [session.run(None, {item.name: each[None].numpy()})[0].reshape(-1) for each in inputs]
    torch.testing.assert_close(logits.softmax(1), torch.from_numpy(np.stack(expected)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [("densenet121", "Conv"), ("squeezenet", "GlobalAveragePool")])
def test_graphs_of_other_frameworks_without_a_linear_end_are_refused(name: str, kind: str) -> None:
    with pytest.raises(HeadNotFoundError, match=rf"\({kind}\), which is no linear layer"):
        onnx_model(_OTHERS / f"light_{name}.onnx")


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([node("Dropout", ["x", "half", "yes"], ["h"], name="drop")], r"'drop' \(Dropout\) is random"),
        ([node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["h"])], r"\(RandomNormalLike\) is random"),
        (
            [
                node(
                    "BatchNormalization",
                    ["x", "ones", "zeros", "zeros", "ones"],
                    ["h", "m", "v"],
                    training_mode=1,
                    name="norm",
                )
            ],
            r"'norm' \(BatchNormalization\) takes mean and variance of the batch",
        ),
    ],
)
def test_a_graph_in_training_mode_is_refused(nodes: list[Any], reason: str, tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", [*nodes, node("Gemm", ["h", "weight"], ["out"])])
    with pytest.raises(OptionError, match=rf"{reason}.*export the model in evaluation mode"):
        onnx_model(path)


def test_a_dropout_that_is_off_changes_nothing(tmp_path: Path) -> None:
    nodes = [node("Dropout", ["x", "half", "no"], ["h"]), node("Gemm", ["h", "weight"], ["out"])]
    features, _ = features_and_logits(onnx_model(written(tmp_path / "net.onnx", nodes)), X)
    assert torch.equal(features, X)
