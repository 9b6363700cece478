"""The benchmark on the real features: its rows are those of REFERENCE.md, and it gives the same bytes twice."""

from pathlib import Path

import pytest

from opnp.bench import run_bench
from opnp.values.bench import BenchRecord
from tests.made_once import made_once
from tests.real.locations import DATA, needs_data
from tests.real.test_reference_figures import Row, _rows, models_of

pytestmark = [pytest.mark.real, pytest.mark.slow, needs_data]

_CIFAR10 = DATA / "features" / "densenet_cifar10"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> BenchRecord:
    features = models_of(_rows(), tmp_path_factory.mktemp("features"))

    def run(out: Path) -> None:
        run_bench(features, out, methods=("reference", "dice"), near=("cifar10", "cifar100"))

    folder = made_once(tmp_path_factory, "real_bench", run)
    return BenchRecord.from_json((folder / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", _rows(), ids=str)
def test_row(record: BenchRecord, row: Row) -> None:
    model = next(model for model in record.models if model.model == row.model)
    ours = model.row(row.method)
    assert ours.detection is not None
    assert ours.mean is not None
    assert ours.after is not None
    assert set(ours.detection) == row.figures.keys() - {"accuracy", "mean"}
    for name, figures in {**ours.detection, "mean": ours.mean}.items():
        assert (100 * figures.fpr95, 100 * figures.auroc) == pytest.approx(row.figures[name], abs=0.05, rel=0), name
    assert 100 * ours.after.accuracy == pytest.approx(row.figures["accuracy"][0], abs=0.05, rel=0)


def test_the_product_beside_the_energy_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    one, other = (run_bench(_CIFAR10, tmp_path / name, methods=("product",)) for name in ("one", "other"))
    assert one.to_json() == other.to_json()
    assert (tmp_path / "one" / "results.json").read_text(encoding="utf-8") == one.to_json() + "\n"
    (model,) = one.models
    assert {row.split for row in model.methods} == {"rest"}
    assert len({row.before for row in model.methods}) == 1
    means = {row.method: row.mean.auroc for row in model.methods if row.mean is not None}
    assert means["OPNP()"] > means["Energy, rest of test"]


def test_near_sets_are_other_classes_of_cifar(record: BenchRecord) -> None:
    near = {name for model in record.models for name, value in model.nearness.items() if value == "near"}
    assert near == {"cifar10", "cifar100"}


def test_validation_takes_2000_samples_or_30_percent(record: BenchRecord) -> None:
    for model in record.models:
        share = 0.3 * model.id_samples["test"]
        half = 10 ** (len(str(int(share))) - 1) / 2  # to one digit
        assert model.validation_samples == (2000 if share > 2000 else pytest.approx(share, abs=half))
        assert model.id_samples["rest"] + model.validation_samples == model.id_samples["test"]
