"""Sensitivities: dtypes, the rule of precision and underflow, memory, purity and errors."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from opnp.core import LayerSensitivitySum, Precision, SensitivitySum, neuron_sensitivity, weight_sensitivity
from opnp.core.sensitivity import product_dtype, row_blocks
from opnp.errors import EmptyDataError, InputTypeError, NonFiniteError, OptionError, ShapeError

FITTING = torch.ones(2, 3), torch.ones(2, 4), torch.ones(4, 3)
"""Features, logits and weight of three features and four classes."""


class LargestOutput(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                self.entries = max(self.entries, value.numel())
        return result


def random_data(
    samples: int = 40, classes: int = 5, features: int = 7, *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, features, generator=generator)
    weight = torch.randn(classes, features, generator=generator)
    return inputs.to(dtype), (inputs @ weight.T).to(dtype), weight.to(dtype)


def require_close(found: SensitivitySum, expected: SensitivitySum, tolerance: float) -> None:
    for part, exact in ((found.weight, expected.weight), (found.neuron, expected.neuron)):
        assert part.dtype == torch.float64
        torch.testing.assert_close(part, exact, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_any_floating_dtype_gives_the_float64_result_of_its_values(dtype: torch.dtype, precision: Precision) -> None:
    data = random_data(dtype=dtype)
    exact = SensitivitySum.from_batch(*(tensor.double() for tensor in data))
    is_wide = precision == "float64" or dtype == torch.float64
    require_close(SensitivitySum.from_batch(*data, precision=precision), exact, 1e-11 if is_wide else 1e-6)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_float64_argument_makes_the_products_float64(place: int) -> None:
    given: list[Tensor] = list(random_data())
    given[place] = given[place].double()
    exact = SensitivitySum.from_batch(*(tensor.double() for tensor in given))
    require_close(SensitivitySum.from_batch(*given), exact, 1e-12)
    assert product_dtype(*given, precision="float32") == torch.float64
    assert product_dtype(given[place - 1].half(), precision="float32") == torch.float32


@pytest.mark.parametrize(
    ("temperature", "is_wide"), [(0.01, True), (0.0999, True), (0.1, False), (1000.0, False), (1001.0, True)]
)
def test_products_are_float64_below_a_tenth_and_above_a_thousand(temperature: float, is_wide: bool) -> None:
    data = random_data()
    found, exact = (
        SensitivitySum.from_batch(*data, temperature=temperature, precision=precision)
        for precision in ("float32", "float64")
    )
    assert torch.equal(found.weight, exact.weight) is is_wide
    assert bool(exact.weight.min() > 0)


def test_sensitivities_that_underflow_are_zeros_and_no_error() -> None:
    """A random head at a low temperature: float32 loses the second class, float64 does not."""
    features, logits = torch.tensor([[1.0, 2.0]]), torch.tensor([[12.0, 0.0]])
    found, exact = (
        SensitivitySum.from_batch(features, logits, torch.ones(2, 2), temperature=0.1, precision=precision)
        for precision in ("float32", "float64")
    )
    assert found.mean().weight.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert exact.weight[1].tolist() == pytest.approx([7.67e-53, 1.534e-52], rel=1e-3)


def test_many_rows_in_float32_stay_within_1e_6() -> None:
    data = random_data(samples=100_000, classes=4, features=6)
    exact = SensitivitySum.from_batch(*data, precision="float64")
    require_close(SensitivitySum.from_batch(*data), exact, 1e-6)


def test_the_gradient_of_flat_probabilities_is_off_by_1e_6_of_the_terms_that_cancel() -> None:
    """A thousand classes share the probability: what is left of p_i W_ij is a thirtieth of it, and less."""
    features, logits, weight = random_data(samples=16, classes=1000, features=64)
    found, exact = (
        SensitivitySum.from_batch(features, logits * 0.001, weight, precision=precision).neuron
        for precision in ("float32", "float64")
    )
    assert bool(((found - exact).abs() <= 1e-6 * weight.double().abs().mean(0) * 16).all())
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=0)


def test_the_largest_logit_is_taken_off_before_the_division() -> None:
    """10000 / 0.1 has a spacing of 0.008 in float32, but the difference of the logits is known to 0.001 / 0.1."""
    logits = torch.tensor([[10000.0, 9999.99]])
    found = SensitivitySum.from_batch(torch.ones(1, 1), logits, torch.zeros(2, 1), temperature=0.1).weight.flatten()
    torch.testing.assert_close(found, (logits[0].double() / 0.1).softmax(0), rtol=1e-6, atol=0)
    huge = SensitivitySum.from_batch(torch.ones(1, 1), logits * 1e30, torch.ones(2, 1), temperature=1e-30)
    assert huge.weight.tolist() == [[1.0], [0.0]]


def test_no_tensor_of_batch_by_classes_by_features_is_made() -> None:
    data = random_data(samples=3000, classes=20, features=30)
    with LargestOutput() as largest:  # type: ignore[no-untyped-call]  # torch leaves its constructor untyped
        SensitivitySum.from_batch(*data).mean()
    assert 0 < largest.entries <= 3000 * 30


def test_arguments_stay_as_they_were_and_no_graph_is_kept() -> None:
    data = random_data()
    before = [tensor.clone() for tensor in data]
    total = SensitivitySum.from_batch(*(tensor.requires_grad_() for tensor in data))
    kept = total.weight.clone(), total.neuron.clone(), total.count
    _ = total + total
    assert total.count == kept[2]
    assert not any(tensor.requires_grad for tensor in (total.weight, total.neuron))
    assert all(map(torch.equal, (*data, total.weight, total.neuron), (*before, *kept[:2])))


def test_no_samples_have_a_sum_but_no_mean() -> None:
    for empty, shape, inputs in (
        (SensitivitySum.from_batches([], torch.ones(2, 3)), (2, 3), 3),
        (LayerSensitivitySum.zeros(4, 2, 1, 1, groups=2), (4, 2, 1, 1), 4),
    ):
        assert (empty.count, tuple(empty.weight.shape), tuple(empty.neuron.shape)) == (0, shape, (inputs,))
        assert (empty.weight.dtype, empty.neuron.dtype) == (torch.float64, torch.float64)
        with pytest.raises(EmptyDataError, match=r"^No sample was summed: the sensitivity of no data is undefined"):
            empty.mean()
    with pytest.raises(EmptyDataError, match="No sample was summed"):
        weight_sensitivity(torch.ones(0, 3), torch.ones(0, 2))
    there = SensitivitySum.zeros(3, 4, device="meta")
    assert (there.weight.device.type, there.neuron.device.type) == ("meta", "meta")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_sums_that_are_not_finite_have_no_mean(place: int) -> None:
    given = [tensor.clone() for tensor in FITTING]
    given[place][0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"^\d+ sensitivities are NaN or infinite: .* or scale the features down"):
        SensitivitySum.from_batch(*given).mean()


@pytest.mark.parametrize("is_weight", [True, False])
def test_each_part_of_a_sum_must_be_finite(is_weight: bool) -> None:
    weight, neuron = torch.ones(1, 2).double(), torch.ones(2).double()
    (weight if is_weight else neuron).fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="2 sensitivities are NaN or infinite"):
        LayerSensitivitySum(weight=weight, neuron=neuron, count=1).mean()


def test_the_aggregate_reading_is_the_mean_over_the_weights_of_a_channel_in_its_group() -> None:
    part = LayerSensitivitySum(weight=torch.arange(8.0).view(4, 2, 1, 1), neuron=torch.full((4,), 6.0), count=2)
    found = (part + part + LayerSensitivitySum.zeros(4, 2, 1, 1, groups=2)).mean()
    assert found.count == 4
    assert found.weight.flatten().tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    assert found.neuron_aggregate.tolist() == [0.5, 1.0, 2.5, 3.0]
    assert found.neuron_gradient.tolist() == [3.0] * 4


@pytest.mark.parametrize(
    ("place", "value", "error", "message"),
    [
        (0, torch.ones(2, 3, 7, 7), ShapeError, r"`features\.flatten\(2\)"),
        (0, torch.ones(3), ShapeError, r"^`features` must have shape \(batch, features\), got .*`features\[None\]`"),
        (0, torch.ones(2, 3).int(), InputTypeError, r"`features` must be floating"),
        (1, torch.ones(4), ShapeError, r"^`logits` must have shape \(batch, classes\), got .*`logits\[None\]`"),
        (1, torch.ones(3, 4), ShapeError, r"agree in batch size, got 2 and 3"),
        (1, torch.ones(2, 4).long(), InputTypeError, r"`logits` must be floating"),
        (2, torch.ones(4), ShapeError, r"^`weight` must have shape \(classes, features\), got"),
        (2, torch.ones(3, 4), ShapeError, r"= \(4, 3\) to fit .*, got \(3, 4\)"),
        (2, [[1.0]], InputTypeError, r"`weight` must be a torch\.Tensor.*got list"),
        (2, torch.ones(4, 3).to("meta"), InputTypeError, r"one device, got cpu, cpu and meta"),
    ],
)
def test_what_does_not_fit_together_is_refused(place: int, value: Any, error: type[Exception], message: str) -> None:
    given: list[Any] = list(FITTING)
    given[place] = value
    for ask in (SensitivitySum.from_batch, neuron_sensitivity):
        with pytest.raises(error, match=message):
            ask(*given)
    if place < 2:
        with pytest.raises(error, match=message):
            weight_sensitivity(given[0], given[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be a positive finite number"),
        ({"precision": "half"}, r'`precision` must be "float32" or "float64", got \'half\''),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SensitivitySum.from_batch(*FITTING, **options)
    unknown: Any = "mean"
    with pytest.raises(OptionError, match=r'`reading` must be "gradient" or "aggregate", got \'mean\''):
        neuron_sensitivity(*FITTING, reading=unknown)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (
            SensitivitySum.zeros(2, 3),
            SensitivitySum.zeros(2, 4),
            r"\(2, 3\) with 3 .* \(2, 4\) with 4 on",
        ),
        (
            LayerSensitivitySum.zeros(4, 2, 1, 1),
            LayerSensitivitySum.zeros(4, 2, 1, 1, groups=2),
            r"\(4, 2, 1, 1\) with 2 inputs on the left, \(4, 2, 1, 1\) with 4 on the right",
        ),
    ],
    ids=["head", "convolution"],
)
def test_only_sums_of_one_layer_merge(one: LayerSensitivitySum, other: LayerSensitivitySum, message: str) -> None:
    with pytest.raises(ShapeError, match=f"^Sums of layers of different size cannot be merged: weights .*{message}"):
        _ = one + other
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = one + 1


def test_the_plain_functions_take_products_in_float64() -> None:
    features, logits, weight = random_data()
    shares = torch.softmax(logits.double(), 1)
    expected = shares.T @ features.double().abs() / len(features)
    torch.testing.assert_close(weight_sensitivity(features, logits), expected, rtol=1e-13, atol=0)
    gradient = (shares @ weight.double()).abs().mean(0)
    torch.testing.assert_close(neuron_sensitivity(features, logits, weight), gradient, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("other", "sizes"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), [2, 1, 2]),  # another dtype begins a new block
        (torch.zeros(2, 4), [2, 1, 2]),  # another width too
        (torch.zeros(2, 3), [2, 2, 1]),
        (torch.zeros(0, 3), [2, 1]),
    ],
    ids=["dtype", "width", "nothing", "no rows"],
)
def test_a_change_in_a_stream_begins_a_new_block(other: Tensor, sizes: list[int]) -> None:
    first, second = torch.arange(9.0).view(3, 3), -torch.arange(6.0).view(3, 2)
    pairs = [(first[:1], second[:1]), (first[1:], second[1:]), (other, torch.ones(len(other), 2))]
    blocks = [tuple(part.clone() for part in block) for block in row_blocks(pairs, rows=2)]
    assert [len(left) for left, _ in blocks] == [len(right) for _, right in blocks] == sizes
    assert [row for left, _ in blocks for row in left.tolist()] == first.tolist() + other.tolist()
