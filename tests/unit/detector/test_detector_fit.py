"""Fitting: what it takes, what it refuses, what a failure leaves."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opnp import ASHS, OPNP, SCALE, Ratios, ReAct
from opnp.core import Shaping
from opnp.errors import (
    CalibrationError,
    EmptyDataError,
    InputTypeError,
    NonFiniteError,
    NotFittedError,
    ShapeError,
    SignedFeaturesWarning,
)
from tests.unit.detector.detector_world import (
    CLASSES,
    FEATURES,
    KINDS,
    bias,
    features,
    fitted,
    fused,
    head_of,
    loader,
    made,
    model,
    weight,
)

RATIOS = Ratios(w_min=0.3)
both_kinds = pytest.mark.parametrize("kind", KINDS)


@both_kinds
def test_fit_returns_the_detector(kind: str) -> None:
    detector = made(kind)
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


@both_kinds
def test_no_bias_is_a_bias_of_zero(kind: str) -> None:
    one = made(kind).fit_features(features(), weight=weight(), bias=None)
    other = made(kind).fit_features(features(), weight=weight(), bias=torch.zeros(CLASSES))
    assert one.pruned_head.bias is None
    assert torch.equal(one.score_features(features()), other.score_features(features()))
    head = nn.Linear(FEATURES, CLASSES, bias=False)
    head.weight.data = weight()
    assert torch.equal(made(kind).fit(head, loader()).score(features()), one.score_features(features()))


@both_kinds
def test_blocks_are_parts_of_the_whole(kind: str) -> None:
    many = features(20_000)
    detector = made(kind, precision="float64").fit_features(many, weight=weight(), bias=bias())
    parts = made(kind, precision="float64").fit(model(), many.split(999))
    assert detector.samples == parts.samples == 20_000
    assert detector.sensitivity.count == parts.sensitivity.count == (18_000 if kind == "fusion" else 20_000)
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
@both_kinds
def test_wrong_features(kind: str, given: Any, error: type[Exception], message: str) -> None:
    detector = made(kind)
    with pytest.raises(error, match=message):
        detector.fit_features(given, weight=weight(), bias=bias())
    assert not detector.is_fitted
    with pytest.raises(error, match=message.replace("`features`", "`validation`", 1).split(".*")[0]):
        detector.fit_features(features(), weight=weight(), bias=bias(), validation=given)
    with pytest.raises(error):
        fitted().calibrate_features(given)


@both_kinds
def test_features_that_are_not_finite_name_their_rows(kind: str) -> None:
    broken = features(9000)
    broken[8500, 3] = float("nan")
    detector = fused() if kind == "fusion" else fitted()
    with pytest.raises(NonFiniteError, match=r"`features` must be finite, got 1 NaN and 0 infinite.*rows 8500"):
        made(kind).fit_features(broken, weight=weight(), bias=bias())
    with pytest.raises(NonFiniteError, match="rows 8500"):
        detector.calibrate_features(broken)
    with pytest.raises(NonFiniteError, match="rows 8500"):
        detector.score_features(broken)
    with pytest.raises(NonFiniteError, match="1 infinite"):
        detector.score_features(torch.full((FEATURES,), 1.0).index_fill(0, torch.tensor(2), float("inf")))


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
    ],
)
@both_kinds
def test_a_wrong_head(kind: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"weight": weight(), "bias": bias(), **options}
    with pytest.raises(error, match=message):
        made(kind).fit_features(features(), **arguments)


@both_kinds
def test_labels_of_a_loader_change_nothing(kind: str) -> None:
    with_labels = [(batch, torch.arange(len(batch)) % CLASSES) for batch in loader()]
    one, other = (made(kind).fit(model(), batches, validation=batches) for batches in (loader(), with_labels))
    assert torch.equal(one.sensitivity.weight, other.sensitivity.weight)
    assert torch.equal(one.calibration_scores, other.calibration_scores)


@both_kinds
def test_validation_calibrates(kind: str) -> None:
    held_out = features(40, seed=1)
    by_hand = made(kind).fit_features(features(), weight=weight(), bias=bias())
    by_hand.calibrate_features(held_out, keep=0.95)
    detector = made(kind).fit_features(features(), weight=weight(), bias=bias(), validation=held_out)
    assert detector.keep == 0.95
    assert torch.equal(detector.calibration_scores, by_hand.calibration_scores)
    streamed = made(kind).fit(model(), loader(), validation=iter(held_out.split(20)), keep=0.9)
    assert streamed.keep == 0.9
    assert torch.equal(streamed.calibration_scores, by_hand.calibration_scores)


@both_kinds
def test_a_pair_of_features_and_labels_is_no_validation(kind: str) -> None:
    pair: Any = (features(40, seed=1), torch.arange(40) % CLASSES)
    with pytest.raises(InputTypeError, match=r"`validation` must be a torch\.Tensor.*got tuple"):
        made(kind).fit_features(features(), weight=weight(), bias=bias(), validation=pair)


@both_kinds
def test_validation_does_not_move_the_sensitivities(kind: str) -> None:
    one, other = made(kind).fit(model(), loader(), validation=loader(seed=1)), made(kind).fit(model(), loader())
    assert torch.equal(one.sensitivity.weight, other.sensitivity.weight)
    assert torch.equal(one.score(features(seed=2)), other.score(features(seed=2)))


def broken_loader() -> Iterator[Tensor]:
    yield features(20)
    message = "a broken file"
    raise OSError(message)


@pytest.mark.parametrize("stage", ["training", "validation", "too few", "not finite", "features"])
@both_kinds
def test_a_failed_fit_leaves_the_earlier_one(kind: str, stage: str) -> None:
    detector = made(kind).fit(model(), loader(), validation=loader(seed=1))
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


@both_kinds
def test_fitting_again_replaces_everything(kind: str) -> None:
    detector = made(kind).fit(model(), loader(), validation=loader(seed=1))
    detector.fit_features(features(seed=7), weight=2 * weight(), bias=None)
    assert not detector.is_calibrated
    assert detector.pruned_head.bias is None
    with pytest.raises(NotFittedError, match=r"This detector has no model.*`\*_features`"):
        detector.score(features())


@both_kinds
def test_progress_sees_every_batch(kind: str) -> None:
    seen: list[Any] = []

    def progress(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            seen.append(item)
            yield item

    made(kind).fit(model(), loader(), validation=loader(4, seed=1), progress=progress)
    assert [len(item) for item in seen] == [20] * 7
    seen.clear()
    detector = made(kind).fit(model(), loader())
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


@both_kinds
def test_the_callers_autocast_does_not_reach_the_arithmetic(kind: str) -> None:
    def detector() -> OPNP:
        return made(kind).fit_features(features(), weight=weight(), bias=bias())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = detector()
        scores = inside.score_features(features(seed=1))
    assert torch.equal(inside.sensitivity.weight, detector().sensitivity.weight)
    assert torch.equal(scores, detector().score_features(features(seed=1)))


@both_kinds
def test_a_model_made_in_inference_mode(kind: str) -> None:
    with torch.inference_mode():
        net = model()
    detector = made(kind).fit(net, loader(), validation=loader(seed=1))
    assert torch.equal(detector.score(features()), made(kind).fit(model(), loader()).score_features(features()))
