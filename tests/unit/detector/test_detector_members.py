"""The fusion as a detector: what it is made of, what it does at the edges of its data, and why inputs score so."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from opnp import MEMBERS, OPNP, PANEL, SCALE, Ratios
from opnp.core import moments, norm_score, score_logits, shaped
from opnp.core.kept_rows import row_hashes
from opnp.errors import (
    CalibrationError,
    EmptyDataError,
    MemberWarning,
    NonFiniteError,
)
from opnp.fitted import PANEL_RATIOS
from tests.unit.detector.detector_world import (
    CLASSES,
    FEATURES,
    bias,
    features,
    fitted,
    fused,
    weight,
)

ALIKE = "its scores of training samples are nearly all equal"


def calibrated(**options: Any) -> OPNP:
    return fused(**options).calibrate_features(features(100, seed=1))


def uniform(*shape: int, seed: int = 4) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_default_panel_is_fused_and_of_the_papers_method_the_pruned_head_is_the_only_member() -> None:
    detector, paper = fused(), fitted()
    assert (detector.members, detector.left_out, detector.samples) == (PANEL, {}, 400)
    assert (paper.members, paper.left_out, paper.samples) == (("opnp",), {}, 60)
    assert detector.score_features(features(5)).dtype == torch.float64


def test_two_members_by_hand() -> None:
    """From the features on: which rows give the scales, each score in units of its tail, and what they come to."""
    given, probe = features(400), features(30, seed=2)
    order = row_hashes(given).argsort()
    kept = given[order[:80]].double()
    typical = float(kept.norm(dim=1).median())

    def by_hand(rows: Tensor) -> Tensor:
        logits = rows.double() @ weight().double().T + bias().double()
        return torch.stack([score_logits(logits, score="gen"), norm_score(rows.double(), typical=typical)], 1)

    middle, tail = torch.quantile(by_hand(kept), torch.tensor([0.5, 0.95]).double(), dim=0)
    expected = ((by_hand(probe) - middle) / (tail - middle)).exp().sum(1).log()
    found = fused(members=["gen", "norm"]).score_features(probe)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_members_that_were_chosen_are_fused_in_their_order() -> None:
    chosen = ("norm", "energy", "nci")
    detector = fused(members=chosen)
    assert detector.members == detector.settings.members == chosen
    turned = fused(members=chosen[::-1])
    torch.testing.assert_close(detector.score_features(features(9)), turned.score_features(features(9)))
    assert not torch.equal(detector.score_features(features(9)), fused().score_features(features(9)))


# ------------------------------------------------------------------------------------------------------ the pruned head
def test_the_pruned_head_of_a_fusion_is_that_of_the_paper() -> None:
    detector, probe = fused(), features(50, seed=2)
    head = detector.pruned_head
    assert int((head.weight == 0).sum()) == CLASSES * FEATURES // 2
    assert torch.equal(head.weight, weight().masked_fill(~detector.masks.kept, 0.0))
    assert torch.equal(detector.original_head.weight, weight())
    energy = score_logits(head(shaped(probe, SCALE(0.85))))
    state = detector._fitted()
    torch.testing.assert_close(state.member_scores(probe, ("opnp",))[:, 0], energy, rtol=1e-5, atol=1e-5)
    assert torch.equal(detector.compact_head().head.weight, head.weight[:, detector.compact_head().index])


def test_with_ratios_of_a_fusion_is_its_pruned_head() -> None:
    detector, probe = calibrated(), features(50, seed=2)
    alone = detector.with_ratios(PANEL_RATIOS)
    assert alone.members == ("opnp",)
    assert (alone.settings.shaping, alone.settings.members) == (SCALE(0.85), None)
    assert torch.equal(alone.pruned_head.weight, detector.pruned_head.weight)
    assert torch.equal(alone.score_features(probe), score_logits(detector.pruned_head(shaped(probe, SCALE(0.85)))))
    own = detector._fitted().member_scores(probe, ("opnp",))[:, 0]
    torch.testing.assert_close(alone.score_features(probe), own, rtol=1e-6, atol=1e-6)
    assert not alone.is_calibrated
    assert alone.sensitivity is detector.sensitivity
    # Not one more sample has entered the sensitivities: those that gave the scales have not.
    assert alone.samples == detector.sensitivity.count == 320
    by_other_ratios = detector.with_ratios(Ratios(w_min=0.25, o_max=0.1), neuron="aggregate", scope="class")
    assert (by_other_ratios.settings.neuron, by_other_ratios.settings.scope) == ("aggregate", "class")
    assert int((~by_other_ratios.masks.weight).sum()) == 12
    assert alone.calibrate_features(features(40, seed=1)).explain_features(probe).members == ("opnp",)


# ---------------------------------------------------------------------------------------------------- edges of the data
@dataclass(frozen=True)
class Edge:
    """Data at an edge, and what comes of them."""

    features: Callable[[], Tensor]
    head: Tensor = field(default_factory=weight)
    bias: Tensor | None = field(default_factory=bias)
    left_out: dict[str, str] = field(default_factory=dict)


def pairs_of_classes_off() -> Tensor:
    return torch.tensor([0.0, 0.0, -1e4, -1e4])


EDGES = {
    "two classes": Edge(lambda: features(400), weight()[:2], bias()[:2]),
    "no bias": Edge(lambda: features(400), bias=None),
    "signed features": Edge(lambda: features(400) - features(400, seed=9)),
    "one row a class": Edge(lambda: 3 * torch.eye(FEATURES)[:CLASSES] + 0.3 * uniform(CLASSES, FEATURES)),
    "classes without a sample": Edge(lambda: features(400), bias=pairs_of_classes_off()),
    "features of rank 8": Edge(lambda: uniform(400, 8) @ uniform(8, FEATURES, seed=5)),
    "features of rank 3": Edge(
        lambda: uniform(400, 3) @ uniform(3, FEATURES, seed=5),
        left_out={"vim": "all features lie in the principal subspace of 6 dimensions"},
    ),
    "features of rank 1": Edge(
        lambda: (uniform(400, 1) + 0.5) @ uniform(1, FEATURES, seed=5),
        left_out={
            "mahalanobis": "the directions of the features do not vary",
            "vim": "all features lie in the principal subspace of 6 dimensions",
        },
    ),
    "a constant feature": Edge(lambda: features(400).index_fill(1, torch.tensor([4]), 0.7)),
    "a dead feature": Edge(lambda: features(400).index_fill(1, torch.tensor([4]), 0.0)),
    "one feature": Edge(
        lambda: uniform(400, 1) + 0.1,
        torch.tensor([[1.0], [-1.0], [0.5]]),
        torch.tensor([0.0, 0.7, 0.2]),
        left_out={"mahalanobis": "the directions of the features do not vary"},
    ),
    "features of half precision": Edge(lambda: features(400).half()),
    "features of bfloat16": Edge(lambda: features(400).bfloat16()),
    "features of float64": Edge(lambda: features(400).double()),
    "a head of half precision": Edge(lambda: features(400), weight().half(), bias().half()),
    "rows that come again and again": Edge(lambda: features(40).repeat(10, 1)),
    "one row in twenty zero": Edge(
        lambda: torch.cat([features(380), torch.zeros(20, FEATURES)]),
        left_out={"norm": "5 of 80 of its scores of training samples are not finite"},
    ),
    "a head of equal rows": Edge(
        lambda: features(400),
        weight()[:1].expand(CLASSES, -1).contiguous(),
        left_out={"gen": ALIKE, "fdbd": "80 of 80 of its scores of training samples are not finite"},
    ),
}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", EDGES)
def test_the_edges_of_the_data_have_an_outcome(name: str, precision: Any) -> None:
    """Each fits, says in one warning what it goes without, calibrates, and flags a row of zeros."""
    edge = EDGES[name]
    given = edge.features()
    detector = OPNP(precision=precision)
    if edge.left_out:
        with pytest.warns(MemberWarning) as caught:
            detector.fit_features(given, weight=edge.head, bias=edge.bias)
        told = "; ".join(f"{member} ({reason})" for member, reason in edge.left_out.items())
        assert [str(warning.message) for warning in caught] == [f"The fusion goes without {told}."]
        assert caught[0].filename == __file__
    else:
        detector.fit_features(given, weight=edge.head, bias=edge.bias)
    assert detector.left_out == edge.left_out
    assert detector.members == tuple(member for member in PANEL if member not in edge.left_out)
    assert detector.samples == len(given)
    held_out = given.repeat(-(-40 // len(given)), 1)[:100]
    verdict = detector.calibrate_features(held_out, keep=0.9).verdict_features(held_out)
    assert verdict.score.dtype == torch.float64
    assert not bool(verdict.score.isnan().any())
    assert int(verdict.is_ood.sum()) <= len(held_out) // 10
    logits = held_out.double() @ edge.head.double().T + (0.0 if edge.bias is None else edge.bias.double())
    assert float((verdict.predicted_class == logits.argmax(1)).double().mean()) > 0.95
    zeros = given[:1] * 0
    if name != "one row in twenty zero":
        assert detector.score_features(zeros).tolist() == [math.inf]
        assert detector.predict_features(zeros).tolist() == [True]
        assert detector.p_value_features(zeros).tolist() == [1 / (len(held_out) + 1)]


@pytest.mark.parametrize("name", ["features of half precision", "features of float64"])
def test_the_dtype_of_features_changes_no_more_than_their_rounding(name: str) -> None:
    given, probe = EDGES[name].features(), features(50, seed=2)
    detector = OPNP(precision="float64").fit_features(given, weight=weight(), bias=bias())
    same = OPNP(precision="float64").fit_features(given.float(), weight=weight(), bias=bias())
    assert torch.equal(detector.masks.kept, same.masks.kept)
    torch.testing.assert_close(detector.score_features(probe), same.score_features(probe), rtol=1e-12, atol=1e-12)
    quick = OPNP().fit_features(given, weight=weight(), bias=bias())
    torch.testing.assert_close(quick.score_features(probe), same.score_features(probe), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (features(1).expand(400, -1), r"after 400 training samples: gen \(its scores of .*"),
        (
            torch.zeros(50, FEATURES),
            r"after 50 training samples: .*norm \(at least half of the training features are zero\)",
        ),
        (features(3), "No score can be fused after 3 training samples: .* or give `ratios`"),
        (features(1), "A fusion needs at least two training samples, got 1"),
    ],
    ids=["all rows equal", "all rows zero", "three rows", "one row"],
)
def test_too_little_to_fuse_by_is_refused_with_the_reasons(given: Tensor, message: str) -> None:
    detector = OPNP()
    with pytest.raises(EmptyDataError, match=message):
        detector.fit_features(given, weight=weight(), bias=bias())
    assert not detector.is_fitted
    assert OPNP(ratios=Ratios()).fit_features(given, weight=weight(), bias=bias()).is_fitted


def test_a_head_too_wide_for_pairs_of_features_goes_without_two_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "LARGEST_WIDTH", FEATURES - 1)
    detector = OPNP()
    with pytest.warns(MemberWarning) as caught:
        detector.fit_features(features(400), weight=weight(), bias=bias(), validation=features(40, seed=1))
    assert len(caught) == 1
    reason = "it needs a covariance of 12 features, and at most 8192 are held"
    assert detector.left_out == {"mahalanobis": reason, "vim": reason}
    assert detector.members == ("gen", "react", "fdbd", "opnp", "norm")
    state = detector._fitted()
    assert state.panel is not None
    assert (state.panel.gaussian, state.panel.space) == (None, None)
    assert detector.explain_features(features(5)).members == detector.members
    fewer = OPNP(members=detector.members).fit_features(features(400), weight=weight(), bias=bias())
    assert torch.equal(detector.score_features(features(9)), fewer.score_features(features(9)))
    with pytest.raises(EmptyDataError, match="a covariance of 12 features"):
        OPNP(members=["vim", "relative_mahalanobis"]).fit_features(features(400), weight=weight(), bias=bias())


@pytest.mark.parametrize(("zeros", "is_guarded"), [(3, True), (60, False)])
def test_rows_of_zeros_among_the_training_data_are_sampled_as_others(zeros: int, is_guarded: bool) -> None:
    """Were they kept before others the scales would be theirs; were none kept, the guard would stay, and say inf."""
    given = torch.cat([features(1000 - zeros), torch.zeros(zeros, FEATURES)])
    given = given[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MemberWarning)
        detector = OPNP().fit_features(given, weight=weight(), bias=bias())
    assert ("norm" in detector.members) is is_guarded
    scores = detector.score_features(features(500, seed=1))
    assert bool(scores.isfinite().all())
    alone = fused(980).score_features(features(500, seed=1))
    assert abs(float(scores.median()) - float(alone.median())) < 1.0


def test_a_calibration_that_no_finite_score_could_be_flagged_by_is_refused() -> None:
    held_out = torch.cat([features(90, seed=1), torch.zeros(10, FEATURES)])
    with pytest.raises(CalibrationError, match="10 of 100 calibration samples have an infinite score"):
        fused().calibrate_features(held_out)


# ----------------------------------------------------------------------------------------------------------- odd inputs
def test_features_so_large_that_a_member_overflows_are_flagged() -> None:
    detector = calibrated()
    for huge in (torch.full((1, FEATURES), 1e30), -torch.full((1, FEATURES), 1e30), 1e30 * features(1, seed=2)):
        verdict = detector.verdict_features(huge)
        assert verdict.score.tolist() == [math.inf]
        assert verdict.p_value.tolist() == [1 / 101]
        assert verdict.is_ood.tolist() == [True]
        original = (huge.double() @ weight().double().T + bias().double()).argmax(1)
        assert torch.equal(verdict.predicted_class, original)
        assert detector.explain_features(huge).share.sum().item() == pytest.approx(1.0)


def test_logits_that_overflow_are_flagged_and_have_no_class() -> None:
    detector, huge = calibrated(), torch.full((2, FEATURES), 3e38)
    assert detector.score_features(huge).tolist() == [math.inf] * 2
    assert detector.predict_features(huge).tolist() == [True] * 2
    for asked in (detector.verdict_features, detector.classify_features):
        with pytest.raises(NonFiniteError, match="`logits` must be finite"):
            asked(huge)
    assert detector.verdict_features(huge.double()).predicted_class.tolist() == [int(weight().sum(1).argmax())] * 2


def test_rows_of_zeros_and_inputs_many_times_as_large_or_as_small_are_flagged() -> None:
    detector, inputs = calibrated(), features(50, seed=2)
    for factor in (1e-3, 0.05, 20.0, 1e3):
        assert detector.predict_features(factor * inputs).all()
    rows = torch.cat([inputs[:3], torch.zeros(2, FEATURES)])
    assert detector.score_features(rows).isposinf().tolist() == [False] * 3 + [True] * 2
    assert detector.predict_features(rows)[3:].tolist() == [True] * 2
    assert detector.p_value_features(rows)[3:].tolist() == [1 / 101] * 2
    why = detector.explain_features(rows)
    assert why.share[3:, why.members.index("norm")].tolist() == [1.0] * 2
    assert fused(members=["gen", "vim"]).score_features(rows).isfinite().all()


# --------------------------------------------------------------------------------------------------------- why it is so
@pytest.mark.parametrize("members", [PANEL, MEMBERS, ("norm", "gen"), ("vim",)], ids=len)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_shares_and_p_values_of_members_are_those_of_slow_counts(members: tuple[str, ...], precision: Any) -> None:
    held_out, probe = features(60, seed=1), torch.cat([features(20, seed=2), 5 * features(5, seed=3)])
    detector = fused(members=members, precision=precision).calibrate_features(held_out)
    why, state = detector.explain_features(probe), detector._fitted()
    asked = members if "opnp" in members else (*members, "opnp")
    assert why.members == asked
    assert why.p_value.shape == why.share.shape == (25, len(asked))
    known, scores = (state.member_scores(rows, asked).double() for rows in (held_out, probe))
    for column, name in enumerate(asked):
        for row, score in enumerate(scores[:, column].tolist()):
            count = sum(other >= score for other in known[:, column].tolist())
            assert float(why.p_value[row, column]) == (1 + count) / 61, name
    assert state.scales is not None
    units = (scores[:, : len(members)] - state.scales[0]) / (state.scales[1] - state.scales[0])
    expected = (units - detector.score_features(probe)[:, None]).exp()
    torch.testing.assert_close(why.share[:, : len(members)], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(why.share.sum(1), torch.ones(25).double())
    if "opnp" not in members:
        assert why.share[:, -1].tolist() == [0.0] * 25


def test_the_pruned_head_is_told_of_where_it_was_left_out() -> None:
    given = uniform(400, FEATURES)
    head, shift = torch.zeros(CLASSES, FEATURES), torch.arange(4.0)
    with pytest.warns(MemberWarning, match="opnp"):
        detector = OPNP().fit_features(given, weight=head, bias=shift, validation=given[:40])
    assert "opnp" in detector.left_out
    why = detector.explain_features(given[:3])
    assert why.members == (*detector.members, "opnp")
    assert why.p_value[:, -1].tolist() == [1.0] * 3  # all scores are equal
    assert why.share[:, -1].tolist() == [0.0] * 3


def test_equal_scores_of_the_calibration_samples_count_and_one_member_explains_all() -> None:
    held_out = features(40, seed=1)
    for detector in (fused(members=["opnp"]), fitted()):
        why = detector.calibrate_features(held_out.repeat(2, 1)).explain_features(held_out)
        assert (why.members, why.share.tolist()) == (("opnp",), [[1.0]] * 40)
        assert torch.equal(why.p_value[:, 0], detector.p_value_features(held_out))
        assert sorted(why.p_value[:, 0].tolist()) == [(1 + 2 * place) / 81 for place in range(1, 41)]
