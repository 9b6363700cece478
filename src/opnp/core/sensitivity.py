r"""Sensitivity of the energy to the weights and neurons of a layer, as an additive value.

The last layer has a closed form. For features h, logits f = W h + b, p = softmax(f / T) and the energy
E = -T logsumexp(f / T),

    dE / dW_ij = -p_i h_j        dE / dh_j = -sum_i p_i W_ij

so the means of the absolute gradients over m samples need no backward pass:

    weight      M_ij = (1/m) sum_k p_i(x_k) |h_j(x_k)|          = P^T |H| / m
    gradient    (1/m) sum_k |sum_i p_i(x_k) W_ij|               = column means of |P W|
    aggregate   (1/C) sum_i M_ij                                = column means of M

Sums over blocks of rows are float64. The products of a block are float32, and float64 where that is asked for, where
an argument is, and at a temperature below 0.1 or above 1000. Sensitivities that underflow, as the probabilities behind
them vanish in every sample, are zeros; in masks they are ties, in index order, and a cut among them is warned of.

Any other layer has a gradient d = dE / d(output) that a backward pass brings to each position p of its output (tokens,
pixels), and inputs h. The gradient for one sample is a sum over positions; the absolute value comes after it:

    linear         dE / dW_ij   = sum_p d_i(p) h_j(p)
    convolution    dE / dW_ijuv = sum_p d_i(p) h_j(stride * p + dilation * (u, v) - padding)
    weight         M = (1/m) sum_k |dE(x_k) / dW|
    gradient       (1/m) sum_k |sum_p dE(x_k) / dh_j(p)|, through this layer alone
    aggregate      means of M over all weights that read input j

For the last layer d = -p, and that is the closed form; for others `opnp.model.layers` takes the gradients, sample by
sample. A neuron is an input feature or channel, pruned at all positions at once, so that its sum over positions stands
inside the absolute value, as that of a weight does.

Source: Chen et al., NeurIPS 2023, section 3 (step 1 of the method), which defines the sensitivity for every layer; the
closed form follows from differentiating E.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from opnp.core.checks import checked_matrix, checked_temperature, require_finite_sums
from opnp.core.scores import LARGEST_FLOAT32_TEMPERATURE
from opnp.errors import EmptyDataError, InputTypeError, OptionError, ShapeError
from opnp.values.settings import NeuronReading, Precision

__all__ = [
    "BLOCK_ROWS",
    "LayerSensitivitySum",
    "NeuronReading",
    "Precision",
    "Sensitivity",
    "SensitivitySum",
    "is_held_by_float32",
    "neuron_sensitivity",
    "product",
    "product_dtype",
    "row_blocks",
    "weight_sensitivity",
    "with_float64",
]

BLOCK_ROWS = 1024
"""Rows multiplied at once: long enough for the product to dominate, short enough for float32 to stay exact to 1e-6."""
_LEAST_FLOAT32_TEMPERATURE = 0.1
"""Temperature from which on probabilities of float32 do: below, ordinary logits make them vanish."""


@dataclass(frozen=True, eq=False, slots=True)
class Sensitivity:
    """Mean absolute gradients of the energy over the training data.

    Attributes:
        weight: Sensitivity of each weight, shape ``(classes, features)``, or that of the layer's weight; float64.
        neuron_gradient: Sensitivity of each neuron, reading `gradient`, shape ``(features,)``, float64.
        neuron_aggregate: Sensitivity of each neuron, reading `aggregate`, shape ``(features,)``, float64.
        count: Number of samples averaged.

    """

    weight: Tensor
    neuron_gradient: Tensor
    neuron_aggregate: Tensor
    count: int

    def neuron(self, reading: NeuronReading) -> Tensor:
        """Return the neuron sensitivity, shape ``(features,)``, in the given reading.

        Raises:
            OptionError: If `reading` is neither ``"gradient"`` nor ``"aggregate"``.

        """
        if reading == "gradient":
            return self.neuron_gradient
        if reading == "aggregate":
            return self.neuron_aggregate
        raise OptionError(f'`reading` must be "gradient" or "aggregate", got {reading!r}.')


@dataclass(eq=False, slots=True)
class LayerSensitivitySum:
    """Sums of absolute gradients over the samples seen so far, for any layer: a value that adds up.

    Parts of the data may be summed anywhere, in any order, and merged by ``+``; `mean` ends the sum.

    Attributes:
        weight: Sum of |dE / dW|, of the shape of the layer's weight, float64.
        neuron: Sum of |dE / dh_j|, summed over positions before the absolute value, shape ``(inputs,)``, float64.
        count: Number of samples summed.

    Example:
        >>> import torch
        >>> part = LayerSensitivitySum(weight=torch.tensor([[2.0, 0.0]]), neuron=torch.tensor([1.0, 1.0]), count=1)
        >>> (part + part).mean().weight.tolist()
        [[2.0, 0.0]]

    """

    weight: Tensor
    neuron: Tensor
    count: int

    @classmethod
    def zeros(cls, *shape: int, groups: int = 1, device: torch.device | str | None = None) -> Self:
        """Return the empty sum, the neutral element of ``+``, for a layer whose weight has this shape.

        Example:
            >>> LayerSensitivitySum.zeros(8, 2, 3, 3, groups=4).neuron.shape
            torch.Size([8])

        """
        return cls(
            weight=torch.zeros(*shape, dtype=torch.float64, device=device),
            neuron=torch.zeros(shape[1] * groups, dtype=torch.float64, device=device),
            count=0,
        )

    def __add__(self, other: object) -> Self:
        """Return the sum over both parts of the data.

        Raises:
            ShapeError: If the parts come from layers of different size.

        """
        if not isinstance(other, type(self)):
            return NotImplemented
        if self.weight.shape != other.weight.shape or self.neuron.shape != other.neuron.shape:
            raise ShapeError(
                f"Sums of layers of different size cannot be merged: weights of shape {tuple(self.weight.shape)} with "
                f"{len(self.neuron)} inputs on the left, {tuple(other.weight.shape)} with {len(other.neuron)} on the "
                f"right.",
            )
        return type(self)(
            weight=self.weight + other.weight,
            neuron=self.neuron + other.neuron,
            count=self.count + other.count,
        )

    def mean(self) -> Sensitivity:
        """Return the sensitivities: the sums divided by the count.

        Raises:
            EmptyDataError: If no sample was summed.
            NonFiniteError: If inputs or gradients were not finite, or products of them too large for their dtype.

        """
        if self.count == 0:
            raise EmptyDataError("No sample was summed: the sensitivity of no data is undefined.")
        require_finite_sums(self.weight, self.neuron)
        weight = self.weight / self.count
        if weight.ndim == 2:
            aggregate = weight.mean(0)
        else:
            groups = len(self.neuron) // weight.shape[1]
            aggregate = weight.unflatten(0, (groups, -1)).flatten(3).mean((1, 3)).flatten()
        return Sensitivity(
            weight=weight,
            neuron_gradient=self.neuron / self.count,
            neuron_aggregate=aggregate,
            count=self.count,
        )


@dataclass(eq=False, slots=True)
class SensitivitySum(LayerSensitivitySum):
    """Sums of absolute gradients over the samples seen so far, for the last layer: a value that adds up.

    The state is O(classes x features) however many samples went in. Parts belong to one head at one temperature: that
    they do is the caller's affair.

    Attributes:
        weight: Sum of p_i |h_j|, shape ``(classes, features)``, float64.
        neuron: Sum of |sum_i p_i W_ij|, shape ``(features,)``, float64.
        count: Number of samples summed.

    Example:
        Two classes with equal probability, one sample h = (2, -4):

        >>> import torch
        >>> head = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> part = SensitivitySum.from_batch(torch.tensor([[2.0, -4.0]]), torch.zeros(1, 2), head)
        >>> part.weight.tolist()
        [[1.0, 2.0], [1.0, 2.0]]
        >>> part.neuron.tolist()
        [1.0, 1.0]
        >>> (part + part).mean().weight.tolist() == part.mean().weight.tolist()
        True

    """

    @classmethod
    def from_batch(
        cls,
        features: Tensor,
        logits: Tensor,
        weight: Tensor,
        *,
        temperature: float = 1.0,
        precision: Precision = "float32",
    ) -> Self:
        """Return the sums over one batch: P^T |H| and the column sums of |P W|.

        Args:
            features: Inputs of the head, shape ``(batch, features)``, any floating dtype, signed or not.
            logits: Outputs of the head, shape ``(batch, classes)``, any floating dtype.
            weight: Weight of the head, shape ``(classes, features)``.
            temperature: Temperature T of the energy, above 0.
            precision: Precision of the products. Float64 inputs are never reduced to float32. The sums over
                blocks of 1024 rows are float64 in either case; how the rows are cut into batches does not matter.
                In float32 another order of the rows moves a sensitivity by about 1e-6 of itself; the reading
                `gradient` by more, where many classes share the probability and their weights cancel: by about 1e-7 of
                the terms that do. A temperature T below 1 makes 1 / T as much of what logits of float32 are rounded by.
                At a temperature below 0.1 or above 1000 products are float64.

        Returns:
            The sums, float64, on the device of `features`.

        Raises:
            ShapeError: If the shapes do not fit together.
            InputTypeError: If an argument is no floating-point tensor.
            OptionError: If `temperature` or `precision` is out of range.

        """
        return cls.from_batches([(features, logits)], weight, temperature=temperature, precision=precision)

    @classmethod
    def from_batches(
        cls,
        batches: Iterable[tuple[Tensor, Tensor]],
        weight: Tensor,
        *,
        temperature: float = 1.0,
        precision: Precision = "float32",
    ) -> Self:
        """Return the sums over a stream of (features, logits), adding in place into one buffer.

        Args:
            batches: Pairs of shapes ``(batch, features)`` and ``(batch, classes)``, as `from_batch` takes them.
            weight: Weight of the head, shape ``(classes, features)``.
            temperature: Temperature T of the energy, above 0.
            precision: Precision of the products, as in `from_batch`.

        Returns:
            The sums, float64, on the device of `weight`; count 0 if there was no batch.

        Raises:
            ShapeError: If the shapes do not fit together.
            InputTypeError: If an argument is no floating-point tensor.
            OptionError: If `temperature` or `precision` is out of range.

        """
        checked_matrix(weight, name="weight", axes="(classes, features)")
        temperature = checked_temperature(temperature)
        total = cls.zeros(*weight.shape, device=weight.device)

        def checked() -> Iterator[tuple[Tensor, Tensor]]:
            for features, logits in batches:
                _check_shapes(features, logits, weight)
                yield features, logits

        for features, logits in row_blocks(checked(), rows=BLOCK_ROWS):
            total.add_(features, logits, weight, temperature=temperature, precision=precision)
        return total

    def add_(
        self, features: Tensor, logits: Tensor, weight: Tensor, *, temperature: float, precision: Precision
    ) -> Self:
        """Add a further block of rows in place, and return these sums.

        Args:
            features: Shape ``(rows, features)``; at most `BLOCK_ROWS` rows, for float32 to stay exact to 1e-6.
            logits: Shape ``(rows, classes)``.
            weight: Weight of the head, shape ``(classes, features)``.
            temperature: Temperature T of the energy, above 0.
            precision: Precision of the products, as in `from_batch`.

        """
        precision = precision if is_held_by_float32(temperature) else "float64"
        dtype = product_dtype(features, logits, weight, precision=precision)
        h, f, w = (tensor.detach().to(dtype) for tensor in (features, logits, weight))
        with torch.autocast(weight.device.type, enabled=False):  # the caller's would take half precision
            p = torch.softmax((f - f.amax(1, keepdim=True)) / temperature, dim=1)  # no overflow at small T
            self.weight.add_(p.T @ h.abs())
            self.neuron.add_((p @ w).abs_().sum(0))
        self.count += len(h)
        return self


def weight_sensitivity(features: Tensor, logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the mean absolute gradient of the energy for each weight of the head: M = P^T |H| / m.

    Args:
        features: Inputs of the head, shape ``(batch, features)``.
        logits: Outputs of the head, shape ``(batch, classes)``.
        temperature: Temperature T of the energy, above 0.

    Returns:
        Sensitivity, shape ``(classes, features)``, float64, on the device of `features`. Products are taken in
        float64.

    Raises:
        ShapeError: If the shapes do not fit together.
        EmptyDataError: If the batch is empty.

    Example:
        >>> import torch
        >>> weight_sensitivity(torch.tensor([[2.0, -4.0]]), torch.zeros(1, 2)).tolist()
        [[1.0, 2.0], [1.0, 2.0]]

    References:
        Chen et al., NeurIPS 2023, the sensitivity of a parameter.

    """
    checked_matrix(features, name="features", axes="(batch, features)")
    checked_matrix(logits, name="logits", axes="(batch, classes)")
    weight = features.new_zeros(logits.shape[1], features.shape[1])
    total = SensitivitySum.from_batch(features, logits, weight, temperature=temperature, precision="float64")
    return total.mean().weight


def neuron_sensitivity(
    features: Tensor,
    logits: Tensor,
    weight: Tensor,
    *,
    reading: NeuronReading = "gradient",
    temperature: float = 1.0,
) -> Tensor:
    """Return the mean absolute gradient of the energy for each input of the head, in one of its two readings.

    ``gradient`` is the mean of |sum_i p_i W_ij|; ``aggregate`` is the mean of |h_j| / classes, the column mean of the
    weight sensitivity.

    Args:
        features: Inputs of the head, shape ``(batch, features)``.
        logits: Outputs of the head, shape ``(batch, classes)``.
        weight: Weight of the head, shape ``(classes, features)``.
        reading: ``"gradient"`` or ``"aggregate"``.
        temperature: Temperature T of the energy, above 0.

    Returns:
        Sensitivity, shape ``(features,)``, float64, on the device of `features`.

    Raises:
        ShapeError: If the shapes do not fit together.
        OptionError: If `reading` or `temperature` is out of range.
        EmptyDataError: If the batch is empty.

    Example:
        >>> import torch
        >>> features, logits = torch.tensor([[2.0, -4.0]]), torch.zeros(1, 2)
        >>> head = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> neuron_sensitivity(features, logits, head).tolist()
        [1.0, 1.0]
        >>> neuron_sensitivity(features, logits, head, reading="aggregate").tolist()
        [1.0, 2.0]

    References:
        Chen et al., NeurIPS 2023, the sensitivity of a neuron; the text admits both readings.

    """
    total = SensitivitySum.from_batch(features, logits, weight, temperature=temperature, precision="float64")
    return total.mean().neuron(reading)


def is_held_by_float32(temperature: float) -> bool:
    """Return whether products may be float32: below 0.1 probabilities underflow there, above 1000 they cancel."""
    return _LEAST_FLOAT32_TEMPERATURE <= temperature <= LARGEST_FLOAT32_TEMPERATURE


def product_dtype(*tensors: Tensor, precision: Precision) -> torch.dtype:
    """Return the dtype that products of tensors are taken in: float32 at least, float64 where asked or given."""
    if precision not in ("float32", "float64"):
        raise OptionError(f'`precision` must be "float32" or "float64", got {precision!r}.')
    is_wide = precision == "float64" or any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_wide else torch.float32


def product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the linear map in the dtype of its inputs, whatever autocast the caller is in."""
    with torch.autocast(inputs.device.type, enabled=False):
        return linear(inputs, weight.to(inputs), None if bias is None else bias.to(inputs))


def with_float64(tensor: Tensor) -> Tensor:
    """Return a tensor where float64 is: as it is, or on the CPU if its device has none, as Apple's (mps) has not."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def row_blocks(batches: Iterable[tuple[Tensor, ...]], *, rows: int = BLOCK_ROWS) -> Iterator[tuple[Tensor, ...]]:
    """Yield the rows of a stream in blocks of `rows`, the last one shorter: nothing depends on how it was cut.

    A block that lies within a batch is a view of it; others are copied together, so that a batch may be overwritten
    once the next one is asked for. A change of dtype, width or device begins a new block.

    Args:
        batches: Matrices with as many rows as each other, as many in every batch.
        rows: Rows of a block.

    Yields:
        Blocks that hold until the next one is asked for.

    Example:
        >>> numbers = torch.arange(5.0)[:, None]
        >>> [block.flatten().tolist() for (block,) in row_blocks([(numbers[:3],), (numbers[3:],)], rows=2)]
        [[0.0, 1.0], [2.0, 3.0], [4.0]]

    """
    buffers: tuple[Tensor, ...] = ()
    filled = 0
    for batch in batches:
        if not _fits(buffers, batch):
            if filled:
                yield tuple(buffer[:filled] for buffer in buffers)
            buffers, filled = tuple(part.new_empty(rows, part.shape[1]) for part in batch), 0
        start = 0
        while start < len(batch[0]):
            stop = min(start + rows - filled, len(batch[0]))
            if stop - start == rows:
                yield tuple(part[start:stop] for part in batch)
            else:
                for buffer, part in zip(buffers, batch, strict=True):
                    buffer[filled : filled + stop - start].copy_(part[start:stop])
                filled += stop - start
            if filled == rows:
                yield buffers
                filled = 0
            start = stop
    if filled:
        yield tuple(buffer[:filled] for buffer in buffers)


def _fits(buffers: tuple[Tensor, ...], batch: tuple[Tensor, ...]) -> bool:
    """Return whether rows of the batch can stand in the buffers as they are."""
    return [(buffer.dtype, buffer.device, buffer.shape[1:]) for buffer in buffers] == [
        (part.dtype, part.device, part.shape[1:]) for part in batch
    ]


def _check_shapes(features: Tensor, logits: Tensor, weight: Tensor) -> None:
    checked_matrix(features, name="features", axes="(batch, features)")
    checked_matrix(logits, name="logits", axes="(batch, classes)")
    if len(features) != len(logits):
        raise ShapeError(f"`features` and `logits` must agree in batch size, got {len(features)} and {len(logits)}.")
    if weight.shape != (logits.shape[1], features.shape[1]):
        raise ShapeError(
            f"`weight` must have shape (classes, features) = {(logits.shape[1], features.shape[1])} to fit `logits` "
            f"and `features`, got {tuple(weight.shape)}.",
        )
    if features.device != logits.device or features.device != weight.device:
        raise InputTypeError(
            f"`features`, `logits` and `weight` must lie on one device, got {features.device}, {logits.device} and "
            f"{weight.device}.",
        )
