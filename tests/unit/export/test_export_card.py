import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from opnp import OPNP, Ratios, ReAct
from opnp.core import MEMBERS
from opnp.errors import CalibrationError, MemberWarning, NotFittedError
from opnp.export import FalseAlarms
from tests.unit.detector.detector_world import bias, features, fitted, fused, loader, model, weight


def row(card: str, name: str) -> str:
    """Return the value of a line of a table."""
    lines = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
    assert len(lines) == 1, f"{name}: {lines}"
    return lines[0].split("|", 2)[2].strip(" |")


def test_a_card_says_what_was_removed_and_on_which_data() -> None:
    detector = OPNP(ratios=Ratios(w_min=0.25, o_max=0.1), shaping=ReAct(0.95), score="gen")
    detector.fit_features(features(), weight=weight(), bias=bias()).calibrate_features(features(39, seed=1), keep=0.9)
    card = detector.model_card()
    assert card.startswith("# Out-of-distribution detector\n")
    assert card.endswith("|\n")
    assert row(card, "Least sensitive weights removed") == "0.25"
    assert row(card, "Most sensitive neurons removed") == "0.1"
    gone = int((~detector.masks.weight).sum())
    assert row(card, "Removed in all") == f"{gone} of 48 weights, 1 of 12 neurons"
    assert row(card, "Shaping of the features") == "ReAct at 0.95"
    assert row(card, "Score") == "generalised entropy (GEN)"
    assert (row(card, "Training samples"), row(card, "Calibration samples")) == ("60", "39")
    assert "4 classes" in card
    assert detector.head_digest in card
    assert "optimal parameter and neuron pruning (OPNP, NeurIPS 2023)" in card
    assert "They were given. Nothing was chosen on this model's data." in card
    assert "It fuses" not in card


def test_a_card_of_the_plain_head_says_that_nothing_is_left_out_and_that_it_is_not_calibrated() -> None:
    card = fitted(Ratios()).model_card()
    assert "The score is that of the last layer's logits: energy, -T logsumexp(f / T)." in card
    assert "removed" not in card.lower()
    assert "prun" not in card.lower()
    assert "It is not calibrated" in card
    assert row(card, "Calibration samples") == "0"
    assert "Expected share" not in card


def test_a_card_of_a_fusion_says_what_it_is_made_of() -> None:
    detector = fused()
    card, state = detector.model_card(), detector._fitted()
    assert "It fuses 7 scores of different mechanism" in card
    assert state.scales is not None
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if " | " in line]
    found = {line[0]: line[1:] for line in lines if len(line) == 3}
    assert found.pop("Score") == ["Median", "95 % quantile"]
    assert found.pop("---") == ["---:", "---:"]
    for (name, values), column in zip(found.items(), state.scales.T.tolist(), strict=True):
        assert [float(value) for value in values] == pytest.approx(column, rel=1e-5), name
    assert next(iter(found)).startswith("GEN: ")
    assert list(found)[-1].startswith("Norm guard: ")
    assert "Median and quantile are those of 80 training samples kept out of every sum." in card
    assert "The pruned head:" in card
    assert row(card, "Least sensitive weights removed") == "0.5"
    assert row(card, "Shaping of the features") == "SCALE at 0.85"
    assert row(card, "Training samples") == "400"
    assert "Left out:" not in card
    assert "The default panel was set on other models. Nothing was chosen on this model's data." in card


def test_a_card_of_a_fusion_names_members_that_were_left_out_and_why() -> None:
    given = features(200)
    given[:, 0] = torch.rand(200) + 0.1
    given[:, 1:] = 0.0  # one direction: what is measured by directions is the same for all
    with pytest.warns(MemberWarning):
        detector = OPNP(members=["gen", "mahalanobis"]).fit_features(given, weight=weight(), bias=bias())
    card = detector.model_card()
    assert "The score is that of one member, in units of its tail on training samples." in card
    assert "Left out:\n\n- Mahalanobis++: distance of the direction to the nearest class mean: " in card
    assert detector.left_out["mahalanobis"] in card
    assert "The pruned head:" not in card
    assert "They were given." in card


def test_a_card_has_a_name_for_every_score() -> None:
    detector = fused(members=MEMBERS)
    assert detector.members == MEMBERS
    assert f"It fuses {len(MEMBERS)} scores" in detector.model_card()


def test_a_card_says_what_the_calibration_promises() -> None:
    detector = fitted().calibrate_features(features(39, seed=1), keep=0.9)
    card, alarms = detector.model_card(), FalseAlarms.at(39, keep=0.9)
    assert row(card, "Share of known inputs to keep") == "0.9"
    assert float(row(card, "Threshold: flagged is a score above")) == detector.threshold
    assert row(card, "Expected share of known inputs flagged") == "4/40 = 0.1"
    low, high = alarms.range()
    assert row(card, "For 95 % of calibration sets it lies between") == f"{low:.4g} and {high:.4g}"
    assert "Beta(4, 36)" in card
    assert "hold approximately" not in card


def test_a_card_tells_what_tuning_gained_on_samples_that_were_not_searched() -> None:
    detector = OPNP(ratios="tuned").fit_features(
        features(), weight=weight(), bias=bias(), validation=features(90, seed=1), validation_ood=2 * features(61)
    )
    card, tuning = detector.model_card(), detector.tuning
    assert tuning is not None
    assert f"{tuning.tried} settings were tried on 45 known and 31 OOD samples. On 45 and 30 others the AUROC" in card
    assert f"{tuning.auroc:.4f}, and that of the plain energy {tuning.energy_auroc:.4f}" in card
    assert f"a gain of {tuning.gain:+.4f} on that kind of OOD data" in card
    assert "It was calibrated on known samples that the search did not see." in card
    assert row(card, "Calibration samples") == "45"


def test_a_card_names_the_head_and_holds_facts_on_the_inputs() -> None:
    detector = OPNP(ratios=Ratios(w_min=0.25)).fit(model(), loader())
    card = detector.model_card(inputs={"size": 32})
    assert "its last layer `1` gets" in card
    assert '```json\n{\n  "size": 32\n}\n```' in card
    assert "## Inputs" not in detector.model_card()


def test_a_detector_that_saw_nothing_has_no_card() -> None:
    with pytest.raises(NotFittedError, match="has seen no data"):
        OPNP().model_card()


@settings(max_examples=40)
@given(samples=st.integers(1, 5000), keep=st.floats(0.001, 0.999), share=st.sampled_from([0.5, 0.95, 0.999]))
def test_the_range_is_that_of_the_beta_distribution(samples: int, keep: float, share: float) -> None:
    try:
        alarms = FalseAlarms.at(samples, keep=keep)
    except CalibrationError:
        return
    tail = (1 - share) / 2
    expected = beta.ppf([tail, 1 - tail], alarms.rank, samples + 1 - alarms.rank)
    assert alarms.range(share=share) == pytest.approx(list(expected), rel=1e-6, abs=1e-9)
    assert alarms.expected == pytest.approx(float(beta.mean(alarms.rank, samples + 1 - alarms.rank)))
