r"""Sensitivity of the energy to the weights and inputs of any linear or convolutional layer, as an additive value.

With h the layer's input, d = dE / d(output) the gradient that arrives at its output and p its positions (tokens,
pixels), the gradient for one sample is a sum over positions; the absolute value comes after it:

    linear         dE / dW_ij   = sum_p d_i(p) h_j(p)
    convolution    dE / dW_ijuv = sum_p d_i(p) h_j(stride * p + dilation * (u, v) - padding)
    weight         M = (1/m) sum_k |dE(x_k) / dW|
    gradient       (1/m) sum_k |sum_p dE(x_k) / dh_j(p)|, through this layer alone
    aggregate      means of M over all weights that read input j

Where the layer sees one vector a sample, M is one matrix product, D^T |H| / m with D = |d|; for the last layer, where
d = -softmax, that is the closed form of `opnp.core.sensitivity`. A convolution is taken as one linear layer for each
weight (u, v) of its kernel, on inputs shifted by that much: no unfolded copy of the input is made.

A neuron is an input feature or channel. It is pruned at all positions at once, so that its sum over positions stands
inside the absolute value, as that of a weight does.

Source: Chen et al., NeurIPS 2023, section 3 (step 1 of the method), which defines the sensitivity for every layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Self

import torch
from torch import Tensor

from opnp.core.checks import checked_matrix, checked_temperature, require_finite_sums
from opnp.core.position_products import Pair, absolute_sum, aligned, checked_chunk
from opnp.core.sensitivity import Precision, Sensitivity, product_dtype
from opnp.errors import EmptyDataError, InputTypeError, ShapeError

__all__ = ["Geometry", "LayerSensitivitySum", "energy_gradient"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a convolution slides over its input, each pair as (height, width).

    Attributes:
        stride: Step between neighbouring outputs.
        padding: Rows of zeros above and columns of zeros to the left of the input. Those below and to the right follow
            from the size of the output.
        dilation: Step between neighbouring weights of the kernel.

    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True, eq=False, slots=True)
class LayerSensitivitySum:
    """Sums of absolute gradients over the samples seen so far, for one layer: a value that adds up.

    Parts of the data may be summed anywhere, in any order, and merged by ``+``; `mean` ends the sum.

    Attributes:
        weight: Sum of |dE / dW|, of the shape of the layer's weight, float64.
        neuron: Sum of |dE / dh_j|, summed over positions before the absolute value, shape ``(inputs,)``, float64.
        count: Number of samples summed.

    Example:
        A layer with one output and two inputs, on one sample of two tokens. The tokens' gradients for the first weight
        are 1 and -3:

        >>> import torch
        >>> inputs = torch.tensor([[[1.0, 1.0], [3.0, 1.0]]])
        >>> gradients = torch.tensor([[[1.0], [-1.0]]])
        >>> part = LayerSensitivitySum.from_linear([(inputs, gradients)], torch.ones(1, 2))
        >>> part.weight.tolist()
        [[2.0, 0.0]]
        >>> (part + part).mean().weight.tolist()
        [[2.0, 0.0]]

    """

    weight: Tensor
    neuron: Tensor
    count: int

    @classmethod
    def zeros(cls, shape: Sequence[int], *, groups: int = 1, device: torch.device | str | None = None) -> Self:
        """Return the empty sum, the neutral element of ``+``, for a layer whose weight has this shape.

        Example:
            >>> LayerSensitivitySum.zeros((8, 2, 3, 3), groups=4).neuron.shape
            torch.Size([8])

        """
        return cls(
            weight=torch.zeros(*shape, dtype=torch.float64, device=device),
            neuron=torch.zeros(shape[1] * groups, dtype=torch.float64, device=device),
            count=0,
        )

    @classmethod
    def from_linear(
        cls,
        uses: Sequence[tuple[Tensor, Tensor]],
        weight: Tensor,
        *,
        precision: Precision = "float32",
        chunk_bytes: int | None = None,
    ) -> Self:
        """Return the sums over one batch for a linear layer.

        Args:
            uses: What the layer got and what came back, once for each time that it ran on this batch: inputs of shape
                ``(batch, positions, inputs)`` and gradients of the energy for the outputs, shape ``(batch, positions,
                outputs)``; or ``(batch, inputs)`` and ``(batch, outputs)``.
            weight: The layer's weight, shape ``(outputs, inputs)``.
            precision: Precision of the products. Float64 tensors are never reduced to float32, and sums over samples
                are float64 in either case.
            chunk_bytes: Bytes that the gradients of single samples, and the copies of what they are made of, may take
                at once; a copy of what one sample's are made of, and its gradients for one output, are held in any
                case. None for what suits the device: 4 MiB on a processor, else 256 MiB. Sums are the same for all.

        Returns:
            The sums, float64, on the device of `weight`.

        Raises:
            ShapeError: If the shapes do not fit together.
            OptionError: If `precision` or `chunk_bytes` is out of range.

        """
        checked_matrix(weight, name="weight", axes="(outputs, inputs)")
        chunk_bytes = checked_chunk(chunk_bytes, weight.device)
        dtype = _product_dtype(uses, weight, precision=precision)
        head, pairs, of_outputs = weight.detach().to(dtype), [], []
        for inputs, gradients in uses:
            _check_use(inputs, gradients, axes=(2, 3), sizes=(weight.shape[1], weight.shape[0]), channel=-1)
            if inputs.shape[:-1] != gradients.shape[:-1]:
                raise _mismatch(inputs, gradients, "samples and positions")
            given, back = (
                tensor.detach() if tensor.ndim == 3 else tensor.detach()[:, None] for tensor in (inputs, gradients)
            )
            pairs.append((back.mT[:, None], given.mT[:, None]))
            of_outputs.append(back.sum(1, dtype=dtype))
        with torch.autocast(weight.device.type, enabled=False):  # the caller's would take half precision
            of_inputs = torch.stack(of_outputs).sum(0) @ head
        return cls(
            weight=absolute_sum(pairs, dtype=dtype, chunk_bytes=chunk_bytes)[0],
            neuron=of_inputs.abs_().sum(0, dtype=torch.float64),
            count=len(of_inputs),
        )

    @classmethod
    def from_convolution(
        cls,
        uses: Sequence[tuple[Tensor, Tensor, Geometry]],
        weight: Tensor,
        *,
        precision: Precision = "float32",
        chunk_bytes: int | None = None,
    ) -> Self:
        """Return the sums over one batch for a two-dimensional convolution that pads with zeros.

        Where it pads with something else, pad the inputs first and leave the padding of the geometry at 0.

        Args:
            uses: Inputs of shape ``(batch, inputs, height, width)``, gradients of the energy for the outputs, shape
                ``(batch, outputs, height, width)``, and how the kernel slid, once for each time that the layer ran on
                this batch.
            weight: The layer's weight, shape ``(outputs, inputs / groups, height, width)``; groups follow from it.
            precision: Precision of the products, as for `from_linear`.
            chunk_bytes: Memory in bytes, as for `from_linear`.

        Returns:
            The sums, float64, on the device of `weight`.

        Raises:
            ShapeError: If the shapes do not fit together.
            OptionError: If `precision` or `chunk_bytes` is out of range.

        Example:
            A kernel of two weights on three pixels: the outputs are w0 h0 + w1 h1 and w0 h1 + w1 h2.

            >>> import torch
            >>> inputs, gradients = torch.tensor([[[[1.0, 2.0, 4.0]]]]), torch.tensor([[[[1.0, -1.0]]]])
            >>> weight = torch.tensor([[[[1.0, 3.0]]]])
            >>> LayerSensitivitySum.from_convolution([(inputs, gradients, Geometry())], weight).weight.tolist()
            [[[[1.0, 2.0]]]]

        """
        if weight.ndim != 4:
            raise ShapeError(
                f"`weight` must have shape (outputs, inputs / groups, height, width), got {tuple(weight.shape)}."
            )
        groups = _groups_of(uses, weight)
        chunk_bytes = checked_chunk(chunk_bytes, weight.device)
        dtype = _product_dtype([use[:2] for use in uses], weight, precision=precision)
        kernel = weight.detach().to(dtype).unflatten(0, (groups, -1))
        of_inputs = kernel.new_zeros(groups, len(uses[0][0]), weight.shape[1])
        of_weights = []
        for row, column in product(range(weight.shape[2]), range(weight.shape[3])):
            pairs = [_shifted(*use, kernel=(row, column), groups=groups) for use in uses]
            of_weights.append(absolute_sum(pairs, dtype=dtype, chunk_bytes=chunk_bytes).flatten(0, 1))
            with torch.autocast(weight.device.type, enabled=False):  # as above
                for gradients, _ in pairs:
                    of_inputs += gradients.sum((3, 4), dtype=dtype).transpose(0, 1) @ kernel[:, :, :, row, column]
        return cls(
            weight=torch.stack(of_weights, -1).view(weight.shape),
            neuron=of_inputs.abs_().sum(1, dtype=torch.float64).flatten(),
            count=len(uses[0][0]),
        )

    def __add__(self, other: object) -> "LayerSensitivitySum":
        """Return the sum over both parts of the data.

        Raises:
            ShapeError: If the parts come from layers of different size.

        """
        if not isinstance(other, LayerSensitivitySum):
            return NotImplemented
        if self.weight.shape != other.weight.shape or self.neuron.shape != other.neuron.shape:
            raise ShapeError(
                f"Sums of layers of different size cannot be merged: weights of shape {tuple(self.weight.shape)} with "
                f"{len(self.neuron)} inputs on the left, {tuple(other.weight.shape)} with {len(other.neuron)} on the "
                f"right.",
            )
        return LayerSensitivitySum(
            weight=self.weight + other.weight,
            neuron=self.neuron + other.neuron,
            count=self.count + other.count,
        )

    def mean(self) -> Sensitivity:
        """Return the sensitivities: the sums divided by the count.

        Raises:
            EmptyDataError: If no sample was summed.
            NonFiniteError: If inputs or gradients were not finite, or products of them too large.

        """
        if self.count == 0:
            raise EmptyDataError("No sample was summed: the sensitivity of no data is undefined.")
        require_finite_sums(self.weight, self.neuron)
        weight = self.weight / self.count
        groups = len(self.neuron) // weight.shape[1]
        by_input = weight.unflatten(0, (groups, -1)).flatten(3) if weight.ndim > 2 else weight[None, ..., None]
        return Sensitivity(
            weight=weight,
            neuron_gradient=self.neuron / self.count,
            neuron_aggregate=by_input.mean((1, 3)).flatten(),
            count=self.count,
        )


def energy_gradient(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the gradient of each sample's energy for its logits: minus the softmax of logits / temperature.

    Args:
        logits: Any floating dtype, shape ``(batch, classes)``.
        temperature: Temperature T of the energy, above 0.

    Returns:
        Gradients, shape ``(batch, classes)``, taken in float32 at least, in the dtype of `logits`.

    Raises:
        ShapeError: If `logits` is no matrix.
        OptionError: If `temperature` is out of range.

    Example:
        >>> import torch
        >>> energy_gradient(torch.zeros(1, 2)).tolist()
        [[-0.5, -0.5]]

    """
    checked_matrix(logits, name="logits", axes="(batch, classes)")
    outputs = logits.detach().to(product_dtype(logits, precision="float32"))
    shifted = outputs - outputs.amax(1, keepdim=True)
    return torch.softmax(shifted / checked_temperature(temperature), dim=1).neg().to(logits.dtype)


def _shifted(inputs: Tensor, gradients: Tensor, geometry: Geometry, *, kernel: tuple[int, int], groups: int) -> Pair:
    """Return the pair of one weight (row, column) of the kernel: outputs whose input is no padding, and that input."""
    (rows, rows_read), (columns, columns_read) = (
        aligned(
            inputs.shape[axis + 2],
            gradients.shape[axis + 2],
            offset=kernel[axis] * geometry.dilation[axis] - geometry.padding[axis],
            stride=geometry.stride[axis],
        )
        for axis in (0, 1)
    )
    at_outputs, at_inputs = gradients[:, :, rows, columns], inputs[:, :, rows_read, columns_read]
    return at_outputs.detach().unflatten(1, (groups, -1)), at_inputs.detach().unflatten(1, (groups, -1))


def _product_dtype(uses: Sequence[tuple[Tensor, Tensor]], weight: Tensor, *, precision: Precision) -> torch.dtype:
    """Return what products are taken in, once it is seen that the layer ran at all, on one device."""
    if not uses:
        raise EmptyDataError("`uses` is empty: the layer must have run at least once.")
    if len({len(inputs) for inputs, _ in uses}) > 1:
        raise ShapeError(f"`uses` must agree in batch size, got {[len(inputs) for inputs, _ in uses]} samples.")
    tensors = [weight, *(tensor for use in uses for tensor in use)]
    devices = sorted({str(tensor.device) for tensor in tensors})
    if len(devices) > 1:
        raise InputTypeError(f"`uses` and `weight` must lie on one device, got {' and '.join(devices)}.")
    return product_dtype(*tensors, precision=precision)


def _groups_of(uses: Sequence[tuple[Tensor, Tensor, Geometry]], weight: Tensor) -> int:
    """Return the number of groups of a convolution, once its shapes are seen to fit."""
    inputs = uses[0][0].shape[1] if uses and uses[0][0].ndim == 4 else weight.shape[1]
    groups = inputs // weight.shape[1]
    if groups == 0 or inputs % weight.shape[1] or weight.shape[0] % groups:
        raise ShapeError(
            f"`weight` of shape {tuple(weight.shape)} does not fit {inputs} input channels: they must be a multiple of "
            f"its second axis, and its first axis a multiple of that number of groups.",
        )
    for given, gradients, _ in uses:
        _check_use(given, gradients, axes=(4,), sizes=(inputs, weight.shape[0]), channel=1)
        if len(given) != len(gradients):
            raise _mismatch(given, gradients, "samples")
    return groups


def _check_use(
    inputs: Tensor, gradients: Tensor, *, axes: tuple[int, ...], sizes: tuple[int, int], channel: int
) -> None:
    """Check number of axes and of channels."""
    for name, tensor, size in (("inputs", inputs, sizes[0]), ("gradients", gradients, sizes[1])):
        if tensor.ndim not in axes or tensor.shape[channel] != size:
            raise ShapeError(
                f"`{name}` must have {' or '.join(map(str, axes))} axes, axis {channel} of length {size} to fit "
                f"`weight`, got shape {tuple(tensor.shape)}.",
            )


def _mismatch(inputs: Tensor, gradients: Tensor, what: str) -> ShapeError:
    return ShapeError(
        f"`inputs` and `gradients` must agree in {what}, got {tuple(inputs.shape)} and {tuple(gradients.shape)}."
    )
