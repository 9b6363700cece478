"""Fitting: what it takes, what it refuses, what a failure leaves."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opnp import ASHS, OPNP, SCALE, Ratios, ReAct, Shaping
from opnp.errors import (
    CalibrationError,
    EmptyDataError,
    InputTypeError,
    NonFiniteError,
    NotFittedError,
    ShapeError,
    SignedFeaturesWarning,
)
from tests.unit.detector.detector_world import CLASSES, FEATURES, bias, features, fitted, head_of, loader, model, weight

RATIOS = Ratios(w_min=0.3)


def test_fit_returns_the_detector() -> None:
    detector = OPNP(ratios=RATIOS)
    assert detector.fit(model(), loader()) is detector
    assert detector.calibrate(loader(seed=1)) is detector
    assert detector.fit_features(features(), weight=weight(), bias=bias()) is detector
    assert detector.calibrate_features(features(seed=1)) is detector


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_of_every_floating_dtype(dtype: torch.dtype) -> None:
    given = features().to(dtype)
    detector = OPNP(ratios=RATIOS).fit_features(given, weight=weight(), bias=bias())
    exact = OPNP(ratios=RATIOS, precision="float64").fit_features(given, weight=weight(), bias=bias())
    assert torch.allclose(detector.sensitivity.weight, exact.sensitivity.weight, rtol=1e-5, atol=0)
    scores = detector.score_features(given)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(scores.double(), exact.score_features(given), rtol=1e-5, atol=1e-5)


def test_no_bias_is_a_bias_of_zero() -> None:
    one = OPNP(ratios=RATIOS).fit_features(features(), weight=weight(), bias=None)
    other = OPNP(ratios=RATIOS).fit_features(features(), weight=weight(), bias=torch.zeros(CLASSES))
    assert one.pruned_head.bias is None
    assert torch.equal(one.score_features(features()), other.score_features(features()))
    head = nn.Linear(FEATURES, CLASSES, bias=False)
    head.weight.data = weight()
    assert torch.equal(OPNP(ratios=RATIOS).fit(head, loader()).score(features()), one.score_features(features()))


def test_blocks_are_parts_of_the_whole() -> None:
    many = features(20_000)
    detector = OPNP(ratios=RATIOS, precision="float64").fit_features(many, weight=weight(), bias=bias())
    parts = OPNP(ratios=RATIOS, precision="float64").fit(model(), many.split(999))
    assert detector.sensitivity.count == parts.sensitivity.count == 20_000
    assert torch.allclose(detector.sensitivity.weight, parts.sensitivity.weight, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.ones(5, FEATURES + 1), ShapeError, f"`features` must have {FEATURES} columns.*got shape"),
        (torch.ones(FEATURES), ShapeError, r"`features` must have shape \(batch, features\).*`features\[None\]`"),
        (torch.ones(2, FEATURES, 7, 7), ShapeError, r"`features`.*Pool the trailing axes"),
        (torch.ones(0, FEATURES), EmptyDataError, "`features` has no rows"),
        (torch.ones(5, FEATURES).long(), InputTypeError, r"`features` must be floating point.*`features\.float\(\)`"),
        ([[1.0] * FEATURES], InputTypeError, r"`features` must be a torch\.Tensor.*got list"),
    ],
)
def test_wrong_features(given: Any, error: type[Exception], message: str) -> None:
    detector = OPNP(ratios=RATIOS)
    with pytest.raises(error, match=message):
        detector.fit_features(given, weight=weight(), bias=bias())
    assert not detector.is_fitted
    with pytest.raises(error, match=message.replace("`features`", "`validation`", 1).split(".*")[0]):
        detector.fit_features(features(), weight=weight(), bias=bias(), validation=given)
    with pytest.raises(error):
        fitted().calibrate_features(given)


def test_features_that_are_not_finite_name_their_rows() -> None:
    broken = features(9000)
    broken[8500, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"`features` must be finite, got 1 NaN and 0 infinite.*rows 8500"):
        OPNP(ratios=RATIOS).fit_features(broken, weight=weight(), bias=bias())
    with pytest.raises(NonFiniteError, match="rows 8500"):
        fitted().calibrate_features(broken)
    with pytest.raises(NonFiniteError, match="rows 8500"):
        fitted().score_features(broken)
    with pytest.raises(NonFiniteError, match="1 infinite"):
        fitted().score_features(torch.full((FEATURES,), 1.0).index_fill(0, torch.tensor(2), float("inf")))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight": torch.ones(1, FEATURES)}, ShapeError, r"`weight` must have a row for each of at least two classes"),
        ({"weight": torch.ones(FEATURES)}, ShapeError, r"`weight` must have shape \(classes, features\)"),
        ({"weight": torch.ones(CLASSES, FEATURES).long()}, InputTypeError, "`weight` must be floating point"),
        ({"weight": torch.full((CLASSES, FEATURES), float("nan"))}, NonFiniteError, "`weight` must be finite"),
        (
            {"bias": torch.ones(CLASSES + 1)},
            ShapeError,
            rf"`bias` must have shape \({CLASSES},\), got \({CLASSES + 1},\)",
        ),
        ({"bias": torch.full((CLASSES,), float("inf"))}, NonFiniteError, "`bias` must be finite, got 4"),
        ({"bias": [0.0] * CLASSES}, InputTypeError, "`bias`"),
        ({"labels": torch.zeros(59).long()}, ShapeError, r"`labels` must have shape \(60,\)"),
        ({"labels": torch.zeros(60)}, InputTypeError, "`labels` must be integer class indices"),
        ({"labels": [0] * 60}, InputTypeError, "`labels`"),
    ],
)
def test_a_wrong_head_or_labels(options: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"weight": weight(), "bias": bias(), **options}
    with pytest.raises(error, match=message):
        OPNP(ratios=RATIOS).fit_features(features(), **arguments)


def test_labels_are_not_needed_and_change_nothing() -> None:
    labels = torch.arange(60) % CLASSES
    given = OPNP(ratios=RATIOS).fit_features(features(), weight=weight(), bias=bias(), labels=labels.short())
    assert torch.equal(given.sensitivity.weight, fitted().sensitivity.weight)


def test_validation_as_tensor_or_pair_calibrates() -> None:
    held_out = features(40, seed=1)
    labels = torch.arange(40) % CLASSES
    by_hand = fitted().calibrate_features(held_out, keep=0.95)
    for validation in (held_out, (held_out, labels), (held_out, None)):
        detector = OPNP(ratios=RATIOS)
        detector.fit_features(features(), weight=weight(), bias=bias(), validation=validation)
        assert detector.keep == 0.95
        assert torch.equal(detector.calibration_scores, by_hand.calibration_scores)
    streamed = OPNP(ratios=RATIOS).fit(model(), loader(), validation=iter(held_out.split(20)))
    assert torch.equal(streamed.calibration_scores, by_hand.calibration_scores)


def test_validation_does_not_move_the_sensitivities() -> None:
    one = OPNP(ratios=RATIOS).fit(model(), loader(), validation=loader(seed=1))
    assert torch.equal(one.sensitivity.weight, OPNP(ratios=RATIOS).fit(model(), loader()).sensitivity.weight)


def broken_loader() -> Iterator[Tensor]:
    yield features(20)
    message = "a broken file"
    raise OSError(message)


@pytest.mark.parametrize("stage", ["training", "validation", "too few", "not finite", "features"])
def test_a_failed_fit_leaves_the_earlier_one(stage: str) -> None:
    detector = OPNP(ratios=RATIOS).fit(model(), loader(), validation=loader(seed=1))
    before = detector.verdict(features(seed=2))
    other = model()
    head_of(other).weight.data.mul_(2)
    with pytest.raises((OSError, CalibrationError, NonFiniteError, ShapeError)):  # noqa: PT012  # one statement of five
        match stage:
            case "training":
                detector.fit(other, broken_loader())
            case "validation":
                detector.fit(other, loader(), validation=broken_loader())
            case "too few":
                detector.fit(other, loader(), validation=[features(5)])
            case "not finite":
                detector.fit(other, [features(20), features(20) / 0])
            case "features":
                detector.fit_features(torch.ones(3, 5), weight=weight(), bias=bias())
    after = detector.verdict(features(seed=2))
    for one, another in zip(before, after, strict=True):
        assert torch.equal(one, another)


def test_fitting_again_replaces_everything() -> None:
    detector = OPNP(ratios=RATIOS).fit(model(), loader(), validation=loader(seed=1))
    detector.fit_features(features(seed=7), weight=2 * weight(), bias=None)
    assert not detector.is_calibrated
    assert detector.pruned_head.bias is None
    with pytest.raises(NotFittedError, match=r"This detector has no model.*`\*_features`"):
        detector.score(features())


def test_progress_sees_every_batch() -> None:
    seen: list[Any] = []

    def progress(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            seen.append(item)
            yield item

    OPNP(ratios=RATIOS).fit(model(), loader(), validation=loader(4, seed=1), progress=progress)
    assert [len(item) for item in seen] == [20] * 7
    seen.clear()
    detector = OPNP(ratios=RATIOS).fit(model(), loader())
    assert not seen
    detector.calibrate(loader(2, seed=1), progress=progress)
    assert torch.equal(torch.cat(seen), torch.cat(loader(2, seed=1)))
    seen.clear()
    detector.fit_features(features(9000), weight=weight(), bias=bias(), progress=progress)
    blocks = [item[0] if isinstance(item, tuple) else item for item in seen]
    assert sum(len(block) for block in blocks) == 9000


def test_progress_true_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    shown = OPNP(ratios=RATIOS).fit(model(), loader(), progress=True)
    assert "100%" in capsys.readouterr().out
    silent = OPNP(ratios=RATIOS).fit(model(), loader(), progress=False)
    assert capsys.readouterr() == ("", "")
    assert torch.equal(shown.sensitivity.weight, silent.sensitivity.weight)


def test_progress_true_works_again_after_a_failure() -> None:
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="batch 1"):
            OPNP(ratios=RATIOS).fit(model(), [features(20), features(20) / 0], progress=True)


def test_progress_of_another_kind() -> None:
    for progress in ("tqdm", 3):
        with pytest.raises(InputTypeError, match="`progress` must be a function that wraps an iterable"):
            OPNP(ratios=RATIOS).fit(model(), loader(), progress=progress)  # type: ignore[arg-type]  # the test


def test_react_clips_at_the_quantile_of_all_training_features() -> None:
    given = features().half()
    detector = OPNP(ratios=Ratios(), shaping=ReAct(0.8)).fit_features(given, weight=weight(), bias=bias())
    threshold = given.flatten().sort().values[int(0.8 * given.numel()) - 1].float()
    plain = fitted(Ratios())
    probe = features(30, seed=3) * 3
    assert torch.equal(detector.score_features(probe), plain.score_features(probe.clamp_max(float(threshold))))
    assert not torch.equal(detector.score_features(probe), plain.score_features(probe))


@pytest.mark.parametrize("shaping", [None, ReAct(0.9), ASHS(0.5), SCALE(0.5)])
def test_features_that_are_all_zero_have_a_score(shaping: Shaping | None) -> None:
    given = features()
    given[::3] = 0
    detector = OPNP(ratios=RATIOS, shaping=shaping).fit_features(given, weight=weight(), bias=bias())
    scores = detector.score_features(given)
    assert bool(torch.isfinite(scores).all())
    assert torch.allclose(scores[::3], -bias().logsumexp(0))


@pytest.mark.parametrize("shaping", [ReAct(0.9), ASHS(0.5), SCALE(0.5)])
def test_shaping_of_signed_features_warns(shaping: Shaping) -> None:
    signed = features() - 0.3
    detector = OPNP(ratios=RATIOS, shaping=shaping).fit_features(signed, weight=weight(), bias=bias())
    with pytest.warns(SignedFeaturesWarning, match="assumes features that are not negative"):
        scores = detector.score_features(signed)
    assert bool(torch.isfinite(scores).all())


def test_signed_features_without_shaping_are_nothing_special() -> None:
    signed = features() - 0.3
    detector = OPNP(ratios=RATIOS).fit_features(signed, weight=weight(), bias=bias())
    assert torch.allclose(
        detector.sensitivity.neuron("aggregate"), signed.double().abs().mean(0) / CLASSES, rtol=1e-6, atol=0
    )


def test_the_callers_autocast_does_not_reach_the_arithmetic() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = fitted()
        scores = inside.score_features(features(seed=1))
    assert torch.equal(inside.sensitivity.weight, fitted().sensitivity.weight)
    assert torch.equal(scores, fitted().score_features(features(seed=1)))


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        made = model()
    detector = OPNP(ratios=RATIOS).fit(made, loader(), validation=loader(seed=1))
    assert torch.equal(detector.score(features()), fitted().score_features(features()))
