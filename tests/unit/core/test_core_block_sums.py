"""Sums of one block: float64 where float32 does not hold them, float32 where it does."""

import pytest
import torch
from torch import Tensor

from opnp.core.block_sums import block_sums

GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.rand(30, 7, generator=GENERATOR) + 0.1
LOGITS = torch.randn(30, 4, generator=GENERATOR) * 3
WEIGHT = torch.randn(4, 7, generator=GENERATOR)


def wide(features: Tensor, logits: Tensor, weight: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The sums by plain float64."""
    shares = torch.softmax((logits.double() - logits.double().amax(1, keepdim=True)) / temperature, 1)
    return shares.T @ features.double().abs(), (shares @ weight.double()).abs().sum(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ordinary_sums_stay_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    found, expected = (
        block_sums(FEATURES, LOGITS, WEIGHT, temperature=1.0, dtype=dtype),
        wide(FEATURES, LOGITS, WEIGHT),
    )
    for part, exact in zip(found, expected, strict=True):
        assert part.dtype == dtype
        torch.testing.assert_close(part.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("features", "logits", "temperature"),
    [
        (FEATURES, LOGITS * torch.tensor([1.0, 1.0, 1.0, 0.0]) + torch.tensor([30.0, 0.0, 0.0, -60.0]), 1.0),
        (FEATURES, LOGITS + torch.tensor([20.0, 0.0, 0.0, 0.0]), 0.1),
        (FEATURES * 1e-33, LOGITS, 1.0),
        (FEATURES * 1e38 + 2e38, LOGITS, 1.0),
        (FEATURES, LOGITS, 1e4),
    ],
    ids=["far class", "low temperature", "small features", "large features", "high temperature"],
)
def test_sums_that_float32_does_not_hold_are_those_of_float64(
    features: Tensor, logits: Tensor, temperature: float
) -> None:
    found, _ = block_sums(features, logits, WEIGHT, temperature=temperature, dtype=torch.float32)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wide(features, logits, WEIGHT, temperature)[0], rtol=1e-12, atol=0)


def test_only_columns_that_need_it_are_taken_again() -> None:
    features = FEATURES.clone()
    features[:, 2] *= 1e-35
    plain, _ = block_sums(FEATURES, LOGITS, WEIGHT, temperature=1.0, dtype=torch.float32)
    found, _ = block_sums(features, LOGITS, WEIGHT, temperature=1.0, dtype=torch.float32)
    others = [0, 1, 3, 4, 5, 6]
    assert torch.equal(found[:, others], plain[:, others].double())
    torch.testing.assert_close(found[:, 2], wide(features, LOGITS, WEIGHT)[0][:, 2], rtol=1e-12, atol=0)


def test_dead_features_and_empty_columns_cost_nothing() -> None:
    features, weight = FEATURES.clone(), WEIGHT.clone()
    features[:, 1], weight[:, 3] = 0, 0
    of_weights, of_neurons = block_sums(features, LOGITS, weight, temperature=1.0, dtype=torch.float32)
    assert of_weights.dtype == of_neurons.dtype == torch.float32
    assert not bool(of_weights[:, 1].any())
    assert of_neurons[3].item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_whose_terms_cancel_are_taken_in_float64_and_their_rounding_is_none(dtype: torch.dtype) -> None:
    weight = (WEIGHT.double() - WEIGHT.double().mean(0)).float()
    weight[:, 5] = torch.tensor([0.1, 0.3, -0.3, -0.1])
    logits = torch.zeros(30, 4)
    logits[:, 0] = 1e-3
    _, found = block_sums(FEATURES, logits, weight, temperature=1.0, dtype=dtype)
    torch.testing.assert_close(found, wide(FEATURES, logits, weight)[1], rtol=1e-9, atol=0)
    _, rounding = block_sums(FEATURES, torch.zeros(30, 4), weight[:, 5:6] / 3, temperature=1.0, dtype=dtype)
    assert rounding.item() == 0


@pytest.mark.parametrize("size", [1e-38, 3e38])
def test_weights_of_any_size_have_gradients(size: float) -> None:
    _, found = block_sums(FEATURES, LOGITS, torch.full((4, 7), size), temperature=1.0, dtype=torch.float32)
    torch.testing.assert_close(found, torch.full((7,), 30 * float(torch.tensor(size)), dtype=torch.float64))


def test_small_weights_keep_their_gradients_and_their_dtype() -> None:
    _, found = block_sums(FEATURES, LOGITS, WEIGHT * 1e-3, temperature=1.0, dtype=torch.float32)
    assert found.dtype == torch.float32
    _, tiny = block_sums(FEATURES, LOGITS, WEIGHT * 1e-38, temperature=1.0, dtype=torch.float32)
    torch.testing.assert_close(tiny, wide(FEATURES, LOGITS, WEIGHT * 1e-38)[1], rtol=1e-12, atol=0)


def test_the_largest_logit_of_each_row_is_taken_off_it() -> None:
    logits = torch.tensor([[1e9, 0.0], [0.0, 1.0]])
    found, _ = block_sums(torch.ones(2, 1), logits, torch.ones(2, 1), temperature=1e-30, dtype=torch.float32)
    assert found.tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize(("gap", "dtype"), [(1 / 24, torch.float32), (1 / 48, torch.float64)])
def test_sums_that_agree_to_a_32nd_are_nearly_equal(gap: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.0, 1.0 - gap]]).log()
    found, _ = block_sums(torch.ones(1, 1), logits, torch.ones(2, 1), temperature=1.0, dtype=torch.float32)
    assert found.dtype == dtype


def test_a_gradient_below_2_to_the_minus_44_of_its_terms_is_rounding() -> None:
    logits = torch.zeros(1, 2)
    for gap, is_kept in ((1.5 * 2**-44, False), (2.5 * 2**-44, True)):
        weight = torch.tensor([[1.0], [-1 + gap]], dtype=torch.float64)
        _, found = block_sums(torch.ones(1, 1), logits, weight, temperature=1.0, dtype=torch.float64)
        assert found.item() == (gap / 2 if is_kept else 0.0)


def test_small_gradients_of_a_sparse_head_are_none_that_cancel() -> None:
    """Each neuron speaks for one class alone; of all but the first class there is little in this block."""
    weight, logits = torch.eye(4), LOGITS + torch.tensor([12.0, 0.0, 0.0, 0.0])
    _, found = block_sums(FEATURES[:, :4], logits, weight, temperature=1.0, dtype=torch.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wide(FEATURES, logits, weight)[1], rtol=1e-5, atol=0)


def test_gradients_of_a_class_that_float32_does_not_hold_are_those_of_float64() -> None:
    logits = LOGITS - torch.tensor([0.0, 0.0, 0.0, 95.0])
    _, found = block_sums(FEATURES[:, :4], logits, torch.eye(4) * 1e3, temperature=1.0, dtype=torch.float32)
    torch.testing.assert_close(found[3], wide(FEATURES, logits, torch.eye(4) * 1e3)[1][3], rtol=1e-12, atol=0)
