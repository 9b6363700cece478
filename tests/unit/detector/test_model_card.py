import pytest
import torch

from opnp import OPNP, Ratios, ReAct
from opnp.detector.false_alarms import FalseAlarms
from opnp.errors import NotFittedError
from tests.unit.detector.detector_world import bias, features, fitted, loader, model, weight


def row(card: str, name: str) -> str:
    """Return the value of a line of a table."""
    lines = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
    assert len(lines) == 1, f"{name}: {lines}"
    return lines[0].split("|", 2)[2].strip(" |")


def tuned() -> OPNP:
    """Return a detector whose ratios were chosen on held-out samples of twelve classes."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(12, 32, generator=generator)
    labels = torch.arange(600) % 12
    made = (centres[labels] + torch.randn(600, 32, generator=generator)).relu()
    return OPNP().fit_features(made, weight=centres, bias=None, validation=(made[:240], labels[:240]))


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
    assert row(card, "Shaping of the features") == "ReAct at quantile 0.95"
    assert row(card, "Score") == "generalised entropy (GEN)"
    assert (row(card, "Training samples"), row(card, "Calibration samples")) == ("60", "39")
    assert "4 classes" in card
    assert detector.head_digest in card
    assert "nothing was chosen on data" in card


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


def test_a_card_without_calibration_says_so() -> None:
    card = fitted().model_card()
    assert "It is not calibrated" in card
    assert row(card, "Calibration samples") == "0"
    assert "Expected share" not in card


def test_a_card_tells_gain_and_cost_of_what_was_chosen() -> None:
    detector = tuned()
    card, tuning = detector.model_card(), detector.tuning
    assert tuning is not None
    assert tuning.chosen.settings != tuning.energy.settings, "nothing was chosen, so that there is nothing to tell"
    assert f"Among {tuning.tried} settings, on 240 validation samples with their labels" in card
    before, after = tuning.energy.mean_holdout, tuning.chosen.mean_holdout
    expected = f"{before:.4f} | {after:.4f} | {after - before:+.4f}"
    assert row(card, "AUROC against held-out ID classes") == expected
    failure = tuning.chosen.failure - tuning.energy.failure
    assert row(card, "AUROC of telling wrong answers from right ones").endswith(f"| {failure:+.4f}")
    assert f"Gain in AUROC over the plain energy: {tuning.gain:+.4f}, standard deviation {tuning.spread:.4f}" in card
    assert "hold approximately" in card, "settings were chosen on the samples that it is calibrated on"


def test_a_card_names_the_head_and_holds_facts_on_the_inputs() -> None:
    detector = OPNP(ratios=Ratios(w_min=0.25)).fit(model(), loader())
    card = detector.model_card(inputs={"size": 32})
    assert "the last layer `1`" in card
    assert '```json\n{\n  "size": 32\n}\n```' in card
    assert "## Inputs" not in detector.model_card()


def test_a_detector_that_saw_nothing_has_no_card() -> None:
    with pytest.raises(NotFittedError, match="has seen no data"):
        OPNP().model_card()
