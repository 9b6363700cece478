"""Classifiers as ONNX graphs: cut before their last linear layer, or refused with the node that they end in."""

import copy
import hashlib
import inspect
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto
from torch import Tensor, nn

from opnp import OPNP, Ratios
from opnp.adapters import (
    OnnxClassifier,
    TokenizerTransform,
    model_from_name,
    onnx_graph,
    onnx_model,
    onnx_models,
    transformers_model,
)
from opnp.adapters.origin import weights_digest
from opnp.errors import (
    DataFileError,
    InputTypeError,
    MissingExtraError,
    MissingFileError,
    ModelRunError,
    OptionError,
    ShapeError,
)
from opnp.model import find_head, head_layers
from tests.unit.adapters.hub_folders import write_bert
from tests.unit.adapters.onnx_graphs import (
    X,
    answers,
    features_and_logits,
    node,
    written,
    written_by_torch,
)
from tests.unit.bench.image_world import tiny_model


def plain() -> OPNP:
    """Return a detector that a few rows are enough for."""
    return OPNP(ratios=Ratios(w_min=0.2), shaping=None)


# -------------------------------------------------------------------------------------------------- networks of torch
def _cnn(folder: Path) -> tuple[nn.Module, str, Tensor]:
    return tiny_model().eval(), "6", torch.randn(6, 3, 8, 8)


def _vit(folder: Path) -> tuple[nn.Module, str, Tensor]:
    return timm.create_model("test_vit", num_classes=4, img_size=32).eval(), "head", torch.randn(4, 3, 32, 32)


def _texts(folder: Path) -> tuple[nn.Module, str, dict[str, Tensor]]:
    model, transform = transformers_model(write_bert(folder / "bert"))
    assert isinstance(transform, TokenizerTransform)
    batch = transform.batch([transform(text) for text in ("a good film", "not good", "this is very very bad")])
    return model.eval(), "classifier", {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.slow
@pytest.mark.parametrize("make", [_cnn, _vit, _texts])
def test_features_are_those_of_torch_and_the_file_stays_as_it_is(
    make: Callable[[Path], tuple[nn.Module, str, Any]], tmp_path: Path
) -> None:
    network, name, inputs = make(tmp_path)
    path = written_by_torch(tmp_path / "net.onnx", network, inputs, axes=1 + isinstance(inputs, dict))
    before = {each: each.read_bytes() for each in tmp_path.glob("net.onnx*")}
    model = onnx_model(path)
    features, logits = features_and_logits(model, inputs)
    expected = features_and_logits(network, inputs, head=name)
    torch.testing.assert_close(features, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, expected[1], rtol=0, atol=1e-5)
    layer = head_layers(network)[name]
    assert torch.equal(model.head.weight, layer.weight)
    assert find_head(model, inputs).name == "head"
    assert {each: each.read_bytes() for each in tmp_path.glob("net.onnx*")} == before


def test_tensors_in_a_file_beside_the_graph_are_read_and_belong_to_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save_model(
        onnx.load(path), tmp_path / "split.onnx", save_as_external_data=True, location="split.bin", size_threshold=0
    )
    split = onnx_model(tmp_path / "split.onnx")
    with torch.no_grad():
        assert torch.equal(split(X), onnx_model(path)(X))
    data = bytearray((tmp_path / "split.bin").read_bytes())
    data[:4] = np.float32(0.125).tobytes()
    (tmp_path / "split.bin").write_bytes(data)
    assert weights_digest(onnx_model(tmp_path / "split.onnx")) != weights_digest(split)
    monkeypatch.setattr(onnx_graph, "_LARGEST", 200)
    with pytest.raises(OptionError, match=r"split\.onnx has .* bytes with its tensors, and at most 2 GiB"):
        onnx_model(tmp_path / "split.onnx")
    (tmp_path / "split.bin").rename(tmp_path.parent / "split.bin")
    for place in ("split.bin", "../split.bin", str(tmp_path.parent / "split.bin")):
        _move_tensors(tmp_path / "split.onnx", place)
        with pytest.raises(DataFileError, match=r"split\.onnx is no readable ONNX file \(.*split\.bin"):
            onnx_model(tmp_path / "split.onnx")


def _move_tensors(path: Path, place: str) -> None:
    """Let a file say that its tensors are elsewhere."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    path.write_bytes(model.SerializeToString())


def test_batches_of_texts_are_read_by_the_names_of_the_graph(tmp_path: Path) -> None:
    wide = dict.fromkeys(("input_ids", "attention_mask"), (TensorProto.INT32, ("n", "length")))
    nodes = [
        node("Mul", ["input_ids", "attention_mask"], ["kept_ids"]),
        node("Cast", ["kept_ids"], ["floats"], to=TensorProto.FLOAT),
        node("ReduceMean", ["floats"], ["mean"], axes=[1]),
        node("MatMul", ["mean", "first"], ["hidden"]),
        node("Sin", ["hidden"], ["features"]),
        node("Gemm", ["features", "weight", "bias"], ["out"]),
    ]
    nodes.insert(0, node("Constant", [], ["first"], value=onnx.numpy_helper.from_array(np.eye(1, 5, dtype=np.float32))))
    model = onnx_model(written(tmp_path / "text.onnx", nodes, inputs=wide))
    assert list(inspect.signature(model.forward).parameters) == ["input_ids", "attention_mask"]
    ids, mask = torch.randint(1, 9, (12, 4)), torch.ones(12, 4, dtype=torch.int64)
    mask[:, 3] = 0
    labels = torch.arange(12) % 3
    named = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        assert torch.equal(model(ids, mask), model(**named))
    detectors = [
        plain().fit(model, [batch]) for batch in ((ids, mask, labels), {**named, "labels": labels}, (named, labels))
    ]
    scores = [detector.score(named) for detector in detectors]
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])
    with pytest.raises(InputTypeError, match=r"forward takes \(input_ids, attention_mask\).*token_type_ids"):
        detectors[0].score({**named, "token_type_ids": mask})


# --------------------------------------------------------------------------------------------------------------- inputs
def pooled(path: Path, *, batch: int | str = "n", last: bool = False, kind: int = TensorProto.FLOAT) -> OnnxClassifier:
    """Return the model of a graph of images with five channels, pooled over positions."""
    shape = (batch, 4, 6, 5) if last else (batch, 5, 4, 6)
    nodes = [
        node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        node("ReduceMean", ["floats"], ["h"], axes=[1, 2] if last else [2, 3], keepdims=0),
        node("Gemm", ["h", "weight", "bias"], ["out"]),
    ]
    return onnx_model(written(path, nodes, inputs={"x": (kind, shape)}))


def images(rows: int) -> Tensor:
    return torch.randn(rows, 5, 4, 6, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("batch", [1, 4, "n"])
@pytest.mark.parametrize("last", [False, True])
def test_batches_of_any_size_reach_graphs_of_a_fixed_one_and_channels_last(
    batch: int | str, last: bool, tmp_path: Path
) -> None:
    model = pooled(tmp_path / "net.onnx", batch=batch, last=last)
    assert model.batch_size == (None if batch == "n" else batch)
    for rows in (1, 4, 7):
        features, _ = features_and_logits(model, images(rows))
        torch.testing.assert_close(features, images(rows).mean((2, 3)), rtol=0, atol=1e-6)
    axes = (4, 6, 5) if last else (5, 4, 6)
    assert f"x: ({'batch' if batch == 'n' else batch}, {', '.join(map(str, axes))})" in repr(model)
    with pytest.raises(ShapeError, match=r"takes 'x' of shape \(batch, .*got \(2, 5, 8, 8\).*`--image-size`"):
        model(torch.zeros(2, 5, 8, 8))


def test_inputs_get_the_type_of_the_graph_or_are_refused(tmp_path: Path) -> None:
    whole = pooled(tmp_path / "int.onnx", kind=TensorProto.UINT8)
    pixels = torch.randint(256, (3, 5, 4, 6))
    with torch.no_grad():
        assert torch.equal(whole(pixels), whole(pixels.to(torch.uint8)))
        assert torch.equal(whole(pixels), whole(pixels.double()))
        for lost in (pixels / 255, pixels + 1, -pixels - 1):
            with pytest.raises(InputTypeError, match=r"takes 'x' as uint8, and values of this .* tensor are lost"):
                whole(lost)
        real = pooled(tmp_path / "real.onnx")
        torch.testing.assert_close(real(images(2).double()), real(images(2)))
        torch.testing.assert_close(real(pixels), real(pixels.float()))
        with pytest.raises(InputTypeError, match=r"takes 'x' as float32, got uint8\. If these are images, scale them"):
            real(pixels.to(torch.uint8))
        with pytest.raises(InputTypeError, match=r"'x' must be a tensor, got list"):
            real([1.0])
    with pytest.raises(ModelRunError, match="has no gradient to its inputs"):
        real(images(2).requires_grad_())


@pytest.mark.parametrize(("kind", "dtype"), [(TensorProto.FLOAT16, torch.float32), (TensorProto.DOUBLE, torch.float64)])
def test_graphs_of_another_precision_are_fitted(kind: int, dtype: torch.dtype, tmp_path: Path) -> None:
    casts = [node("Cast", [name], [f"{name}_"], to=kind) for name in ("x", "weight", "bias")]
    ends = [node("Gemm", ["x_", "weight_", "bias_"], ["z"]), node("Cast", ["z"], ["out"], to=TensorProto.FLOAT)]
    path = written(tmp_path / "net.onnx", [*casts, *ends])
    model = onnx_model(path)
    assert model.head.weight.dtype == dtype
    (found,) = answers(path, x=X.numpy())
    with torch.no_grad():
        torch.testing.assert_close(model(X).float(), torch.from_numpy(found), rtol=0, atol=0.01)
    assert plain().fit(model, [X]).score(X).isfinite().all()


def test_names_that_python_cannot_have_are_taken_as_they_are(tmp_path: Path) -> None:
    kind = (TensorProto.FLOAT, ("n", 5))
    nodes = [node("Add", ["input.1", "class"], ["h"]), node("Gemm", ["h", "weight", "bias"], ["out"])]
    model = onnx_model(written(tmp_path / "net.onnx", nodes, inputs={"input.1": kind, "class": kind}))
    assert list(inspect.signature(model.forward).parameters) == ["input_1", "class_"]
    with torch.no_grad():
        expected = model(X, X)
        assert torch.equal(model(**{"input.1": X, "class": X}), expected)
        assert torch.equal(model(X, class_=X), expected)
        with pytest.raises(ShapeError, match=r"as many rows, and at least one, got \{'input.1': 7, 'class': 2\}"):
            model(X, X[:2])
        with pytest.raises(TypeError, match="missing a required argument: 'class_'"):
            model(X)
    assert onnx_models._parameters(["a.b", "a_b", "1", "def"]) == ["a_b", "a_b_", "_1", "def_"]


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"x": (TensorProto.FLOAT, (4, 5)), "y": (TensorProto.FLOAT, (3, 5))}, "batches of different sizes"),
        ({"x": (TensorProto.FLOAT, ("n", 5)), "y": (TensorProto.FLOAT, ())}, "'y' without an axis of the batch"),
        ({"x": (TensorProto.FLOAT, ("n", 5)), "y": (TensorProto.STRING, (1, 5))}, r"'y' as tensor\(string\)"),
    ],
)
def test_inputs_that_no_batch_can_be_are_refused(inputs: Any, reason: str, tmp_path: Path) -> None:
    is_text = inputs["y"][0] == TensorProto.STRING
    joined = [node("StringNormalizer", ["y"], ["s"]), node("Shape", ["s"], ["i"])] if is_text else []
    whole = [node("Cast", ["i" if is_text else "y"], ["f"], to=TensorProto.FLOAT), node("ReduceSum", ["f"], ["t"])]
    nodes = [*joined, *whole, node("Add", ["x", "t"], ["h"]), node("Gemm", ["h", "weight"], ["out"])]
    with pytest.raises(OptionError, match=reason):
        onnx_model(written(tmp_path / "net.onnx", nodes, inputs=inputs))


def test_a_graph_whose_rows_are_no_inputs_is_refused_when_it_is_run(tmp_path: Path) -> None:
    nodes = [node("Transpose", ["x"], ["h"]), node("Gemm", ["h", "turned", "one"], ["out"])]
    model = onnx_model(written(tmp_path / "net.onnx", nodes, inputs={"x": (TensorProto.FLOAT, ("n", "m"))}))
    with pytest.raises(ShapeError, match=r"makes features of shape \(5, 3\) of 3 inputs"):
        model(torch.ones(3, 5))


# ------------------------------------------------------------------------------------------------ the model as a module
@pytest.fixture
def path(tmp_path: Path) -> Path:
    nodes = [node("MatMul", ["x", "squares"], ["a"]), node("Relu", ["a"], ["h"])]
    return written(tmp_path / "net.onnx", [*nodes, node("Gemm", ["h", "weight", "bias"], ["out"])])


def test_copies_give_the_same_in_other_processes_too(path: Path) -> None:
    model = onnx_model(path)
    data = pickle.dumps(model)
    path.unlink()
    with torch.no_grad():
        for other in (copy.deepcopy(model), pickle.loads(data)):  # noqa: S301  # its own
            assert isinstance(other, OnnxClassifier)
            assert torch.equal(other(X), model(X))
            assert weights_digest(other) == weights_digest(model)


def test_the_digest_covers_what_is_before_the_head(path: Path, tmp_path: Path) -> None:
    model = onnx_model(path)
    assert bytes(model.graph_sha256.tolist()) == hashlib.sha256(path.read_bytes()).digest()
    nodes = [node("MatMul", ["x", "squares"], ["a"]), node("Tanh", ["a"], ["h"])]
    other = onnx_model(written(tmp_path / "other.onnx", [*nodes, node("Gemm", ["h", "weight", "bias"], ["out"])]))
    assert torch.equal(other.head.weight, model.head.weight)
    assert weights_digest(other) != weights_digest(model)


def test_a_detector_has_the_scores_that_it_has_on_the_same_network_in_torch(path: Path) -> None:
    squares = onnx.numpy_helper.to_array(
        next(each for each in onnx.load(path).graph.initializer if each.name == "squares")
    )
    model = onnx_model(path)
    first = nn.Linear(5, 5, bias=False)
    first.weight.data = torch.from_numpy(squares.T.copy())
    network = nn.Sequential(first, nn.ReLU(), copy.deepcopy(model.head))
    training = torch.randn(300, 5)
    detectors = [plain().fit(each, training.split(64)).calibrate([training]) for each in (model, network)]
    scores = [each.score(X) for each in detectors]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        logits, score, _ = detectors[0].to_module()(X)
    torch.testing.assert_close(score, scores[0])
    torch.testing.assert_close(logits, model(X))
    assert detectors[0].pruned_head.weight.shape == (3, 5)


def test_memory_that_runs_out_in_onnxruntime_is_known_as_such(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx_model(path)
    whole = model._session

    class Narrow:
        def run(self, names: object, feeds: Mapping[str, Any]) -> Any:
            if len(feeds["x"]) > 3:
                raise RuntimeError("Failed to allocate memory for requested buffer of size 8")
            return whole.run(names, feeds)

    expected = plain().fit(model, [X]).score(X)
    monkeypatch.setattr(model, "_session", Narrow())
    with pytest.raises(MemoryError, match="Failed to allocate memory"):
        model(X)
    with pytest.warns(UserWarning, match="ran out of memory on a batch of 7 inputs"):
        detector = plain().fit(model, [X], auto_batch=True)
    torch.testing.assert_close(detector.attach(model, auto_batch=True).score(X[:2]), expected[:2])


def test_names_of_graphs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, transform = model_from_name(f"onnx:{path}")
    assert isinstance(model, OnnxClassifier)
    assert transform is None
    with pytest.raises(OptionError, match=r"has its weights in the file: leave `--weights` out"):
        model_from_name(f"onnx:{path}", weights=path)
    with pytest.raises(MissingFileError, match=r"`onnx:FILE` must name an ONNX file, and .*absent\.onnx is none"):
        onnx_model(tmp_path / "absent.onnx")
    for content in (b"", b"no graph at all", path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.raises(DataFileError, match=r"net\.onnx is no "):
            onnx_model(path)
    foreign = [node("Own", ["x"], ["h"], domain="mine"), node("Gemm", ["h", "weight"], ["out"])]
    with pytest.raises(DataFileError, match=r"onnxruntime refuses the graph: .*[Oo]wn"):
        onnx_model(written(tmp_path / "foreign.onnx", foreign))
    monkeypatch.setattr("opnp.errors.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"`onnx:` models need onnx and onnxruntime.*opnp\[onnx\]"):
        onnx_model(path)
