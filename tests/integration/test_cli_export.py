"""``opnp export`` on folders of transformers, with the real packages."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # the package ships no types
import pytest
import torch
import typer
from typer.testing import CliRunner

from opnp import OPNP, Ratios
from opnp.adapters import model_from_name
from opnp.cli.export import export
from opnp.errors import HeadMismatchError, NotCalibratedError, OptionError
from tests.unit.adapters.hub_folders import write_bert, write_vit


def run(*arguments: object) -> dict[str, Any]:
    """Return the facts that the command prints as JSON."""
    alone = typer.Typer()
    alone.command()(export)
    outcome = CliRunner().invoke(alone, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    facts: dict[str, Any] = json.loads(outcome.stdout)
    return facts


def saved(folder: Path, name: str, batches: list[Any], *, is_calibrated: bool = True) -> tuple[OPNP, Path]:
    """Return a detector fitted on the model of a name, and its file."""
    model, _ = model_from_name(name)
    detector = OPNP(ratios=Ratios(w_min=0.3), shaping=None).fit(model, batches)
    if is_calibrated:
        detector.calibrate(batches)
    path = folder / "detector.safetensors"
    detector.save(path)
    return detector, path


def noise(rows: int, *, seed: int) -> torch.Tensor:
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def vit(tmp_path: Path) -> str:
    return f"hf:{write_vit(tmp_path / 'vit')}"


@pytest.mark.parametrize("file_format", ["onnx", "torch"])
def test_an_image_model_is_exported_with_its_card(vit: str, file_format: str, tmp_path: Path) -> None:
    detector, path = saved(tmp_path, vit, [noise(40, seed=1)])
    out = tmp_path / ("detector.onnx" if file_format == "onnx" else "detector.pt2")
    facts = run("--detector", path, "--model", vit, "--format", file_format, "--out", out)
    assert facts["bytes"] == out.stat().st_size
    assert (facts["keep"], facts["threshold"]) == (0.95, detector.threshold)
    inputs = noise(7, seed=2)
    found: list[Any]
    if file_format == "onnx":
        session = onnxruntime.InferenceSession(out)
        found = session.run(facts["outputs"], {"pixel_values": inputs.numpy()})
    else:
        found = [each.numpy() for each in torch.export.load(out).module()(inputs)]
    np.testing.assert_allclose(found[1], detector.score(inputs).numpy(), rtol=1e-5)
    card = (tmp_path / "detector.card.md").read_text(encoding="utf-8")
    assert facts["card"] == str(tmp_path / "detector.card.md")
    assert detector.head_digest in card
    assert '"processor": "ViTImageProcessor' in card


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch.export of 2.6 takes texts of one length alone")
def test_a_text_model_is_exported_for_texts_of_any_length(tmp_path: Path) -> None:
    name = f"hf:{write_bert(tmp_path / 'bert')}"
    _, transform = model_from_name(name)
    assert transform is not None
    texts = [" ".join(["good", "film", "not", "very", "bad"][: 1 + place % 5]) for place in range(30)]
    batch = transform.batch([transform(text) for text in texts])
    detector, path = saved(tmp_path, name, [batch])
    out = tmp_path / "detector.onnx"
    run("--detector", path, "--model", name, "--out", out)
    session = onnxruntime.InferenceSession(out)
    axes = [[dim.dim_param for dim in item.type.tensor_type.shape.dim] for item in onnx.load(out).graph.input]
    assert axes == [["batch", "length"]] * len(axes)
    assert len(axes) > 1
    for some in (texts[:1], texts[:3], texts[4:15]):
        inputs = transform.batch([transform(text) for text in some])
        assert isinstance(inputs, Mapping)
        scores = session.run(["score"], {key: value.numpy() for key, value in inputs.items()})[0]
        np.testing.assert_allclose(scores, detector.score(inputs).numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "detector.bin"), r"must end in \.onnx or \.pt2, got detector\.bin"),
        (("--out", "detector.onnx", "--format", "torch"), r"must end in \.pt2 with --format torch, got"),
        (("--out", "detector", "--format", "onnx"), r"must end in \.onnx with --format onnx, got"),
    ],
)
def test_a_wrong_ending_is_told(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        run("--detector", tmp_path / "none", "--model", "hf:none", *options)


def test_what_does_not_fit_is_told_before_anything_is_written(vit: str, tmp_path: Path) -> None:
    _, path = saved(tmp_path, vit, [noise(40, seed=1)], is_calibrated=False)
    with pytest.raises(NotCalibratedError, match=r"is not calibrated.*`--validation`"):
        run("--detector", path, "--model", vit, "--out", tmp_path / "detector.onnx")
    _, path = saved(tmp_path, vit, [noise(40, seed=1)])
    other = f"hf:{write_vit(tmp_path / 'other', seed=1)}"
    with pytest.raises(HeadMismatchError, match="digest"):
        run("--detector", path, "--model", other, "--out", tmp_path / "detector.pt2")
    assert sorted(item.name for item in tmp_path.iterdir() if item.is_file()) == ["detector.safetensors"]
