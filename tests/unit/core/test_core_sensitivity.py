"""Sensitivities: dtypes, numerics in float32, memory, purity and errors."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from opnp.core import Precision, SensitivitySum, neuron_sensitivity, weight_mask, weight_sensitivity
from opnp.core.sensitivity import product_dtype
from opnp.errors import EmptyDataError, InputTypeError, OptionError, ShapeError


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
    samples: int = 40, classes: int = 5, features: int = 7, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, features, generator=generator)
    weight = torch.randn(classes, features, generator=generator)
    return inputs.to(dtype), (inputs @ weight.T).to(dtype), weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_any_floating_dtype_gives_the_float64_result_of_its_values(dtype: torch.dtype, precision: Precision) -> None:
    features, logits, weight = random_data(dtype=dtype)
    mean = SensitivitySum.from_batch(features, logits, weight, precision=precision).mean()
    exact = SensitivitySum.from_batch(features.double(), logits.double(), weight.double()).mean()
    tolerance = 1e-11 if precision == "float64" or dtype == torch.float64 else 1e-6
    for name in ("weight", "neuron_gradient", "neuron_aggregate"):
        found, expected = getattr(mean, name), getattr(exact, name)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)


def test_float64_logits_are_not_reduced_to_float32() -> None:
    """Float32 cannot tell 2^24 + 1 from 2^24."""
    features, logits = torch.ones(1, 1), torch.tensor([[2.0**24 + 1, 2.0**24]], dtype=torch.float64)
    found = SensitivitySum.from_batch(features, logits, torch.zeros(2, 1)).weight.flatten()
    torch.testing.assert_close(found, logits[0].softmax(0), rtol=1e-12, atol=0)


def test_many_rows_in_float32_stay_within_1e_6() -> None:
    features, logits, weight = random_data(samples=100_000, classes=4, features=6)
    mean = SensitivitySum.from_batch(features, logits, weight).mean()
    exact = SensitivitySum.from_batch(features.double(), logits.double(), weight.double()).mean()
    torch.testing.assert_close(mean.weight, exact.weight, rtol=1e-6, atol=0)
    torch.testing.assert_close(mean.neuron_gradient, exact.neuron_gradient, rtol=1e-6, atol=0)


def test_the_gradient_reading_of_flat_probabilities_stays_within_1e_5() -> None:
    """With 1000 classes of nearly equal probability the terms p_i W_ij cancel to a small part of their size."""
    features, logits, weight = random_data(samples=16, classes=1000, features=64)
    found = SensitivitySum.from_batch(features, logits * 0.001, weight).mean().neuron_gradient
    exact = SensitivitySum.from_batch(features, logits * 0.001, weight, precision="float64").mean().neuron_gradient
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("temperature", [0.01, 1000.0])
def test_extreme_logits_and_temperatures_stay_finite_and_right(temperature: float) -> None:
    features, logits, weight = random_data()
    logits = logits.sign() * 1e4 + logits
    found = SensitivitySum.from_batch(features, logits, weight, temperature=temperature, precision="float64").mean()
    shifted = logits.double() - logits.double().amax(1, keepdim=True)
    powers = (shifted / temperature).exp()
    expected = (powers / powers.sum(1, keepdim=True)).T @ features.double().abs() / len(features)
    torch.testing.assert_close(found.weight, expected, rtol=1e-8, atol=1e-300)
    assert bool(found.neuron_gradient.isfinite().all())


def test_float32_probabilities_are_right_where_logits_are_large_and_the_temperature_is_small() -> None:
    """10000 / 0.01 has a spacing of 0.06 in float32, but the difference of the logits is known to 0.001 / 0.01."""
    features, logits = torch.ones(1, 1), torch.tensor([[10000.0, 9999.99]])
    found = SensitivitySum.from_batch(features, logits, torch.zeros(2, 1), temperature=0.01).weight.flatten()
    torch.testing.assert_close(found, (logits[0].double() / 0.01).softmax(0), rtol=1e-5, atol=0)


def test_one_sample_by_hand() -> None:
    features, logits = torch.tensor([[2.0, -4.0, 0.0]]), torch.log(torch.tensor([[1.0, 3.0]]))
    weight = torch.tensor([[1.0, 0.0, 4.0], [-1.0, 2.0, 4.0]])
    mean = SensitivitySum.from_batch(features, logits, weight).mean()
    assert mean.weight.flatten().tolist() == pytest.approx([0.5, 1.0, 0.0, 1.5, 3.0, 0.0], rel=1e-6)
    assert mean.neuron_gradient.tolist() == pytest.approx([0.5, 1.5, 4.0], rel=1e-6)
    assert mean.neuron_aggregate.tolist() == pytest.approx([1.0, 2.0, 0.0], rel=1e-6)


def test_sums_one_ulp_apart_rank_as_ties() -> None:
    """Sums that are equal on paper differ by the order they were taken in. Each row of this head holds such a pair, the
    larger one first; as a tie, the first counts as the smaller."""
    smaller = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    larger = smaller
    for _ in range(4):
        larger = torch.nextafter(larger, torch.tensor(torch.inf, dtype=torch.float64))
    total = SensitivitySum(torch.stack([larger, smaller], 1), torch.zeros(2, dtype=torch.float64), count=1)
    keep = weight_mask(total.mean().weight, lowest=0.5, scope="class")
    assert int((~keep[:, 0]).sum()) == 20_000


def test_means_are_those_of_the_sums_to_40_bits() -> None:
    values = torch.rand(50, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64).exp() * 1e3
    mean = SensitivitySum(values, values[0], count=7).mean()
    torch.testing.assert_close(mean.weight, values / 7, rtol=2.0**-40, atol=0)
    torch.testing.assert_close(mean.neuron_gradient, values[0] / 7, rtol=2.0**-40, atol=0)


def test_no_tensor_of_batch_by_classes_by_features_is_made() -> None:
    samples, classes, features = 3000, 20, 30
    inputs, logits, weight = random_data(samples, classes, features)
    with LargestOutput() as largest:  # type: ignore[no-untyped-call]  # torch leaves its constructor untyped
        SensitivitySum.from_batch(inputs, logits, weight).mean()
    assert 0 < largest.entries <= samples * max(classes, features)


def test_arguments_stay_as_they_were_and_no_graph_is_kept() -> None:
    data = random_data()
    before = [tensor.clone() for tensor in data]
    for tensor in data:
        tensor.requires_grad_()
    total = SensitivitySum.from_batch(*data)
    assert not total.weight.requires_grad
    assert not total.neuron.requires_grad
    for tensor, copy in zip(data, before, strict=True):
        assert tensor.detach().equal(copy)

    left, right = total.weight.clone(), total.neuron.clone()
    _ = total + total
    assert total.weight.equal(left)
    assert total.neuron.equal(right)


def test_the_same_data_give_the_same_bits() -> None:
    first, second = (SensitivitySum.from_batch(*random_data(samples=3000)) for _ in range(2))
    assert first.weight.equal(second.weight)
    assert first.neuron.equal(second.neuron)


def test_a_stream_is_read_once_and_adds_up() -> None:
    features, logits, weight = random_data(dtype=torch.float64)
    stream = ((features[start : start + 7], logits[start : start + 7]) for start in range(0, 40, 7))
    total = SensitivitySum.from_batches(stream, weight)
    assert total.count == 40
    torch.testing.assert_close(total.weight, SensitivitySum.from_batch(features, logits, weight).weight)


def test_no_samples_have_a_sum_but_no_mean() -> None:
    empty = SensitivitySum.from_batches([], torch.ones(2, 3))
    assert (empty.count, tuple(empty.weight.shape), tuple(empty.neuron.shape)) == (0, (2, 3), (3,))
    assert empty.weight.dtype == empty.neuron.dtype == torch.float64
    with pytest.raises(EmptyDataError, match="the sensitivity of no data is undefined"):
        empty.mean()
    with pytest.raises(EmptyDataError, match="No sample was summed"):
        weight_sensitivity(torch.ones(0, 3), torch.ones(0, 2))
    with pytest.raises(EmptyDataError, match="No sample was summed"):
        neuron_sensitivity(torch.ones(0, 3), torch.ones(0, 2), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("features", "logits", "weight", "error", "message"),
    [
        (torch.ones(2, 3, 7, 7), torch.ones(2, 4), torch.ones(4, 3), ShapeError, r"`features\.flatten\(2\)"),
        (torch.ones(2, 3), torch.ones(4), torch.ones(4, 3), ShapeError, r"`logits` must have shape \(batch, classes\)"),
        (torch.ones(2, 3), torch.ones(2, 4), torch.ones(4), ShapeError, r"`weight` .* \(classes, features\)"),
        (torch.ones(2, 3), torch.ones(3, 4), torch.ones(4, 3), ShapeError, r"agree in batch size, got 2 and 3"),
        (torch.ones(2, 3), torch.ones(2, 4), torch.ones(3, 4), ShapeError, r"= \(4, 3\) to fit .*, got \(3, 4\)"),
        (torch.ones(2, 3).int(), torch.ones(2, 4), torch.ones(4, 3), InputTypeError, r"`features` must be floating"),
        (torch.ones(2, 3), torch.ones(2, 4).long(), torch.ones(4, 3), InputTypeError, r"`logits` must be floating"),
        (torch.ones(2, 3), torch.ones(2, 4), [[1.0]], InputTypeError, r"`weight` must be a torch\.Tensor.*got list"),
        (torch.ones(2, 3), torch.ones(2, 4), torch.ones(4, 3).to("meta"), InputTypeError, r"one device, got cpu, cpu"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    features: Tensor, logits: Tensor, weight: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SensitivitySum.from_batch(features, logits, weight)
    with pytest.raises(error, match=message):
        neuron_sensitivity(features, logits, weight)


@pytest.mark.parametrize(
    ("features", "logits", "message"),
    [
        (torch.ones(3), torch.ones(1, 2), r"`features\[None\]`"),
        (torch.ones(1, 3), torch.ones(2), r"`logits\[None\]`"),
        (torch.ones(1, 3), torch.ones(2, 2), r"got 1 and 2"),
    ],
)
def test_weight_sensitivity_checks_its_shapes(features: Tensor, logits: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        weight_sensitivity(features, logits)


def test_options_out_of_range_are_refused() -> None:
    data = random_data()
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(OptionError, match="`temperature` must be a positive finite number"):
            SensitivitySum.from_batch(*data, temperature=temperature)
    with pytest.raises(OptionError, match=r'`precision` must be "float32" or "float64", got \'half\''):
        SensitivitySum.from_batch(*data, precision="half")  # type: ignore[arg-type]  # what a caller without types may do


def test_an_unknown_reading_is_refused_under_the_name_of_the_argument() -> None:
    with pytest.raises(OptionError, match=r'`reading` must be "gradient" or "aggregate", got \'mean\''):
        neuron_sensitivity(*random_data(), reading="mean")  # type: ignore[arg-type]  # as above


def test_only_sums_of_one_head_merge() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3\) on the left and \(2, 4\) on the right"):
        _ = SensitivitySum.zeros(2, 3) + SensitivitySum.zeros(2, 4)
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = SensitivitySum.zeros(2, 3) + 1


def test_the_empty_sum_lies_on_the_device_it_is_asked_for() -> None:
    there, here = SensitivitySum.zeros(3, 4, device="meta"), SensitivitySum.zeros(3, 4)
    assert (there.weight.device.type, there.neuron.device.type, there.count) == ("meta", "meta", 0)
    assert (here.weight.device.type, here.neuron.device.type, here.count) == ("cpu", "cpu", 0)
    assert (here.weight.dtype, here.neuron.dtype) == (torch.float64, torch.float64)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_products_are_float32_unless_one_tensor_is_float64_or_it_is_asked_for(place: int) -> None:
    tensors = [torch.ones(2, 2, dtype=dtype) for dtype in (torch.float16, torch.float32, torch.bfloat16)]
    assert product_dtype(*tensors, precision="float32") == torch.float32
    assert product_dtype(*tensors, precision="float64") == torch.float64
    tensors[place] = tensors[place].double()
    assert product_dtype(*tensors, precision="float32") == torch.float64


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_float64_argument_makes_the_sums_those_of_float64(place: int) -> None:
    given = list(random_data())
    given[place] = given[place].double()
    found = SensitivitySum.from_batch(given[0], given[1], given[2])
    exact = SensitivitySum.from_batch(*(tensor.double() for tensor in given))
    torch.testing.assert_close(found.weight, exact.weight, rtol=1e-14, atol=0)
    torch.testing.assert_close(found.neuron, exact.neuron, rtol=1e-12, atol=0)


def test_the_plain_functions_take_products_in_float64() -> None:
    features, logits, weight = random_data()
    shares = torch.softmax(logits.double(), 1)
    expected = shares.T @ features.double().abs() / len(features)
    torch.testing.assert_close(weight_sensitivity(features, logits), expected, rtol=1e-13, atol=0)
    gradient = (shares @ weight.double()).abs().mean(0)
    torch.testing.assert_close(neuron_sensitivity(features, logits, weight), gradient, rtol=1e-12, atol=0)


def test_shapes_are_told_with_name_and_axes() -> None:
    features, logits, weight = random_data()
    for name, axes, given in (
        ("features", r"\(batch, features\)", (features[0], logits, weight)),
        ("logits", r"\(batch, classes\)", (features, logits[0], weight)),
        ("weight", r"\(classes, features\)", (features, logits, weight[0])),
    ):
        with pytest.raises(ShapeError, match=rf"^`{name}` must have shape {axes}, got"):
            SensitivitySum.from_batch(*given)
        if name != "weight":
            with pytest.raises(ShapeError, match=rf"^`{name}` must have shape {axes}, got"):
                weight_sensitivity(*given[:2])
