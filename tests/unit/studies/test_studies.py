"""The studies on small features: what they read, judge and count."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opnp.bench.features import ModelData
from opnp.bench.records import ScoreBlock, write_scores
from opnp.core import auroc, energy_score, msp_score
from opnp.data import file_digest
from studies import panel, robustness, spread
from tests.unit.bench.bench_world import FEATURES, read_world, write_world

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ModelData:
    return read_world(write_world(tmp_path_factory.mktemp("world")))


def test_the_splits_leave_a_third_or_2000_aside_and_are_the_same_again() -> None:
    rows = panel.judging_rows(9, 3)
    assert [len(each) for each in rows] == [6, 6, 6]
    assert len(panel.judging_rows(10_000, 1)[0]) == 8000
    assert all(torch.equal(one, other) for one, other in zip(rows, panel.judging_rows(9, 3), strict=True))


def test_what_was_chosen_is_judged_on_the_model_left_out() -> None:
    found = panel.left_out({"a": {"one": 0.0, "two": 3.0}, "b": {"one": 1.0, "two": 1.0}}, ["a", "b"])
    assert found == {
        "models": {"one": {"chosen": "b", "regret": 1.0}, "two": {"chosen": "a", "regret": 3.0}},
        "mean": 2.0,
        "worst": 3.0,
    }


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    blocks = [
        ScoreBlock(model, part, method, torch.arange(3), torch.rand(3, dtype=torch.float64))
        for model in ("b", "a")
        for method in ("OPNP()", "Energy")
        for part in ("test", "ood_x")
    ]
    write_scores(tmp_path / "scores.parquet", blocks)
    found = spread.read_scores(tmp_path / "scores.parquet")
    for block in blocks:
        assert torch.equal(found[block.model][block.method][block.set], block.score)


def test_figures_by_side_are_means_over_the_sets_and_splits() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(40, generator=generator) for name in ("test", "ood_near", "ood_far", "ood_other")}
    rows = panel.judging_rows(40, 4)
    found = spread.judged_by_side(scores, ["near"], rows)
    by_split = torch.tensor([100 * auroc(scores["test"][each], scores["ood_near"]) for each in rows]).double()
    assert found["near"]["auroc"] == pytest.approx([float(by_split.mean()), float(by_split.std())], abs=1e-3)
    for figure in spread.FIGURES:
        sides = {side: found[side][figure][0] for side in ("near", "far", "all")}
        assert sides["all"] == pytest.approx((sides["near"] + 2 * sides["far"]) / 3, abs=1e-3)


def test_the_classes_that_the_head_predicts_give_the_fusion_as_it_is(world: ModelData) -> None:
    state, rows = robustness.fitted(world, world.train.features), world.test.features.double()
    predicted = state.classes(world.train.features.double())
    again = robustness.with_classes(state, world.train.features, predicted)
    assert torch.allclose(again.scores(rows), state.scores(rows), rtol=1e-9)
    other = robustness.with_classes(state, world.train.features, predicted.roll(1))
    assert not torch.allclose(other.scores(rows), state.scores(rows), rtol=1e-3)


def test_the_share_that_is_flagged_is_the_exact_one_on_average() -> None:
    scores = torch.randn(1500, generator=torch.Generator().manual_seed(0))
    found = robustness.held_out(scores, [scores[:300] + 9, scores[:300]], draws=400)
    assert list(found) == ["20", "100", "1000"]
    assert [each["expected"] for each in found.values()] == pytest.approx([100 / 21, 500 / 101, 5000 / 1001], abs=1e-3)
    for each in found.values():
        mean, low, high = each["flagged"]
        assert mean == pytest.approx(each["expected"], abs=0.8)
        assert low < mean < high
        assert each["caught"][0] == pytest.approx(50 + mean / 2, abs=1)
    widths = [each["flagged"][2] - each["flagged"][1] for each in found.values()]
    assert widths == sorted(widths, reverse=True)


def test_failures_are_those_of_the_classifier(world: ModelData) -> None:
    state = robustness.fitted(world, world.train.features)
    found = robustness.failures(world, robustness.scored(state, world))
    logits, labels = logits_of(world), world.test.labels
    assert labels is not None
    is_wrong = logits.argmax(1) != labels
    assert found["wrong"] == int(is_wrong.sum()) > 0
    assert found["accuracy"] == pytest.approx(100 * (1 - float(is_wrong.double().mean())), abs=1e-3)
    assert set(found["auroc"]) == {"OPNP()", *state.fused, "MSP", "MaxLogit", "Energy"}
    for name, score in {"MSP": msp_score, "Energy": energy_score}.items():
        pairs = auroc(score(logits)[~is_wrong], score(logits)[is_wrong])
        assert found["auroc"][name] == pytest.approx(100 * pairs, abs=1e-3)


def test_the_table_of_training_samples_has_every_share(world: ModelData) -> None:
    found = robustness.training(world)
    samples = len(world.train.features)
    assert {share: each["samples"] for share, each in found.items()} == {
        "1 %": 10,
        "10 %": samples // 10,
        "100 %": samples,
    }
    for each in found.values():
        mean, low, high = each["auroc"]
        assert low <= mean <= high
        assert set(each["members"]).isdisjoint(each["left_out"])


def logits_of(world: ModelData) -> Tensor:
    assert world.head.weight.shape[1] == FEATURES
    bias = world.head.bias
    assert bias is not None
    return torch.nn.functional.linear(world.test.features.double(), world.head.weight.double(), bias.double())


@pytest.mark.slow
def test_features_of_the_table_are_the_same_whatever_instructions_a_machine_has(tmp_path: Path) -> None:
    """In float32 their last bits differ, and so do the rows that a fit keeps out of its sums."""

    def digests(name: str, **environment: str) -> list[str]:
        code = (
            "import sys; from pathlib import Path\n"
            "from examples import tabular_digits as table; from studies.other_features import write_feature_folder\n"
            "rows, classes = table.rows(seed=0); rows = rows.double()\n"
            "write_feature_folder(Path(sys.argv[1]), table.classifier(rows, classes=classes, seed=0), rows)\n"
        )
        subprocess.run(  # ourselves
            [sys.executable, "-c", code, str(tmp_path / name)], check=True, env=os.environ | environment, cwd=ROOT
        )
        return [file_digest(path) for path in sorted((tmp_path / name).iterdir())]

    found = digests("here")
    assert len(found) == 5
    assert found == digests("plain", ATEN_CPU_CAPABILITY="default", MKL_ENABLE_INSTRUCTIONS="SSE4_2")
