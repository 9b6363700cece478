"""The figures of REFERENCE.md, of an independent float64 implementation, by the detector, a benchmark and a sweep."""

import re
from collections.abc import Mapping
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
from opnp.bench import read_protocol, run_bench, run_sweep
from opnp.bench.methods import available_methods, chosen_methods
from opnp.core import NeuronReading, ScoreName
from opnp.values.bench import BenchRecord
from opnp.values.figures import DetectionFigures
from opnp.values.sweep import SweepPoint, SweepRecord, SweptModel
from tests.made_once import made_once
from tests.real.locations import DATA, needs_data
from tests.tried import Tried

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


NEAR = {"densenet_cifar10": ["cifar100"], "densenet_cifar100": ["cifar10"]}
CURVES = ("parts", "w_min", "w_max", "o_min", "o_min-aggregate", "o_max-aggregate", "scores-unpruned")


def rows_of(rows: list[Row], *, quick: str) -> pytest.MarkDecorator:
    """Run a test for rows; of other models than the quick one in ``make test-long`` alone."""
    return pytest.mark.parametrize(
        "row", [pytest.param(row, marks=_long(row.model != quick), id=str(row)) for row in rows]
    )


def models_of(quick: str) -> pytest.MarkDecorator:
    """Run a test for all models; for others than the quick one in ``make test-long`` alone."""
    return pytest.mark.parametrize("model", [pytest.param(each, marks=_long(each != quick)) for each in _sections()])


def _long(is_long: bool) -> list[pytest.MarkDecorator]:
    return [pytest.mark.long] if is_long else []


def require_figures(row: Row, found: Mapping[str, DetectionFigures], mean: DetectionFigures | None) -> None:
    assert mean is not None
    assert set(found) == row.figures.keys() - {"accuracy", "mean"}
    for name, figures in {**found, "mean": mean}.items():
        assert (100 * figures.fpr95, 100 * figures.auroc) == pytest.approx(row.figures[name], abs=0.05, rel=0), name


def benchmark(factory: pytest.TempPathFactory, model: str) -> BenchRecord:
    def run(out: Path) -> None:
        run_bench(DATA / "features" / model, out, methods=("reference", "dice"), near=NEAR.get(model, []))

    folder = made_once(factory, f"real_bench_{model}", run)
    return BenchRecord.from_json((folder / "results.json").read_text(encoding="utf-8"))


def sweep(factory: pytest.TempPathFactory, model: str) -> SweptModel:
    def run(out: Path) -> None:
        base = Ratios(w_min=0.7, w_max=0.001, o_min=0.3, o_max=0.003)
        run_sweep(DATA / "features" / model, out, curves=CURVES, base=base, near=NEAR.get(model, []))

    folder = made_once(factory, f"real_sweep_{model}", run)
    (found,) = SweepRecord.from_json((folder / "sweep.json").read_text(encoding="utf-8")).models
    return found


@pytest.mark.parametrize("model", _sections())
def test_the_rows_of_the_reference_are_rows_of_the_papers_protocol(model: str) -> None:
    classes, features = _head(model)["weight"].shape
    there = available_methods(classes=classes, features=features, samples=len(_features(model, "train")))
    chosen = {method.name for method in chosen_methods(there, read_protocol("paper").methods)}
    assert {row.method for row in _rows() if row.model == model} <= chosen


@pytest.mark.slow
@rows_of(_rows(), quick="densenet_cifar10")
def test_row_of_a_benchmark(tmp_path_factory: pytest.TempPathFactory, row: Row, tried: Tried) -> None:
    tried("numerics", "figures of an independent implementation, met within 0.05 points")
    (model,) = benchmark(tmp_path_factory, row.model).models
    ours = model.row(row.method)
    assert ours.detection is not None
    assert ours.after is not None
    require_figures(row, ours.detection, ours.mean)
    assert 100 * ours.after.accuracy == pytest.approx(row.figures["accuracy"][0], abs=0.05, rel=0)


@pytest.mark.slow
@models_of("densenet_cifar10")
def test_a_benchmark_goes_by_nearness_and_leaves_2000_samples_or_30_percent_to_validation(
    tmp_path_factory: pytest.TempPathFactory, model: str, tried: Tried
) -> None:
    tried("numerics", "benchmarks and sweeps of real models")
    (found,) = benchmark(tmp_path_factory, model).models
    assert found.sets("near") == NEAR.get(model, [])
    share = 0.3 * found.id_samples["test"]
    half = 10 ** (len(str(int(share))) - 1) / 2  # to one digit
    assert found.validation_samples == (2000 if share > 2000 else pytest.approx(share, abs=half))
    assert found.id_samples["rest"] + found.validation_samples == found.id_samples["test"]


@pytest.mark.slow
def test_the_product_beside_the_energy_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    folder = DATA / "features" / "densenet_cifar10"
    one, other = (run_bench(folder, tmp_path / name, methods=("opnp",)) for name in ("one", "other"))
    assert one.to_json() == other.to_json()
    assert (tmp_path / "one" / "results.json").read_text(encoding="utf-8") == one.to_json() + "\n"
    (model,) = one.models
    assert {row.split for row in model.methods} == {"rest"}
    assert len({row.before for row in model.methods}) == 1
    means = {row.method: row.mean.auroc for row in model.methods if row.mean is not None}
    assert means["OPNP()"] > means["Energy, rest of test"]


def point_of(model: SweptModel, row: Row) -> SweepPoint:
    """Return the point at the settings of a row."""
    options = _options(row.method)
    for point in model.points:
        settings = point.settings
        ratios = Ratios(settings.w_min, settings.w_max, settings.o_min, settings.o_max)
        is_read_alike = settings.neuron == options.neuron or ratios.o_min == ratios.o_max == 0
        if ratios == options.ratios and settings.score == options.score and is_read_alike:
            return point
    message = f"no curve has the settings of {row}"
    raise LookupError(message)


@pytest.mark.slow
@rows_of(_ours(), quick="densenet_cifar100")
def test_row_of_a_sweep(tmp_path_factory: pytest.TempPathFactory, row: Row, tried: Tried) -> None:
    tried("numerics", "figures of an independent implementation, met within 0.05 points")
    point = point_of(sweep(tmp_path_factory, row.model), row)
    assert point.status == "ok"
    assert point.detection is not None
    assert point.head is not None
    require_figures(row, point.detection, point.mean)
    assert 100 * point.head.accuracy == pytest.approx(row.figures["accuracy"][0], abs=0.05, rel=0)


@pytest.mark.slow
@models_of("densenet_cifar100")
def test_every_step_of_a_ratio_removes_something_else(
    tmp_path_factory: pytest.TempPathFactory, model: str, tried: Tried
) -> None:
    tried("numerics", "benchmarks and sweeps of real models")
    found = sweep(tmp_path_factory, model)
    for curve in ("w_min", "w_max", "o_min", "o_min-aggregate", "o_max-aggregate"):
        points, name = found.curve(curve), curve.partition("-")[0]
        entries = found.features * (found.classes if name.startswith("w") else 1)
        counts = {round(float(point.varied[name]) * entries) for point in points}
        assert len({point.mask_digest for point in points}) == len(counts), curve
        assert len(counts) == len(points)
        removed = [point.removed_share or 0.0 for point in points]
        assert removed == sorted(removed), curve
    for point in found.points:
        assert (point.near is None) == (not NEAR.get(model))
        assert point.far is not None
