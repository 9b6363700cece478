"""The same numbers from the same data: across runs, threads, batches, orders of the rows, and devices."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios
from opnp.core import Precision
from tests.tried import Tried

RATIOS = Ratios(w_min=0.3, w_max=0.01, o_min=0.1, o_max=0.1)
GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(1500, 96, generator=GENERATOR).relu()
FEATURES[:, 90:] = FEATURES[:, :6]  # copies
FEATURES[:, 40] = 0.0
WEIGHT = torch.randn(20, 96, generator=GENERATOR) * 0.02
WEIGHT[:, 90:] = WEIGHT[:, :6]
BIAS = torch.randn(20, generator=GENERATOR)

Kind = tuple[float | None, Precision]
"""Temperature, None of the fusion, and precision."""
FUSIONS: list[Kind] = [(None, "float32"), (None, "float64")]
PAPERS: list[Kind] = [(0.01, "float32"), (1.0, "float64"), (0.01, "float64"), (1.0, "float32"), (1e6, "float32")]


def fitted(kind: Kind, *, batch_size: int = 8192, rows: Tensor | None = None, device: str = "cpu") -> OPNP:
    """Return the detector of the data above."""
    temperature, precision = kind
    features = (FEATURES if rows is None else FEATURES[rows]).to(device)
    detector = OPNP(precision=precision)
    if temperature is not None:
        detector = OPNP(ratios=RATIOS, temperature=temperature, shaping=None, precision=precision)
    detector.fit_features(features, weight=WEIGHT.to(device), bias=BIAS.to(device), batch_size=batch_size)
    return detector.calibrate_features(FEATURES[:100].to(device))


def require_alike(one: OPNP, other: OPNP, kind: Kind) -> None:
    """Compare masks: equal in float64, and in float32 but for entries as near the cut as 1e-6 of it.

    The rounding of logits is multiplied by a low temperature. Of a fusion scores are compared, to 1e-5.
    """
    temperature, precision = kind
    if precision == "float64":
        assert torch.equal(one.masks.kept.cpu(), other.masks.kept.cpu())
    if temperature is None:
        assert (one.members, one.left_out, one.samples) == (other.members, other.left_out, other.samples)
        left, right = (
            found.score_features(FEATURES[:200].to(found.sensitivity.weight.device)) for found in (one, other)
        )
        torch.testing.assert_close(left.cpu(), right.cpu(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.calibration_scores, other.calibration_scores, rtol=1e-5, atol=1e-5)
        return
    allowed = (1e-6 if precision == "float32" else 1e-11) * max(1.0, 0.2 / temperature)
    for name, of, ratios, slack, floor in (
        ("weight", "weight", (RATIOS.w_min, RATIOS.w_max), allowed, 0.0),
        ("neuron", "neuron_gradient", (RATIOS.o_min, RATIOS.o_max), 40 * allowed, 1e-14),
    ):
        values, others = (getattr(found.sensitivity, of).flatten().cpu() for found in (one, other))
        torch.testing.assert_close(values, others, rtol=slack, atol=floor)
        is_other = (getattr(one.masks, name).cpu() ^ getattr(other.masks, name).cpu()).flatten()
        order = values.sort().values
        cuts = order[[round(ratios[0] * len(order)) - 1, len(order) - round(ratios[1] * len(order))]]
        assert all(bool(((value - cuts).abs() <= slack * cuts).any()) for value in values[is_other])


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
    "kind",
    [
        *(pytest.param(kind, marks=pytest.mark.reliability) for kind in (*PAPERS[:2], *FUSIONS)),
        *(pytest.param(kind, marks=pytest.mark.long) for kind in PAPERS[2:]),
    ],
)
def test_threads_and_runs(tried: Tried, kind: Kind) -> None:
    tried("numerics", "fits repeated with 1, 2 and 4 threads", 6)
    first = fitted(kind)
    for number in (1, 2, 4):
        with threads(number):
            one, again = (fitted(kind) for _ in range(2))
            for name in ("weight", "neuron_gradient", "neuron_aggregate"):
                assert torch.equal(getattr(one.sensitivity, name), getattr(again.sensitivity, name))
            assert torch.equal(one.calibration_scores, again.calibration_scores)
            for left, right in zip(*(each.verdict_features(FEATURES[:200]) for each in (one, again)), strict=True):
                assert torch.equal(left, right)
        require_alike(first, one, kind)


@pytest.mark.reliability
@pytest.mark.parametrize("kind", [*PAPERS, (1e6, "float64"), *FUSIONS])
def test_batches_and_orders_of_rows(tried: Tried, kind: Kind) -> None:
    tried("numerics", "fits with the data cut or ordered otherwise", 5)
    first = fitted(kind)
    order = torch.randperm(len(FEATURES), generator=torch.Generator().manual_seed(1))
    for batch_size, rows in ((37, None), (1024, None), (1500, None), (8192, order), (501, order)):
        require_alike(first, fitted(kind, batch_size=batch_size, rows=rows), kind)


@pytest.mark.reliability
@pytest.mark.parametrize("kind", [(1.0, "float32"), (1.0, "float64"), *FUSIONS])
def test_the_score_of_an_input_does_not_depend_on_its_batch(tried: Tried, kind: Kind) -> None:
    tried("numerics", "inputs scored alone and in batches", 200)
    detector = fitted(kind)
    whole = detector.score_features(FEATURES[:200])
    alone = torch.cat([detector.score_features(FEATURES[place : place + 1]) for place in range(200)])
    if kind[0] is None:
        allowed = 1e-5 if kind[1] == "float32" else 1e-12
        torch.testing.assert_close(alone, whole, rtol=allowed, atol=allowed)
        return
    sizes = (FEATURES[:200].abs() @ WEIGHT.abs().T + BIAS.abs()).amax(1)
    assert bool(((whole - alone).abs() <= 8 * torch.finfo(whole.dtype).eps * sizes).all())


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
    detector, exact = (OPNP(ratios=RATIOS, shaping=None) for _ in range(2))
    detector.fit(model, inputs.split(64))
    exact.fit_features(inputs.double(), weight=head.weight.detach().double(), bias=head.bias.detach().double())
    torch.testing.assert_close(detector.sensitivity.weight, exact.sensitivity.weight, rtol=2e-4, atol=0)
    assert torch.equal(detector.masks.kept, exact.masks.kept)


@pytest.mark.gpu
@pytest.mark.reliability
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a CUDA device with the processor")
@pytest.mark.parametrize("kind", [*PAPERS, *FUSIONS])
def test_processor_and_accelerator_agree(tried: Tried, kind: Kind) -> None:
    tried("numerics", "fits on a CUDA device beside the processor's")
    here, there = (fitted(kind, device=device) for device in ("cpu", "cuda"))
    require_alike(here, there, kind)
    verdict = there.verdict_features(FEATURES[:200].cuda())
    assert {part.device.type for part in (verdict.predicted_class, verdict.score, verdict.is_ood)} == {"cuda"}
    left, right = here.explain_features(FEATURES[:50]), there.explain_features(FEATURES[:50].cuda())
    torch.testing.assert_close(right.share.cpu(), left.share, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(right.p_value.cpu(), left.p_value, rtol=0, atol=1.01 / 101)
