"""Argument checks shared by the pure functions: one place, one wording."""

from numbers import Real
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opnp.errors import EmptyDataError, InputTypeError, NonFiniteError, OptionError, ShapeError

__all__ = [
    "MAY_BE_TRANSPOSED",
    "TRANSPOSED",
    "Array",
    "as_tensor",
    "checked_fraction",
    "checked_head",
    "checked_matrix",
    "checked_scores",
    "checked_temperature",
    "require_bias_shape",
    "require_class_indices",
    "require_finite",
    "require_finite_sums",
    "two_class_head",
    "two_class_logits",
]

TRANSPOSED = (
    "The weight looks transposed, (features, classes), as the kernels of Keras and JAX are: give its transpose, "
    "`weight.T`."
)
"""What to say of a weight whose axes fit the other way round."""

MAY_BE_TRANSPOSED = (
    "The head has as many classes as features, so that its shape does not tell whether it is transposed, as kernels of "
    "Keras and JAX are: try `weight.T`."
)
"""What to say of a square weight whose answers contradict the labels."""

_LEAST_TEMPERATURE, _LARGEST_TEMPERATURE = 1e-30, 1e30
"""Beyond, the temperature itself or what is divided by it leaves float32."""


Array = Tensor | npt.NDArray[Any]
"""Numbers as users have them."""


def as_tensor(values: Array) -> Tensor:
    """Return an array of NumPy, or what NumPy takes for one (of JAX, Keras, pandas), as a tensor on the CPU.

    Tensors come back as they are, and so does what is no array, for the checks that follow to say so. Memory is shared
    where it may be written to.

    Raises:
        InputTypeError: If the array holds what torch has no dtype for, such as texts.

    Example:
        >>> as_tensor(np.array([[1.0, 2.0]]))
        tensor([[1., 2.]], dtype=torch.float64)

    """
    if isinstance(values, Tensor) or not hasattr(values, "__array__"):
        return cast("Tensor", values)
    array = np.asarray(values)
    is_plain = array.flags.writeable and array.dtype.isnative and all(stride >= 0 for stride in array.strides)
    try:
        return torch.from_numpy(array if is_plain else array.astype(array.dtype.newbyteorder("=")))
    except TypeError as error:
        raise InputTypeError(f"An array must hold numbers that torch has a dtype for, got {array.dtype}.") from error


def checked_matrix(tensor: Tensor, *, name: str, axes: str) -> Tensor:
    """Return `tensor` if it is a floating-point matrix, else say what it should have been.

    Args:
        tensor: The value to check.
        name: Name of the argument, for the message.
        axes: The two axes in words, such as ``"(batch, features)"``.

    Returns:
        The same tensor.

    Raises:
        InputTypeError: If it is no tensor, or not of a floating-point dtype.
        ShapeError: If it has not exactly two axes.

    """
    if not isinstance(tensor, Tensor):
        raise InputTypeError(f"`{name}` must be a torch.Tensor of shape {axes}, got {type(tensor).__name__}.")
    if tensor.ndim != 2:
        shape = tuple(tensor.shape)
        hint = f" Pool the trailing axes first: `{name}.flatten(2).mean(2)`." if tensor.ndim > 2 else ""
        if tensor.ndim == 1:
            hint = f" For one sample add the batch axis: `{name}[None]`."
        raise ShapeError(f"`{name}` must have shape {axes}, got {shape}.{hint}")
    if not tensor.is_floating_point():
        raise InputTypeError(f"`{name}` must be floating point, got {tensor.dtype}. Convert it: `{name}.float()`.")
    return tensor


def checked_head(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias if they are those of a classifier's head, else say what is wrong.

    Raises:
        ShapeError: If the shapes are wrong, or there are fewer than two classes.
        InputTypeError: If they are no floating-point tensors.
        NonFiniteError: If they hold NaN or infinite values.

    """
    checked_matrix(weight, name="weight", axes="(classes, features)")
    if len(weight) < 2:
        raise ShapeError(
            f"`weight` must have a row for each of at least two classes, got {len(weight)}.",
        )
    require_finite(weight.detach(), name="weight")
    if bias is not None:
        if not isinstance(bias, Tensor) or not bias.is_floating_point():
            got = bias.dtype if isinstance(bias, Tensor) else type(bias).__name__
            raise InputTypeError(f"`bias` must be a floating-point torch.Tensor of shape (classes,), got {got}.")
        require_bias_shape(weight, bias)
        if not bool(torch.isfinite(bias).all()):
            raise NonFiniteError(
                f"`bias` must be finite, got {int((~torch.isfinite(bias)).sum())} entries that are not."
            )
    return weight, bias


def require_bias_shape(weight: Tensor, bias: Tensor) -> None:
    """Raise `ShapeError` unless a bias has an entry for each class; say so where the weight looks transposed."""
    if bias.shape == weight.shape[:1]:
        return
    hint = f" {TRANSPOSED}" if bias.shape == weight.shape[1:] else ""
    raise ShapeError(f"`bias` must have shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}.{hint}")


def two_class_head(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the head of two classes that says the same as one of a single logit z: -z/2 and z/2; others as they are.

    Softmax of these two is the sigmoid of z, and the second class the one that z speaks for.

    Args:
        weight: Shape ``(classes, features)``.
        bias: Shape ``(classes,)``, or None.

    Example:
        >>> two_class_head(torch.tensor([[2.0, 4.0]]), torch.tensor([1.0]))
        (tensor([[-1., -2.],
                [ 1.,  2.]]), tensor([-0.5000,  0.5000]))

    """
    is_single = isinstance(weight, Tensor) and weight.ndim == 2 and len(weight) == 1
    if not is_single or (bias is not None and bias.shape != (1,)):
        return weight, bias
    return torch.cat([-weight, weight]) / 2, bias if bias is None else torch.cat([-bias, bias]) / 2


def two_class_logits(logits: Tensor) -> Tensor:
    """Return logits of one column, shape ``(batch, 1)`` or ``(batch,)``, as those of two classes; others as they are.

    Example:
        >>> two_class_logits(torch.tensor([[2.0], [-6.0]])).tolist()
        [[-1.0, 1.0], [3.0, -3.0]]

    """
    if logits.ndim != 1 and logits.shape[1:].numel() != 1:
        return logits
    logit = logits.reshape(-1)
    return torch.stack([-logit, logit], 1) / 2


def checked_scores(scores: Tensor, *, name: str) -> Tensor:
    """Return one-dimensional `scores` as float64, refusing empty and NaN ones.

    Args:
        scores: Floating-point or integer scores, shape ``(batch,)``.
        name: Name of the argument, for the message.

    Returns:
        The scores as float64, on the device they came on.

    Raises:
        InputTypeError: If `scores` is no real-valued tensor.
        ShapeError: If it has not exactly one axis.
        EmptyDataError: If it is empty.
        NonFiniteError: If it holds NaN. Infinite scores are ordered like any other.

    """
    if not isinstance(scores, Tensor) or scores.is_complex():
        raise InputTypeError(f"`{name}` must be a real torch.Tensor of shape (batch,), got {type(scores).__name__}.")
    if scores.ndim != 1:
        raise ShapeError(f"`{name}` must have shape (batch,), got {tuple(scores.shape)}.")
    if scores.numel() == 0:
        raise EmptyDataError(f"`{name}` is empty: at least one score is needed.")
    if bool(scores.isnan().any()):
        raise NonFiniteError(f"`{name}` holds {int(scores.isnan().sum())} NaN of {scores.numel()} scores.")
    return scores.double()


def checked_temperature(temperature: float) -> float:
    """Return `temperature` as a float if it lies between 1e-30 and 1e30, else raise `OptionError`."""
    if isinstance(temperature, bool) or not isinstance(temperature, Real) or not 0 < temperature < float("inf"):
        raise OptionError(f"`temperature` must be a positive finite number, got {temperature!r}.")
    if not _LEAST_TEMPERATURE <= temperature <= _LARGEST_TEMPERATURE:
        raise OptionError(
            f"`temperature` must lie between {_LEAST_TEMPERATURE:g} and {_LARGEST_TEMPERATURE:g}, got {temperature!r}."
        )
    return float(temperature)


def checked_fraction(value: float, *, name: str, is_zero_allowed: bool = False) -> float:
    """Return `value` as a float if it lies in (0, 1), or in [0, 1) where zero is allowed, else raise `OptionError`."""
    interval = "[0, 1)" if is_zero_allowed else "(0, 1)"
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 1 or (value == 0 and not is_zero_allowed):
        hint = f" Percentages are written as fractions: {value / 100:g}." if is_number and 1 < value < 100 else ""
        raise OptionError(f"`{name}` must be a fraction in {interval}, got {value!r}.{hint}")
    return float(value)


def require_finite(tensor: Tensor, *, name: str, where: str = "", first_row: int = 0) -> None:
    """Raise `NonFiniteError` that counts and locates NaN and infinite entries of a ``(batch, ...)`` tensor.

    Args:
        tensor: The values to check, samples along the first axis.
        name: Name of the argument, for the message.
        where: Which part of the data this is, such as ``" in batch 3"``.
        first_row: Number of the first row, for the message, where `tensor` is a part of something longer.

    Raises:
        NonFiniteError: If any entry is NaN or infinite.

    """
    # One NaN or infinity makes the sum one; a sum that merely overflows is cleared up by looking at each entry.
    if bool(torch.isfinite(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)))):
        return
    is_finite = torch.isfinite(tensor)
    if bool(is_finite.all()):
        return
    rows = (~is_finite).flatten(1).any(1).nonzero().flatten() if tensor.ndim > 1 else (~is_finite).nonzero().flatten()
    shown = ", ".join(str(first_row + int(row)) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
    raise NonFiniteError(
        f"`{name}`{where} must be finite, got {int(tensor.isnan().sum())} NaN and {int(tensor.isinf().sum())} infinite "
        f"entries in {len(rows)} of {len(tensor)} rows (rows {shown}). Look for broken inputs there, or for an "
        f"overflow in half precision.",
    )


def require_finite_sums(*sums: Tensor) -> None:
    """Raise `NonFiniteError` if sums of products hold NaN or infinite values."""
    lost = sum(int((~torch.isfinite(each)).sum()) for each in sums)
    if lost:
        raise NonFiniteError(
            f"{lost} sensitivities are NaN or infinite: features, logits or weights are not finite, or products of "
            f"them too large for their dtype. Look for broken inputs with `torch.isfinite`, or scale the features down."
        )


def require_class_indices(labels: Tensor, *, classes: int) -> None:
    """Raise `OptionError` if integer labels, of any shape, do not all lie in 0 to classes - 1."""
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise OptionError(
            f"`labels` must lie in 0 to {classes - 1} for {classes} classes, got {int(labels.min())} to "
            f"{int(labels.max())}. Are they the labels of this classifier, counted from 0?",
        )
