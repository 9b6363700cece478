"""What the page says: verdicts, thresholds, tables, galleries and faults of scores, as plain values."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from opnp.core import fpr_at_tpr
from opnp.errors import DataFileError, EmptyDataError
from opnp.report import read_results, write_report
from opnp.report.content import score_faults
from opnp.report.explorer import KEEPS, fit_explorer, threshold_explorer
from opnp.report.gallery import fitting_galleries, galleries
from opnp.report.results import ReportedModel, models_of_bench, models_of_demo
from opnp.report.tables import methods_table, sets_table, sweep_table
from opnp.report.verdict import auroc_noise, fit_verdict, model_verdict, share_noise
from opnp.values.bench import BenchRecord, DataSource
from opnp.values.figures import DetectionFigures
from opnp.values.fit import TuningFigures
from opnp.values.pictures import BEYOND
from tests.unit.report.report_world import (
    bench_record,
    demo_record,
    first_version_record,
    fit_record,
    fusion_record,
    gallery,
    scores_by_set,
    sweep_record,
    write_scores,
)

SCORES = st.lists(st.sampled_from([-2.0, -1.5, 0.0, 0.25, 3.0, 7.5]), min_size=1, max_size=40)


@given(inside=SCORES, outside=SCORES, keep=st.sampled_from(KEEPS))
def test_the_explorer_counts_what_the_core_measures(inside: list[float], outside: list[float], keep: int) -> None:
    scores = {"Energy": {"test": np.array(inside), "ood_far": np.array(outside)}}
    [method] = threshold_explorer(scores, {"far": "far"}, keeps=[keep]).methods
    id_scores, ood_scores = torch.tensor(inside), torch.tensor(outside)
    assert method.sets[0].missed[0] / len(outside) == fpr_at_tpr(id_scores, ood_scores, tpr=keep / 1000)
    kept_id = Fraction(fpr_at_tpr(id_scores, id_scores, tpr=keep / 1000)).limit_denominator(len(inside))
    assert Fraction(len(inside) - method.flagged[0], len(inside)) == kept_id
    assert sum(score > method.thresholds[0] for score in inside) == method.flagged[0]


def test_the_explorer_needs_id_scores_and_leaves_out_sets_that_a_method_lacks() -> None:
    both, one = np.array([1.0, 2.0]), np.array([3.0])
    explorer = threshold_explorer(
        {"a": {"test": both, "ood_x": one, "ood_y": one}, "b": {"test": both, "ood_y": one}},
        {"x": "near", "y": "far"},
    )
    assert [[each.set for each in method.sets] for method in explorer.methods] == [["y"], ["y"]]
    assert explorer.keeps[explorer.place(0.95)] == 950
    with pytest.raises(EmptyDataError, match="no ID scores"):
        threshold_explorer({"a": {"test": np.array([])}}, {})


def demo_model(
    opnp: tuple[float, float], *, pruned_accuracy: float = 0.99, samples: int | None = None
) -> ReportedModel:
    """Return the demo's model, which goes from 40 % FPR95 and 90 % AUROC on far OOD to these, by so many samples."""
    record = demo_record({})
    rows = [
        replace(
            row,
            settings={"ratios": {"w_min": 0.1}},
            detection={"far": DetectionFigures(fpr95, 0.5, auroc)},
            pruned_accuracy=pruned_accuracy,
            flagged_id=0.05,
        )
        for row, (fpr95, auroc) in zip(record.methods, ((0.4, 0.9), opnp), strict=True)
    ]
    [model] = models_of_demo(replace(record, counts={"test": 253}, methods=tuple(rows)))
    if samples is None:
        return model
    data = {name: DataSource(samples, "") for name in ("test", "ood_far")}
    return replace(model, data=data, id_samples={"test": samples})


@pytest.mark.parametrize(
    ("opnp", "outcome", "words"),
    [
        ((0.3, 0.92), "gain", "OPNP gains against Energy: AUROC 92.0 % instead of 90.0 % (far)."),
        ((0.4, 0.95), "gain", "OPNP gains against Energy: AUROC 95.0 % instead of 90.0 % (far)."),
        ((0.4004, 0.9), "none", "OPNP gains nothing against Energy."),
        (
            (0.3, 0.85),
            "mixed",
            (
                "OPNP gains and loses against Energy: AUROC 85.0 % instead of 90.0 % (far)"
                " and FPR95 30.0 % instead of 40.0 % (far)."
            ),
        ),
        ((0.5, 0.85), "loss", "OPNP loses against Energy: AUROC 85.0 % instead of 90.0 % (far)."),
    ],
)
def test_a_verdict_says_what_is_gained_and_what_is_lost(opnp: tuple[float, float], outcome: str, words: str) -> None:
    verdict = model_verdict(demo_model(opnp))
    assert (verdict.outcome, verdict.sentence) == (outcome, words)
    assert bool(verdict.gains) == (outcome in {"gain", "mixed"})
    assert any(each.startswith("far OOD") for each in verdict.costs) == (outcome in {"loss", "mixed"})


@pytest.mark.parametrize(
    ("after", "outcome", "fpr95", "auroc"),
    [
        ((0.3994, 0.9), "none", "stays at 40.0 % within 0.1 %", "stays at 90.0 %"),  # rounded, it is a tenth less
        ((0.39955, 0.90048), "none", "stays at 40.0 %", "stays at 90.0 %"),
        ((0.3988, 0.9012), "gain", "falls from 40.0 % to 39.9 %", "rises from 90.0 % to 90.1 %"),
    ],
)
def test_differences_below_a_tenth_of_a_per_cent_count_for_nothing(
    after: tuple[float, float], outcome: str, fpr95: str, auroc: str
) -> None:
    verdict = model_verdict(demo_model(after))
    assert verdict.outcome == outcome
    shown = verdict.gains if outcome == "gain" else verdict.unchanged
    assert any(each.startswith(f"far OOD: FPR95 {fpr95}") for each in shown)
    assert any(each.startswith(f"far OOD: AUROC {auroc}") for each in shown)


@given(samples=st.integers(1, 100_000))
def test_what_so_many_samples_show_by_chance_is_no_gain(samples: int) -> None:
    verdict = model_verdict(demo_model((0.38, 0.9), samples=samples))
    is_noise = 2 * (0.39 * 0.61 / samples) ** 0.5 >= 0.02
    assert verdict.outcome == ("none" if is_noise else "gain")
    assert any("(within the noise of" in each for each in verdict.unchanged) == is_noise
    assert any(each.startswith("far OOD: FPR95") for each in (verdict.unchanged if is_noise else verdict.gains))


@given(auroc=st.floats(0.5, 1.0), samples=st.integers(2, 5_000))
def test_the_noise_of_an_auroc_falls_with_the_samples_and_is_that_of_a_share_at_most(
    auroc: float, samples: int
) -> None:
    noise = auroc_noise(auroc, samples, samples)
    assert auroc_noise(auroc, 2 * samples, 2 * samples) <= noise
    assert noise <= 2 * share_noise(auroc, samples) + 1e-9
    assert auroc_noise(auroc, 0, samples) == 0.0


def test_what_stays_is_no_cost() -> None:
    verdict = model_verdict(demo_model((0.3, 0.95), samples=100_000))
    assert verdict.costs == ("5.0 % of ID test inputs are flagged at the calibrated threshold -5",)
    assert "ID accuracy of the head it scores with stays at 99.0 %" in verdict.unchanged


def test_a_verdict_names_the_accuracy_that_the_pruned_head_loses() -> None:
    verdict = model_verdict(demo_model((0.3, 0.92), pruned_accuracy=0.97))
    words = "ID accuracy of the head it scores with"
    assert verdict.costs[0] == f"{words} falls from 99.0 % to 97.0 %"
    assert any(each.startswith(f"{words} stays at 99.0 %") for each in model_verdict(demo_model((0.3, 0.92))).unchanged)


def test_a_real_verdict_names_choice_gain_loss_and_calibration() -> None:
    [model] = models_of_bench(first_version_record())
    verdict = model_verdict(model)
    assert verdict.outcome == "mixed"
    assert verdict.sentence.startswith("OPNP() gains and loses against Energy: AUROC ")
    assert verdict.sentence.endswith(" and AUROC 68.6 % instead of 74.0 % (near).")
    assert verdict.chosen[0] == "OPNP(): SCALE shaping at quantile 0.9, no pruning"
    assert "near OOD: AUROC falls from 74.0 % to 68.6 %" in verdict.costs
    assert "calibration error (ECE) of the head it scores with rises from 13.1 % to 24.0 %" in verdict.costs
    assert verdict.chosen[1] == "chosen without OOD data, by 2000 validation samples, 85 settings tried"


def test_a_verdict_on_a_fusion_names_its_members_and_no_head() -> None:
    [model] = models_of_bench(fusion_record())
    verdict = model_verdict(model)
    assert verdict.sentence.startswith("OPNP() gains and loses against Energy: AUROC ")
    assert verdict.chosen[:2] == (
        "OPNP(): a fusion of gen and vim",
        "the same for every model: nothing is tuned, and no OOD data are used",
    )
    said = (verdict.sentence, *verdict.gains, *verdict.costs, *verdict.unchanged)
    assert not any("head it scores with" in each for each in said)
    assert any(each.startswith("answers come from the original head and keep its ID accuracy") for each in said)


def test_without_a_row_of_opnp_there_is_no_comparison() -> None:
    [first, *_] = models_of_bench(bench_record())
    ours = {"OPNP()", "Energy", "Energy, rest of test", "Energy (pytorch-ood)"}
    alone = replace(first, methods=tuple(row for row in first.methods if row.method != "OPNP()"))
    no_energy = replace(first, methods=tuple(row for row in first.methods if row.method not in ours - {"OPNP()"}))
    assert "MSP" not in model_verdict(alone).sentence
    assert model_verdict(alone).sentence.startswith("No row of opnp as it is used ran")
    assert model_verdict(no_energy).outcome == "unknown"
    assert model_verdict(replace(first, methods=())).outcome == "unknown"


@pytest.mark.parametrize(
    "record", [bench_record(), first_version_record(), fusion_record()], ids=["real", "version 0.1", "fusion"]
)
def test_the_table_of_methods_holds_every_row_and_both_conventions(record: BenchRecord) -> None:
    for model in models_of_bench(record):
        table = methods_table(model)
        assert len(table.rows) == len(model.methods)
        assert {"FPR95, ID positive", "FPR95, OOD positive"} <= {column.title for column in table.columns}
        assert sum(span for _, span in table.groups) == len(table.columns)
        assert table.rows[0].cells[0].text == "OPNP()"
        assert [column.title for column in table.columns[:2]] == ["Method", "AUROC"]
        aurocs = [float(str(row.cells[1].value)) for row in table.rows[1:] if not row.reason]
        assert aurocs == sorted(aurocs, reverse=True)
        for row in table.rows:
            source = model.row(row.cells[0].text)
            assert row.reason == source.reason
            values = [cell.value for cell in row.cells]
            if source.far is not None:
                place = [column.title for column in table.columns].index("FPR95, OOD positive")
                assert values[place] == source.far.fpr95_ood_positive
                assert len(row.cells) == len(table.columns)
        kinds = {row.cells[0].text: row.cells[-2].text for row in table.rows if not row.reason}
        assert {name for name, kind in kinds.items() if kind == "score alone"} == {"MSP", "Energy"}
        alone = {name for name in kinds if name.endswith(" alone")}
        assert {name for name, kind in kinds.items() if kind == "one member"} == alone
        assert kinds["OPNP()"] == "as used"
        assert {row.mark for row in table.rows} == {"", "chosen", "compared with"}
        detections = sum(len(row.detection or {}) for row in model.methods)
        assert len(sets_table(model).rows) == detections


def test_a_sweep_shows_the_best_point_of_each_curve() -> None:
    record = sweep_record()
    model = record.models[0]
    rows = {row.cells[0].text: row for row in sweep_table(record, model).rows}
    assert len(rows) == len(record.curves) + 1
    points = [point for point in model.curve("w_min") if point.mean is not None]
    best = max(points, key=lambda point: point.mean.auroc if point.mean else 0.0)
    assert rows["w_min"].cells[1].text == f"w_min {best.labels(['w_min'])[0]}"
    assert isinstance(best.far, DetectionFigures)
    assert rows["w_min"].cells[2].value == best.far.fpr95
    failed = replace(model, points=tuple(
        replace(point, mean=None, status="failed", reason="why") for point in model.points))  # fmt: skip
    assert {row.reason for row in sweep_table(record, failed).rows} == {"", "why"}


def test_galleries_put_id_first_and_fit_into_their_room() -> None:
    found = galleries([gallery("ood_dtd"), gallery("test")])
    assert [each.title for each in found] == ["ID images that look most OOD", "dtd: OOD images that look most ID"]
    assert [item.verdict for item in found[0].thumbnails[:2]] == ["flagged", "kept"]
    members = found[0].thumbnails[0].members
    assert members is not None
    assert [tuple(cell.text for cell in row.cells) for row in members.rows] == [
        ("vim", "0.01", "75 %"),
        ("gen", "0.02", "25 %"),
    ]
    size = sum(len(item.image) for each in found for item in each.thumbnails)
    assert fitting_galleries([found], most_bytes=size) == [found]
    [cut] = fitting_galleries([found], most_bytes=size // 2)
    assert [(len(each.thumbnails), each.left_out) for each in cut] == [(2, 3), (2, 3)]
    one = gallery("test", 1)
    [beyond] = galleries([replace(one, items=(replace(one.items[0], score=BEYOND),))])
    assert beyond.thumbnails[0].texts[0] == "score infinite"
    [none] = fitting_galleries([found], most_bytes=0)
    assert [(len(each.thumbnails), each.left_out) for each in none] == [(0, 5), (0, 5)]


@pytest.mark.parametrize(
    "image",
    [
        "https://example.org/a.png",
        "data:image/svg+xml;base64,aGk=",
        "data:text/html;base64,aGk=",
        'data:image/png;base64,"',
    ],
)
def test_only_pictures_without_script_are_shown(image: str) -> None:
    bad = gallery("test")
    with pytest.raises(DataFileError, match="is no image as a data URI"):
        galleries([replace(bad, items=(replace(bad.items[0], image=image),))])


def test_a_fit_without_ood_data_says_so() -> None:
    record = fit_record()
    verdict = fit_verdict(record)
    assert verdict.sentence == (
        "The detector flags inputs that score above 3; without OOD data, what it gains is not known."
    )
    assert verdict.chosen[0] == "a fusion of gen and vim"
    assert verdict.chosen[2] == "threshold calibrated by 4 held-out scores to keep 75 % of ID"
    assert (verdict.title, verdict.gains) == ("No OOD data", ())
    assert verdict.costs == ("20.0 % of ID inputs are flagged, in expectation", "vim is left out: it has no room")
    assert verdict.chosen[1] == "the same for every model: nothing is tuned, and no OOD data are used"
    explorer = fit_explorer(record)
    assert explorer is not None
    assert explorer.methods[0].flagged[explorer.place(0.75)] == 1
    by_class = replace(record, threshold=None, expected_flagged=None, calibrated_by="predicted")
    assert "that score above the threshold of their predicted class; without" in fit_verdict(by_class).sentence
    assert fit_explorer(by_class) is None
    bare = replace(record, left_out={}, keep=None, threshold=None, expected_flagged=None, calibration_scores=())
    assert fit_explorer(bare) is None
    assert (fit_verdict(bare).gains, fit_verdict(bare).costs) == ((), ())


@pytest.mark.parametrize(
    ("auroc", "place", "words"),
    [
        (0.9, "gains", "rises from 80.0 % to 90.0 %"),
        (0.7, "costs", "falls from 80.0 % to 70.0 %"),
        (0.8004, "unchanged", "stays at 80.0 %"),
    ],
)
def test_a_fit_with_tuned_ratios_says_what_they_gained_where_they_were_not_searched(
    auroc: float, place: str, words: str
) -> None:
    settings = {"ratios": {"w_min": 0.3}, "shaping": None}
    tuning = TuningFigures(85, (100, 40), (100, 40), auroc, 0.8)
    record = replace(fit_record(), settings=settings, left_out={}, tuning=tuning, keep=None, expected_flagged=None)
    verdict = fit_verdict(record)
    assert verdict.title == "Chosen on OOD data"
    assert verdict.sentence == (
        "The detector is not calibrated, so it flags nothing; what it gains on other OOD data than its ratios were "
        "chosen on is not known."
    )
    assert verdict.chosen[0] == "pruning rho_w_min 0.3, no shaping"
    assert verdict.chosen[1] == "ratios chosen on OOD validation data"
    found = {
        name: [each for each in getattr(verdict, name) if "AUROC" in each] for name in ("gains", "costs", "unchanged")
    }
    text = f"against the plain energy, AUROC on OOD validation samples that were not searched {words}"
    assert found == {name: [text] if name == place else [] for name in found}


def test_the_fusion_is_compared_with_the_best_published_single_score() -> None:
    for model in (*models_of_bench(fusion_record()), *models_of_bench(bench_record())):
        regrets = {row.method: regret for row in model.methods if (regret := model.regret(row)) is not None}
        verdict, lost = model_verdict(model), 100 * regrets["OPNP()"]
        said = [each for each in verdict.costs + verdict.unchanged if "published single scores" in each]
        assert [each in verdict.costs for each in said] == [lost > 0]
        assert (f"{lost:.2f} points below" if lost else "no less than") in said[0]
        assert f", {model.best_single.method if model.best_single else ''}, chosen with hindsight" in said[0]
        table = methods_table(model)
        place = [column.title for column in table.columns].index("Regret")
        assert {row.cells[0].text: row.cells[place].value for row in table.rows if not row.reason} == regrets


def folder_with(
    folder: Path, *, without: tuple[tuple[str, str], ...] = (), stale: tuple[tuple[str, str], ...] = ()
) -> Path:
    """Return a folder whose record is that of its scores, but for sets that are left out and sets that are stale."""
    record = demo_record(scores_by_set())
    rows, written = [], {}
    for seed, row in enumerate(record.methods):
        scores = scores_by_set(seed)
        threshold = np.sort(scores["test"])[285 - 1]  # 95 % of 300
        detection = {}
        for name in ("ood_far", "ood_near"):
            off = 1 / len(scores[name]) if (row.method, name) in stale else 0.0
            fpr95 = float(np.mean(scores[name] <= threshold)) + off
            detection[name.removeprefix("ood_")] = DetectionFigures(fpr95, 0.5, 0.9)
        written["demo", row.method] = {
            name: values for name, values in scores.items() if (row.method, name) not in without
        }
        rows.append(replace(row, detection=detection))
    folder.mkdir()
    (folder / "results.json").write_text(replace(record, methods=tuple(rows)).to_json(), encoding="utf-8")
    write_scores(folder / "scores.csv", written)
    return folder


def faults(folder: Path) -> tuple[str, ...]:
    results = read_results(folder)
    return score_faults(results, results.models[0])


@pytest.mark.parametrize("method", ["Energy", "OPNP"])
@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["ood_far"], "far for"),
        (["test"], "scores of ID samples of"),
        (["test", "ood_far", "ood_near"], "any scores of"),
    ],
)
def test_missing_sets_and_methods_are_named(tmp_path: Path, method: str, sets: list[str], words: str) -> None:
    [fault] = faults(folder_with(tmp_path / "results", without=tuple((method, name) for name in sets)))
    assert fault.startswith(f"The file of scores lacks {words} {method}: ")


def test_one_sample_s_difference_to_the_record_is_stale_and_the_page_says_so(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "results", stale=(("OPNP", "ood_near"), ("Energy", "ood_far")))
    [fault] = faults(folder)
    assert "FPR95 differs for OPNP on near and Energy on far." in fault
    page = write_report(folder, tmp_path / "report.html").read_text(encoding="utf-8")
    assert f'<p class="notice fault">{fault}</p>' in page


def test_scores_of_the_record_have_no_faults_nor_have_none(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "results")
    assert faults(folder) == ()
    (folder / "scores.csv").unlink()
    assert faults(folder) == ()
