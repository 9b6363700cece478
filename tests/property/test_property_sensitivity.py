"""Sensitivity sums: parts add up to the whole, and masks do not depend on how the data were cut."""

from collections.abc import Iterator

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opnp.core import Sensitivity, SensitivitySum, keep_mask
from opnp.core.sensitivity import row_blocks

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


def all_rankings(mean: Sensitivity) -> list[Tensor]:
    """The rankings that masks are made of: the layer, each class, the neurons in both readings."""
    return [mean.weight.reshape(1, -1), mean.weight, mean.neuron_gradient[None], mean.neuron_aggregate[None]]


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
@given(data=data_of_a_head(), share=st.sampled_from([0.25, 0.4, 0.49]), choose=st.data())
def test_float64_masks_do_not_depend_on_batches_or_order(data: Data, share: float, choose: st.DataObject) -> None:
    features, logits, weight = data
    whole = SensitivitySum.from_batch(features, logits, weight, precision="float64").mean()
    batches = [(features[index], logits[index]) for index in choose.draw(cut_batches(len(features)))]
    stream = SensitivitySum.from_batches(batches, weight, precision="float64").mean()
    for left, right in zip(all_rankings(whole), all_rankings(stream), strict=True):
        assert keep_mask(left, lowest=share).equal(keep_mask(right, lowest=share))
        assert keep_mask(left, highest=share).equal(keep_mask(right, highest=share))


@checked
@given(data=data_of_a_head(torch.float32), share=st.sampled_from([0.25, 0.4, 0.49]), choose=st.data())
def test_float32_masks_differ_only_beside_the_cut(data: Data, share: float, choose: st.DataObject) -> None:
    features, logits, weight = data
    whole = SensitivitySum.from_batch(features, logits, weight).mean()
    batches = [(features[index], logits[index]) for index in choose.draw(cut_batches(len(features)))]
    stream = SensitivitySum.from_batches(batches, weight).mean()
    for left, right in zip(all_rankings(whole)[:2], all_rankings(stream)[:2], strict=True):
        is_other = keep_mask(left, lowest=share) ^ keep_mask(right, lowest=share)
        cut = left.kthvalue(round(share * left.shape[1]), dim=1, keepdim=True).values.expand_as(left)
        torch.testing.assert_close(left[is_other], cut[is_other], rtol=1e-6, atol=0)


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
