"""Sums of any layer: parts add up to the whole, however they are cut, for linear layers and for every convolution."""

from dataclasses import dataclass

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from opnp import LayerSensitivitySum, SensitivitySum, sensitivity, sensitivity_sums
from opnp.core import Geometry, energy_gradient
from tests.unit.model.layer_models import TinyViT, images, seeded

checked = settings(derandomize=True, deadline=None, database=None, max_examples=60)

CHUNKS = st.sampled_from([1, 500, 5_000, 10**9])
VIT = seeded(TinyViT)


@dataclass(frozen=True)
class Case:
    """A convolution, its input, and the gradient at its output."""

    layer: nn.Conv2d
    inputs: Tensor
    gradients: Tensor
    geometry: Geometry

    @property
    def use(self) -> tuple[Tensor, Tensor, Geometry]:
        return self.inputs, self.gradients, self.geometry

    def part(self, rows: Tensor) -> tuple[Tensor, Tensor, Geometry]:
        return self.inputs[rows], self.gradients[rows], self.geometry


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    """A convolution of any geometry that leaves an output; its kernel may lie in the padding for the most part."""
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
        dtype=torch.float64,
    )
    inputs = torch.randn(draw(st.integers(1, 4)), layer.in_channels, *size, generator=generator, dtype=torch.float64)
    gradients = torch.randn(layer(inputs).shape, generator=generator, dtype=torch.float64)
    return Case(layer, inputs, gradients, Geometry(stride=stride, padding=padding, dilation=dilation))


def gradients_by_sample(case: Case) -> tuple[Tensor, Tensor]:
    """Gradients of single samples by autograd: for the weight, and for a number added to each channel."""
    of_weight, of_inputs = [], []
    for sample, gradient in zip(case.inputs, case.gradients, strict=True):
        shift = torch.zeros(len(sample), 1, 1, dtype=torch.float64, requires_grad=True)
        output = case.layer(sample[None] + shift)
        found = torch.autograd.grad(output, [case.layer.weight, shift], gradient[None])
        of_weight.append(found[0])
        of_inputs.append(found[1].flatten())
    return torch.stack(of_weight), torch.stack(of_inputs)


@checked
@given(case=convolutions(), chunk=CHUNKS)
def test_convolutions_of_every_geometry_agree_with_autograd(case: Case, chunk: int) -> None:
    found = LayerSensitivitySum.from_convolution([case.use], case.layer.weight, chunk_bytes=chunk)
    of_weight, of_inputs = gradients_by_sample(case)
    torch.testing.assert_close(found.weight, of_weight.abs().sum(0), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(found.neuron, of_inputs.abs().sum(0), rtol=1e-10, atol=1e-11)
    assert found.count == len(case.inputs)


@checked
@given(case=convolutions(), seed=st.integers(0, 2**31))
def test_a_convolution_that_runs_twice_sums_before_the_absolute_value(case: Case, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(case.gradients.shape, generator=generator, dtype=torch.float64)
    again = Case(case.layer, case.inputs.flip(0), gradients, case.geometry)
    found = LayerSensitivitySum.from_convolution([case.use, again.use], case.layer.weight)
    both = [left + right for left, right in zip(gradients_by_sample(case), gradients_by_sample(again), strict=True)]
    torch.testing.assert_close(found.weight, both[0].abs().sum(0), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(found.neuron, both[1].abs().sum(0), rtol=1e-10, atol=1e-11)


@checked
@given(case=convolutions(), data=st.data())
def test_parts_of_a_convolution_add_up(case: Case, data: st.DataObject) -> None:
    rows = torch.tensor(data.draw(st.permutations(range(len(case.inputs)))))
    cuts = sorted(data.draw(st.lists(st.integers(1, len(rows)), max_size=3)))
    parts = [part for part in rows.tensor_split(cuts) if len(part)]
    total = LayerSensitivitySum.zeros(case.layer.weight.shape, groups=case.layer.groups)
    for part in parts:
        total = LayerSensitivitySum.from_convolution([case.part(part)], case.layer.weight) + total
    whole = LayerSensitivitySum.from_convolution([case.use], case.layer.weight)
    assert total.count == whole.count
    torch.testing.assert_close(total.weight, whole.weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total.neuron, whole.neuron, rtol=1e-12, atol=1e-12)


@checked
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)),
    uses=st.integers(1, 3),
    chunk=CHUNKS,
    seed=st.integers(0, 2**31),
)
def test_linear_layers_on_tokens_sum_over_tokens_and_uses_first(
    sizes: tuple[int, int, int, int], uses: int, chunk: int, seed: int
) -> None:
    samples, tokens, inputs, outputs = sizes
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    given_ = torch.randn(samples, uses * tokens, inputs, generator=generator, dtype=torch.float64)
    back = torch.randn(samples, uses * tokens, outputs, generator=generator, dtype=torch.float64)
    split = list(zip(given_.split(tokens, 1), back.split(tokens, 1), strict=True))
    found = LayerSensitivitySum.from_linear(split, weight, chunk_bytes=chunk)
    by_sample = torch.einsum("bto,bti->boi", back, given_)
    torch.testing.assert_close(found.weight, by_sample.abs().sum(0), rtol=1e-10, atol=1e-11)
    at_inputs = torch.einsum("bto,oi->bi", back, weight)
    torch.testing.assert_close(found.neuron, at_inputs.abs().sum(0), rtol=1e-10, atol=1e-11)


@checked
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(2, 6), st.integers(1, 9)),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_the_last_layer_is_that_of_the_closed_form(sizes: tuple[int, int, int], temperature: float, seed: int) -> None:
    samples, classes, width = sizes
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    logits = features @ weight.T
    closed = SensitivitySum.from_batch(features, logits, weight, temperature=temperature).mean()
    gradients = energy_gradient(logits, temperature=temperature)
    found = LayerSensitivitySum.from_linear([(features, gradients)], weight).mean()
    torch.testing.assert_close(found.weight, closed.weight, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.neuron_gradient, closed.neuron_gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.neuron_aggregate, closed.neuron_aggregate, rtol=1e-12, atol=0)


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
