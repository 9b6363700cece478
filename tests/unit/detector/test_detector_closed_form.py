"""The closed form of the sensitivities against the gradient of the energy itself, sample by sample."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from opnp import OPNP, Ratios


class SmallNet(nn.Module):
    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(16, 7)
        self.classifier = nn.Linear(7, 5, bias=bias)

    def features(self, images: Tensor) -> Tensor:
        inner = torch.tanh(self.norm(self.convolution(images)))
        signed: Tensor = self.hidden(inner.flatten(1))
        return signed

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits


def energy(logits: Tensor, temperature: float) -> Tensor:
    return -temperature * torch.logsumexp(logits / temperature, -1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 7.5])
def test_fit_is_the_mean_absolute_gradient(bias: bool, temperature: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = SmallNet(bias=bias).double()
        images = torch.randn(13, 2, 4, 4, dtype=torch.float64)
        net(images)
        net.train()
    detector = OPNP(ratios=Ratios(), temperature=temperature, precision="float64")
    detector.fit(net, images.split(4))

    net.eval()
    by_weight, by_feature = [], []
    for image in images:
        score = energy(net(image[None]), temperature).sum()
        by_weight.append(torch.autograd.grad(score, net.classifier.weight)[0])
        features = net.features(image[None]).detach().requires_grad_()
        score = energy(net.classifier(features), temperature).sum()
        by_feature.append(torch.autograd.grad(score, features)[0][0])
    by_hand = torch.stack(by_weight).abs().mean(0)
    sensitivity = detector.sensitivity
    assert torch.allclose(sensitivity.weight, by_hand, rtol=1e-10, atol=0)
    assert torch.allclose(sensitivity.neuron_gradient, torch.stack(by_feature).abs().mean(0), rtol=1e-10, atol=0)
    assert torch.allclose(sensitivity.neuron_aggregate, by_hand.mean(0), rtol=1e-10, atol=0)


def test_scores_are_the_energy_of_the_pruned_model() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = SmallNet(bias=True).double().eval()
        images = torch.randn(13, 2, 4, 4, dtype=torch.float64)
    detector = OPNP(ratios=Ratios(w_min=0.3, o_max=0.2), temperature=2.0).fit(net, [images])
    pruned = {"classifier.weight": detector.pruned_head.weight}
    with torch.no_grad():
        expected = energy(functional_call(net, pruned, images), 2.0)
    assert torch.allclose(detector.score(images), expected, rtol=1e-12)
    assert not torch.allclose(detector.score(images), energy(net(images), 2.0), rtol=1e-3)
