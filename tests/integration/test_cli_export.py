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

from opnp import OPNP, Ratios
from opnp.adapters import model_from_name
from tests.in_process import Opnp, done
from tests.unit.adapters.hub_folders import write_bert, write_vit


def saved(folder: Path, name: str, batches: list[Any]) -> tuple[OPNP, Path]:
    """Return a detector fitted on the model of a name, and its file."""
    model, _ = model_from_name(name)
    detector = OPNP(ratios=Ratios(w_min=0.3), shaping=None).fit(model, batches).calibrate(batches)
    path = folder / "detector.safetensors"
    detector.save(path)
    return detector, path


def noise(rows: int, *, seed: int) -> torch.Tensor:
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("file_format", ["onnx", "torch"])
def test_an_image_model_is_exported_with_its_card(opnp: Opnp, file_format: str, tmp_path: Path) -> None:
    vit = f"hf:{write_vit(tmp_path / 'vit')}"
    detector, path = saved(tmp_path, vit, [noise(40, seed=1)])
    out = tmp_path / ("detector.onnx" if file_format == "onnx" else "detector.pt2")
    given = ("--detector", path, "--model", vit, "--format", file_format, "--out", out)
    facts = json.loads(done(opnp, "export", *given, "--json").out)
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
def test_a_text_model_is_exported_for_texts_of_any_length(opnp: Opnp, tmp_path: Path) -> None:
    name = f"hf:{write_bert(tmp_path / 'bert')}"
    _, transform = model_from_name(name)
    assert transform is not None
    texts = [" ".join(["good", "film", "not", "very", "bad"][: 1 + place % 5]) for place in range(30)]
    batch = transform.batch([transform(text) for text in texts])
    detector, path = saved(tmp_path, name, [batch])
    out = tmp_path / "detector.onnx"
    done(opnp, "export", "--detector", path, "--model", name, "--out", out)
    session = onnxruntime.InferenceSession(out)
    axes = [[dim.dim_param for dim in item.type.tensor_type.shape.dim] for item in onnx.load(out).graph.input]
    assert axes == [["batch", "length"]] * len(axes)
    assert len(axes) > 1
    for some in (texts[:1], texts[:3], texts[4:15]):
        inputs = transform.batch([transform(text) for text in some])
        assert isinstance(inputs, Mapping)
        scores = session.run(["score"], {key: value.numpy() for key, value in inputs.items()})[0]
        np.testing.assert_allclose(scores, detector.score(inputs).numpy(), rtol=1e-5)
