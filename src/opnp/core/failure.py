"""Failure detection: whether a score is higher where the classifier is wrong, with soft knowledge of where that is."""

import torch
from torch import Tensor

from opnp.core.checks import checked_scores
from opnp.errors import EmptyDataError, OptionError, ShapeError

__all__ = ["failure_auroc"]


def failure_auroc(scores: Tensor, error_probabilities: Tensor) -> float:
    """Return the chance that a wrong answer scores above a right one, ties counting half.

    With w_k the probability that answer k is wrong, it is the AUROC in which sample k counts w_k as a wrong and 1 - w_k
    as a right answer:

        sum_{k != l} w_k (1 - w_l) ([s_k > s_l] + [s_k = s_l] / 2)  /  sum_{k != l} w_k (1 - w_l)

    For w in {0, 1} that is the plain AUROC. A classifier's own 1 - max p serves as w where labels are unknown, or
    mistakes too few.

    Args:
        scores: Scores, larger = less to be trusted, shape ``(batch,)``.
        error_probabilities: The w, in [0, 1], shape ``(batch,)``.

    Returns:
        AUROC in [0, 1].

    Raises:
        ShapeError: If the shapes differ.
        OptionError: If a probability lies outside [0, 1].
        EmptyDataError: If nothing can be wrong, or nothing right.
        NonFiniteError: If a score or a probability is NaN.

    Example:
        >>> import torch
        >>> failure_auroc(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, 1.0]))
        1.0
        >>> round(failure_auroc(torch.tensor([1.0, 2.0]), torch.tensor([0.25, 0.75])), 6)
        0.9

    References:
        Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples", ICLR 2017, for
        failure detection by AUROC; the soft weights are this project's.

    """
    values = checked_scores(scores, name="scores")
    wrong = checked_scores(error_probabilities, name="error_probabilities").to(values.device)
    if values.shape != wrong.shape:
        raise ShapeError(
            f"`error_probabilities` must have the shape of `scores`, {tuple(values.shape)}, got {tuple(wrong.shape)}."
        )
    if not bool(((wrong >= 0) & (wrong <= 1)).all()):
        raise OptionError("`error_probabilities` must lie in [0, 1].")
    right = 1 - wrong
    distinct, bins = torch.unique(values, return_inverse=True)
    wrong_at = torch.bincount(bins, weights=wrong, minlength=len(distinct))
    right_at = torch.bincount(bins, weights=right, minlength=len(distinct))
    right_below = right_at.cumsum(0) - right_at
    with_itself = (wrong * right).sum()
    pairs = wrong.sum() * right.sum() - with_itself
    if not bool(pairs > 0):
        raise EmptyDataError("There is no pair of a wrong and a right answer: all answers are surely one or the other.")
    above = (wrong_at * (right_below + right_at / 2)).sum() - with_itself / 2
    return float(above / pairs)
