"""The tables of a sweep: one a curve, the energy first, draws with their spread; and those of a benchmark."""

import pytest
from msgspec.structs import replace

from opnp.bench import leaderboard_csv, results_markdown, sweep_markdown
from opnp.errors import DataFileError
from opnp.values.bench import BenchRecord, DataSource, Group, MethodRow, ModelResult, PublishedFigures
from opnp.values.figures import DetectionFigures, HeadFigures
from opnp.values.sweep import SweepBase, SweepCurve, SweepPoint, SweepRecord, SweepSettings, SweptModel

SETTINGS = SweepSettings(0.0, 0.0, 0.0, 0.0, "layer", "gradient", 1.0, "energy", 500, None)
CURVES = {
    "w_min": SweepCurve("w_min", "ratios", "Only rho_w_min", ("w_min",)),
    "w_min-o_min": SweepCurve("w_min-o_min", "pairs", "Both", ("w_min", "o_min")),
    "samples": SweepCurve("samples", "samples", "Random samples", ("training_samples",)),
}


def figures(fpr95: float, auroc: float) -> DetectionFigures:
    return DetectionFigures(fpr95, 0.0, auroc, 0.0, 0.0)


def point(
    curve: str, varied: dict[str, float | int | str], *, auroc: float, mask: str = "", **settings: object
) -> SweepPoint:
    values = {name: value for name, value in varied.items() if name != "training_samples"}
    return SweepPoint(
        curve=curve,
        varied=varied,
        settings=replace(SETTINGS, **values, **settings),
        status="ok",
        removed_share=0.25,
        mask_digest=mask or f"{curve} {varied}",
        mean=figures(0.5, auroc),
        far=figures(0.5, auroc),
        near=figures(0.6, auroc - 0.1),
        head=HeadFigures(0.75, 0.125),
    )


ENERGY = replace(point("", {}, auroc=0.8), removed_share=0.0)


def markdown(*points: SweepPoint, energy: SweepPoint = ENERGY) -> list[str]:
    model = SweptModel(
        model="net",
        classes=10,
        features=64,
        data={name: DataSource(100, "00ff") for name in ("train", "test", "ood_mnist", "ood_cifar10")},
        nearness={"mnist": "far", "cifar10": "near"},
        energy=energy,
        points=points,
    )
    record = SweepRecord(
        seed=3,
        base=SweepBase(0.3, 0.0, 0.1, 0.0, "layer", "gradient"),
        calibration_bins=15,
        versions={"torch": "2", "opnp": "1"},
        curves=tuple(CURVES[name] for name in dict.fromkeys(each.curve for each in points)),
        models=(model,),
    )
    return sweep_markdown(record).splitlines()


def test_the_energy_stands_first_and_the_best_is_bold() -> None:
    lines = markdown(*(point("w_min", {"w_min": value}, auroc=auroc) for value, auroc in ((0.3, 0.9), (0.9, 0.7))))
    start = lines.index("### w_min")
    assert lines[start : start + 8] == [
        "### w_min",
        "",
        "Only rho_w_min.",
        "",
        "| w_min | far FPR95 | far AUROC | near FPR95 | near AUROC | accuracy | ECE | removed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| Energy (original head) | 50.00 | 80.00 | 60.00 | 70.00 | 75.00 | 12.50 | 0.00 |",
        "| 0.3 | 50.00 | **90.00** | 60.00 | **80.00** | 75.00 | 12.50 | 25.00 |",
    ]
    assert (
        "Base: w_min 0.3, w_max 0.0, o_min 0.1, o_max 0.0, scope layer, neuron gradient. Seed 3; opnp 1, torch 2."
        in lines
    )
    assert "OOD sets, far: mnist; near: cifar10." in lines


def test_a_point_that_is_the_energy_is_not_shown_twice() -> None:
    lines = markdown(point("w_min", {"w_min": 0.0}, auroc=0.8), point("w_min", {"w_min": 0.1}, auroc=0.8))
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == [
        "| w_min",
        "| ---",
        "| Energy (original head)",
        "| 0.1",
    ]


def test_draws_are_one_row_with_their_spread() -> None:
    drawn = [point("samples", {"training_samples": 100}, auroc=auroc, w_min=0.3) for auroc in (0.7, 0.9)]
    lines = markdown(*drawn, point("samples", {"training_samples": 500}, auroc=0.85, w_min=0.3))
    row = next(line for line in lines if line.startswith("| 100"))
    # The deviation of 70 and 90 is sqrt(200).
    assert row.startswith("| 100 (2 draws) | 50.00 ± 0.00 | 80.00 ± 14.14 | 60.00 ± 0.00 | 70.00 ± 14.14 |")
    assert next(line for line in lines if line.startswith("| 500")).startswith("| 500 | 50.00 | **85.00** |")


def test_a_grid_has_two_columns_of_values() -> None:
    lines = markdown(point("w_min-o_min", {"w_min": 0.1, "o_min": 0.5}, auroc=0.8))
    assert lines[-4].startswith("| w_min | o_min | far FPR95 |")
    assert lines[-3].startswith("| --- | --- | ---: |")
    assert lines[-2].startswith("| Energy (original head) |  | 50.00 |")
    assert lines[-1].startswith("| 0.1 | 0.5 | 50.00 |")


def test_what_did_not_run_was_warned_of_or_changed_nothing_is_said_below() -> None:
    points = (
        point("w_min", {"w_min": 0.1}, auroc=0.8, mask="same"),
        point("w_min", {"w_min": 0.11}, auroc=0.8, mask="same"),
        replace(point("w_min", {"w_min": 0.2}, auroc=0.8), notes=("too\nlittle",)),
        replace(point("w_min", {"w_min": 0.9}, auroc=0.8), status="failed", reason="nothing\nis left", far=None),
    )
    lines = markdown(*points)
    assert lines[-4:] == [
        "",
        "- w_min 0.11: the same entries are removed as at 0.1.",
        "- w_min 0.2: too little",
        "- w_min 0.9 did not run: nothing is left",
    ]
    assert not any(line.startswith("| 0.9") for line in lines)


def test_equal_masks_are_no_remark_where_no_ratio_varies() -> None:
    drawn = [point("samples", {"training_samples": size}, auroc=0.8, mask="same", w_min=0.3) for size in (100, 500)]
    assert not any(line.startswith("- ") for line in markdown(*drawn))


def test_a_side_without_sets_and_answers_without_labels_have_no_column() -> None:
    energy, other = (
        replace(each, near=None, head=None) for each in (ENERGY, point("w_min", {"w_min": 0.1}, auroc=0.9))
    )
    lines = markdown(other, energy=energy)
    assert "| w_min | far FPR95 | far AUROC | removed |" in lines
    assert lines[-1] == "| 0.1 | 50.00 | **90.00** | 25.00 |"


def row(method: str, group: Group, auroc: float) -> MethodRow:
    each = figures(1 - auroc, auroc)
    return MethodRow(method, group, "", "", {}, "test", status="ok", detection={"mnist": each}, mean=each, far=each)


def judged(name: str = "net", *, published: tuple[PublishedFigures, ...] = (), **aurocs: float) -> ModelResult:
    given: dict[str, tuple[Group, float]] = {
        "Energy": ("reference", 0.7),
        "fDBD": ("baseline", 0.85),
        "GEN": ("baseline", 0.9),
        "OPNP()": ("product", 0.875),
    }
    rows = tuple(row(method, group, aurocs.get(method, auroc)) for method, (group, auroc) in given.items())
    failed = MethodRow("SHE", "baseline", "", "", {}, "test", status="failed", reason="no\nlabels")
    return ModelResult(
        model=name,
        classes=10,
        features=64,
        data={name: DataSource(100, "00ff") for name in ("train", "test", "ood_mnist")},
        nearness={"mnist": "far"},
        id_samples={"test": 100, "rest": 70},
        validation_samples=30,
        methods=(*rows, failed),
        published=published,
    )


def test_several_models_begin_with_their_regrets_and_one_with_what_others_published() -> None:
    published = (
        PublishedFigures(method="EBO", source="Liu et al.", fpr95=0.25, auroc=0.9, row="Energy"),
        PublishedFigures(method="ASH-B", source="others", fpr95=0.2),
    )
    one = BenchRecord(3, 15, {"opnp": "1", "torch": "2"}, (judged(published=published),), remark="Stand-ins.")
    two = BenchRecord(3, 15, {"opnp": "2", "torch": "2"}, (judged("other", GEN=0.6, fDBD=0.95),))
    joined = BenchRecord.joined([one, two])
    assert joined.versions == {"opnp": "1 and 2", "torch": "2"}
    assert BenchRecord.from_json(joined.to_json()) == joined
    lines = results_markdown(joined).splitlines()
    assert "**Stand-ins.**" in lines
    start = lines.index("## Regret over 2 models")
    assert lines[start + 4 : start + 8] == [
        "| fDBD | 2.50 | 5.00 |",
        "| OPNP() | 5.00 | 7.50 |",
        "| GEN | 17.50 | 35.00 |",
        "| Energy | 22.50 | 25.00 |",
    ]
    start = lines.index("### Published figures")
    assert lines[start + 6 : start + 8] == [
        "| EBO | 25.00 / 90.00 | Energy | 30.00 / 70.00 | Liu et al. |",
        "| ASH-B | 20.00 / - |  |  | others |",
    ]
    assert not any(line.startswith("## Regret") for line in results_markdown(one).splitlines())
    with pytest.raises(DataFileError, match="different models, got 'net' twice"):
        BenchRecord.joined([one, one])
    with pytest.raises(DataFileError, match="the same seed, got 3 and 4"):
        BenchRecord.joined([one, replace(two, seed=4)])


def test_a_leaderboard_has_the_columns_and_digits_of_openood() -> None:
    lines = leaderboard_csv(BenchRecord(3, 15, {"opnp": "0.2.0"}, (judged(GEN=0.98765),))).splitlines()
    assert lines[0] == (
        "Training,Postprocessor,Near-OOD_AUROC,Far-OOD_AUROC,ID_Accuracy,Outlier_Data,Arch,Additional_Description"
    )
    assert lines[1:3] == [
        "/,GEN,/,98.77,/,No,net,opnp 0.2.0; far: mnist",
        "/,OPNP(),/,87.50,/,No,net,opnp 0.2.0; far: mnist",
    ]
    assert len(lines) == 5


def test_rows_of_a_benchmark_stand_best_first_with_their_regret() -> None:
    lines = results_markdown(BenchRecord(3, 15, {"opnp": "1"}, (judged(),))).splitlines()
    start = lines.index("### All OOD sets")
    assert lines[start + 2 : start + 10] == [
        "The best published single score here is GEN.",
        "",
        "| method | AUROC | regret |",
        "| --- | ---: | ---: |",
        "| GEN | 90.00 | 0.00 |",
        "| OPNP() | 87.50 | 2.50 |",
        "| fDBD | 85.00 | 5.00 |",
        "| Energy | 70.00 | 20.00 |",
    ]
    start = lines.index("Baselines at published settings:")
    assert lines[start + 2 : start + 6] == [
        "| method | mnist |",
        "| --- | ---: |",
        "| GEN | **10.00** / **90.00** |",
        "| fDBD | 15.00 / 85.00 |",
    ]
    assert lines[lines.index("### Did not run") + 2] == "- SHE: no labels"
    assert "### Near OOD" not in lines
