"""Sums of any layer: dtypes, memory, purity and errors; that they are right is for the reference and property tests."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from opnp.core import Geometry, LayerSensitivitySum, Precision, energy_gradient
from opnp.core.position_products import aligned
from opnp.errors import EmptyDataError, InputTypeError, NonFiniteError, OptionError, ShapeError


class LargestOutput(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned, views apart."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves its constructor untyped
        self.known = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return result


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tokens(dtype: torch.dtype = torch.float64) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Return the uses of a linear layer on tokens, and its weight."""
    uses = [(random(4, 5, 6, dtype=dtype), random(4, 5, 3, seed=1, dtype=dtype))]
    return uses, random(3, 6, seed=2, dtype=dtype)


def pixels(dtype: torch.dtype = torch.float64) -> tuple[list[tuple[Tensor, Tensor, Geometry]], Tensor]:
    """Return the uses of a convolution in two groups, and its weight."""
    uses = [(random(4, 4, 5, 5, dtype=dtype), random(4, 6, 3, 3, seed=1, dtype=dtype), Geometry())]
    return uses, random(6, 2, 3, 3, seed=2, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_any_floating_dtype_gives_the_float64_result_of_its_values(dtype: torch.dtype, precision: Precision) -> None:
    linear, weight = tokens(dtype)
    convolution, kernel = pixels(dtype)
    found = [
        LayerSensitivitySum.from_linear(linear, weight, precision=precision),
        LayerSensitivitySum.from_convolution(convolution, kernel, precision=precision),
    ]
    exact = [
        LayerSensitivitySum.from_linear([(left.double(), right.double()) for left, right in linear], weight.double()),
        LayerSensitivitySum.from_convolution(
            [(left.double(), right.double(), geometry) for left, right, geometry in convolution], kernel.double()
        ),
    ]
    tolerance = 1e-12 if precision == "float64" or dtype == torch.float64 else 1e-6
    for left, right in zip(found, exact, strict=True):
        assert left.weight.dtype == left.neuron.dtype == torch.float64
        torch.testing.assert_close(left.weight, right.weight, rtol=0, atol=tolerance * float(right.weight.max()))
        torch.testing.assert_close(left.neuron, right.neuron, rtol=0, atol=tolerance * float(right.neuron.max()))


def test_sums_over_samples_are_float64_where_products_are_not() -> None:
    """Float32 cannot add 1 to 2^24."""
    inputs = torch.cat([torch.full((1, 2, 1), 2.0**23), torch.full((64, 2, 1), 0.5)])
    found = LayerSensitivitySum.from_linear([(inputs, torch.ones(65, 2, 1))], torch.ones(1, 1))
    assert float(found.weight) == 2.0**24 + 64


def test_the_callers_autocast_changes_nothing() -> None:
    linear, weight = tokens(torch.float32)
    convolution, kernel = pixels(torch.float32)
    plain = LayerSensitivitySum.from_linear(linear, weight), LayerSensitivitySum.from_convolution(convolution, kernel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = (
            LayerSensitivitySum.from_linear(linear, weight),
            LayerSensitivitySum.from_convolution(convolution, kernel),
        )
    for left, right in zip(plain, cast, strict=True):
        assert torch.equal(left.weight, right.weight)
        assert torch.equal(left.neuron, right.neuron)


@pytest.mark.parametrize("chunk", [20_000, 200_000, 2_000_000])
def test_gradients_of_single_samples_stay_within_the_chunk(chunk: int) -> None:
    """All of them would take 32 x 40 x 50 x 4 bytes = 256 kB in float32; the layer's own sums take 16 kB."""
    inputs, gradients = random(32, 7, 50, dtype=torch.float32), random(32, 7, 40, seed=1, dtype=torch.float32)
    weight = random(40, 50, seed=2, dtype=torch.float32)
    with LargestOutput([inputs, gradients, weight]) as largest:
        found = LayerSensitivitySum.from_linear([(inputs, gradients)], weight, chunk_bytes=chunk)
    assert 0 < largest.bytes <= max(chunk, 40 * 50 * 8)
    whole = LayerSensitivitySum.from_linear([(inputs, gradients)], weight)
    torch.testing.assert_close(found.weight, whole.weight, rtol=1e-6, atol=1e-5)


def test_a_convolution_is_not_unfolded() -> None:
    """Unfolded, its input would take 9 times its own size; a sample's own part is all that is copied."""
    inputs, gradients = random(8, 4, 40, 40, dtype=torch.float32), random(8, 4, 40, 40, seed=1, dtype=torch.float32)
    weight = random(4, 4, 3, 3, seed=2, dtype=torch.float32)
    use = inputs, gradients, Geometry(padding=(1, 1))
    with LargestOutput([inputs, gradients, weight]) as largest:
        LayerSensitivitySum.from_convolution([use], weight, chunk_bytes=1)
    assert 0 < largest.bytes <= inputs[0].nbytes


def test_one_vector_a_sample_makes_no_tensor_of_samples_by_weights() -> None:
    inputs, gradients = random(300, 30), random(300, 20, seed=1)
    weight = random(20, 30, seed=2)
    with LargestOutput([inputs, gradients, weight]) as largest:
        LayerSensitivitySum.from_linear([(inputs, gradients)], weight)
    assert 0 < largest.bytes <= inputs.nbytes


def test_arguments_stay_as_they_were_and_no_graph_is_kept() -> None:
    linear, weight = tokens()
    convolution, kernel = pixels()
    given = [weight, kernel, *linear[0], *convolution[0][:2]]
    before = [tensor.clone() for tensor in given]
    for tensor in given:
        tensor.requires_grad_()
    for total in (
        LayerSensitivitySum.from_linear(linear, weight),
        LayerSensitivitySum.from_convolution(convolution, kernel),
    ):
        left, right = total.weight.clone(), total.neuron.clone()
        _ = total + total
        assert not total.weight.requires_grad
        assert not total.neuron.requires_grad
        assert torch.equal(total.weight, left)
        assert torch.equal(total.neuron, right)
    assert all(torch.equal(tensor.detach(), copy) for tensor, copy in zip(given, before, strict=True))


def test_a_kernel_that_lies_in_the_padding_alone_has_no_gradient() -> None:
    use = torch.ones(2, 1, 1, 1), torch.ones(2, 1, 1, 1), Geometry(padding=(1, 1))
    found = LayerSensitivitySum.from_convolution([use], torch.ones(1, 1, 3, 3))
    assert found.weight[0, 0].tolist() == [[0, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert found.neuron.tolist() == [2]


@pytest.mark.parametrize(("size", "outputs", "offset", "stride"), [(5, 3, -1, 2), (1, 4, -3, 1), (4, 2, 9, 3)])
def test_aligned_names_the_outputs_that_read_inside(size: int, outputs: int, offset: int, stride: int) -> None:
    rows, read = aligned(size, outputs, offset=offset, stride=stride)
    inside = [y for y in range(outputs) if 0 <= y * stride + offset < size]
    assert list(range(outputs))[rows] == inside
    assert list(range(size))[read] == [y * stride + offset for y in inside]


def test_no_samples_have_a_sum_but_no_mean() -> None:
    empty = LayerSensitivitySum.from_linear([(torch.ones(0, 3), torch.ones(0, 2))], torch.ones(2, 3))
    assert (empty.count, float(empty.weight.sum())) == (0, 0)
    with pytest.raises(EmptyDataError, match="the sensitivity of no data is undefined"):
        empty.mean()
    with pytest.raises(EmptyDataError, match="must have run at least once"):
        LayerSensitivitySum.from_linear([], torch.ones(2, 3))
    with pytest.raises(EmptyDataError, match="must have run at least once"):
        LayerSensitivitySum.from_convolution([], torch.ones(2, 3, 1, 1))


@pytest.mark.parametrize(
    ("inputs", "gradients", "weight", "error", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), torch.ones(4), ShapeError, r"`weight` .* \(outputs, inputs\), got \(4,\)"),
        (torch.ones(2, 5), torch.ones(2, 4), torch.ones(4, 3), ShapeError, r"`inputs` .* of length 3 .* \(2, 5\)"),
        (torch.ones(2, 3), torch.ones(2, 5), torch.ones(4, 3), ShapeError, r"`gradients` .* of length 4 .* \(2, 5\)"),
        (
            torch.ones(2, 3),
            torch.ones(3, 4),
            torch.ones(4, 3),
            ShapeError,
            r"samples and positions, .*\(2, 3\) and \(3",
        ),
        (torch.ones(2, 1, 3), torch.ones(2, 2, 4), torch.ones(4, 3), ShapeError, "agree in samples and positions"),
        (torch.ones(3), torch.ones(4), torch.ones(4, 3), ShapeError, r"`inputs` must have 2 or 3 axes"),
        (
            torch.ones(2, 3),
            torch.ones(2, 4),
            torch.ones(4, 3, device="meta"),
            InputTypeError,
            "one device, got cpu and",
        ),
    ],
)
def test_what_does_not_fit_a_linear_layer_is_refused(
    inputs: Tensor, gradients: Tensor, weight: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LayerSensitivitySum.from_linear([(inputs, gradients)], weight)


@pytest.mark.parametrize(
    ("inputs", "gradients", "weight", "message"),
    [
        ((2, 3, 4, 4), (2, 4, 4, 4), (4, 3), r"\(outputs, inputs / groups, height, width\), got \(4, 3\)"),
        ((2, 3, 4, 4), (2, 4, 4, 4), (4, 2, 1, 1), "does not fit 3 input channels"),
        ((2, 1, 4, 4), (2, 4, 4, 4), (4, 2, 1, 1), "does not fit 1 input channels"),
        ((2, 3, 4, 4), (2, 4, 4, 4), (4, 1, 1, 1), "does not fit 3 input channels"),
        ((2, 3, 4, 4), (2, 5, 4, 4), (4, 3, 1, 1), r"`gradients` must have 4 axes, axis 1 of length 4"),
        ((3, 4, 4), (4, 4, 4), (4, 3, 1, 1), r"`inputs` must have 4 axes"),
        ((2, 3, 4, 4), (3, 4, 4, 4), (4, 3, 1, 1), "agree in samples"),
    ],
)
def test_what_does_not_fit_a_convolution_is_refused(
    inputs: tuple[int, ...], gradients: tuple[int, ...], weight: tuple[int, ...], message: str
) -> None:
    use = torch.ones(inputs), torch.ones(gradients), Geometry()
    with pytest.raises(ShapeError, match=message):
        LayerSensitivitySum.from_convolution([use], torch.ones(weight))


def test_uses_of_one_batch_have_its_size() -> None:
    uses = [(torch.ones(2, 3), torch.ones(2, 4)), (torch.ones(1, 3), torch.ones(1, 4))]
    with pytest.raises(ShapeError, match=r"agree in batch size, got \[2, 1\] samples"):
        LayerSensitivitySum.from_linear(uses, torch.ones(4, 3))


def test_options_out_of_range_are_refused() -> None:
    linear, weight = tokens()
    wrong: Any
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(OptionError, match=r"`chunk_bytes` must be a whole number of bytes above 0, got"):
            LayerSensitivitySum.from_linear(linear, weight, chunk_bytes=wrong)
    with pytest.raises(OptionError, match='`precision` must be "float32" or "float64"'):
        LayerSensitivitySum.from_linear(linear, weight, precision="half")  # type: ignore[arg-type]  # what a caller without types may do


def test_only_sums_of_one_layer_merge() -> None:
    with pytest.raises(ShapeError, match=r"shape \(4, 2, 1, 1\) with 2 inputs on the left, \(4, 2, 1, 1\) with 4 "):
        _ = LayerSensitivitySum.zeros((4, 2, 1, 1)) + LayerSensitivitySum.zeros((4, 2, 1, 1), groups=2)
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = LayerSensitivitySum.zeros((4, 2)) + 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_energys_gradient_is_that_of_autograd_in_the_dtype_of_the_logits(dtype: torch.dtype) -> None:
    logits = random(5, 4, dtype=dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    (-2.0 * torch.logsumexp(exact / 2.0, 1).sum()).backward()
    found = energy_gradient(logits, temperature=2.0)
    assert exact.grad is not None
    assert found.dtype == dtype
    assert not found.requires_grad
    torch.testing.assert_close(found, exact.grad.to(dtype))


def test_the_energys_gradient_of_huge_logits_is_finite() -> None:
    assert energy_gradient(torch.tensor([[1e30, 0.0]]), temperature=0.01).tolist() == [[-1.0, 0.0]]
    with pytest.raises(ShapeError, match=r"`logits` must have shape \(batch, classes\)"):
        energy_gradient(torch.ones(3))
    with pytest.raises(OptionError, match="`temperature`"):
        energy_gradient(torch.ones(1, 3), temperature=0.0)


def test_the_empty_sum_lies_on_the_device_it_is_asked_for() -> None:
    there, here = (
        LayerSensitivitySum.zeros((3, 4, 1, 1), groups=2, device="meta"),
        LayerSensitivitySum.zeros((3, 4, 1, 1), groups=2),
    )
    assert (there.weight.device.type, there.neuron.device.type, there.count) == ("meta", "meta", 0)
    assert (here.weight.device.type, here.neuron.device.type, here.count) == ("cpu", "cpu", 0)
    assert (here.weight.dtype, here.neuron.dtype) == (torch.float64, torch.float64)


def test_sums_that_are_not_finite_have_no_mean() -> None:
    finite, infinite = torch.ones(1, 2, dtype=torch.float64), torch.full((1, 2), torch.inf, dtype=torch.float64)
    for weight, neuron in ((infinite, finite[0]), (finite, infinite[0])):
        with pytest.raises(NonFiniteError, match="2 sensitivities are NaN or infinite"):
            LayerSensitivitySum(weight=weight, neuron=neuron, count=1).mean()


def test_the_gradient_of_the_energy_is_at_temperature_1_unless_told() -> None:
    logits = torch.tensor([[1.0, 3.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(energy_gradient(logits), -torch.softmax(logits, 1), rtol=1e-14, atol=0)
    torch.testing.assert_close(energy_gradient(logits, temperature=2.0), -torch.softmax(logits / 2, 1))


def test_the_gradient_of_one_row_does_not_depend_on_the_size_of_another() -> None:
    found = energy_gradient(torch.tensor([[3e38, 0.0], [0.0, 1.0]]), temperature=0.1)
    torch.testing.assert_close(found, -torch.softmax(torch.tensor([[1e3, 0.0], [0.0, 10.0]]), 1))


def test_half_precision_gradients_are_those_of_float32_rounded_once() -> None:
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)).half() * 20
    found = energy_gradient(logits, temperature=0.7)
    assert torch.equal(found, energy_gradient(logits.float(), temperature=0.7).half())


def test_a_kernel_slides_by_one_without_padding_unless_told() -> None:
    plain = Geometry(stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    assert Geometry() == plain
    generator = torch.Generator().manual_seed(0)
    inputs, gradients = torch.randn(2, 1, 5, 5, generator=generator), torch.randn(2, 1, 4, 4, generator=generator)
    parts = [
        LayerSensitivitySum.from_convolution([(inputs, gradients, geometry)], torch.ones(1, 1, 2, 2))
        for geometry in (Geometry(), plain)
    ]
    assert torch.equal(parts[0].weight, parts[1].weight)
