"""Sums of any layers, and masks of them: weights and neurons, groups, scopes and errors."""

from typing import Any

import pytest
import torch
from torch import Tensor

from opnp.core import LayerSensitivitySum, Sensitivity, layer_masks, neuron_mask, weight_mask
from opnp.errors import (
    EmptyDataError,
    InputTypeError,
    NonFiniteError,
    OptionError,
    RatioError,
    RatioWarning,
    ShapeError,
)


def layer(*shape: int, groups: int = 1, seed: int = 0) -> Sensitivity:
    generator = torch.Generator().manual_seed(seed)
    neurons = torch.rand(2, shape[1] * groups, generator=generator, dtype=torch.float64)
    weight = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return Sensitivity(weight=weight, neuron_gradient=neurons[0], neuron_aggregate=neurons[1], count=1)


def test_each_layer_is_ranked_by_itself() -> None:
    given = {"small": layer(4, 5), "large": layer(6, 2, 3, 3, seed=1)}
    masks = layer_masks(given, w_min=0.3, w_max=0.1)
    assert list(masks) == ["small", "large"]
    for name, mask in masks.items():
        flat = given[name].weight.flatten(1)
        assert mask.dtype == torch.bool
        assert torch.equal(mask, weight_mask(flat, lowest=0.3, highest=0.1).view(given[name].weight.shape))


def test_the_scope_class_ranks_the_weights_of_each_output() -> None:
    mask = layer_masks({"conv": layer(6, 2, 3, 3)}, w_min=0.5, scope="class")["conv"]
    assert (~mask).flatten(1).sum(1).tolist() == [9] * 6


@pytest.mark.parametrize("reading", ["gradient", "aggregate"])
def test_a_pruned_channel_loses_every_weight_that_reads_it(reading: Any) -> None:
    groups, given = 3, layer(6, 2, 3, 3, groups=3)
    mask = layer_masks({"conv": given}, o_min=0.2, o_max=0.2, neuron=reading)["conv"]
    keep = neuron_mask(given.neuron(reading), lowest=0.2, highest=0.2)
    assert int((~keep).sum()) == 2
    for output in range(6):
        for channel in range(2):
            expected = bool(keep[output // 2 * 2 + channel])
            assert torch.equal(mask[output, channel], torch.full((3, 3), expected))
    assert groups * given.weight.shape[1] == len(keep)


def test_weights_and_neurons_together() -> None:
    given = layer(4, 5)
    both = layer_masks({"fc": given}, w_min=0.3, o_max=0.2)["fc"]
    weights, neurons = layer_masks({"fc": given}, w_min=0.3)["fc"], layer_masks({"fc": given}, o_max=0.2)["fc"]
    assert torch.equal(both, weights & neurons)
    assert bool(layer_masks({"fc": given})["fc"].all())


def test_what_cannot_be_is_refused() -> None:
    given: dict[str, Sensitivity] = {"fc": layer(4, 5)}
    with pytest.raises(RatioError, match=r"`o_min` = 0\.6 and `o_max` = 0\.4"):
        layer_masks(given, o_min=0.6, o_max=0.4)
    with pytest.raises(RatioError, match=r"`w_min` = 0\.5 and `w_max` = 0\.5"):
        layer_masks(given, w_min=0.5, w_max=0.5)
    with pytest.raises(OptionError, match="`scope` must be"):
        layer_masks(given, scope="row")  # type: ignore[arg-type]  # what a caller without types may do
    with pytest.raises(OptionError, match="`reading` must be"):
        layer_masks(given, neuron="mean")  # type: ignore[arg-type]  # as above
    with pytest.warns(RatioWarning, match=r"`o_min` = 0\.01 of 5 entries"):
        layer_masks(given, o_min=0.01)
    wrong: Any = Tensor()
    with pytest.raises(InputTypeError, match="`sensitivities` must be a mapping by name of the layer, got Tensor"):
        layer_masks(wrong)


def test_the_empty_sum_is_neutral_and_has_no_mean() -> None:
    total = LayerSensitivitySum(weight=torch.rand(4, 2, 1, 1), neuron=torch.rand(4), count=3)
    empty = LayerSensitivitySum.zeros((4, 2, 1, 1), groups=2)
    merged = empty + total
    assert merged.count == 3
    assert torch.equal(merged.weight, total.weight.double())
    assert torch.equal(merged.neuron, total.neuron.double())
    assert (empty.weight.dtype, empty.neuron.dtype) == (torch.float64, torch.float64)
    assert LayerSensitivitySum.zeros((4, 2), device="meta").neuron.is_meta
    with pytest.raises(EmptyDataError, match="the sensitivity of no data is undefined"):
        empty.mean()


def test_the_aggregate_reading_is_the_mean_over_the_weights_of_a_channel_in_its_group() -> None:
    total = LayerSensitivitySum(weight=torch.arange(8.0).view(4, 2, 1, 1), neuron=torch.full((4,), 6.0), count=2)
    found = total.mean()
    assert found.weight.flatten().tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    assert found.neuron_aggregate.tolist() == [0.5, 1.0, 2.5, 3.0]
    assert found.neuron_gradient.tolist() == [3.0] * 4


def test_only_sums_of_one_layer_merge_and_only_finite_ones_have_a_mean() -> None:
    with pytest.raises(ShapeError, match=r"shape \(4, 2, 1, 1\) with 2 inputs on the left, \(4, 2, 1, 1\) with 4 "):
        _ = LayerSensitivitySum.zeros((4, 2, 1, 1)) + LayerSensitivitySum.zeros((4, 2, 1, 1), groups=2)
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = LayerSensitivitySum.zeros((4, 2)) + 1
    finite, infinite = torch.ones(1, 2, dtype=torch.float64), torch.full((1, 2), torch.inf, dtype=torch.float64)
    for weight, neuron in ((infinite, finite[0]), (finite, infinite[0])):
        with pytest.raises(NonFiniteError, match="2 sensitivities are NaN or infinite"):
            LayerSensitivitySum(weight=weight, neuron=neuron, count=1).mean()
