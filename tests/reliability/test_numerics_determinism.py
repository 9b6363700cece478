"""The same numbers from the same data: across runs, threads, batches, orders of the rows, and devices."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios, Verdict
from opnp.core import Precision
from tests.tried import Tried

RATIOS = Ratios(w_min=0.3, w_max=0.01, o_min=0.1, o_max=0.1)
TEMPERATURES = (0.01, 1.0, 1e6)
GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(1500, 96, generator=GENERATOR).relu()
FEATURES[:, 90:] = FEATURES[:, :6]  # copies
FEATURES[:, 40] = 0.0
WEIGHT = torch.randn(20, 96, generator=GENERATOR) * 0.02
WEIGHT[:, 90:] = WEIGHT[:, :6]
BIAS = torch.randn(20, generator=GENERATOR)


def fitted(
    temperature: float,
    precision: Precision,
    *,
    batch_size: int = 8192,
    rows: Tensor | None = None,
    device: str = "cpu",
    neuron: str = "gradient",
) -> OPNP:
    """Return the detector of the data above."""
    features = FEATURES if rows is None else FEATURES[rows]
    detector = OPNP(
        ratios=RATIOS,
        temperature=temperature,
        shaping=None,
        precision=precision,
        neuron="gradient" if neuron == "gradient" else "aggregate",
    )
    head, bias = WEIGHT.to(device), BIAS.to(device)
    detector.fit_features(features.to(device), weight=head, bias=bias, batch_size=batch_size)
    return detector.calibrate_features(FEATURES[:100].to(device))


def fused(precision: Precision, *, batch_size: int = 8192, rows: Tensor | None = None, device: str = "cpu") -> OPNP:
    """Return the fusion of the data above."""
    features = (FEATURES if rows is None else FEATURES[rows]).to(device)
    detector = OPNP(precision=precision)
    detector.fit_features(features, weight=WEIGHT.to(device), bias=BIAS.to(device), batch_size=batch_size)
    return detector.calibrate_features(FEATURES[:100].to(device))


def require_fused_alike(one: OPNP, other: OPNP, *, precision: Precision) -> None:
    """Compare members, scores to 1e-5 and, where products are float64, masks."""
    assert (one.members, one.left_out, one.samples) == (other.members, other.left_out, other.samples)
    if precision == "float64":
        assert torch.equal(one.masks.kept.cpu(), other.masks.kept.cpu())
    left, right = (
        detector.score_features(FEATURES[:200].to(detector.sensitivity.weight.device)).cpu()
        for detector in (one, other)
    )
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.calibration_scores, other.calibration_scores, rtol=1e-5, atol=1e-5)


def require_alike(one: OPNP, other: OPNP, precision: Precision) -> None:
    """Compare masks: equal in float64, and in float32 but for entries as near the cut as 1e-6 of it.

    The rounding of logits is multiplied by a low temperature.
    """
    left, right = one.sensitivity, other.sensitivity
    allowed = (1e-6 if precision == "float32" else 1e-11) * max(1.0, 0.2 / one.settings.temperature)
    torch.testing.assert_close(left.weight.cpu(), right.weight.cpu(), rtol=allowed, atol=0)
    torch.testing.assert_close(left.neuron_gradient.cpu(), right.neuron_gradient.cpu(), rtol=40 * allowed, atol=1e-14)
    weights, neurons = (
        (getattr(one.masks, name).cpu() ^ getattr(other.masks, name).cpu()).flatten() for name in ("weight", "neuron")
    )
    if precision == "float64":
        assert not bool(weights.any() | neurons.any())
    of_weights, of_neurons = left.weight.flatten().cpu(), left.neuron_gradient.cpu()
    for is_other, values, ratios, slack in (
        (weights, of_weights, (RATIOS.w_min, RATIOS.w_max), allowed),
        (neurons, of_neurons, (RATIOS.o_min, RATIOS.o_max), 40 * allowed),
    ):
        order = values.sort().values
        cuts = order[[round(ratios[0] * len(order)) - 1, len(order) - round(ratios[1] * len(order))]]
        for value in values[is_other]:
            assert bool(((value - cuts).abs() <= slack * cuts).any())


def require_same(one: Verdict, other: Verdict) -> None:
    """Compare every bit of two verdicts."""
    for left, right in zip(one, other, strict=True):
        assert torch.equal(left, right)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("temperature", "precision"),
    [
        pytest.param(0.01, "float32", marks=pytest.mark.reliability),
        pytest.param(1.0, "float64", marks=pytest.mark.reliability),
        pytest.param(0.01, "float64", marks=pytest.mark.long),
        pytest.param(1.0, "float32", marks=pytest.mark.long),
        pytest.param(1e6, "float32", marks=pytest.mark.long),
    ],
)
def test_threads_and_runs(tried: Tried, temperature: float, precision: Precision) -> None:
    tried("numerics", "fits repeated with 1, 2 and 4 threads", 6)
    first = fitted(temperature, precision)
    for number in (1, 2, 4):
        with threads(number):
            one, again = (fitted(temperature, precision) for _ in range(2))
            for name in ("weight", "neuron_gradient", "neuron_aggregate"):
                assert torch.equal(getattr(one.sensitivity, name), getattr(again.sensitivity, name))
            assert torch.equal(one.calibration_scores, again.calibration_scores)
            require_same(one.verdict_features(FEATURES[:200]), again.verdict_features(FEATURES[:200]))
        require_alike(first, one, precision)


@pytest.mark.reliability
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_batches_and_orders_of_rows(tried: Tried, temperature: float, precision: Precision) -> None:
    tried("numerics", "fits with the data cut or ordered otherwise", 5)
    first = fitted(temperature, precision)
    order = torch.randperm(len(FEATURES), generator=torch.Generator().manual_seed(1))
    for other in (
        fitted(temperature, precision, batch_size=37),
        fitted(temperature, precision, batch_size=1024),
        fitted(temperature, precision, batch_size=1500),
        fitted(temperature, precision, rows=order),
        fitted(temperature, precision, rows=order, batch_size=501),
    ):
        require_alike(first, other, precision)


@pytest.mark.reliability
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_threads_and_runs_of_a_fusion(tried: Tried, precision: Precision) -> None:
    tried("numerics", "fusions fitted again with 1, 2 and 4 threads", 6)
    first = fused(precision)
    for number in (1, 2, 4):
        with threads(number):
            one, again = (fused(precision) for _ in range(2))
            assert torch.equal(one.calibration_scores, again.calibration_scores)
            require_same(one.verdict_features(FEATURES[:200]), again.verdict_features(FEATURES[:200]))
        require_fused_alike(first, one, precision=precision)


@pytest.mark.reliability
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_batches_and_orders_of_rows_of_a_fusion(tried: Tried, precision: Precision) -> None:
    tried("numerics", "fusions fitted with the data cut or ordered otherwise", 4)
    first = fused(precision)
    order = torch.randperm(len(FEATURES), generator=torch.Generator().manual_seed(1))
    for other in (
        fused(precision, batch_size=37),
        fused(precision, batch_size=1024),
        fused(precision, rows=order),
        fused(precision, rows=order, batch_size=501),
    ):
        require_fused_alike(first, other, precision=precision)


@pytest.mark.reliability
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_fused_score_of_an_input_does_not_depend_on_its_batch(tried: Tried, precision: Precision) -> None:
    tried("numerics", "inputs scored by a fusion alone and in batches", 200)
    detector = fused(precision)
    whole = detector.score_features(FEATURES[:200])
    alone = torch.cat([detector.score_features(FEATURES[place : place + 1]) for place in range(200)])
    allowed = 1e-5 if precision == "float32" else 1e-12
    torch.testing.assert_close(alone, whole, rtol=allowed, atol=allowed)


@pytest.mark.reliability
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_score_of_an_input_does_not_depend_on_its_batch(tried: Tried, precision: Precision) -> None:
    tried("numerics", "inputs scored alone and in batches", 200)
    detector = fitted(1.0, precision)
    whole = detector.score_features(FEATURES[:200])
    alone = torch.cat([detector.score_features(FEATURES[place : place + 1]) for place in range(200)])
    unit = torch.finfo(whole.dtype).eps
    sizes = (FEATURES[:200].abs() @ WEIGHT.abs().T + BIAS.abs()).amax(1)
    assert bool(((whole - alone).abs() <= 8 * unit * sizes).all())


@pytest.mark.reliability
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_of_half_precision_is_fitted_by_what_its_features_say(tried: Tried, dtype: torch.dtype) -> None:
    """Its own logits keep 8 or 11 bits. They are taken again in float32, as they are from cached features."""
    tried("numerics", "models in half precision fitted, beside the same features in float64")
    generator = torch.Generator().manual_seed(2)
    head = nn.Linear(32, 6)
    model = nn.Sequential(nn.Identity(), head).to(dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(6, 32, generator=generator))
    inputs = torch.randn(300, 32, generator=generator).relu().to(dtype) * 4
    detector = OPNP(ratios=RATIOS, shaping=None).fit(model, inputs.split(64))
    exact = OPNP(ratios=RATIOS, shaping=None).fit_features(
        inputs.double(), weight=head.weight.detach().double(), bias=head.bias.detach().double()
    )
    torch.testing.assert_close(detector.sensitivity.weight, exact.sensitivity.weight, rtol=2e-4, atol=0)
    assert torch.equal(detector.masks.weight, exact.masks.weight)
    assert torch.equal(detector.masks.neuron, exact.masks.neuron)


@pytest.mark.gpu
@pytest.mark.reliability
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a CUDA device with the processor")
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_processor_and_accelerator_agree(tried: Tried, temperature: float, precision: Precision) -> None:
    tried("numerics", "fits on a CUDA device beside the processor's")
    here, there = (fitted(temperature, precision, device=device) for device in ("cpu", "cuda"))
    require_alike(here, there, precision)
    unit = torch.finfo(here.score_features(FEATURES[:1]).dtype).eps
    if torch.equal(here.masks.kept, there.masks.kept.cpu()):
        found = there.score_features(FEATURES[:200].cuda()).cpu()
        torch.testing.assert_close(found, here.score_features(FEATURES[:200]), rtol=100 * unit, atol=100 * unit)


@pytest.mark.gpu
@pytest.mark.reliability
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a CUDA device with the processor")
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_processor_and_accelerator_agree_on_a_fusion(tried: Tried, precision: Precision) -> None:
    tried("numerics", "fusions fitted on a CUDA device beside the processor's")
    here, there = (fused(precision, device=device) for device in ("cpu", "cuda"))
    require_fused_alike(here, there, precision=precision)
    verdict = there.verdict_features(FEATURES[:200].cuda())
    assert {part.device.type for part in (verdict.predicted_class, verdict.score, verdict.is_ood)} == {"cuda"}
    left, right = (
        detector.explain_features(FEATURES[:50].to(detector.sensitivity.weight.device)) for detector in (here, there)
    )
    torch.testing.assert_close(right.share.cpu(), left.share, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(right.p_value.cpu(), left.p_value, rtol=0, atol=1.01 / 101)
