"""The sweep on the real features: its points are the rows of REFERENCE.md, and they change from setting to setting."""

from pathlib import Path

import pytest

from opnp import Ratios
from opnp.bench import run_sweep
from opnp.values.sweep import SweepPoint, SweepRecord
from tests.made_once import made_once
from tests.real.locations import needs_data
from tests.real.test_reference_figures import Row, _options, _ours, models_of

pytestmark = [pytest.mark.real, pytest.mark.slow, needs_data]

_CURVES = ("parts", "w_min", "w_max", "o_min", "o_min-aggregate", "o_max-aggregate", "scores-unpruned")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> SweepRecord:
    base = Ratios(w_min=0.7, w_max=0.001, o_min=0.3, o_max=0.003)
    features = models_of(_ours(), tmp_path_factory.mktemp("features"))

    def run(out: Path) -> None:
        run_sweep(features, out, curves=_CURVES, base=base, near=("cifar10", "cifar100"))

    folder = made_once(tmp_path_factory, "real_sweep", run)
    return SweepRecord.from_json((folder / "sweep.json").read_text(encoding="utf-8"))


def _point(record: SweepRecord, row: Row) -> SweepPoint:
    """Return the point at the settings of a row."""
    options = _options(row.method)
    model = next(model for model in record.models if model.model == row.model)
    for point in model.points:
        settings = point.settings
        ratios = Ratios(settings.w_min, settings.w_max, settings.o_min, settings.o_max)
        is_read_alike = settings.neuron == options.neuron or ratios.o_min == ratios.o_max == 0
        if ratios == options.ratios and settings.score == options.score and is_read_alike:
            return point
    message = f"no curve has the settings of {row}"
    raise LookupError(message)


@pytest.mark.parametrize("row", _ours(), ids=str)
def test_row(record: SweepRecord, row: Row) -> None:
    point = _point(record, row)
    assert point.status == "ok"
    assert point.detection is not None
    assert point.mean is not None
    assert point.head is not None
    assert set(point.detection) == row.figures.keys() - {"accuracy", "mean"}
    for name, figures in {**point.detection, "mean": point.mean}.items():
        assert (100 * figures.fpr95, 100 * figures.auroc) == pytest.approx(row.figures[name], abs=0.05, rel=0), name
    assert 100 * point.head.accuracy == pytest.approx(row.figures["accuracy"][0], abs=0.05, rel=0)


def test_every_step_of_a_ratio_removes_something_else(record: SweepRecord) -> None:
    for model in record.models:
        for curve in ("w_min", "w_max", "o_min", "o_min-aggregate", "o_max-aggregate"):
            points, name = model.curve(curve), curve.partition("-")[0]
            entries = model.features * (model.classes if name.startswith("w") else 1)
            counts = {round(float(point.varied[name]) * entries) for point in points}
            assert len({point.mask_digest for point in points}) == len(counts), (model.model, curve)
            assert len(counts) == len(points)
            removed = [point.removed_share or 0.0 for point in points]
            assert removed == sorted(removed), (model.model, curve)


def test_means_go_by_nearness(record: SweepRecord) -> None:
    for model in record.models:
        near = {name for name, value in model.nearness.items() if value == "near"}
        assert near == {"cifar10", "cifar100"} & set(model.nearness)
        for point in model.points:
            assert (point.near is None) == (not near)
            assert point.far is not None
