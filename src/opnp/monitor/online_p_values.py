"""p-values of a stream that are independent of each other, from the ranks of its scores among all that came before.

The p-values of `conformal` compare every score with the same n calibration scores. They share that sample, so they are
not independent: after a lucky draw all of a stream's p-values are a little too small. A test on a long stream that
takes them for independent raises false alarms. Here the t-th score is ranked among the n calibration scores and the
t - 1 scores before it, equal ones broken by a uniform number u:

    p_t = (#{greater} + u (1 + #{equal among those before})) / (n + t)

If calibration and stream are exchangeable, p_1, p_2, ... are independent and uniform on (0, 1), exactly, for every n.

Two readings of "greater" and "equal" make memory a matter of choice:

- by cells: n calibration scores cut the line into n + 1 cells. A score counts as equal to those in its cell, and the
  cell's own share of the calibration is one: k + #{before in cells above} is greater, where k calibration scores lie
  above. The cells are those of Polya's urn, in which n + 1 balls of n + 1 colours are drawn and put back with one more
  of their colour; the p-values stay exact, and n + 1 counts are all that is kept.
- by scores: every score of the stream is kept.

Source: Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005 (smoothed conformal predictors);
Vovk, "Testing Randomness Online", Statistical Science 2021.
"""

import torch
from torch import Tensor

from opnp.core.checks import checked_scores
from opnp.core.kept_rows import GOLDEN, as_int64, shifted_right, splitmix64
from opnp.errors import EmptyDataError, ShapeError

__all__ = [
    "CALIBRATION_TIES",
    "RANKS",
    "STREAM_TIES",
    "cell_of_scores",
    "earlier_counts",
    "numbered_uniforms",
    "online_p_value",
    "ordered_keys",
]

_SEQUENCES = 3
_BLOCK = 128
_TIE_BITS = 36

CALIBRATION_TIES, STREAM_TIES, RANKS = range(3)
"""The sequences of random numbers of one seed: they order equal calibration scores, scores of the stream among those,
and scores of the stream among equal ones before them."""


def numbered_uniforms(start: int, count: int, *, seed: int, sequence: int) -> Tensor:
    """Return the uniform numbers with the indices start to start + count - 1 of a sequence.

    A number depends on seed, sequence and index alone, so that a stream read in pieces, or resumed, meets the same
    numbers. It is the generator splitmix64, whose state after i steps is known in closed form.

    Args:
        start: Index of the first number, at least 0.
        count: How many numbers.
        seed: A whole number of at least 0.
        sequence: One of the three that a seed has.

    Returns:
        Numbers strictly between 0 and 1, shape ``(count,)``, float64.

    Example:
        >>> import torch
        >>> whole = numbered_uniforms(0, 5, seed=1, sequence=RANKS)
        >>> torch.equal(whole[3:], numbered_uniforms(3, 2, seed=1, sequence=RANKS))
        True

    References:
        Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.

    """
    name = splitmix64(torch.tensor([as_int64((_SEQUENCES * seed + sequence) * GOLDEN + 1)], device="cpu"))
    steps = torch.arange(start + 1, start + count + 1, device="cpu") * as_int64(GOLDEN)
    return (shifted_right(splitmix64(name + steps), 12).double() + 0.5) / 2**52


def ordered_keys(scores: Tensor, tie_breaks: Tensor, *, values: Tensor) -> Tensor:
    """Return integers that order scores, equal ones by their tie-breaks, beside those of calibration scores.

    Args:
        scores: Scores, shape ``(batch,)``, not NaN.
        tie_breaks: Uniform numbers in (0, 1), shape ``(batch,)``.
        values: The distinct calibration scores, ascending, shape ``(m,)``, float64.

    Returns:
        Keys, shape ``(batch,)``, int64. Keys of scores between the same two `values` may be equal.

    Raises:
        EmptyDataError: If there is no score.
        NonFiniteError: If a score is NaN.

    """
    judged = checked_scores(scores, name="scores")
    below = torch.searchsorted(values, judged, side="left")
    up_to = torch.searchsorted(values, judged, side="right")
    ties = (tie_breaks * (1 << _TIE_BITS)).long()
    return ((below + up_to) << _TIE_BITS) + torch.where(up_to > below, ties, 0)


def cell_of_scores(keys: Tensor, calibration_keys: Tensor) -> Tensor:
    """Return the cell of each score: how many calibration scores lie above it, from 0 (above all) to n.

    Args:
        keys: Keys of the scores, from `ordered_keys`, shape ``(batch,)``.
        calibration_keys: Keys of the calibration scores, ascending, shape ``(n,)``.

    Returns:
        Cells, shape ``(batch,)``, int64.

    Example:
        >>> import torch
        >>> calibration, half = torch.tensor([1.0, 2.0, 3.0]).double(), torch.full((3,), 0.5)
        >>> keys = ordered_keys(calibration, half, values=calibration)
        >>> cell_of_scores(ordered_keys(torch.tensor([0.0, 2.5, 9.0]), half, values=calibration), keys).tolist()
        [3, 1, 0]

    """
    return len(calibration_keys) - torch.searchsorted(calibration_keys, keys, side="right")


def earlier_counts(places: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return how many earlier samples lie at a smaller place, how many at the same, and the counts afterwards.

    Args:
        places: Place of each sample of a stream, in its order, integers from 0, shape ``(..., samples)``: several
            streams along the leading axes.
        counts: Samples at each place before these, shape ``(..., places)``, int64.

    Returns:
        Earlier samples at smaller places and at the same place, both of the shape of `places`, int64, and the counts
        with these samples. Pieces of a stream give what the whole gives.

    Raises:
        ShapeError: If the leading axes differ.

    Example:
        >>> import torch
        >>> smaller, equal, counts = earlier_counts(torch.tensor([2, 0, 2, 1]), torch.tensor([0, 0, 5]))
        >>> smaller.tolist(), equal.tolist(), counts.tolist()
        ([0, 0, 1, 1], [5, 0, 6, 0], [1, 1, 7])

    """
    if places.shape[:-1] != counts.shape[:-1]:
        raise ShapeError(
            f"`places` and `counts` must have the same leading axes, got {tuple(places.shape)} and "
            f"{tuple(counts.shape)}.",
        )
    counts = counts.clone()
    smaller, equal = torch.empty_like(places), torch.empty_like(places)
    for start in range(0, places.shape[-1], _BLOCK):
        block = places[..., start : start + _BLOCK]
        size = block.shape[-1]
        is_earlier = torch.ones(size, size, dtype=torch.bool, device=places.device).tril(-1)
        others, own = block[..., None, :], block[..., :, None]
        before = counts.cumsum(-1) - counts
        smaller[..., start : start + size] = before.gather(-1, block) + ((others < own) & is_earlier).sum(-1)
        equal[..., start : start + size] = counts.gather(-1, block) + ((others == own) & is_earlier).sum(-1)
        counts.scatter_add_(-1, block, torch.ones_like(block))
    return smaller, equal, counts


def online_p_value(greater: Tensor, equal: Tensor, uniforms: Tensor, *, calibration: int, start: int) -> Tensor:
    """Return the online p-values of consecutive samples: (greater + u (1 + equal)) / (n + t). Small = OOD.

    Args:
        greater: How many of the calibration and the samples before are greater, shape ``(..., samples)``.
        equal: How many samples before are equal, same shape.
        uniforms: Numbers in (0, 1), same shape or one that broadcasts to it.
        calibration: Number n of calibration samples.
        start: Samples of the stream before these.

    Returns:
        p-values in (0, 1), same shape, float64.

    Raises:
        EmptyDataError: If there is no calibration sample.

    Example:
        >>> import torch
        >>> online_p_value(torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([0.5]), calibration=3, start=0)
        tensor([0.1250, 0.6000], dtype=torch.float64)

    References:
        Vovk, "Testing Randomness Online", Statistical Science 2021.

    """
    if calibration < 1:
        raise EmptyDataError("at least one calibration sample is needed.")
    total = calibration + start + 1 + torch.arange(greater.shape[-1], device=greater.device)
    return (greater + uniforms * (1 + equal)).double() / total
