"""Scores, sensitivities, shaping, metrics and p-values of extreme numbers against formulas at 50 digits."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp import OPNP, Ratios
from opnp.core import (
    SCALE,
    SCORE_NAMES,
    Precision,
    ReAct,
    ScoreName,
    Sensitivity,
    SensitivitySum,
    ash_s,
    aupr,
    auroc,
    conformal_p_value,
    fpr_at_tpr,
    is_flagged,
    keep_threshold,
    neuron_sensitivity,
    react,
    scale,
    score_logits,
    weight_sensitivity,
)
from opnp.errors import NonFiniteError
from tests.reference.test_reference_metrics import (
    loop_auroc,
    loop_average_precision,
    loop_fpr_id_positive,
    loop_fpr_ood_positive,
)
from tests.reliability.numerics_world import (
    DTYPES,
    EXACT,
    TEMPERATURES,
    Head,
    exact_score,
    exact_sensitivities,
    extreme_rows,
    heads,
    numbers,
    relative_error,
)
from tests.tried import Tried


def fuzzed(trials: int) -> settings:
    """Return the settings of a test that tries so many examples, the same ones each time."""
    return settings(
        derandomize=True, deadline=None, database=None, max_examples=trials, suppress_health_check=list(HealthCheck)
    )


def allowed_error(logits: Tensor, exact: Any, name: ScoreName, temperature: float, dtype: torch.dtype) -> Any:
    """Return what a score may be off by: some units in the last place, of the exponents where the score has those.

    The energy of C classes is the sum of two terms, which may cancel. Entropy and GEN are made of powers: the error of
    an exponent z, z units in the last place, is one of theirs. What is below the normal numbers may be lost.
    """
    unit, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    if name == "max_logit":
        return 0
    if name == "energy":
        largest = EXACT.mpf(float(logits.double().amax()))
        return 4 * unit * max(abs(largest), EXACT.mpf(temperature) * EXACT.log(max(2, len(logits))), abs(exact))
    spread = EXACT.mpf(float(logits.double().amax())) - EXACT.mpf(float(logits.double().amin()))
    exponent = 0 if name == "msp" else min(spread / EXACT.mpf(temperature), 750)
    return (8 + exponent) * unit * abs(exact) + 1000 * tiny


def require_exact_scores(logits: Tensor, temperature: float) -> None:
    """Compare every score of every row."""
    for name in SCORE_NAMES:
        scores = score_logits(logits, score=name, temperature=temperature)
        is_wide = logits.dtype == torch.float64 or (temperature > 1000 and name != "max_logit")
        assert scores.dtype == (torch.float64 if is_wide else torch.float32)
        assert bool(scores.isfinite().all())
        for row, score in zip(logits, scores.tolist(), strict=True):
            exact = exact_score(numbers(row.tolist()), name, temperature)
            error = abs(EXACT.mpf(score) - exact)
            assert error <= allowed_error(row, exact, name, temperature, scores.dtype), (name, row.tolist(), score)


EXTREME_LOGITS = (
    *([1e4, 1e4, 1e4, 1e4], [-1e4, -1e4, -1e4, -1e4], [1e4, -1e4, 0.0, -0.0], [1e4, 1e4 - 0.01, -1e4, 0.0]),
    *([0.0, -0.0, 0.0, 0.0], [1e-30, 2e-30, 0.0, -1e-30], [20.0, 0.0, 0.0, 0.0], [1e-40, 2e-40, 3e-40, 0.0]),
    *([1e30, 1e-30, -1e30, 0.0], [3e38, -3e38, 3e38, 1.0]),  # the last two are no numbers of float16
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trials", [20, pytest.param(400, marks=pytest.mark.long)])
def test_scores_of_any_logits_are_exact(tried: Tried, trials: int, dtype: torch.dtype) -> None:
    highest, named = (4, EXTREME_LOGITS[:-2]) if dtype == torch.float16 else (38, EXTREME_LOGITS)
    tried("numerics", "rows of extreme logits, each scored in five ways", 3 * trials + len(named) * len(TEMPERATURES))
    for temperature in TEMPERATURES:
        require_exact_scores(torch.tensor(named, dtype=dtype), temperature)

    @fuzzed(trials)
    @given(logits=extreme_rows(rows=3, width=5, highest=highest), temperature=st.sampled_from(TEMPERATURES))
    def check(logits: Tensor, temperature: float) -> None:
        require_exact_scores(logits.to(dtype), temperature)

    check()


@pytest.mark.reliability
@pytest.mark.parametrize("name", [name for name in SCORE_NAMES if name != "max_logit"])
@pytest.mark.parametrize("temperature", [1e4, 1e6])
def test_inputs_keep_their_order_at_a_high_temperature(tried: Tried, name: ScoreName, temperature: float) -> None:
    """At T = 1e6 the energies of 1000 classes are about -7e6, where float32 has a spacing of 0.5."""
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(1)) * 5
    tried("numerics", "inputs whose order by a score is compared at high temperatures", len(logits))
    exact = [exact_score(numbers(row), name, temperature) for row in logits.tolist()]
    order = sorted(range(len(exact)), key=exact.__getitem__)
    assert score_logits(logits, score=name, temperature=temperature).argsort(stable=True).tolist() == order


LEAST = 1e-290
LEAST_OF_FLOAT32 = 2.0**-120
"""Terms of float32 products below it times the factor beside them may be lost."""
ERRORS: dict[Precision, float] = {"float32": 1e-5, "float64": 1e-12}
CANCELLED: dict[Precision, float] = {"float32": 2e-7, "float64": 2.0**-43}
"""Errors relative to the terms p_i |W_ij|, of which a gradient for a neuron may be a small part."""


def require_exact_sensitivities(found: Sensitivity, head: Head, temperature: float, precision: Precision) -> None:
    """Compare all three with double loops over features and logits (`bias` of the head), entry by entry."""
    exact = exact_sensitivities(head.features, head.bias, head.weight, temperature)
    allowed, is_float32 = ERRORS[precision], precision == "float32" and 0.1 <= temperature <= 1000
    least = LEAST_OF_FLOAT32 if is_float32 else LEAST
    by_feature = [least * (1 + value) for value in head.features.double().abs().amax(0).tolist()]
    by_neuron = [least * (1 + value) for value in head.weight.double().abs().amax(0).tolist()]
    rows = [*found.weight.tolist(), found.neuron_aggregate.tolist()]
    for row, of_class in zip(rows, [*exact.weight, exact.aggregate], strict=True):
        for value, expected, lost in zip(row, of_class, by_feature, strict=True):
            assert abs(value - expected) <= allowed * expected + lost
    cancelled = CANCELLED["float32" if is_float32 else "float64"]
    for value, expected, terms, lost in zip(
        found.neuron_gradient.tolist(), exact.gradient, exact.terms, by_neuron, strict=True
    ):
        assert abs(value - expected) <= allowed * expected + cancelled * terms + lost


@pytest.mark.reliability
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_sensitivities_of_named_extremes_are_exact(tried: Tried, temperature: float, precision: Precision) -> None:
    tried("numerics", "heads whose sensitivities are compared with exact ones", len(heads()))
    for name, case in heads().items():
        head = case.to(torch.float32)
        given = Head(head.features, head.weight, torch.nn.functional.linear(head.features, head.weight, head.bias))
        found = SensitivitySum.from_batch(
            given.features, given.bias, given.weight, temperature=temperature, precision=precision
        ).mean()
        try:
            require_exact_sensitivities(found, given, temperature, precision)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trials", [12, pytest.param(150, marks=pytest.mark.long)])
def test_sensitivities_of_any_numbers_are_exact(tried: Tried, trials: int, dtype: torch.dtype) -> None:
    tried("numerics", "heads whose sensitivities are compared with exact ones", trials)
    highest = 4 if dtype == torch.float16 else 36  # float32 holds the sum of three
    precision: Precision = "float64" if dtype == torch.float64 else "float32"

    @fuzzed(trials)
    @given(
        features=extreme_rows(rows=3, width=3, highest=highest),
        logits=extreme_rows(rows=3, width=3, highest=highest),
        weight=extreme_rows(rows=3, width=3, highest=highest),
        temperature=st.sampled_from(TEMPERATURES),
    )
    def check(features: Tensor, logits: Tensor, weight: Tensor, temperature: float) -> None:
        features, logits, weight = features.to(dtype), logits.to(dtype), weight.to(dtype)
        found = SensitivitySum.from_batch(features, logits, weight, temperature=temperature).mean()
        require_exact_sensitivities(found, Head(features, weight, logits), temperature, precision)
        exact = exact_sensitivities(features, logits, weight, temperature)
        plain = weight_sensitivity(features, logits, temperature=temperature)
        for reading in ("gradient", "aggregate"):
            neurons = neuron_sensitivity(features, logits, weight, reading=reading, temperature=temperature)
            wide = Sensitivity(plain, neurons, neurons, count=3)
            target = exact.gradient if reading == "gradient" else exact.aggregate
            for value, expected, terms in zip(wide.neuron(reading).tolist(), target, exact.terms, strict=True):
                slack = CANCELLED["float64"] * terms if reading == "gradient" else 0
                assert abs(value - expected) <= 1e-12 * expected + slack + LEAST
        for row, of_class in zip(plain.tolist(), exact.weight, strict=True):
            for value, expected in zip(row, of_class, strict=True):
                assert relative_error(value, expected) < 1e-12 or 0 <= value < LEAST > expected

    check()


QUANTILES = (0.3, 0.65, 0.9, 0.99)


def exact_shaped(row: list[float], method: str, quantile: float) -> list[object]:
    """Return a row times exp(s1 / s2), the exponent at most 40, without what ASH-S drops."""
    values = numbers(row)
    largest = sorted(values, reverse=True)[: max(1, len(row) - round(quantile * len(row)))]
    kept = [value if value >= largest[-1] else EXACT.mpf(0) for value in values] if method == "ash_s" else values
    whole, part = EXACT.fsum(values), EXACT.fsum(kept if method == "ash_s" else largest)
    growth = EXACT.exp(min(whole / part, 40)) if part > 0 else EXACT.mpf(1)
    return [value * growth for value in kept]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trials", [20, pytest.param(400, marks=pytest.mark.long)])
def test_shaped_features_are_exact(tried: Tried, trials: int, dtype: torch.dtype) -> None:
    """A sum of n terms is off by some units of its last place, and its exponent by as many times its size, at most 40.

    In half precision the result is rounded to that, and what is larger than its largest number becomes that.
    """
    tried("numerics", "rows of extreme features, each shaped in two ways and clipped", 2 * trials)
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    own, highest = torch.finfo(dtype), 4 if dtype == torch.float16 else 18
    methods: dict[str, Callable[..., Tensor]] = {"ash_s": ash_s, "scale": scale}

    @fuzzed(trials)
    @given(features=extreme_rows(rows=2, width=9, highest=highest), quantile=st.sampled_from(QUANTILES))
    def check(features: Tensor, quantile: float) -> None:
        features = features.abs().to(dtype)
        for name, method in methods.items():
            found = method(features, quantile=quantile)
            assert found.dtype == dtype
            for row, values in zip(features.tolist(), found.tolist(), strict=True):
                for value, exact in zip(values, exact_shaped(row, name, quantile), strict=True):
                    target = min(exact, EXACT.mpf(own.max))
                    allowed = (400 * unit + own.eps) * target + 2 * own.tiny
                    assert abs(value - target) <= allowed, (name, row, value, float(target))
        threshold = float(features.double().median())
        assert react(features, threshold=threshold).tolist() == [
            [min(value, threshold) for value in row] for row in features.tolist()
        ]

    check()


@pytest.mark.reliability
def test_detectors_refuse_features_too_large_to_be_shaped_or_for_a_threshold(tried: Tried) -> None:
    tried("numerics", "rows of features too large to be shaped in float32", 2)
    features, weight = torch.rand(30, 40), torch.full((3, 40), 1e-6)
    detector = OPNP(ratios=Ratios(), shaping=SCALE()).fit_features(features, weight=weight, bias=None)
    with pytest.raises(NonFiniteError, match="scale the features down, or give them in float64"):
        detector.score_features(torch.full((2, 40), 3e38))
    wide = torch.full((30, 4), 1e60, dtype=torch.float64)
    with pytest.raises(
        NonFiniteError, match=r"threshold of ReAct must lie within float32, .*got inf at the quantile 0\.9\."
    ):
        OPNP(ratios=Ratios(), shaping=ReAct(0.9)).fit_features(wide, weight=torch.rand(3, 4).double(), bias=None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trials", [15, pytest.param(400, marks=pytest.mark.long)])
def test_metrics_and_p_values_are_exact(tried: Tried, trials: int, dtype: torch.dtype) -> None:
    tried("numerics", "sets of extreme scores, each measured in nine ways", trials)
    highest = 4 if dtype == torch.float16 else 38

    @fuzzed(trials)
    @given(
        scores=extreme_rows(rows=2, width=12, highest=highest),
        calibration=extreme_rows(rows=1, width=19, highest=highest),
        is_endless=st.booleans(),
    )
    def check(scores: Tensor, calibration: Tensor, is_endless: bool) -> None:
        scores = scores.to(dtype)
        if is_endless:
            scores[0, 0], scores[1, 0], scores[1, 1] = -math.inf, math.inf, math.inf
        inside, outside = scores.tolist()
        assert auroc(*scores) == pytest.approx(loop_auroc(inside, outside), rel=1e-15)
        turned = [[-value for value in part] for part in (inside, outside)]
        assert aupr(*scores, positive="ood") == pytest.approx(loop_average_precision(outside, inside), rel=1e-14)
        assert aupr(*scores, positive="id") == pytest.approx(loop_average_precision(*turned), rel=1e-14)
        for tpr in ("0.95", "0.5"):
            found = fpr_at_tpr(*scores, tpr=float(tpr), positive="id")
            assert found == loop_fpr_id_positive(inside, outside, tpr)
            found = fpr_at_tpr(*scores, tpr=float(tpr), positive="ood")
            assert found == loop_fpr_ood_positive(inside, outside, tpr)
        held = calibration[0].to(dtype)
        ranks = [1 + sum(other >= value for other in held.tolist()) for value in inside]
        assert conformal_p_value(scores[0], held).tolist() == [rank / 20 for rank in ranks]
        assert is_flagged(scores[0], held, keep=0.95).tolist() == [rank == 1 for rank in ranks]
        assert keep_threshold(held, keep=0.95) == max(held.tolist())

    check()
