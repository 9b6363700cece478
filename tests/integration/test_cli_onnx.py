"""``--model onnx:FILE`` from end to end."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # the package ships no types
import pytest
import torch

from opnp import OPNP, Ratios
from opnp.data import open_inputs
from tests.in_process import Opnp, done, refused
from tests.integration.cli_world import write_world
from tests.unit.adapters.onnx_graphs import node, written, written_by_torch
from tests.unit.bench.image_world import INPUTS, OPTIONS, tiny_model

MODEL = ("--model", "onnx:models/net.onnx")
FIT = ("fit", *MODEL, *OPTIONS, "--data", "train.safetensors", "--validation", "validation.safetensors")
RATIO = ("--rho-w-min", "0.25", "--shaping", "none")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the graph of a small CNN."""
    path = tmp_path_factory.mktemp("graphs") / "net.onnx"
    return written_by_torch(path, tiny_model(), torch.zeros(2, 3, 8, 8), external_data=False)


@pytest.fixture(autouse=True)
def world(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with images, and with the graph in a folder inside."""
    monkeypatch.chdir(write_world(tmp_path))
    Path("models").mkdir()
    shutil.copy(graph, "models/net.onnx")
    return tmp_path


def table(path: str) -> list[float]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return [float(row["score"]) for row in csv.DictReader(file)]


def test_a_graph_is_fitted_and_remembered_and_has_the_scores_of_its_network(opnp: Opnp, tmp_path: Path) -> None:
    before = Path("models/net.onnx").read_bytes()
    done(opnp, *FIT, *RATIO, "--out", "d.safetensors")
    done(opnp, "score", "d.safetensors", "test.safetensors", "--out", "scores.csv")
    assert Path("models/net.onnx").read_bytes() == before
    origin = OPNP.load("d.safetensors").origin
    assert origin is not None
    assert origin.model == "onnx:models/net.onnx"
    training, inputs = (open_inputs(Path(f"{name}.safetensors"), INPUTS) for name in ("train", "test"))
    detector = OPNP(ratios=Ratios(w_min=0.25), shaping=None).fit(tiny_model(), training.batches(64))
    expected = torch.cat([detector.score(batch[0]) for batch in inputs.batches(64)])
    np.testing.assert_allclose(table("scores.csv"), expected.numpy(), rtol=1e-4, atol=1e-5)
    (tmp_path / "moved").mkdir()
    for name in ("d.safetensors", "models/net.onnx"):
        shutil.move(name, tmp_path / "moved" / Path(name).name)
    done(opnp, "score", "moved/d.safetensors", "test.safetensors", "--out", "moved.csv")
    assert table("moved.csv") == table("scores.csv")
    Path("moved/net.onnx").unlink()
    message = refused(opnp, "score", "moved/d.safetensors", "test.safetensors")
    assert (
        "models/net.onnx, which is neither there, seen from the detector's folder, nor beside the detector: give "
        "`--model onnx:FILE`" in message
    )


def test_a_graph_with_the_same_head_and_other_weights_before_it_is_refused(opnp: Opnp) -> None:
    done(opnp, *FIT, *RATIO, "--out", "d.safetensors")
    model = onnx.load("models/net.onnx")
    first = next(each for each in model.graph.initializer if len(each.dims) == 4)
    first.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(first), first.name))
    onnx.save_model(model, "models/net.onnx")
    score = ("score", "d.safetensors", "test.safetensors", "--out", "scores.csv")
    assert "is another file: it was written anew, or computes something else before" in refused(opnp, *score)
    done(opnp, *score, "--force")


def test_a_graph_is_exported_with_its_detector_as_one_and_not_for_torch(opnp: Opnp) -> None:
    done(opnp, *FIT, *RATIO, "--out", "d.safetensors")
    done(opnp, "score", "d.safetensors", "test.safetensors", "--out", "scores.csv")
    done(opnp, "export", "d.safetensors", "--out", "out.onnx")
    inputs = open_inputs(Path("test.safetensors"), INPUTS, is_labelled=False)
    (batch,) = inputs.batches(64)
    session = onnxruntime.InferenceSession("out.onnx")
    (item,) = session.get_inputs()
    assert item.shape == ["batch", 3, 8, 8]
    (score,) = session.run(["score"], {item.name: batch.numpy()})
    np.testing.assert_allclose(score, table("scores.csv"), rtol=1e-5)
    message = refused(opnp, "export", "d.safetensors", "--out", "out.pt2")
    assert "a graph of ONNX is run by onnxruntime, which torch cannot look into: export it to ONNX" in message
    assert not Path("out.pt2").exists()


def test_features_are_cached_and_odin_says_why_it_has_none(opnp: Opnp) -> None:
    sets = ("--train", "train.safetensors", "--test", "test.safetensors", "--ood", "few=few.safetensors")
    outcome = done(opnp, "cache", *MODEL, *OPTIONS, *sets, "--out", "features", "--json")
    assert Path("features/ood_few.safetensors").is_file()
    assert json.loads(outcome.out)
    assert "has no gradient to its inputs" in outcome.out + outcome.err


def test_what_is_missing_or_has_another_end_is_told_in_one_message(opnp: Opnp) -> None:
    fit = ("fit", "--data", "train.safetensors", "--out", "d.safetensors")
    assert "No preprocessing is known for the model 'onnx:models/net.onnx': give --image-size" in refused(
        opnp, *fit, *MODEL
    )
    assert "absent.onnx is none" in refused(opnp, *fit, "--model", "onnx:absent.onnx", *OPTIONS)
    assert "leave `--weights` out" in refused(opnp, *fit, *MODEL, *OPTIONS, "--weights", "train.safetensors")
    written(Path("trees.onnx"), [node("TreeEnsembleClassifier", ["x"], ["label", "out"], domain="ai.onnx.ml")])
    message = refused(opnp, *fit, "--model", "onnx:trees.onnx", *OPTIONS)
    assert "comes from the node 'label' (ai.onnx.ml.TreeEnsembleClassifier)" in message
    larger = refused(opnp, *fit, *MODEL, "--image-size", "9", *OPTIONS[2:])
    assert "The graph takes 'input' of shape (batch, 3, 8, 8), got (60, 3, 9, 9)" in larger


def test_the_graph_is_not_written_over(opnp: Opnp) -> None:
    """Neither by its name nor by the default, which is that of the detector."""
    graph = Path("models/net.onnx")
    before = graph.read_bytes()
    done(opnp, *FIT, "--out", "models/net.safetensors")
    for given in ((), ("--out", graph)):
        assert "which is the model itself" in refused(opnp, "export", "models/net.safetensors", *given)
    assert graph.read_bytes() == before
