"""The figures of REFERENCE.md, which an independent float64 implementation gave, through the public interface."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear

from opnp import OPNP, Ratios, accuracy, auroc, fpr_at_tpr
from opnp.core import NeuronReading, ScoreName
from tests.real.locations import DATA, needs_data

pytestmark = [pytest.mark.real, needs_data]

_SENSITIVITY = re.compile(
    r"mean (\S+), max (\S+); neuron gradient mean (\S+), max (\S+); neuron aggregate mean (\S+), max (\S+?)\.?$"
)


@dataclass(frozen=True)
class Row:
    """One row of a table: figures in percent by column, a single one or a pair (FPR95, AUROC)."""

    model: str
    method: str
    figures: dict[str, tuple[float, ...]]

    def __str__(self) -> str:
        return f"{self.model}: {self.method}"


@dataclass(frozen=True)
class Options:
    """What a method of the tables is in terms of the detector."""

    ratios: Ratios
    neuron: NeuronReading = "gradient"
    score: ScoreName = "energy"


@cache
def _text() -> str:
    path = DATA / "REFERENCE.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _sections() -> dict[str, str]:
    parts = re.split(r"^## (\S+)$", _text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _rows() -> list[Row]:
    rows = []
    for model, section in _sections().items():
        lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
        columns, body = lines[0], lines[2:]
        for method, *cells in body:
            figures = (tuple(float(part) for part in cell.split("/")) for cell in cells)
            rows.append(Row(model, method, dict(zip(columns[1:], figures, strict=True))))
    return rows


def models_of(rows: list[Row], folder: Path) -> Path:
    """Return a folder with links to the features of the models that rows are about."""
    for name in sorted({row.model for row in rows}):
        (folder / name).symlink_to(DATA / "features" / name)
    return folder


def _ours() -> list[Row]:
    return [row for row in _rows() if not row.method.startswith("DICE")]


def _options(method: str) -> Options:
    """Return what a row's name says; an unknown name is an error, so that no row is passed over."""
    name, *words = method.split()
    reading: Literal["gradient", "aggregate"] = "aggregate" if "aggregate" in words else "gradient"
    if name in ("MSP", "Energy") and not words:
        return Options(Ratios(), score="msp" if name == "MSP" else "energy")
    if name == "OPNP":
        return Options(Ratios(*(float(part) for part in words[-1].split("/"))), neuron=reading)
    if name in ("OPP", "ONP"):
        ratio, value = words[-1].removeprefix("rho_").split("=")
        return Options(Ratios(**{ratio: float(value)}), neuron=reading)
    message = f"REFERENCE.md has a row that this test does not know: {method}"
    raise ValueError(message)


@cache
def _features(model: str, name: str) -> Tensor:
    return load_file(DATA / "features" / model / f"{name}.safetensors")["features"]


@cache
def _head(model: str) -> dict[str, Tensor]:
    return load_file(DATA / "features" / model / "head.safetensors")


@cache
def _fitted(model: str, score: ScoreName) -> OPNP:
    detector = OPNP(ratios=Ratios(), score=score, precision="float64")
    head = _head(model)
    return detector.fit_features(_features(model, "train"), weight=head["weight"], bias=head["bias"])


@pytest.mark.parametrize("row", _ours(), ids=str)
def test_row(row: Row) -> None:
    options = _options(row.method)
    detector = _fitted(row.model, options.score).with_ratios(options.ratios, neuron=options.neuron)
    inside = detector.score_features(_features(row.model, "test"))
    pairs = []
    for name in row.figures.keys() - {"accuracy", "mean"}:
        outside = detector.score_features(_features(row.model, f"ood_{name}"))
        pair = 100 * fpr_at_tpr(inside, outside), 100 * auroc(inside, outside)
        assert pair == pytest.approx(row.figures[name], abs=0.05, rel=0), name
        pairs.append(pair)
    means = tuple(sum(values) / len(values) for values in zip(*pairs, strict=True))
    assert means == pytest.approx(row.figures["mean"], abs=0.05, rel=0)

    head = detector.pruned_head
    labels = load_file(DATA / "features" / row.model / "test.safetensors")["labels"]
    logits = linear(_features(row.model, "test").double(), head.weight.double(), head.bias.double())
    assert 100 * accuracy(logits, labels) == pytest.approx(row.figures["accuracy"][0], abs=0.05, rel=0)


@pytest.mark.parametrize("model", _sections())
def test_sensitivity(model: str) -> None:
    found = next(filter(None, map(_SENSITIVITY.search, _sections()[model].splitlines())))
    sensitivity = _fitted(model, "energy").sensitivity
    tensors = sensitivity.weight, sensitivity.neuron("gradient"), sensitivity.neuron("aggregate")
    ours = [float(value) for tensor in tensors for value in (tensor.mean(), tensor.max())]
    assert ours == pytest.approx([float(figure) for figure in found.groups()], rel=1e-5, abs=0)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def test_every_model_has_its_rows() -> None:
    models = {folder.name for folder in (DATA / "features").iterdir() if (folder / "head.safetensors").is_file()}
    assert {"densenet_cifar10", "densenet_cifar100", "mobilenet_v2_imagenet"} == set(_sections()) <= models
    methods = {model: [row.method for row in _ours() if row.model == model] for model in _sections()}
    assert len({tuple(found) for found in methods.values()}) == 1
    kinds = {found.split()[0] for found in methods[min(methods)]}
    assert kinds == {"MSP", "Energy", "OPP", "ONP", "OPNP"}
