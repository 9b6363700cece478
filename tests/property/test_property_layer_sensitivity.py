"""Sensitivities of any layer: convolutions of every geometry, and samples in any order and any cut."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from opnp import sensitivity, sensitivity_sums
from tests.reference.per_sample_gradients import loop_sensitivity
from tests.unit.model.layer_models import TinyViT, images, seeded

CHUNKS = st.sampled_from([1, 500, 5_000, 10**9])
VIT = seeded(TinyViT)


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A convolution of any geometry that leaves an output, with a head, and its inputs."""
    groups = draw(st.integers(1, 3))
    kernel, stride, padding, dilation = draw(pairs(1, 4)), draw(pairs(1, 4)), draw(pairs(0, 4)), draw(pairs(1, 3))
    size = draw(pairs(1, 8))
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    assume(all(n + 2 * p >= s for n, p, s in zip(size, padding, spans, strict=True)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    layer = nn.Conv2d(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    inputs = torch.randn(draw(st.integers(1, 4)), layer.in_channels, *size, generator=generator, dtype=torch.float64)
    width = layer.double()(inputs)[0].numel()
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(width, 3)).double(), inputs


@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(case=convolutions(), chunk=CHUNKS)
def test_convolutions_of_every_geometry_agree_with_autograd(case: tuple[nn.Module, Tensor], chunk: int) -> None:
    model, inputs = case
    found = sensitivity(model, [inputs], layers=["0"], chunk_bytes=chunk)["0"]
    of_weights, of_inputs = loop_sensitivity(model, [inputs], ["0"])
    torch.testing.assert_close(found.weight, of_weights["0"].detach(), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(found.neuron_gradient, of_inputs["0"], rtol=1e-10, atol=1e-11)


@settings(derandomize=True, deadline=None, database=None, max_examples=12)
@given(data=st.data())
def test_the_cut_into_batches_and_the_order_of_samples_do_not_matter(data: st.DataObject) -> None:
    pixels = images(8)
    order = torch.tensor(data.draw(st.permutations(range(8))))
    cuts = sorted(data.draw(st.lists(st.integers(0, 8), max_size=4)))
    chunk = data.draw(CHUNKS)
    whole = sensitivity(VIT, [pixels])
    found = sensitivity(VIT, [pixels[rows] for rows in order.tensor_split(cuts)], chunk_bytes=chunk)
    first, second = (sensitivity_sums(VIT, [pixels[rows]]) for rows in (order[:3], order[3:]))
    for name, layer in whole.items():
        for other in (found[name], (first[name] + second[name]).mean()):
            assert other.count == 8
            torch.testing.assert_close(other.weight, layer.weight, rtol=1e-9, atol=1e-13)
            torch.testing.assert_close(other.neuron_gradient, layer.neuron_gradient, rtol=1e-9, atol=1e-13)
