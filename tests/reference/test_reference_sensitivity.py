"""Sensitivities against autograd, one sample at a time, in float64."""

import pytest
import torch
from torch import Tensor, nn

from opnp.core import SensitivitySum, neuron_sensitivity, weight_sensitivity
from tests.reference.per_sample_gradients import loop_sensitivity


def loop_of_head(features: Tensor, weight: Tensor, bias: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean absolute gradient of the energy for each weight and for each neuron, by backward passes."""
    head = nn.Linear(weight.shape[1], len(weight), dtype=torch.float64)
    head.load_state_dict({"weight": weight, "bias": bias})
    of_weights, of_inputs = loop_sensitivity(nn.Sequential(head), [features], ["0"], temperature=temperature)
    return of_weights["0"], of_inputs["0"]


def head_and_features(seed: int, *, samples: int = 23, classes: int = 5, features: int = 7) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64)
    return torch.randn(samples, features, generator=generator, dtype=torch.float64), weight, bias


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sensitivities_are_mean_absolute_gradients(seed: int, temperature: float) -> None:
    features, weight, bias = head_and_features(seed)
    logits = features @ weight.T + bias
    of_weight, of_neurons = loop_of_head(features, weight, bias, temperature)

    weights = weight_sensitivity(features, logits, temperature=temperature)
    gradient = neuron_sensitivity(features, logits, weight, reading="gradient", temperature=temperature)
    aggregate = neuron_sensitivity(features, logits, weight, reading="aggregate", temperature=temperature)

    torch.testing.assert_close(weights, of_weight, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, of_neurons, rtol=1e-10, atol=0)
    torch.testing.assert_close(aggregate, of_weight.mean(0), rtol=1e-10, atol=0)


def test_batches_longer_than_a_block_lose_no_row() -> None:
    features, weight, bias = head_and_features(3, samples=2051, classes=3, features=4)
    logits = features @ weight.T + bias
    of_weight, of_neurons = loop_of_head(features, weight, bias)

    batches = [(features[:2050], logits[:2050]), (features[2050:], logits[2050:])]
    mean = SensitivitySum.from_batches(batches, weight).mean()

    assert mean.count == 2051
    torch.testing.assert_close(mean.weight, of_weight, rtol=1e-10, atol=0)
    torch.testing.assert_close(mean.neuron_gradient, of_neurons, rtol=1e-10, atol=0)


def test_the_mean_of_absolute_gradients_is_not_the_absolute_mean_gradient() -> None:
    features = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    logits, weight = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    of_weight, _ = loop_of_head(features, weight, torch.zeros(2, dtype=torch.float64))
    assert of_weight.tolist() == weight_sensitivity(features, logits).tolist() == [[0.5], [0.5]]
