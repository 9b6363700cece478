"""Masks: ties, large heads, warnings and errors."""

import math
import re
from typing import Any

import pytest
import torch

from opnp.core import Masks, keep_mask, neuron_mask, pruned_count, pruned_weight, weight_mask
from opnp.errors import InputTypeError, NonFiniteError, OptionError, RatioError, RatioWarning, ShapeError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_sensitivity_loses_its_first_and_its_last_entries(dtype: torch.dtype) -> None:
    keep = keep_mask(torch.full((3, 10), 0.7, dtype=dtype), lowest=0.2, highest=0.3)
    assert keep.tolist() == [[False] * 2 + [True] * 5 + [False] * 3] * 3


def test_rows_without_ties_and_rows_with_ties_do_not_disturb_each_other() -> None:
    sensitivity = torch.tensor([[4.0, 3.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0], [0.0, -0.0, 0.0, 1.0]])
    expected = [[True, True, False, False], [False, False, True, True], [False, False, True, True]]
    assert keep_mask(sensitivity, lowest=0.5).tolist() == expected


def test_nothing_is_pruned_unless_asked() -> None:
    sensitivity = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    assert bool(weight_mask(sensitivity).all())
    assert bool(weight_mask(sensitivity, scope="class").all())
    assert bool(neuron_mask(sensitivity[0]).all())
    assert keep_mask(torch.ones(1, 1)).tolist() == [[True]]
    assert tuple(keep_mask(torch.ones(0, 4), lowest=0.5).shape) == (0, 4)


@pytest.mark.slow
def test_a_head_of_21843_by_2048_weights() -> None:
    """More than 2^24 entries: `torch.quantile` refuses them, and float32 cannot count them."""
    classes, features = 21843, 2048
    sensitivity = torch.rand(classes, features, generator=torch.Generator().manual_seed(0))
    sensitivity[:, -1] = 0.0
    keep = weight_mask(sensitivity, lowest=0.3)
    entries = classes * features
    assert entries > 2**24
    assert int((~keep).sum()) == round(0.3 * entries)
    assert float(sensitivity[~keep].max()) <= float(sensitivity[keep].min()) == pytest.approx(0.3, abs=1e-3)


def test_ties_beyond_2_to_the_24_are_counted_one_by_one() -> None:
    entries = 2**24 + 5
    keep = neuron_mask(torch.ones(entries), highest=0.25)
    kept = entries - round(0.25 * entries)
    assert bool(keep[:kept].all())
    assert not bool(keep[kept:].any())


@pytest.mark.parametrize(("share", "entries", "count"), [(0.5, 1, 0), (0.5, 3, 2), (0.25, 2, 0), (0.75, 2, 2)])
def test_half_an_entry_rounds_to_even(share: float, entries: int, count: int) -> None:
    if count:
        assert pruned_count(share, entries) == count
    else:
        with pytest.warns(RatioWarning, match="rounds to none"):
            assert pruned_count(share, entries) == count


def test_a_ratio_that_removes_nothing_says_so() -> None:
    message = re.escape("`w_min` = 0.005 of 64 entries rounds to none: nothing is pruned by it. Use at least 0.00781")
    with pytest.warns(RatioWarning, match=message):
        keep = weight_mask(torch.rand(10, 64, generator=torch.Generator().manual_seed(0)), lowest=0.005, scope="class")
    assert bool(keep.all())
    with pytest.warns(RatioWarning, match="`o_max` = 0.01 of 9 entries"):
        neuron_mask(torch.arange(9.0), highest=0.01)
    with pytest.warns(RatioWarning, match="`highest` = 0.01 of 9 entries"):
        keep_mask(torch.ones(2, 9), highest=0.01)


def test_a_count_names_its_share_and_its_caller() -> None:
    with pytest.raises(OptionError, match=r"`share` must be a fraction in \[0, 1\), got 1\.5\."):
        pruned_count(1.5, 10)
    with pytest.warns(RatioWarning, match="`share` = 0.01 of 10 entries") as caught:
        pruned_count(0.01, 10)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("ulps", "is_equal"), [(0.75, True), (1.25, False)])
def test_what_agrees_with_the_cut_to_2_to_the_minus_38_is_equal_to_it(ulps: float, *, is_equal: bool) -> None:
    above = torch.tensor([1 + ulps * 2**-38, 1.0], dtype=torch.float64)
    assert neuron_mask(above, lowest=0.5).tolist() == [not is_equal, is_equal]  # among equals the first is the smallest


def test_the_hint_of_the_warning_is_enough() -> None:
    for entries in (3, 64, 1000, 2048):
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
    assert int(neuron_mask(torch.ones(10), lowest=0.5, highest=0.4).sum()) == 1


def test_keep_mask_speaks_of_its_own_arguments() -> None:
    with pytest.raises(RatioError, match=r"`lowest` = 0\.5 and `highest` = 0\.5 remove 2 \+ 2 of 4 entries"):
        keep_mask(torch.ones(1, 4), lowest=0.5, highest=0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    sensitivity = torch.ones(3, 4)
    sensitivity[1, 2] = value
    with pytest.raises(NonFiniteError, match=r"`sensitivity` must be finite.*in 1 of 3 rows \(rows 1\)"):
        keep_mask(sensitivity, lowest=0.5)
    with pytest.raises(NonFiniteError, match="`sensitivity` must be finite"):
        weight_mask(sensitivity)
    with pytest.raises(NonFiniteError, match="`sensitivity` must be finite"):
        neuron_mask(sensitivity[1])


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (3, 0), ()])
@pytest.mark.parametrize("scope", ["layer", "class"])
def test_weight_mask_takes_matrices_alone(shape: tuple[int, ...], scope: Any) -> None:
    with pytest.raises(ShapeError, match=r"`sensitivity`.* must have shape"):
        weight_mask(torch.ones(shape), lowest=0.5, scope=scope)


@pytest.mark.parametrize("shape", [(0,), (2, 3), ()])
def test_neuron_mask_takes_vectors_alone(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"`sensitivity`.* must have shape"):
        neuron_mask(torch.ones(shape), lowest=0.5)


def test_an_unknown_scope_is_refused() -> None:
    scope: Any = "neuron"
    with pytest.raises(OptionError, match=r'`scope` must be "layer" or "class", got \'neuron\''):
        weight_mask(torch.ones(2, 3), scope=scope)


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
    ("weight_entries", "neuron_entries", "got"),
    [((3, 2), (3,), "got (3, 2) and (3,)"), ((2, 3), (2,), "got (2, 3) and (2,)"), ((3,), (3,), "got (3,) and (3,)")],
)
def test_masks_of_another_head_are_refused(
    weight_entries: tuple[int, ...], neuron_entries: tuple[int, ...], got: str
) -> None:
    masks = Masks(torch.ones(weight_entries, dtype=torch.bool), torch.ones(neuron_entries, dtype=torch.bool))
    with pytest.raises(ShapeError, match=re.escape("Masks must have shapes (2, 3) and (3,) to fit `weight`, " + got)):
        pruned_weight(torch.ones(2, 3), masks)


def test_masks_that_are_not_boolean_are_refused() -> None:
    boolean, number = torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3)
    for masks in (Masks(number, boolean[0]), Masks(boolean, number[0])):
        with pytest.raises(InputTypeError, match=r"Masks must be boolean, got .*torch\.float32"):
            pruned_weight(torch.ones(2, 3), masks)
