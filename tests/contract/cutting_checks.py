"""Masks do not depend on how the training data are cut and ordered."""

import torch
from torch import Tensor, nn

from opnp import OPNP
from opnp.core import Masks
from tests.contract.model_checks import Make

__all__ = ["check_cutting_does_not_matter"]

_SAMPLES, _FEATURES, _CLASSES = 300, 24, 7


def check_cutting_does_not_matter(make: Make) -> None:
    """Assert equal masks in float64, and in float32 masks that differ within 1e-6 relative of the cut alone."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.rand(_SAMPLES, _FEATURES, generator=generator) * 3
    inputs[:, 5] = inputs[:, 4]  # a tie on paper, which the order of summation must not break
    inputs[:, 6] = 0.0
    model = nn.Sequential(nn.ReLU(), nn.utils.skip_init(nn.Linear, _FEATURES, _CLASSES))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 3
    whole = make().fit(model, [inputs])
    exact = whole.settings.precision == "float64"
    for size in (37, 64, 299):
        for order in (torch.arange(_SAMPLES), torch.arange(_SAMPLES).flip(0), _shuffled(generator)):
            cut = make().fit(model, inputs[order].split(size))
            assert cut.samples == _SAMPLES, "every sample counts once"
            assert cut.sensitivity.count == whole.sensitivity.count, "another number of rows gives the scales"
            assert cut.members == whole.members, "other scores are fused"
            for name in ("weight", "neuron_gradient", "neuron_aggregate"):
                one, other = getattr(whole.sensitivity, name), getattr(cut.sensitivity, name)
                assert torch.allclose(one, other, rtol=1e-12 if exact else 1e-6, atol=0), f"{name}, batches of {size}"
            if exact:
                for one, other in zip(whole.masks, cut.masks, strict=True):
                    assert torch.equal(one, other), f"masks depend on batches of {size}"
            else:
                _assert_differ_at_the_cut_alone(whole, cut)


def _assert_differ_at_the_cut_alone(whole: OPNP, cut: OPNP) -> None:
    settings = whole.settings
    weight, ratios = whole.sensitivity.weight, settings.ratios
    rankings = weight if settings.scope == "class" else weight.reshape(1, -1)
    neurons = whole.sensitivity.neuron(settings.neuron)[None]
    one, other = whole.masks, cut.masks
    flipped = Masks(one.weight != other.weight, one.neuron != other.neuron)
    _assert_near(rankings, flipped.weight.reshape(rankings.shape), ratios.w_min, ratios.w_max)
    _assert_near(neurons, flipped.neuron[None], ratios.o_min, ratios.o_max)


def _assert_near(rankings: Tensor, flipped: Tensor, lowest: float, highest: float) -> None:
    entries = rankings.shape[1]
    for ranking, is_flipped in zip(rankings, flipped, strict=True):
        ordered = ranking.sort().values
        cuts = [round(lowest * entries), entries - round(highest * entries)]
        edges = torch.stack([ordered[index] for cut in cuts for index in (cut - 1, cut) if 0 <= index < entries])
        for value in ranking[is_flipped]:
            assert bool(((value - edges).abs() <= 1e-6 * edges).any()), "a mask differs away from the cut"


def _shuffled(generator: torch.Generator) -> Tensor:
    return torch.randperm(_SAMPLES, generator=generator)
