"""Scores and shapings without a look at the values, so that one graph of tensor operations says all of them.

They are those of `opnp.core`, number for number, where features and logits are finite; what is not finite has the score
NaN here, as a graph cannot raise an error.
"""

import torch
from torch import Tensor

from opnp.core.scores import LARGEST_FLOAT32_TEMPERATURE, ScoreName, score_logits
from opnp.core.shaping import ASHS, SCALE, ReAct, Shaping

__all__ = ["exportable_score", "exportable_shaping"]

_LARGEST_EXPONENT = 40.0
"""That of `opnp.core.shaping`."""


def exportable_score(logits: Tensor, *, score: ScoreName, temperature: float) -> Tensor:
    """Return the named score of finite logits, as `opnp.core.score_logits` does.

    Args:
        logits: Shape ``(batch, classes)``, float32 or float64.
        score: Name of the score.
        temperature: Temperature T, above 0.

    Returns:
        Scores, larger = more OOD, shape ``(batch,)``, dtype of `logits`; float64 at a temperature above 1000.

    Example:
        >>> exportable_score(torch.tensor([[0.0, 0.0], [10.0, 0.0]]), score="energy", temperature=1.0).tolist()
        [-0.6931471824645996, -10.000045776367188]

    """
    if score != "energy":
        return score_logits(logits, score=score, temperature=temperature)
    if temperature > LARGEST_FLOAT32_TEMPERATURE:
        logits = logits.double()
    largest = logits.amax(1, keepdim=True)
    exponents = logits - largest
    if temperature != 1.0:
        exponents = exponents / temperature
    return -largest[:, 0] - temperature * exponents.exp().sum(1).log()


def exportable_shaping(features: Tensor, shaping: Shaping | None, *, threshold: float | None) -> Tensor:
    """Return the features after `shaping`, as `opnp.core.shaped` does, without a warning about negative ones.

    Features that overflow, and are refused there, become infinite or NaN.

    Args:
        features: Shape ``(batch, features)``.
        shaping: What to apply, or None.
        threshold: The threshold of ReAct, in units of the features; needed by ReAct alone.

    Returns:
        Shaped features, shape and dtype of `features`.

    Example:
        >>> exportable_shaping(torch.tensor([[0.5, 3.0]]), ReAct(), threshold=1.0).tolist()
        [[0.5, 1.0]]

    """
    if isinstance(shaping, ReAct) and threshold is not None:  # no `match`: torch 2.6 does not trace it
        return features.clamp_max(threshold)
    if isinstance(shaping, ASHS):
        largest = _largest(features, shaping.quantile)
        kept = torch.where(features >= largest[:, -1:], features, torch.zeros_like(features))
        return _grown(kept, whole=features, part=kept)
    if isinstance(shaping, SCALE):
        return _grown(features, whole=features, part=_largest(features, shaping.quantile))
    return features


def _largest(features: Tensor, quantile: float) -> Tensor:
    entries = features.shape[1]
    return features.topk(max(1, entries - round(quantile * entries)), dim=1).values


def _grown(features: Tensor, *, whole: Tensor, part: Tensor) -> Tensor:
    """Return features times exp(s1 / s2), the sums of the rows of `whole` and `part`; 1 where s2 is not positive."""
    all_of_it, kept = whole.sum(1, keepdim=True), part.sum(1, keepdim=True)
    is_positive = kept > 0
    exponent = torch.where(is_positive, all_of_it / torch.where(is_positive, kept, 1.0), 0.0)
    return features * exponent.clamp_max(_LARGEST_EXPONENT).exp()
