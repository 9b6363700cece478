"""Masks of the last layer and of any: ties, large heads, groups, warnings and errors."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from opnp.core import (
    Masks,
    Sensitivity,
    keep_mask,
    layer_masks,
    neuron_mask,
    pruned_count,
    pruned_weight,
    weight_mask,
)
from opnp.core.masks import warn_of_lost_order
from opnp.errors import InputTypeError, NonFiniteError, OptionError, RatioError, RatioWarning, ShapeError


def test_rows_without_ties_and_rows_with_ties_do_not_disturb_each_other() -> None:
    sensitivity = torch.tensor([[4.0, 3.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0], [0.0, -0.0, 0.0, 1.0]])
    expected = [[True, True, False, False], [False, False, True, True], [False, False, True, True]]
    assert keep_mask(sensitivity, lowest=0.5).tolist() == expected


def test_nothing_is_pruned_unless_asked() -> None:
    sensitivity = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    for mask in (weight_mask(sensitivity), weight_mask(sensitivity, scope="class"), neuron_mask(sensitivity[0])):
        assert bool(mask.all())
    assert tuple(keep_mask(torch.ones(0, 4), lowest=0.5).shape) == (0, 4)


@pytest.mark.parametrize("has_ties", [True, False])
def test_more_than_2_to_the_24_entries_are_counted_one_by_one(has_ties: bool) -> None:
    """`torch.quantile` refuses so many, and float32 cannot count them."""
    entries = 2**24 + 5
    values = torch.ones(entries) if has_ties else torch.arange(entries, dtype=torch.int32).double()
    keep = neuron_mask(values, highest=0.25)
    kept = entries - round(0.25 * entries)
    assert bool(keep[:kept].all())
    assert not bool(keep[kept:].any())


@pytest.mark.parametrize(("ulps", "is_equal"), [(0.75, True), (1.25, False)])
def test_what_agrees_with_the_cut_to_2_to_the_minus_38_is_equal_to_it(ulps: float, *, is_equal: bool) -> None:
    """Sums that are equal on paper differ by the order they were taken in; among equals the first is the smallest."""
    above = torch.tensor([1 + ulps * 2**-38, 1.0], dtype=torch.float64)
    assert neuron_mask(above, lowest=0.5).tolist() == [not is_equal, is_equal]


@pytest.mark.parametrize(("share", "entries", "count"), [(0.5, 1, 0), (0.5, 3, 2), (0.25, 2, 0), (0.75, 2, 2)])
@pytest.mark.filterwarnings("ignore:.* rounds to none")
def test_half_an_entry_rounds_to_even(share: float, entries: int, count: int) -> None:
    assert pruned_count(share, entries) == count


def test_a_ratio_that_removes_nothing_says_so() -> None:
    message = re.escape("`w_min` = 0.005 of 64 entries rounds to none: nothing is pruned by it. Use at least 0.00781")
    with pytest.warns(RatioWarning, match=message):
        assert bool(weight_mask(torch.ones(10, 64), lowest=0.005, scope="class").all())
    with pytest.warns(RatioWarning, match="`o_max` = 0.01 of 9 entries"):
        neuron_mask(torch.arange(9.0), highest=0.01)
    with pytest.warns(RatioWarning, match="`highest` = 0.01 of 9 entries"):
        keep_mask(torch.ones(2, 9), highest=0.01)
    with pytest.warns(RatioWarning, match="`share` = 0.01 of 10 entries"):
        pruned_count(0.01, 10)


@pytest.mark.parametrize(
    "ask",
    [lambda: pruned_count(0.01, 10), lambda: warn_of_lost_order(torch.ones(1, 2).bool(), torch.eye(2)[:1].bool())],
)
def test_warnings_point_to_the_caller(ask: Callable[[], object]) -> None:
    with pytest.warns(RatioWarning) as caught:
        ask()
    assert caught[0].filename == __file__


@pytest.mark.parametrize("entries", [3, 64, 2048])
def test_the_hint_of_the_warning_is_enough(entries: int) -> None:
    with pytest.warns(RatioWarning, match="Use at least") as caught:
        pruned_count(0.1 / entries, entries)
    found = re.search(r"at least (\S+),", str(caught[0].message))
    assert found is not None
    assert pruned_count(float(found[1]) * 1.01, entries) == 1


@pytest.mark.parametrize(
    ("share", "hint"), [(1.0, "got 1.0."), (-0.1, "got -0.1."), (30, "fractions: 0.3."), (math.nan, "got nan.")]
)
def test_shares_outside_their_range_are_refused(share: float, hint: str) -> None:
    with pytest.raises(OptionError, match=r"`w_max` must be a fraction in \[0, 1\), .*" + re.escape(hint)):
        weight_mask(torch.ones(2, 3), highest=share)
    with pytest.raises(OptionError, match=r"`o_min` must be a fraction in \[0, 1\), .*" + re.escape(hint)):
        neuron_mask(torch.ones(3), lowest=share)


def test_shares_that_leave_nothing_are_refused() -> None:
    message = re.escape("`o_min` = 0.5 and `o_max` = 0.5 remove 5 + 5 of 10 entries: at least one must be left")
    with pytest.raises(RatioError, match=message):
        neuron_mask(torch.ones(10), lowest=0.5, highest=0.5)
    with pytest.raises(RatioError, match=r"`w_min` = 0\.99 .* remove 3 \+ 0 of 3 entries"):
        weight_mask(torch.ones(2, 3), lowest=0.99, scope="class")
    with pytest.raises(RatioError, match=r"`lowest` = 0\.5 and `highest` = 0\.5 remove 2 \+ 2 of 4 entries"):
        keep_mask(torch.ones(1, 4), lowest=0.5, highest=0.5)
    assert int(neuron_mask(torch.ones(10), lowest=0.5, highest=0.4).sum()) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    sensitivity = torch.ones(3, 4)
    sensitivity[1, 2] = value
    with pytest.raises(NonFiniteError, match=r"`sensitivity` must be finite.*in 1 of 3 rows \(rows 1\)"):
        weight_mask(sensitivity, lowest=0.5, scope="class")


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 0), (0,), ()])
@pytest.mark.parametrize("function", [keep_mask, weight_mask, neuron_mask])
def test_shapes_are_checked(function: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"`sensitivity`.* must have shape"):
        function(torch.ones(shape), lowest=0.5)


@pytest.mark.parametrize(
    ("lost", "keep", "told"),
    [
        ([[1, 1, 0, 0]], [[0, 1, 1, 1]], "2 of 4"),
        ([[1, 1, 0, 0]], [[0, 0, 1, 1]], None),  # all of them are removed
        ([[1, 1, 0, 0]], [[1, 1, 0, 1]], None),  # none is
        ([[1, 1, 0, 0], [1, 0, 0, 0]], [[0, 0, 1, 1], [1, 1, 0, 1]], None),  # no ranking is cut among them
        ([[1, 1, 0, 0], [1, 1, 1, 0]], [[0, 0, 1, 1], [0, 0, 1, 1]], "3 of 4"),
    ],
)
def test_a_cut_among_what_was_lost_is_warned_of(lost: list[list[int]], keep: list[list[int]], told: str | None) -> None:
    rankings = torch.tensor(lost).bool(), torch.tensor(keep).bool()
    if told is None:
        warn_of_lost_order(*rankings)
    else:
        with pytest.warns(
            RatioWarning, match=rf"^A ratio cuts among {told} sensitivities that underflow, .* Raise the"
        ):
            warn_of_lost_order(*rankings)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_pruned_weight_is_a_new_tensor_of_the_same_dtype(dtype: torch.dtype) -> None:
    weight = torch.tensor([[1.0, -2.0, math.inf], [3.0, 4.0, 5.0]], dtype=dtype)
    before = weight.clone()
    masks = Masks(torch.tensor([[True, True, False], [True, False, True]]), torch.tensor([False, True, True]))
    pruned = pruned_weight(weight, masks)
    assert masks.kept.tolist() == [[False, True, False], [False, False, True]]
    assert pruned.tolist() == [[0.0, -2.0, 0.0], [0.0, 0.0, 5.0]]
    assert pruned.dtype == dtype
    assert weight.equal(before)


@pytest.mark.parametrize(
    ("of_weights", "of_neurons", "error", "message"),
    [
        (torch.ones(3, 2).bool(), torch.ones(3).bool(), ShapeError, "fit `weight`, got (3, 2) and (3,)"),
        (torch.ones(2, 3).bool(), torch.ones(2).bool(), ShapeError, "fit `weight`, got (2, 3) and (2,)"),
        (torch.ones(2, 3), torch.ones(3).bool(), InputTypeError, "boolean, got torch.float32 and torch.bool"),
        (torch.ones(2, 3).bool(), torch.ones(3), InputTypeError, "boolean, got torch.bool and torch.float32"),
    ],
)
def test_masks_of_another_head_are_refused(
    of_weights: torch.Tensor, of_neurons: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        pruned_weight(torch.ones(2, 3), Masks(of_weights, of_neurons))


# ------------------------------------------------------------------------------------------------------ of any layers
def layer(*shape: int, groups: int = 1, seed: int = 0) -> Sensitivity:
    generator = torch.Generator().manual_seed(seed)
    neurons = torch.rand(2, shape[1] * groups, generator=generator, dtype=torch.float64)
    weight = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return Sensitivity(weight=weight, neuron_gradient=neurons[0], neuron_aggregate=neurons[1], count=1)


@pytest.mark.parametrize("reading", ["gradient", "aggregate"])
@pytest.mark.parametrize("scope", ["layer", "class"])
def test_each_layer_is_ranked_by_itself_and_a_pruned_channel_loses_every_weight_that_reads_it(
    reading: Any, scope: Any
) -> None:
    given = {"small": layer(4, 10), "grouped": layer(6, 2, 3, 3, groups=3, seed=1)}
    masks = layer_masks(given, w_min=0.3, w_max=0.1, o_min=0.2, o_max=0.2, neuron=reading, scope=scope)
    assert list(masks) == list(given)
    for name, mask in masks.items():
        weight, keep = given[name].weight, neuron_mask(given[name].neuron(reading), lowest=0.2, highest=0.2)
        expected = weight_mask(weight.flatten(1), lowest=0.3, highest=0.1, scope=scope).view(weight.shape)
        groups = len(keep) // weight.shape[1]
        for output in range(len(weight)):
            group = output * groups // len(weight)
            for channel in range(weight.shape[1]):
                expected[output, channel] &= keep[group * weight.shape[1] + channel]
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected)
    assert bool(layer_masks(given)["grouped"].all())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"o_min": 0.6, "o_max": 0.4}, RatioError, r"`o_min` = 0\.6 and `o_max` = 0\.4"),
        ({"w_min": 0.5, "w_max": 0.5}, RatioError, r"`w_min` = 0\.5 and `w_max` = 0\.5"),
        ({"scope": "row"}, OptionError, r'`scope` must be "layer" or "class", got \'row\''),
        ({"neuron": "mean"}, OptionError, "`reading` must be"),
        ({"sensitivities": torch.ones(2)}, InputTypeError, "must be a mapping by name of the layer, got Tensor"),
    ],
)
def test_what_is_no_mask_of_layers_is_refused(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        layer_masks(**{"sensitivities": {"fc": layer(4, 5)}, **options})
