"""Sensitivities of heads and of any layer, and the masks made of them: parts, orders, ties and shares."""

import warnings
from collections.abc import Iterator

import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from opnp import sensitivity, sensitivity_sums
from opnp.core import SensitivitySum, keep_mask
from opnp.core.sensitivity import row_blocks
from opnp.errors import RatioError, RatioWarning
from tests.reference.per_sample_gradients import loop_sensitivity
from tests.unit.model.layer_models import TinyViT, images, seeded

checked = settings(derandomize=True, deadline=None, database=None, max_examples=60)

Data = tuple[Tensor, Tensor, Tensor]
TEMPERATURES = st.sampled_from([0.5, 1.0, 3.0])


@st.composite
def data_of_a_head(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> Data:
    """Features, logits and weight of a random head; some neurons are copies of others, some are dead."""
    samples, classes, features = draw(st.integers(1, 40)), draw(st.integers(1, 6)), draw(st.integers(4, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    inputs = torch.randn(samples, features, generator=generator, dtype=dtype)
    weight = torch.randn(classes, features, generator=generator, dtype=dtype)
    logits = torch.randn(samples, classes, generator=generator, dtype=dtype) * 3
    copied = torch.randint(0, features, (features // 2,), generator=generator)
    inputs[:, : len(copied)], weight[:, : len(copied)] = inputs[:, copied], weight[:, copied]
    inputs[:, -1], weight[:, -1] = 0, 0
    return inputs, logits, weight


@st.composite
def cut_batches(draw: st.DrawFn, samples: int) -> list[Tensor]:
    """Indices of all samples in any order, cut into one to six batches, some of them empty."""
    order = torch.tensor(draw(st.permutations(range(samples))))
    cuts = sorted(draw(st.lists(st.integers(0, samples), max_size=5)))
    return list(order.tensor_split(cuts))


def merged(parts: list[SensitivitySum], choose: st.DataObject) -> SensitivitySum:
    """Add the parts two at a time, any two of them, until one is left."""
    while len(parts) > 1:
        left = parts.pop(choose.draw(st.integers(0, len(parts) - 1)))
        right = parts.pop(choose.draw(st.integers(0, len(parts) - 1)))
        parts.append(left + right)
    return parts[0]


@checked
@given(data=data_of_a_head(), temperature=TEMPERATURES, choose=st.data())
def test_parts_add_up_to_the_whole(data: Data, temperature: float, choose: st.DataObject) -> None:
    features, logits, weight = data
    whole = SensitivitySum.from_batch(features, logits, weight, temperature=temperature)
    batches = choose.draw(cut_batches(len(features)))
    parts = [SensitivitySum.from_batch(features[i], logits[i], weight, temperature=temperature) for i in batches]
    parts.insert(choose.draw(st.integers(0, len(parts))), SensitivitySum.zeros(*weight.shape))
    total = merged(parts, choose)

    assert total.count == whole.count == len(features)
    torch.testing.assert_close(total.weight, whole.weight, rtol=1e-12, atol=0)
    torch.testing.assert_close(total.neuron, whole.neuron, rtol=1e-10, atol=1e-12)


@checked
@given(data=data_of_a_head(), temperature=TEMPERATURES, seed=st.integers(0, 2**31))
def test_permutations_of_classes_and_features_carry_over(data: Data, temperature: float, seed: int) -> None:
    features, logits, weight = data
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(weight.shape[0], generator=generator)
    columns = torch.randperm(weight.shape[1], generator=generator)
    plain = SensitivitySum.from_batch(features, logits, weight, temperature=temperature)
    turned = SensitivitySum.from_batch(
        features[:, columns], logits[:, rows], weight[rows][:, columns], temperature=temperature
    )
    torch.testing.assert_close(turned.weight, plain.weight[rows][:, columns], rtol=1e-12, atol=0)
    torch.testing.assert_close(turned.neuron, plain.neuron[columns], rtol=1e-10, atol=1e-12)


@checked
@given(data=data_of_a_head(), temperature=TEMPERATURES, shift=st.integers(-20, 20))
def test_what_leaves_the_softmax_alone_leaves_the_sums_alone(data: Data, temperature: float, shift: int) -> None:
    features, logits, weight = data
    plain = SensitivitySum.from_batch(features, logits, weight, temperature=temperature)
    shifted = SensitivitySum.from_batch(-features, logits + shift, weight, temperature=temperature)
    divided = SensitivitySum.from_batch(features, logits / temperature, weight)
    for other in (shifted, divided):
        torch.testing.assert_close(other.weight, plain.weight, rtol=1e-12, atol=0)
        torch.testing.assert_close(other.neuron, plain.neuron, rtol=1e-10, atol=1e-12)


@checked
@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 7))
def test_blocks_are_the_rows_in_order_whatever_the_batches(sizes: list[int], rows: int) -> None:
    total = sum(sizes)
    values = torch.arange(2.0 * total).view(total, 2)
    shared = torch.empty(9, 2)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        start = 0
        for size in sizes:
            shared[:size] = values[start : start + size]  # one buffer for all batches, as some loaders have
            yield shared[:size], shared[:size, :1] * 10
            start += size

    blocks = [(first.clone(), second.clone()) for first, second in row_blocks(batches(), rows=rows)]
    assert [len(first) for first, _ in blocks] == [rows] * (total // rows) + [total % rows] * (total % rows > 0)
    if blocks:
        assert torch.cat([first for first, _ in blocks]).equal(values)
        assert torch.cat([second for _, second in blocks]).equal(values[:, :1] * 10)


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


SHARES = st.one_of(
    st.sampled_from([0.0, 0.005, 0.05, 0.1, 0.25, 0.3, 0.35, 0.5, 0.7]), st.floats(0, 1, exclude_max=True)
)
RANKINGS = st.lists(st.integers(0, 8), min_size=1, max_size=60).map(lambda row: torch.tensor([row]).double())


def removed(ranking: Tensor, *, lowest: float = 0.0, highest: float = 0.0) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RatioWarning)
        return ~keep_mask(ranking, lowest=lowest, highest=highest)


@checked
@given(ranking=RANKINGS, lowest=SHARES, highest=SHARES)
@example(ranking=torch.ones(1, 5).double(), lowest=0.5, highest=0.5)
@example(ranking=torch.ones(1, 50).double(), lowest=0.01, highest=0.03)
def test_counts_errors_and_warnings_follow_pythons_round(ranking: Tensor, lowest: float, highest: float) -> None:
    entries = ranking.shape[1]
    bottom, top = round(lowest * entries), round(highest * entries)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            mask = keep_mask(ranking, lowest=lowest, highest=highest)
        except RatioError:
            assert bottom + top >= entries
        else:
            assert bottom + top < entries
            assert int((~mask).sum()) == bottom + top
    silent = (lowest > 0 and bottom == 0) + (highest > 0 and top == 0)
    assert [entry.category for entry in caught] == [RatioWarning] * silent


@checked
@given(ranking=RANKINGS, lowest=SHARES, highest=SHARES)
def test_lowest_and_highest_are_disjoint_and_in_order(ranking: Tensor, lowest: float, highest: float) -> None:
    entries = ranking.shape[1]
    assume(round(lowest * entries) + round(highest * entries) < entries)
    bottom, top = removed(ranking, lowest=lowest), removed(ranking, highest=highest)
    both = removed(ranking, lowest=lowest, highest=highest)

    assert not bool((bottom & top).any())
    assert both.equal(bottom | top)
    kept = ranking[~both]
    assert bool((ranking[bottom] <= kept.min()).all())
    assert bool((ranking[top] >= kept.max()).all())


@checked
@given(ranking=RANKINGS, lowest=SHARES, highest=SHARES)
def test_masks_depend_on_the_order_alone(ranking: Tensor, lowest: float, highest: float) -> None:
    entries = ranking.shape[1]
    assume(round(lowest * entries) + round(highest * entries) < entries)
    plain = removed(ranking, lowest=lowest, highest=highest)
    for monotone in (2 * ranking - 5, ranking.exp(), ranking.float(), ranking * 1e-200):
        assert removed(monotone, lowest=lowest, highest=highest).equal(plain)


@checked
@given(ranking=RANKINGS, smaller=SHARES, larger=SHARES)
def test_a_larger_share_removes_what_a_smaller_one_does(ranking: Tensor, smaller: float, larger: float) -> None:
    """A changed share gives another mask at once: nothing is remembered between calls."""
    smaller, larger = sorted([smaller, larger])
    assume(round(larger * ranking.shape[1]) < ranking.shape[1])
    less, more = removed(ranking, lowest=smaller), removed(ranking, lowest=larger)
    assert bool((more | ~less).all())
    assert int(more.sum() - less.sum()) == round(larger * ranking.shape[1]) - round(smaller * ranking.shape[1])
