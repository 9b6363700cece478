"""Calibration and verdicts: decided by integer rank, and only where the data allow it."""

from fractions import Fraction

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from opnp import OPNP, Ratios, Verdict
from opnp.errors import CalibrationError, InputTypeError, NotCalibratedError, OptionError
from opnp.fitted import Calibration
from tests.unit.detector.detector_world import (
    FEATURES,
    KINDS,
    bias,
    features,
    fitted,
    fused,
    loader,
    made,
    model,
    weight,
)

both_kinds = pytest.mark.parametrize("kind", KINDS)


def test_too_few_samples_say_how_many_are_needed() -> None:
    with pytest.raises(CalibrationError, match=r"keep=0\.95 needs at least 19 calibration samples, got 18"):
        fitted().calibrate_features(features(18))
    with pytest.raises(CalibrationError, match="at least 19 calibration samples, got 18"):
        OPNP(ratios=Ratios()).fit_features(features(), weight=weight(), bias=bias(), validation=features(18))
    with pytest.raises(CalibrationError, match="at least 19 calibration samples, got 10"):
        OPNP(ratios=Ratios()).fit(model(), loader(), validation=[features(10)])
    with pytest.raises(CalibrationError, match=r"keep=0\.99 needs at least 99"):
        fitted().calibrate_features(features(98), keep=0.99)


def test_just_enough_samples_will_do() -> None:
    detector = fitted().calibrate_features(features(19))
    scores = detector.score_features(features(19))
    assert not detector.predict_features(features(19)).any()
    assert detector.threshold == float(scores.max())
    assert fitted().calibrate_features(features(1), keep=0.5).is_calibrated


@pytest.mark.parametrize("keep", [0.0, 1.0, 95, -0.5, float("nan"), "0.95", None])
def test_keep_is_a_fraction(keep: float) -> None:
    detector = fitted().calibrate_features(features(40))
    with pytest.raises(OptionError, match=r"`keep` must be a fraction in \(0, 1\)"):
        detector.calibrate_features(features(40), keep=keep)
    assert detector.keep == 0.95


def test_too_few_samples_leave_the_earlier_calibration() -> None:
    detector = fitted().calibrate_features(features(40))
    with pytest.raises(CalibrationError):
        detector.calibrate_features(features(5))
    assert len(detector.calibration_scores) == 40


def test_calibrating_again_replaces_the_calibration_alone() -> None:
    detector = fitted().calibrate_features(features(40), keep=0.9)
    sensitivity = detector.sensitivity
    detector.calibrate_features(features(99, seed=5), keep=0.99)
    assert detector.sensitivity is sensitivity
    assert (len(detector.calibration_scores), detector.keep) == (99, 0.99)


@pytest.mark.parametrize("keep", [0.9, 0.95, 0.99, 0.7, 0.8, 0.85, 0.1, 0.3])
@pytest.mark.parametrize("samples", [9, 19, 39, 79, 99, 199, 299, 699, 999])
def test_verdicts_go_by_integer_rank(keep: float, samples: int) -> None:
    flagged = int((1 - Fraction(str(keep))) * (samples + 1))
    if flagged == 0:
        with pytest.raises(CalibrationError):
            Calibration.from_scores(torch.arange(float(samples)), keep=keep)
        return
    calibration = Calibration.from_scores(torch.arange(float(samples)), keep=keep)
    verdicts = calibration.is_ood(torch.arange(float(samples)))
    assert int(verdicts.sum()) == flagged - 1, "the calibration score of rank r has p-value (r + 1) / (n + 1)"
    assert bool(calibration.is_ood(torch.tensor([samples + 0.5])))
    above = calibration.threshold
    assert torch.equal(verdicts, torch.arange(float(samples)) > above)


def test_float_p_values_would_misjudge() -> None:
    misjudged = 0
    for keep in (0.9, 0.95, 0.99, 0.7, 0.8):
        for samples in range(19, 400, 20):
            if (1 - Fraction(str(keep))) * (samples + 1) < 1:
                continue
            calibration = Calibration.from_scores(torch.arange(float(samples)), keep=keep)
            scores = torch.arange(-1.0, samples + 1)
            by_float = calibration.p_value(scores) <= 1 - keep
            by_rank = torch.tensor(
                [
                    Fraction(1 + sum(c >= s for c in range(samples)), samples + 1) <= 1 - Fraction(str(keep))
                    for s in scores.tolist()
                ]
            )
            assert torch.equal(calibration.is_ood(scores), by_rank)
            misjudged += int((by_float != by_rank).sum())
    assert misjudged > 10, "these cases do not tell ranks from floats"


def test_ties_with_calibration_scores_count_as_at_least() -> None:
    calibration = Calibration.from_scores(torch.tensor([1.0] * 10 + [2.0] * 9), keep=0.9)
    assert calibration.p_value(torch.tensor([2.0, 1.0, 2.5])).tolist() == [10 / 20, 1.0, 1 / 20]
    assert calibration.is_ood(torch.tensor([2.0, 1.0, 2.5])).tolist() == [False, False, True]


@both_kinds
def test_one_input_and_a_batch_of_one(kind: str) -> None:
    detector = made(kind).fit(model(), loader(), validation=loader(seed=1))
    one = features(1, seed=2)[0]
    names = [name + ending for name in ("score", "p_value", "predict") for ending in ("", "_features")]
    for name in [*names, "classify_features"]:
        answer = getattr(detector, name)
        assert answer(one).shape == ()
        assert answer(one[None]).shape == (1,)
        assert torch.equal(answer(one), answer(one[None])[0])


@both_kinds
@pytest.mark.parametrize("asked", ["verdict", "verdict_features"])
def test_a_verdict_is_a_named_tuple(kind: str, asked: str) -> None:
    detector = made(kind).fit(model(), loader(), validation=loader(seed=1))
    given = features(7, seed=2)
    found = getattr(detector, asked)(given)
    assert isinstance(found, Verdict)
    assert found._fields == ("predicted_class", "score", "p_value", "is_ood")
    assert torch.equal(found.score, detector.score(given))
    assert torch.equal(found.p_value, detector.p_value(given))
    assert torch.equal(found.is_ood, detector.predict(given))
    single = getattr(detector, asked)(given[0])
    assert [item.shape for item in single] == [()] * 4
    assert [item.item() for item in single] == [item[0].item() for item in getattr(detector, asked)(given[:1])]


def test_the_predicted_class_of_a_fusion_is_that_of_the_original_head() -> None:
    detector, given = fused().calibrate_features(features(40)), features(200, seed=2)
    original = (given @ weight().T + bias()).argmax(1)
    assert torch.equal(detector.classify_features(given), original)
    assert torch.equal(detector.verdict_features(given).predicted_class, original)


def test_the_predicted_class_is_that_of_the_original_head() -> None:
    detector = fitted(Ratios(w_max=0.8)).calibrate_features(features(40))
    given = features(200, seed=2)
    original = (given @ weight().T + bias()).argmax(1)
    pruned = detector.pruned_head(given).argmax(1)
    assert torch.equal(detector.classify_features(given), original)
    assert torch.equal(detector.verdict_features(given).predicted_class, original)
    assert not torch.equal(original, pruned), "the case does not tell the heads apart"


@both_kinds
def test_the_share_flagged_is_as_promised(kind: str) -> None:
    flagged, detector = [], fused() if kind == "fusion" else fitted()
    for seed in range(40):
        detector.calibrate_features(features(99, seed=1000 + seed), keep=0.9)
        flagged.append(detector.predict_features(features(500, seed=2000 + seed)).double().mean())
    assert float(torch.stack(flagged).mean()) == pytest.approx(0.1, abs=0.02)


@both_kinds
@pytest.mark.parametrize("asked", ["predict_features", "p_value_features", "verdict_features", "explain_features"])
def test_uncalibrated_detectors_say_what_to_call(kind: str, asked: str) -> None:
    detector = fused() if kind == "fusion" else fitted()
    with pytest.raises(NotCalibratedError, match=r"it can score.*`calibrate\(loader\)`"):
        getattr(detector, asked)(features())


def test_a_data_loader_is_no_batch() -> None:
    detector = OPNP(ratios=Ratios()).fit(model(), loader())
    given = DataLoader(TensorDataset(features(4)))
    with pytest.raises(InputTypeError, match=r"one batch or one input, got a DataLoader.*torch\.cat"):
        detector.score(given)


@both_kinds
def test_wrong_widths_say_what_the_head_takes(kind: str) -> None:
    detector = (fused() if kind == "fusion" else fitted()).calibrate_features(features(40))
    for asked in ("score", "predict", "classify", "verdict", "explain"):
        answer = getattr(detector, f"{asked}_features")
        with pytest.raises(ValueError, match=f"`features` must have {FEATURES} columns"):
            answer(torch.ones(3, FEATURES - 1))
        with pytest.raises(ValueError, match=f"`features` must have {FEATURES} columns"):
            answer(torch.ones(FEATURES - 1))
