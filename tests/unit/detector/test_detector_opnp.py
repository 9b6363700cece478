"""Fitting, calibrating and what is held: what a detector takes, what it refuses, what a failure leaves."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opnp import ASHS, OPNP, SCALE, Ratios, ReAct, energy_score
from opnp.core import Shaping
from opnp.data import open_features, write_features
from opnp.errors import (
    CalibrationError,
    EmptyDataError,
    InputTypeError,
    LabelWarning,
    NonFiniteError,
    NotCalibratedError,
    NotFittedError,
    OptionError,
    RatioError,
    ShapeError,
    SignedFeaturesWarning,
)
from tests.reference.per_sample_gradients import loop_sensitivity
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
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
both_kinds = pytest.mark.parametrize("kind", KINDS)


def detector_of(kind: str) -> OPNP:
    return fused() if kind == "fusion" else fitted()


# ----------------------------------------------------------------------------------------------------- what is fitted
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_a_fit_is_the_mean_absolute_gradient_of_the_models_energy(temperature: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5)).double()
        batches = torch.randn(13, 2, 4, 4, dtype=torch.float64).split(4)
        net(torch.cat(batches))
    found = OPNP(ratios=Ratios(), temperature=temperature, precision="float64").fit(net, batches).sensitivity
    of_weights, of_inputs = loop_sensitivity(net.eval(), batches, ["4"], temperature=temperature)
    torch.testing.assert_close(found.weight, of_weights["4"], rtol=1e-10, atol=0)
    torch.testing.assert_close(found.neuron_gradient, of_inputs["4"], rtol=1e-10, atol=0)
    torch.testing.assert_close(found.neuron_aggregate, of_weights["4"].mean(0), rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_features_and_heads_of_every_floating_dtype(dtype: torch.dtype) -> None:
    given = features().to(dtype)
    detector = OPNP(ratios=RATIOS).fit_features(given, weight=weight(), bias=bias())
    exact = OPNP(ratios=RATIOS, precision="float64").fit_features(given, weight=weight(), bias=bias())
    assert torch.allclose(detector.sensitivity.weight, exact.sensitivity.weight, rtol=1e-5, atol=0)
    scores = detector.score_features(given)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(scores.double(), exact.score_features(given), rtol=1e-5, atol=1e-5)
    head = OPNP(ratios=RATIOS).fit_features(features(), weight=weight().to(dtype), bias=bias().to(dtype)).pruned_head
    assert head.weight.dtype == head.bias.dtype == dtype


@both_kinds
def test_no_bias_is_a_bias_of_zero(kind: str) -> None:
    one = made(kind).fit_features(features(), weight=weight(), bias=None)
    other = made(kind).fit_features(features(), weight=weight(), bias=torch.zeros(CLASSES))
    assert one.pruned_head.bias is None
    assert torch.equal(one.score_features(features()), other.score_features(features()))
    head = nn.Linear(FEATURES, CLASSES, bias=False)
    head.weight.data = weight()
    assert torch.equal(made(kind).fit(head, loader()).score(features()), one.score_features(features()))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.ones(5, FEATURES + 1), ShapeError, f"`features` must have {FEATURES} columns.*got shape"),
        (torch.ones(FEATURES), ShapeError, r"`features` must have shape \(batch, features\).*`features\[None\]`"),
        (torch.ones(2, FEATURES, 7, 7), ShapeError, r"`features`.*Pool the trailing axes"),
        (torch.ones(0, FEATURES), EmptyDataError, "`features` has no rows"),
        (torch.ones(5, FEATURES).long(), InputTypeError, r"`features` must be floating point.*`features\.float\(\)`"),
        ([[1.0] * FEATURES], InputTypeError, r"`features` must be a torch\.Tensor.*got list"),
        ((features(40), torch.arange(40)), InputTypeError, r"`features` must be a torch\.Tensor.*got tuple"),
    ],
)
@both_kinds
def test_wrong_features(kind: str, given: Any, error: type[Exception], message: str) -> None:
    detector = made(kind)
    with pytest.raises(error, match=message):
        detector.fit_features(given, weight=weight(), bias=bias())
    with pytest.raises(error, match=message.replace("`features`", "`validation`", 1).split(".*")[0]):
        detector.fit_features(features(), weight=weight(), bias=bias(), validation=given)
    assert not detector.is_fitted
    with pytest.raises(error):
        fitted().calibrate_features(given)


@both_kinds
def test_features_that_are_not_finite_name_their_rows(kind: str) -> None:
    broken, detector = features(9000), detector_of(kind)
    broken[8500, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"`features` must be finite, got 1 NaN and 0 infinite.*rows 8500"):
        made(kind).fit_features(broken, weight=weight(), bias=bias())
    for asked in (detector.calibrate_features, detector.score_features):
        with pytest.raises(NonFiniteError, match="rows 8500"):
            asked(broken)


@pytest.mark.parametrize("width", [FEATURES - 1, FEATURES + 1])
def test_wrong_widths_say_what_the_head_takes(width: int) -> None:
    detector = fitted().calibrate_features(features(40))
    for asked in ("score", "predict", "classify", "verdict", "explain"):
        for rows in (torch.ones(3, width), torch.ones(width)):
            with pytest.raises(ShapeError, match=f"`features` must have {FEATURES} columns"):
                getattr(detector, f"{asked}_features")(rows)


def test_a_wrong_head() -> None:
    for wrong, shift, name in (
        (torch.ones(FEATURES), bias(), "weight"),
        (weight() / 0, bias(), "weight"),
        (weight(), torch.ones(CLASSES + 1), "bias"),
    ):
        with pytest.raises((ShapeError, NonFiniteError), match=f"`{name}` must"):
            OPNP().fit_features(features(), weight=wrong, bias=shift)


def test_features_that_overflow_the_head_are_refused_when_fitted_and_when_scored() -> None:
    large, huge = 10 * torch.ones(CLASSES, FEATURES), torch.full((3, FEATURES), 3e38)
    detector = OPNP(ratios=Ratios()).fit_features(features(), weight=large, bias=None, validation=features(100))
    with pytest.raises(NonFiniteError, match="`logits` of the pruned head must be finite"):
        detector.predict_features(huge)
    with pytest.raises(NonFiniteError, match="`logits` must be finite"):
        OPNP(ratios=Ratios()).fit_features(huge, weight=large, bias=None)


@both_kinds
def test_labels_change_nothing(kind: str) -> None:
    with_labels = [(batch, torch.arange(len(batch)) % CLASSES) for batch in loader()]
    one, other = (made(kind).fit(model(), batches, validation=batches) for batches in (loader(), with_labels))
    assert torch.equal(one.sensitivity.weight, other.sensitivity.weight)
    assert torch.equal(one.calibration_scores, other.calibration_scores)


@pytest.mark.parametrize("ratios", [None, RATIOS, "tuned"], ids=["fusion", "paper", "tuned"])
def test_a_loader_may_use_its_buffer_again(ratios: Any) -> None:
    everything = features(500, seed=3)

    def reused() -> Iterator[Tensor]:
        buffer = torch.empty(50, FEATURES)
        for part in everything.split(50):
            buffer.copy_(part)
            yield buffer

    def detector(batches: Callable[[], Iterable[Tensor]]) -> OPNP:
        ood = batches() if ratios == "tuned" else None
        return OPNP(ratios=ratios).fit(model(), batches(), validation=batches(), validation_ood=ood)

    direct, again = detector(lambda: everything.split(50)), detector(reused)
    assert torch.equal(direct.sensitivity.weight, again.sensitivity.weight)
    assert torch.equal(direct.calibration_scores, again.calibration_scores)
    assert len(again.calibration_scores.unique()) > 200
    assert direct.tuning == again.tuning


@both_kinds
def test_the_callers_autocast_and_inference_mode_do_not_reach_the_arithmetic(kind: str) -> None:
    plain = made(kind).fit(model(), loader())
    with torch.inference_mode():
        net = model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = made(kind).fit_features(features(), weight=weight(), bias=bias())
        scores = inside.score_features(features(seed=1))
    for detector in (inside, made(kind).fit(net, loader())):
        assert torch.equal(detector.sensitivity.weight, plain.sensitivity.weight)
        assert torch.equal(detector.score_features(features(seed=1)), scores)


# ------------------------------------------------------------------------------------------------------------ shaping
def test_react_clips_at_the_quantile_of_all_training_features() -> None:
    given, probe = features().half(), features(30, seed=3) * 3
    detector = OPNP(ratios=Ratios(), shaping=ReAct(0.8)).fit_features(given, weight=weight(), bias=bias())
    threshold = float(given.flatten().sort().values[int(0.8 * given.numel()) - 1])
    plain = fitted(Ratios())
    assert torch.equal(detector.score_features(probe), plain.score_features(probe.clamp_max(threshold)))
    assert not torch.equal(detector.score_features(probe), plain.score_features(probe))


@pytest.mark.parametrize("shaping", [None, ReAct(0.9), ASHS(0.5), SCALE(0.5)])
def test_features_that_are_zero_or_signed_have_a_score(shaping: Shaping | None) -> None:
    given = features()
    given[::3] = 0
    detector = OPNP(ratios=RATIOS, shaping=shaping).fit_features(given, weight=weight(), bias=bias())
    assert torch.allclose(detector.score_features(given)[::3], -bias().logsumexp(0))
    if shaping is None:
        scores = detector.score_features(given - 0.3)
    else:
        with pytest.warns(SignedFeaturesWarning, match="assumes features that are not negative"):
            scores = detector.score_features(given - 0.3)
    assert bool(torch.isfinite(scores).all())


# -------------------------------------------------------------------------------------------------------- calibration
@both_kinds
def test_validation_calibrates_and_moves_no_score(kind: str) -> None:
    held_out, probe = features(40, seed=1), features(seed=2)
    detector = made(kind).fit_features(features(), weight=weight(), bias=bias())
    scores, sensitivity = detector.score_features(probe), detector.sensitivity
    with pytest.raises(NotCalibratedError, match=r"it can score.*`calibrate\(loader\)`"):
        detector.predict_features(probe)
    detector.calibrate_features(held_out)
    same = made(kind).fit_features(features(), weight=weight(), bias=bias(), validation=held_out)
    streamed = made(kind).fit(model(), loader(), validation=iter(held_out.split(20)), keep=0.9)
    assert (detector.keep, same.keep, streamed.keep) == (0.95, 0.95, 0.9)
    for each in (same, streamed):
        assert torch.equal(each.calibration_scores, detector.calibration_scores)
        assert torch.equal(each.score_features(probe), scores)
    detector.calibrate_features(features(99, seed=5), keep=0.99)
    assert detector.sensitivity is sensitivity
    assert (len(detector.calibration_scores), detector.keep) == (99, 0.99)


@pytest.mark.parametrize("keep", [0.0, 1.0, 95, float("nan"), "0.95", None])
def test_keep_is_a_fraction(keep: Any) -> None:
    detector = fitted().calibrate_features(features(40))
    with pytest.raises(OptionError, match=r"`keep` must be a fraction in \(0, 1\)"):
        detector.calibrate_features(features(40), keep=keep)
    assert detector.keep == 0.95


@both_kinds
def test_too_few_samples_say_how_many_are_needed_and_leave_the_earlier_calibration(kind: str) -> None:
    detector = detector_of(kind)
    for rows, keep, least in ((18, 0.95, 19), (98, 0.99, 99)):
        with pytest.raises(
            CalibrationError, match=f"keep={keep} needs at least {least} calibration samples, got {rows}"
        ):
            detector.calibrate_features(features(rows), keep=keep)
    assert not detector.is_calibrated
    held_out = features(19, seed=1)
    assert detector.calibrate_features(held_out).threshold == float(detector.score_features(held_out).max())
    assert not detector.predict_features(held_out).any()
    with pytest.raises(CalibrationError):
        detector.calibrate_features(features(5))
    assert len(detector.calibration_scores) == 19


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"validation": [features(20), features(20) / 0]}, NonFiniteError),
        ({"validation": [features(5)]}, CalibrationError),
        ({"loader": [features(20), features(20) / 0]}, NonFiniteError),
    ],
    ids=["validation", "too few", "training"],
)
@both_kinds
def test_a_failed_fit_leaves_the_earlier_one(kind: str, arguments: dict[str, Any], error: type[Exception]) -> None:
    detector = made(kind).fit(model(), loader(), validation=loader(seed=1))
    before, other = detector.verdict(features(seed=2)), model()
    head_of(other).weight.data.mul_(2)
    with pytest.raises(error):
        detector.fit(other, **{"loader": loader(), **arguments})
    assert all(map(torch.equal, before, detector.verdict(features(seed=2))))


# ----------------------------------------------------------------------------------------------------------- progress
@both_kinds
def test_progress_sees_every_batch(kind: str) -> None:
    seen: list[Any] = []

    def progress(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            seen.append(item)
            yield item

    detector = made(kind).fit(model(), loader(), validation=loader(4, seed=1), progress=progress)
    assert [len(item) for item in seen] == [20] * 7
    detector.calibrate(loader(2, seed=1), progress=progress)
    detector.fit_features(features(9000), weight=weight(), bias=bias(), progress=progress)
    assert [len(item) for item in seen[7:9]] == [20, 20]
    assert [len(rows) for rows, _ in seen[9:]] == [8192, 808]


def test_progress_true_shows_a_bar_and_again_after_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NonFiniteError, match="batch 1"):
        OPNP(ratios=RATIOS).fit(model(), [features(20), features(20) / 0], progress=True)
    OPNP(ratios=RATIOS).fit(model(), loader(), progress=True)
    assert "100%" in capsys.readouterr().out
    OPNP(ratios=RATIOS).fit(model(), loader(), progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("progress", ["tqdm", 3])
def test_progress_of_another_kind(progress: Any) -> None:
    with pytest.raises(InputTypeError, match="`progress` must be a function that wraps an iterable"):
        OPNP(ratios=RATIOS).fit(model(), loader(), progress=progress)


# ---------------------------------------------------------------------------------------------------- the pruned head
def test_the_pruned_head_is_a_plain_linear_layer() -> None:
    detector = fitted(Ratios(w_min=0.3, o_max=0.2))
    head, probe = detector.pruned_head, features(seed=1)
    assert type(head) is nn.Linear
    assert (head.in_features, head.out_features) == (FEATURES, CLASSES)
    assert torch.equal(head.weight, weight().masked_fill(~detector.masks.kept, 0.0))
    assert torch.equal(head.bias, bias())
    assert not any(parameter.requires_grad for parameter in head.parameters())
    assert not head._forward_pre_hooks
    assert torch.equal(detector.score_features(probe), energy_score(head(probe)))
    with pytest.raises(NotFittedError, match="has seen no data"):
        OPNP().pruned_head  # noqa: B018  # that it cannot be had is the test


def test_the_pruned_head_shares_no_memory() -> None:
    given_weight, given_bias, net = weight(), bias(), model()
    from_features = OPNP(ratios=Ratios()).fit_features(features(), weight=given_weight, bias=given_bias)
    for detector in (from_features, OPNP(ratios=Ratios()).fit(net, loader())):
        before = detector.score_features(features(seed=1))
        detector.pruned_head.weight.fill_(7.0)
        detector.pruned_head.bias.fill_(7.0)
        assert torch.equal(detector.score_features(features(seed=1)), before)
    assert torch.equal(given_weight, weight())
    assert torch.equal(head_of(net).weight, weight())
    given_weight.zero_()
    given_bias.zero_()
    assert torch.equal(from_features.score_features(features(seed=1)), before)


@pytest.mark.parametrize("neuron", ["gradient", "aggregate"])
@pytest.mark.parametrize("scope", ["layer", "class"])
def test_with_ratios_is_a_fit_with_those_ratios(neuron: Any, scope: Any) -> None:
    ratios, probe = Ratios(w_min=0.25, w_max=0.1, o_min=0.2, o_max=0.1), features(seed=1)
    detector = fitted(Ratios())
    changed = detector.with_ratios(ratios, neuron=neuron, scope=scope)
    anew = OPNP(ratios=ratios, neuron=neuron, scope=scope).fit_features(features(), weight=weight(), bias=bias())
    assert changed.sensitivity is detector.sensitivity
    assert changed.settings == anew.settings
    assert all(map(torch.equal, changed.masks, anew.masks))
    assert torch.equal(changed.score_features(probe), anew.score_features(probe))


@pytest.mark.parametrize(
    ("ratios", "options", "error", "message"),
    [
        (0.3, {}, OptionError, "`ratios` must be a Ratios"),
        (Ratios(), {"neuron": "max"}, OptionError, "`neuron` must be one of"),
        (Ratios(o_min=0.49, o_max=0.5), {}, RatioError, "at least one must be left"),
    ],
)
def test_with_ratios_refuses_what_it_cannot_do(ratios: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fitted().with_ratios(ratios, **options)


# ------------------------------------------------------------------------------------------------------------- arrays
def test_arrays_of_numpy_go_wherever_features_and_heads_do() -> None:
    rows, held, new = (features(count, seed=seed).double() for count, seed in ((400, 0), (60, 1), (30, 2)))
    by_tensor = OPNP().fit_features(rows, weight=weight(), bias=bias(), validation=held)
    kernel = np.ascontiguousarray(weight().numpy().T)
    by_array = OPNP().fit_features(rows.numpy(), weight=kernel.T, bias=bias().numpy(), validation=held.numpy())
    given = new.numpy()
    given.setflags(write=False)
    for name, found in by_array.verdict_features(given)._asdict().items():
        assert torch.equal(found, getattr(by_tensor.verdict_features(new), name)), name
    assert torch.equal(by_array.score_features(given[0]), by_tensor.score_features(new[0]))
    assert torch.equal(by_array.explain_features(given[::-1]).share, by_tensor.explain_features(new.flip(0)).share)
    assert by_array.calibrate_features(held.numpy(), keep=0.9).threshold < by_tensor.threshold
    with pytest.raises(InputTypeError, match="numbers that torch has a dtype for"):
        by_array.score_features(np.array([["a", "b"]]))


@pytest.mark.parametrize("offset", [None, bias()])
def test_a_transposed_kernel_is_recognised(offset: torch.Tensor | None) -> None:
    with pytest.raises(ShapeError, match=r"looks transposed.*Keras and JAX.*`weight\.T`"):
        OPNP().fit_features(features(), weight=weight().T, bias=offset)


def test_labels_tell_a_square_kernel_that_is_transposed(tmp_path: Path) -> None:
    kernel, rows = 9 * torch.eye(4).roll(1, 0), torch.eye(4).repeat(60, 1)
    write_features(tmp_path / "f", rows, labels=(rows @ kernel.T).argmax(1))
    source, paper = open_features(tmp_path / "f"), OPNP(ratios=Ratios())
    assert paper.fit_features(source, weight=kernel, bias=None).id_accuracy == {"training": 1.0}
    with pytest.warns(LabelWarning, match=r"answers 0 of 240 .*as many classes as features.*try `weight\.T`"):
        paper.fit_features(source, weight=kernel.T, bias=None)
