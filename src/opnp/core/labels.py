"""Labels: read as class indices in any usual form, and compared with what the model answers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import lgamma, log
from typing import Self

import numpy as np
import torch
from torch import Tensor

from opnp.core.checks import require_class_indices
from opnp.errors import InputTypeError, OptionError, ShapeError

__all__ = ["LABEL_NAMES", "NO_LABEL", "AnswerSum", "class_indices", "label_name"]

LABEL_NAMES = ("labels", "label")
"""Names that labels go by, in batches and in files."""
NO_LABEL = -1
"""The label of a sample whose class is not known, in batches and in files."""

_LARGEST_WHOLE = 2.0**53
_MOST_CLASSES = 2048
"""Classes up to which pairs of label and answer are counted, which takes 32 MiB then."""
_CHANCE = 1e-3
"""Level of the one-sided binomial test against chance."""
_OVERCONFIDENT = 0.3
_MOST_TERMS = 100_000
"""Terms of a binomial tail: six standard deviations of 10^9 samples."""


def label_name(names: Iterable[object], *, where: str) -> str | None:
    """Return the one name among these that labels go by, or None if there is none.

    Args:
        names: Keys of a batch, columns of a file, or names of arrays.
        where: What they are the names in, for the message.

    Raises:
        OptionError: If there are two.

    Example:
        >>> label_name(["text", "label"], where="The file")
        'label'

    """
    found = [name for name in LABEL_NAMES if name in set(names)]
    if len(found) > 1:
        raise OptionError(f"{where} holds both `{found[0]}` and `{found[1]}`: leave one of them out.")
    return found[0] if found else None


def class_indices(labels: object, *, classes: int | None = None) -> Tensor:
    """Return labels as class indices, shape ``(n,)``, int64; -1 stands for a class that is not known.

    ==================================================  ======================================================
    labels                                              are read as
    ==================================================  ======================================================
    integers, shape ``(n,)`` or ``(n, 1)``              the indices themselves
    whole floating-point numbers, the same shapes       these numbers
    one-hot rows, shape ``(n, classes)``, of any dtype  the place of the one
    list, tuple, NumPy array, tensor                    all the same
    soft labels, multi-hot rows, names, fractions       refused
    ==================================================  ======================================================

    Args:
        labels: The labels, a tensor on any device, or what NumPy makes an array of.
        classes: Number of classes that they must lie in; None where that is not known, then any integer may stand.

    Raises:
        InputTypeError: If they are of a kind that names no class.
        ShapeError: If there is not one a sample.
        OptionError: If one lies outside -1 to classes - 1.

    Example:
        >>> class_indices([2.0, 0.0, -1.0], classes=3).tolist()
        [2, 0, -1]
        >>> class_indices(np.array([[0, 1], [1, 0]]), classes=2).tolist()
        [1, 0]

    """
    values = labels if isinstance(labels, Tensor) else _tensor(labels)
    values = values.detach()
    is_single_column = values.ndim == 2 and values.shape[1] == 1
    if is_single_column:
        values = values[:, 0]
    if values.is_complex() or (values.dtype == torch.bool and values.ndim < 2):
        raise InputTypeError(f"`labels` must be class indices, got {values.dtype}. Convert them: `labels.long()`.")
    if values.ndim == 2:
        indices = _place_of_one(values, classes)
    elif values.ndim != 1:
        raise ShapeError(
            f"`labels` must be one class index a sample, shape (n,), got {tuple(values.shape)}. The labels of pixels "
            f"or tokens are no labels of samples: leave them out."
        )
    else:
        indices = _whole(values)
    if classes is not None:
        require_class_indices(indices[indices != NO_LABEL], classes=classes)
    return indices


def _tensor(labels: object) -> Tensor:
    """Return labels that are no tensor as one."""
    if isinstance(labels, Sequence) and labels and all(isinstance(each, Tensor) for each in labels):
        shapes = {each.shape for each in labels if isinstance(each, Tensor)}
        if len(shapes) == 1:
            return torch.stack([each for each in labels if isinstance(each, Tensor)])
    if isinstance(labels, str | bytes | Mapping) or not hasattr(labels, "__len__"):
        raise InputTypeError(f"`labels` must be one class index a sample, got {type(labels).__name__}.")
    try:
        values = np.asarray(labels)
    except ValueError:  # rows of different lengths
        values = np.empty(0, dtype=object)
    if values.dtype.kind in "US":
        raise InputTypeError(
            f"`labels` must be class indices, got names such as {str(values.flat[0])!r:.60}. Give each class the index "
            f"of its logit; what is no label belongs behind the labels, `(inputs, labels, names)`.",
        )
    if values.dtype.kind not in "iufb":
        raise InputTypeError(f"`labels` must be one class index a sample, got {type(labels).__name__} of other things.")
    is_wide = values.dtype.kind == "u" and values.dtype.itemsize > 1  # of which torch has no minimum
    return torch.from_numpy(np.ascontiguousarray(values.astype(np.int64) if is_wide else values.copy()))


def _whole(values: Tensor) -> Tensor:
    """Return a vector of integers, or of whole floating-point numbers, as int64."""
    if values.is_floating_point():
        is_whole = values.isfinite() & (values == values.round()) & (values.abs() <= _LARGEST_WHOLE)
        if not bool(is_whole.all()):
            wrong = float(values[~is_whole][0])
            raise InputTypeError(
                f"`labels` must be class indices, got {wrong:g}: targets of a regression, or probabilities, name no "
                f"class. Leave them out of the batch, or give the index of each sample's class.",
            )
    return values.long()


def _place_of_one(values: Tensor, classes: int | None) -> Tensor:
    """Return the place of the one in each row, shape ``(n,)``, int64."""
    if bool(((values == 0) | (values == 1)).all()):
        if bool((values.sum(1) == 1).all()):
            if classes is not None and values.shape[1] != classes:
                raise ShapeError(
                    f"One-hot `labels` must have a column for each of {classes} classes, got {values.shape[1]}."
                )
            return values.to(torch.uint8).argmax(1)
        raise InputTypeError(
            "`labels` are multi-hot: rows name several classes or none, as of a model whose classes do not exclude "
            "each other. The scores here are those of a softmax over classes of which one is right."
        )
    is_soft = (
        values.is_floating_point() and bool((values >= 0).all()) and bool(((values.sum(1) - 1).abs() < 1e-2).all())
    )
    what = "soft, a probability for each class" if is_soft else f"{values.dtype} of shape {tuple(values.shape)}"
    raise InputTypeError(
        f"`labels` must be one class index a sample, shape (n,), or one-hot rows, got what is {what}. Leave it out of "
        f"the batch, or give the index of each sample's class."
    )


@dataclass(frozen=True, eq=False, slots=True)
class AnswerSum:
    """How a classifier answers labelled samples: a value that adds up over parts of the data.

    Attributes:
        counts: Number of labelled samples, and of those that are answered right, shape ``(2,)``, int64.
        confidence: Sum of the probabilities of the predicted classes, shape ``(1,)``, float64.
        confusion: Number of samples by label and predicted class, shape ``(classes, classes)``, int64; of more than
            2048 classes shape ``(0, 0)``.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0]])
        >>> answers = AnswerSum.zeros(2).add_(logits, torch.tensor([0, 1, -1]))
        >>> answers.count, answers.accuracy
        (2, 1.0)

    """

    counts: Tensor
    confidence: Tensor
    confusion: Tensor

    @classmethod
    def zeros(cls, classes: int, *, device: torch.device | str | None = "cpu") -> Self:
        """Return the sum over no samples."""
        side = classes if classes <= _MOST_CLASSES else 0
        return cls(
            counts=torch.zeros(2, dtype=torch.int64, device=device),
            confidence=torch.zeros(1, dtype=torch.float64, device=device),
            confusion=torch.zeros(side, side, dtype=torch.int64, device=device),
        )

    def add_(self, logits: Tensor, labels: Tensor) -> Self:
        """Add samples in place, and return this sum; those with a label below 0 are left out.

        Args:
            logits: Shape ``(batch, classes)``.
            labels: Class indices, shape ``(batch,)``, int64, on any device.

        """
        labels = labels.to(logits.device)
        is_known = labels >= 0
        if not bool(is_known.all()):
            logits, labels = logits[is_known], labels[is_known]
        largest, answers = logits.float().max(1)
        self.counts.add_(torch.stack([torch.ones_like(labels), (answers == labels).long()]).sum(1))
        self.confidence.add_((largest - logits.float().logsumexp(1)).exp().double().sum())
        if self.confusion.numel():
            pairs = labels * len(self.confusion) + answers
            self.confusion.view(-1).index_add_(0, pairs, torch.ones_like(pairs))
        return self

    def __add__(self, other: object) -> "AnswerSum":
        """Return the sum over both parts of the data."""
        if not isinstance(other, AnswerSum):
            return NotImplemented
        return AnswerSum(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the sums as tensors by name, each of which adds up by itself."""
        return {f"answers.{each.name}": getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the sum that `to_tensors` gave."""
        return cls(*(tensors[f"answers.{each.name}"] for each in fields(cls)))

    @property
    def count(self) -> int:
        """Number of labelled samples."""
        return int(self.counts[0])

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled samples that are answered right; None if there are none."""
        return int(self.counts[1]) / self.count if self.count else None

    def contradiction(self, *, classes: int, what: str = "labelled samples") -> str | None:
        """Return in words how labels and answers contradict each other, or None where they may belong together.

        They do where the accuracy is not above chance, by a one-sided binomial test at 1e-3 that half of the way from
        chance to certainty would pass; or where the mean confidence exceeds it by more than 0.3, and with the classes
        in another order it would be twice as high at least.

        Args:
            classes: Number of classes.
            what: What the samples are called.

        Example:
            >>> swapped = AnswerSum.zeros(2).add_(torch.eye(2).repeat(50, 1) * 9, torch.tensor([1, 0]).repeat(50))
            >>> print(swapped.contradiction(classes=2))
            The model answers 0 of 100 labelled samples right, which is not above chance for 2 classes; with the classes in another order it would be 100. Likely causes: labels numbered in another order than the model's classes, inputs prepared otherwise than in its training, or other weights than those meant.

        """  # noqa: E501  # the line is the message
        count, right = self.count, int(self.counts[1])
        halfway = (1 + 1 / classes) / 2
        if not count or _tail(count, round(halfway * count), 1 / classes) > _CHANCE:  # too few to tell
            return None
        is_chance = _tail(count, right, 1 / classes) > _CHANCE
        confidence = float(self.confidence) / count
        is_overconfident = confidence - right / count > _OVERCONFIDENT
        if not is_chance and not is_overconfident:
            return None
        reordered = _best_order(self.confusion)
        is_of_other_order = is_overconfident and reordered >= max(2 * right, 2)
        if not is_chance and not is_of_other_order:
            return None
        why = f"is not above chance for {classes} classes" if is_chance else f"is {confidence:.0%} sure on average"
        order = f"; with the classes in another order it would be {reordered}" if is_of_other_order else ""
        return (
            f"The model answers {right} of {count} {what} right, {'which' if is_chance else 'and'} {why}{order}. "
            f"Likely causes: labels numbered in another order than the model's classes, inputs prepared otherwise than "
            f"in its training, or other weights than those meant."
        )


def _tail(count: int, right: int, share: float) -> float:
    """Return the probability that so many or more of independent events of this share happen."""
    if right <= count * share:
        return 1.0
    hits = torch.arange(right, min(count, right + _MOST_TERMS) + 1, dtype=torch.float64, device="cpu")
    logs = lgamma(count + 1) - torch.lgamma(hits + 1) - torch.lgamma(count - hits + 1)
    logs += hits * log(share) + (count - hits) * log(1 - share)
    return float(logs.exp().sum())


def _best_order(confusion: Tensor) -> int:
    """Return how many samples would be right if each class had the name of another: the largest counts first."""
    pairs = confusion.nonzero()
    counts = confusion[pairs[:, 0], pairs[:, 1]]
    rows, columns, right = set[int](), set[int](), 0
    for place in counts.argsort(descending=True, stable=True).tolist():
        row, column = pairs[place].tolist()
        if row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
            right += int(counts[place])
    return right
