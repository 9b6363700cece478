"""Which rows there are, which are chosen, and what comes of one that fails."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from opnp import OPNP, PANEL, Ratios, accuracy, auroc, energy_score
from opnp.adapters import BASELINE_NAMES
from opnp.bench.baseline_methods import COMBINED_METHODS
from opnp.bench.feature_folder import ModelData
from opnp.bench.methods import FittedMethod, Method, Part
from opnp.bench.model_run import ModelRun
from opnp.bench.opnp_methods import FittedOpnp, fixed_opnp, product_methods, ratios_label, reference_methods
from opnp.bench.picture_record import GallerySet
from opnp.bench.protocol import available_methods
from opnp.bench.selection import chosen_methods
from opnp.bench.splitting import IdSplit, split_test
from opnp.core import gen_score
from opnp.data import FeatureSet
from opnp.errors import CalibrationError, EmptyDataError, OpnpWarning, OptionError
from tests.unit.bench.bench_world import read_world

PRODUCT_ROWS = ["Energy, rest of test", "OPNP()", *(f"{name} alone" for name in PANEL)]


@pytest.fixture
def model(tmp_path: Path) -> ModelData:
    return read_world(tmp_path / "net")


@dataclass
class Constant:
    """A method that scores everything alike."""

    value: float
    chosen: Mapping[str, object] = field(default_factory=dict)

    def output(self, part: Part) -> tuple[Tensor, Tensor | None]:
        return torch.full((len(part.features),), self.value, dtype=torch.float64), None


def method(fit: Any, *, source: str = "theirs") -> Method:
    return Method("row", "row", "baseline", source, "", {"asked": 1}, "test", fit)


def run(model: ModelData, *methods: Method) -> ModelRun:
    started = ModelRun(model, split_test(len(model.test.features)), seed=0, near=frozenset({"cifar100"}))
    started.result(methods)
    return started


def row_named(name: str) -> Method:
    return next(each for each in product_methods() if each.name == name)


def result_of(model: ModelData, fit: Any, *, source: str = "theirs") -> Any:
    started = ModelRun(model, split_test(len(model.test.features)), seed=0, near=frozenset({"cifar100"}))
    return started.result([method(fit, source=source)]).methods[0]


def test_every_baseline_and_every_group_is_there(model: ModelData) -> None:
    available = available_methods(model)
    names = [each.name for each in available]
    assert len(set(names)) == len(names)
    assert {each.family.removesuffix("-pytorch-ood") for each in available if each.group == "baseline"} == {
        *BASELINE_NAMES,
        "ODIN",
    }
    combined = {each.name.split()[0] for each in available if each.group == "combination"}
    assert combined == set(COMBINED_METHODS)
    assert [each.name for each in product_methods()] == PRODUCT_ROWS


def test_combinations_follow_the_pruned_ratios(model: ModelData) -> None:
    names = {each.name for each in available_methods(model, Ratios(o_max=0.1))}
    assert "MaxLogit + ONP gradient rho_o_max=0.1" in names
    assert "ONP gradient rho_o_max=0.1" in names
    assert len(reference_methods(Ratios(w_min=0.8))) == len(reference_methods()) - 1


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["energy"], ["Energy"]),
        (["max_logit", "MSP"], ["MSP", "MaxLogit"]),
        (["ash s"], ["ASH-S percentile=0.65", "ASH-S percentile=0.9", "ASH-S percentile=0.95"]),
        (["OPNP"], ["Energy, rest of test", "OPNP()"]),
        (["opnp-members"], [name for name in PRODUCT_ROWS if name != "OPNP()"]),
        (["product"], PRODUCT_ROWS),
        (["energy-pytorch-ood"], ["Energy (pytorch-ood)"]),
    ],
)
def test_names_choose_rows(model: ModelData, asked: list[str], expected: list[str]) -> None:
    assert [each.name for each in chosen_methods(available_methods(model), asked)] == expected


def test_groups_choose_all_of_theirs(model: ModelData) -> None:
    available = available_methods(model)
    offered = [each for each in available if each.family != "ODIN"]
    assert chosen_methods(available, None) == offered
    assert chosen_methods(available, ["reference", "baselines", "combinations", "product"]) == offered


@pytest.mark.parametrize("asked", [["gram"], ["energy", "gram"], []])
def test_unknown_names_list_the_known(model: ModelData, asked: list[str]) -> None:
    with pytest.raises(OptionError, match=r"reference, baselines.*MaxLogit.*OPNP-members\), got ('gram'|none)"):
        chosen_methods(available_methods(model), asked)


def test_a_foreign_error_is_a_row_that_says_why(model: ModelData) -> None:
    def fit(_: ModelData, __: IdSplit) -> FittedMethod:
        message = "matrix is singular"
        raise RuntimeError(message)

    row = result_of(model, fit)
    assert (row.status, row.reason) == ("failed", "theirs raised RuntimeError: matrix is singular")
    assert row.detection is row.mean is row.after is None
    assert row.settings == {"asked": 1}


def test_an_error_of_ours_needs_no_type(model: ModelData) -> None:
    def fit(_: ModelData, __: IdSplit) -> FittedMethod:
        raise EmptyDataError("too few samples")

    assert result_of(model, fit).reason == "too few samples"


def test_scores_that_are_no_numbers_are_a_row_that_says_why(model: ModelData) -> None:
    row = result_of(model, lambda *_: Constant(float("nan")))
    assert (row.status, row.reason) == ("failed", "240 of 240 scores on test are NaN.")


def test_ties_and_infinite_scores_have_figures(model: ModelData) -> None:
    for value in (0.0, float("inf")):
        row = result_of(model, lambda *_, value=value: Constant(value))
        assert row.status == "ok"
        assert (row.mean.auroc, row.mean.fpr95) == (0.5, 1.0)


def test_warnings_become_notes(model: ModelData) -> None:
    import warnings

    def fit(_: ModelData, __: IdSplit) -> FittedMethod:
        for _time in range(2):
            warnings.warn("careful", OpnpWarning, stacklevel=1)
        return Constant(0.0)

    assert result_of(model, fit).notes == ("careful",)


def test_global_random_state_is_seeded_inside_and_untouched_outside(model: ModelData) -> None:
    drawn = []

    def fit(_: ModelData, __: IdSplit) -> FittedMethod:
        drawn.append(float(torch.rand(())))
        return Constant(0.0)

    before = torch.random.get_rng_state()
    result_of(model, fit)
    result_of(model, fit)
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_near_and_far_are_kept_apart(model: ModelData) -> None:
    started = ModelRun(model, split_test(240), seed=0, near=frozenset({"cifar100"}))
    result = started.result(reference_methods()[:2])
    row = result.row("Energy")
    assert result.nearness == {"cifar100": "near", "noise": "far"}
    assert row.detection is not None
    assert row.near == row.detection["cifar100"]
    assert row.far == row.detection["noise"]
    assert row.mean is not None
    assert row.mean.auroc == pytest.approx((row.near.auroc + row.far.auroc) / 2, abs=1e-15)


def test_figures_follow_from_head_and_samples(model: ModelData) -> None:
    started = run(model, *reference_methods(Ratios(w_min=0.5)))
    row = started.result(reference_methods(Ratios(w_min=0.5))).row("OPP rho_w_min=0.5")
    labels, head = model.test.labels, model.head
    assert labels is not None
    assert head.bias is not None
    features = model.test.features.double()
    logits = linear(features, head.weight.double(), head.bias.double())
    pruned = OPNP(ratios=Ratios(w_min=0.5), precision="float64").fit_features(
        model.train.features, weight=head.weight, bias=head.bias
    )
    after = linear(features, pruned.pruned_head.weight.double(), head.bias.double())
    assert row.before is not None
    assert row.after is not None
    assert row.before.accuracy == accuracy(logits, labels)
    assert row.after.accuracy == accuracy(after, labels)
    inside = next(block.score for block in started.scores if (block.method, block.set) == (row.method, "test"))
    torch.testing.assert_close(inside, energy_score(after))


def test_without_labels_there_is_no_accuracy_but_there_are_scores(tmp_path: Path) -> None:
    model = read_world(tmp_path / "net", has_labels=False, has_bias=False)
    started = ModelRun(model, split_test(240), seed=0, near=frozenset())
    result = started.result(chosen_methods(available_methods(model), None))
    failed = {row.method: row.reason for row in result.methods if row.status == "failed"}
    assert set(failed) == {"Mahalanobis", "RMD", "SHE"}
    assert all("needs the labels" in reason for reason in failed.values())
    assert all(row.before is None and row.after is None for row in result.methods)


def test_the_logits_of_a_detector_are_those_it_scores(model: ModelData) -> None:
    rows = torch.arange(len(model.test.features))
    fitted = FittedOpnp(fixed_opnp(model, ratios=Ratios(w_min=0.3)))
    scores, logits = fitted.output(Part("test", rows, model.test.features))
    assert logits is not None
    torch.testing.assert_close(scores, energy_score(logits))


def test_a_fusion_is_read_off_no_logits(model: ModelData) -> None:
    detector = OPNP().fit_features(model.train.features, weight=model.head.weight, bias=model.head.bias)
    rows = torch.arange(len(model.test.features))
    scores, logits = FittedOpnp(detector).output(Part("test", rows, model.test.features))
    assert logits is None
    assert torch.equal(scores, detector.score_features(model.test.features))


def test_labels_of_ratios() -> None:
    assert ratios_label(Ratios()) == "no pruning"
    assert ratios_label(Ratios(w_min=0.1, w_max=0.2)) == "OPP rho_w_min=0.1 rho_w_max=0.2"


def test_the_product_is_calibrated_on_the_validation_part_alone(model: ModelData) -> None:
    split = split_test(240, validation_samples=100)
    fitted = row_named("OPNP()").fit(model, split)
    assert isinstance(fitted, FittedOpnp)
    expected = fitted.detector.score_features(model.test.features[split.validation]).double().sort().values
    torch.testing.assert_close(fitted.detector.calibration_scores, expected)


def test_a_validation_part_that_is_too_small_is_the_reason_of_the_product_alone(model: ModelData) -> None:
    started = ModelRun(model, split_test(240, validation_samples=18), seed=0, near=frozenset())
    result = started.result([row_named("OPNP()"), row_named("vim alone")])
    assert [row.status for row in result.methods] == ["failed", "ok"]
    with pytest.raises(CalibrationError) as caught:
        row_named("OPNP()").fit(model, started.split)
    assert result.methods[0].reason == str(caught.value)


def test_no_score_of_the_product_depends_on_the_validation_part(model: ModelData) -> None:
    rows = torch.arange(len(model.test.features))
    part = Part("test", rows, model.test.features)
    first, second = (
        row_named("OPNP()").fit(model, split_test(240, validation_samples=100, seed=seed)).output(part)[0]
        for seed in (0, 1)
    )
    assert torch.equal(first, second)


def test_every_member_has_a_row_of_its_own(model: ModelData) -> None:
    started = ModelRun(model, split_test(240), seed=0, near=frozenset())
    result = started.result(product_methods())
    assert result.row("OPNP()").settings["members"] == list(PANEL)
    for name in PANEL:
        row = result.row(f"{name} alone")
        assert (row.status, row.group, row.split, row.settings["members"]) == ("ok", "product", "rest", [name])
        assert row.mean is not None
        assert row.after is None
    assert len({result.row(f"{name} alone").mean for name in PANEL}) == len(PANEL)


@pytest.mark.parametrize("member", ["gen", "opnp"])
def test_a_member_by_itself_has_the_figures_of_its_score(model: ModelData, member: str) -> None:
    started = ModelRun(model, split_test(240), seed=0, near=frozenset())
    row = started.result([row_named(f"{member} alone")]).methods[0]
    head = model.head
    fusion = OPNP().fit_features(model.train.features, weight=head.weight, bias=head.bias)
    pruned = fusion.with_ratios(fusion.settings.ratios)

    def score(rows: Tensor) -> Tensor:
        if member == "opnp":
            return pruned.score_features(rows.float())
        return gen_score(linear(rows.float(), head.weight, head.bias))

    inside = score(model.test.features[started.split.rest])
    assert row.detection is not None
    for name, features in model.ood.items():
        assert row.detection[name].auroc == pytest.approx(auroc(inside, score(features)), abs=1e-4)


def test_the_pictures_of_the_product_show_its_verdicts(model: ModelData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[OPNP] = []

    def gallery(detector: OPNP, *_: object, rows: Tensor) -> tuple[GallerySet, ...]:
        detector.verdict_features(model.test.features[rows])
        seen.append(detector)
        return ()

    monkeypatch.setattr("opnp.bench.model_run.model_gallery", gallery)
    started = run(model, row_named("OPNP()"))
    assert [each.method for each in started.pictures] == ["OPNP()"]
    assert [each.is_calibrated for each in seen] == [True]


def test_what_is_left_out_of_the_product_stands_in_its_settings(tmp_path: Path) -> None:
    model = read_world(tmp_path / "net")
    model = replace(model, train=FeatureSet(torch.ones(240, 16) / 4 + torch.eye(16).repeat(15, 1) / 1e3, None))
    started = ModelRun(model, split_test(240), seed=0, near=frozenset())
    [row] = started.result([row_named("OPNP()")]).methods
    assert row.status == "ok"
    assert isinstance(row.settings["left_out"], dict)
    assert set(row.settings["left_out"]) < set(PANEL)
    reasons = "; ".join(f"{name} ({reason})" for name, reason in row.settings["left_out"].items())
    assert row.notes == (f"The fusion goes without {reasons}.",)


def test_a_fixed_detector_prunes_what_it_says(model: ModelData) -> None:
    assert int((fixed_opnp(model, ratios=Ratios(w_min=0.25)).pruned_head.weight == 0).sum()) == 16
