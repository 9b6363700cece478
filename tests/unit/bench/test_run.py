"""What comes of the methods on one model: figures, rows that fail, notes, times."""

import mmap
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from opnp import (
    OPNP,
    PANEL,
    Ratios,
    accuracy,
    aupr,
    auroc,
    energy_score,
    fpr_at_tpr,
)
from opnp.adapters import PytorchOodBaseline
from opnp.bench.features import IdSplit, ModelData, split_test
from opnp.bench.figures import classifier_figures, detection_figures
from opnp.bench.methods import FittedMethod, Method, Part, available_methods, chosen_methods
from opnp.bench.run import ModelRun, measured, run_bench
from opnp.core import NeuronReading, expected_calibration_error, gen_score
from opnp.data import FeatureSet
from opnp.errors import CalibrationError, EmptyDataError, OpnpWarning
from opnp.values.bench import TUNED, MethodRow
from opnp.values.pictures import GallerySet
from tests.unit.bench.bench_world import read_world, world_features, write_world

METHODS = {each.name: each for each in available_methods(classes=4, features=16, samples=240)}


@pytest.fixture
def model(tmp_path: Path) -> ModelData:
    return read_world(tmp_path / "net")


def constant(value: float) -> FittedMethod:
    """Return a method that scores everything alike."""
    return FittedMethod({}, lambda part: (torch.full((len(part.features),), value, dtype=torch.float64), None))


def started(model: ModelData, *, validation_samples: int | None = None) -> ModelRun:
    split = split_test(len(model.test.features), validation_samples=validation_samples)
    return ModelRun(model, split, seed=0, near=frozenset({"cifar100"}))


def result_of(model: ModelData, fit: Any) -> MethodRow:
    method = Method("row", "row", "baseline", "theirs", "", {"asked": 1}, "test", fit)
    return started(model).result([method]).methods[0]


def whole_test(model: ModelData) -> Part:
    return Part("test", torch.arange(len(model.test.features)), model.test.features)


def test_figures_are_the_metrics() -> None:
    generator = torch.Generator().manual_seed(0)
    inside = torch.randn(200, generator=generator, dtype=torch.float64)
    outside = torch.randn(90, generator=generator, dtype=torch.float64) + 1
    found = detection_figures(inside, outside)
    assert (found.fpr95, found.auroc) == (fpr_at_tpr(inside, outside), auroc(inside, outside))
    assert found.fpr95_ood_positive == fpr_at_tpr(inside, outside, positive="ood")
    assert found.aupr_id_positive == pytest.approx(aupr(inside, outside, positive="id"), abs=1e-12)
    assert found.aupr_ood_positive == pytest.approx(aupr(inside, outside, positive="ood"), abs=1e-12)
    logits, labels = 2 * torch.randn(300, 5, generator=generator), torch.randint(5, (300,), generator=generator)
    figures = classifier_figures(logits, labels)
    assert figures.accuracy == accuracy(logits, labels)
    assert figures.ece == expected_calibration_error(torch.softmax(logits.double(), 1), labels)
    gaps = zip(figures.bin_count, figures.bin_confidence, figures.bin_accuracy, strict=True)
    assert figures.ece == pytest.approx(sum(n * abs(sure - right) for n, sure, right in gaps) / 300, abs=1e-12)


def raising(error: Exception) -> Any:
    def fit(_: ModelData, __: IdSplit) -> FittedMethod:
        raise error

    return fit


@pytest.mark.parametrize(
    ("fit", "reason"),
    [
        (raising(RuntimeError("matrix is singular")), "theirs raised RuntimeError: matrix is singular"),
        (raising(EmptyDataError("too few samples")), "too few samples"),
        (raising(MemoryError("2 GiB")), "Memory ran out: theirs raised MemoryError: 2 GiB"),
        (lambda *_: constant(float("nan")), "240 of 240 scores on test are NaN."),
    ],
)
def test_what_fails_is_a_row_that_says_why(model: ModelData, fit: Any, reason: str) -> None:
    row = result_of(model, fit)
    assert (row.status, row.reason) == ("failed", reason)
    assert (row.detection, row.mean, row.after) == (None, None, None)
    assert row.settings == {"asked": 1}


@pytest.mark.parametrize(
    ("error", "is_kept"),
    [
        (ValueError("No correct predictions"), True),
        (EmptyDataError("too few samples"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_a_row_that_had_too_little_memory_runs_again_when_resumed_and_no_other_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, is_kept: bool
) -> None:
    world = write_world(tmp_path / "net")
    asked: dict[str, Any] = {"methods": ["she"], "is_resumed": True}
    with monkeypatch.context() as patched:
        patched.setattr(PytorchOodBaseline, "fit", staticmethod(raising(error)))
        failed = run_bench(world, tmp_path / "out", **asked)
    assert failed.models[0].row("SHE").status == "failed"
    again = run_bench(world, tmp_path / "out", **asked)
    assert again.models[0].row("SHE").status == ("failed" if is_kept else "ok")


@pytest.mark.parametrize("value", [0.0, float("inf")])
def test_ties_and_infinite_scores_have_figures(model: ModelData, value: float) -> None:
    row = result_of(model, lambda *_: constant(value))
    assert row.mean is not None
    assert (row.status, row.mean.auroc, row.mean.fpr95) == ("ok", 0.5, 1.0)


def test_warnings_become_notes_and_the_global_random_state_is_seeded_inside_alone(model: ModelData) -> None:
    drawn = []

    def fit(_: ModelData, __: IdSplit) -> FittedMethod:
        for _time in range(2):
            warnings.warn("careful", OpnpWarning, stacklevel=1)
        drawn.append(float(torch.rand(())))
        return constant(0.0)

    before = torch.random.get_rng_state()
    assert result_of(model, fit).notes == result_of(model, fit).notes == ("careful",)
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_figures_follow_from_head_and_samples(model: ModelData) -> None:
    run = started(model)
    row = run.result([METHODS["OPP rho_w_min=0.8"]]).methods[0]
    labels, head, features = model.test.labels, model.head, model.test.features.double()
    assert labels is not None
    assert head.bias is not None
    pruned = OPNP(ratios=Ratios(w_min=0.8), precision="float64")
    pruned.fit_features(model.train.features, weight=head.weight, bias=head.bias)
    assert int((pruned.pruned_head.weight == 0).sum()) == round(0.8 * head.weight.numel())
    after = linear(features, pruned.pruned_head.weight.double(), head.bias.double())
    assert row.before is not None
    assert row.after is not None
    assert row.before.accuracy == accuracy(linear(features, head.weight.double(), head.bias.double()), labels)
    assert row.after.accuracy == accuracy(after, labels)
    torch.testing.assert_close(next(block.score for block in run.scores if block.set == "test"), energy_score(after))


def test_without_labels_there_is_no_accuracy_but_there_are_scores(tmp_path: Path) -> None:
    model = read_world(tmp_path / "net", has_labels=False, has_bias=False)
    result = started(model).result(chosen_methods(list(METHODS.values()), None))
    failed = {row.method: row.reason for row in result.methods if row.status == "failed"}
    assert set(failed) == {"Mahalanobis", "RMD", "SHE"}
    assert all("needs the labels" in reason for reason in failed.values())
    assert all(row.before is None and row.after is None for row in result.methods)


def test_the_product_is_calibrated_on_the_validation_part_which_moves_no_score(
    model: ModelData,
) -> None:
    scores = []
    for seed in (0, 1):
        split = split_test(240, validation_samples=100, seed=seed)
        fitted = METHODS["OPNP()"].fit(model, split)
        assert fitted.detector is not None
        expected = fitted.detector.score_features(model.test.features[split.validation]).double().sort().values
        torch.testing.assert_close(fitted.detector.calibration_scores, expected)
        found, logits = fitted.output(whole_test(model))
        assert logits is None  # a fusion is read off no one head
        scores.append(found)
    assert torch.equal(*scores)


def test_a_validation_part_that_is_too_small_is_the_reason_of_the_product_alone(model: ModelData) -> None:
    run = started(model, validation_samples=18)
    result = run.result([METHODS["OPNP()"], METHODS["vim alone"]])
    assert [row.status for row in result.methods] == ["failed", "ok"]
    with pytest.raises(CalibrationError) as caught:
        METHODS["OPNP()"].fit(model, run.split)
    assert result.methods[0].reason == str(caught.value)


def test_every_member_has_a_row_of_its_own(model: ModelData) -> None:
    result = started(model).result([each for each in METHODS.values() if each.group == "product"])
    assert result.row("OPNP()").settings["members"] == list(PANEL)
    for name in PANEL:
        row = result.row(f"{name} alone")
        assert (row.status, row.split, row.settings["members"], row.after) == ("ok", "rest", [name], None)
    assert len({result.row(f"{name} alone").mean for name in PANEL}) == len(PANEL)


@pytest.mark.parametrize("member", ["gen", "opnp"])
def test_a_member_by_itself_has_the_figures_of_its_score(model: ModelData, member: str) -> None:
    run = started(model)
    row = run.result([METHODS[f"{member} alone"]]).methods[0]
    head = model.head
    fusion = OPNP().fit_features(model.train.features, weight=head.weight, bias=head.bias)
    pruned = fusion.with_ratios(fusion.settings.ratios)

    def score(rows: Tensor) -> Tensor:
        if member == "opnp":
            return pruned.score_features(rows.float())
        return gen_score(linear(rows.float(), head.weight, head.bias))

    inside = score(model.test.features[run.split.rest])
    assert row.detection is not None
    for name, features in model.ood.items():
        assert row.detection[name].auroc == pytest.approx(auroc(inside, score(features)), abs=1e-4)


def test_the_pictures_of_the_product_show_its_verdicts(model: ModelData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[OPNP] = []

    def gallery(detector: OPNP, *_: object, rows: Tensor) -> tuple[GallerySet, ...]:
        detector.verdict_features(model.test.features[rows])
        seen.append(detector)
        return ()

    monkeypatch.setattr("opnp.bench.run.model_gallery", gallery)
    run = started(model)
    run.result([METHODS["OPNP()"]])
    assert [each.method for each in run.pictures] == ["OPNP()"]
    assert [each.is_calibrated for each in seen] == [True]


def test_what_is_left_out_of_the_product_stands_in_its_settings(tmp_path: Path) -> None:
    model = read_world(tmp_path / "net")
    model = replace(model, train=FeatureSet(torch.ones(240, 16) / 4 + torch.eye(16).repeat(15, 1) / 1e3, None))
    [row] = started(model).result([METHODS["OPNP()"]]).methods
    assert row.status == "ok"
    assert isinstance(row.settings["left_out"], dict)
    assert set(row.settings["left_out"]) < set(PANEL)
    reasons = "; ".join(f"{name} ({reason})" for name, reason in row.settings["left_out"].items())
    assert row.notes == (f"The fusion goes without {reasons}.",)


def tunable(model: ModelData) -> ModelData:
    """Return a model with OOD validation samples."""
    return replace(model, validation_ood=world_features(80, seed=9, strength=0.3)[0])


def test_tuned_rows_are_opnp_tuned_on_the_validation_samples(model: ModelData) -> None:
    model, split = tunable(model), split_test(240, validation_samples=100)
    methods = chosen_methods(list(METHODS.values()), ["opnp-tuned", "msp-tuned"])
    run = ModelRun(model, split, seed=0, near=frozenset())
    result = run.result(methods)
    assert {row.method: row.reason for row in result.methods if row.status != "ok"} == {}
    assert {row.split for row in result.methods} == {"rest"}
    gains = {}
    readings: tuple[NeuronReading, ...] = ("gradient", "aggregate")
    for name, reading in zip(TUNED, readings, strict=True):
        detector = OPNP(ratios="tuned", neuron=reading, scope="layer", precision="float64").fit_features(
            model.train.features,
            weight=model.head.weight,
            bias=model.head.bias,
            validation=model.test.features[split.validation],
            validation_ood=model.validation_ood,
        )
        assert detector.tuning is not None
        gains[name] = detector.tuning.auroc
        row = result.row(name)
        assert row.settings["ratios"] == asdict(detector.settings.ratios)
        assert row.settings["tuned"] == {"tried": detector.tuning.tried, "gain": detector.tuning.gain}
        inside = next(each.score for each in run.scores if each.method == name and each.set == "test")
        torch.testing.assert_close(inside, detector.score_features(model.test.features[split.rest]))
    best = result.row(max(gains, key=lambda name: gains[name]))
    joined = result.row("MSP + OPNP tuned")
    assert joined.settings == {name: best.settings[name] for name in ("ratios", "neuron")}
    assert joined.after == best.after  # read off the same head
    assert [each.method for each in run.pictures] == [TUNED[0]]


def test_without_ood_validation_samples_a_tuned_row_says_what_it_needs(model: ModelData) -> None:
    [row] = started(model).result([METHODS["OPP tuned"]]).methods
    assert row.status == "failed"
    assert "Tuned ratios need OOD validation samples, and net has none: give `--val-ood PATH`" in row.reason


def test_time_and_memory_of_a_step_are_measured() -> None:
    def step() -> int:
        with mmap.mmap(-1, 2**26) as block:  # 64 MiB of fresh pages: an allocator may hand out pages it already has
            for page in range(0, len(block), mmap.PAGESIZE):
                block[page] = 1
            return len(block)

    value, took = measured(step)
    assert (value, took.seconds > 0) == (2**26, True)
    assert took.peak_bytes is None or took.peak_bytes > 2**25


def test_where_memory_cannot_be_measured_it_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("opnp.bench.run._CLEAR", tmp_path / "absent" / "clear_refs")
    assert measured(lambda: 1)[1].peak_bytes is None
    monkeypatch.setattr("opnp.bench.run._CLEAR", tmp_path / "clear_refs")
    monkeypatch.setattr("opnp.bench.run._STATUS", tmp_path / "absent")
    assert measured(lambda: 1)[1].peak_bytes is None
    (tmp_path / "status").write_text("Name: python\n", encoding="ascii")
    monkeypatch.setattr("opnp.bench.run._STATUS", tmp_path / "status")
    assert measured(lambda: 1)[1].peak_bytes is None
