"""Scores on logits: how much an input looks out of distribution. Larger means more OOD, for every score here.

Each is a function of the logits f, shape ``(batch, classes)``, of any floating dtype, and returns shape ``(batch,)`` in
float32 or, for float64 logits, float64. At a temperature above 1000 it is float64 in any case: there the scores of all
inputs are nearly equal, and float32 would not tell them apart.
"""

from typing import get_args

import torch
from torch import Tensor

from opnp.core.checks import checked_matrix, checked_temperature
from opnp.errors import OptionError
from opnp.values.settings import ScoreName

__all__ = [
    "LARGEST_FLOAT32_TEMPERATURE",
    "SCORE_NAMES",
    "ScoreName",
    "energy_rows",
    "energy_score",
    "entropy_score",
    "gen_score",
    "max_logit_score",
    "msp_score",
    "score_logits",
]

SCORE_NAMES: tuple[ScoreName, ...] = get_args(ScoreName)

LARGEST_FLOAT32_TEMPERATURE = 1000.0
"""Temperature up to which scores of float32 logits are float32."""


def energy_score(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the energy E = -T logsumexp(f / T).

    Args:
        logits: Shape ``(batch, classes)``.
        temperature: Temperature T, above 0.

    Returns:
        Scores, shape ``(batch,)``, in units of the logits, device of `logits`.

    Raises:
        ShapeError: If `logits` is no matrix.
        OptionError: If `temperature` is not positive and finite.

    Example:
        >>> import torch
        >>> energy_score(torch.tensor([[0.0, 0.0], [10.0, 0.0]])).tolist()
        [-0.6931471824645996, -10.000045776367188]

    References:
        Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, equation 4.

    """
    temperature = checked_temperature(temperature)
    prepared = _prepared(logits, temperature=temperature)
    if not bool(torch.isfinite(prepared.amax(1)).all()):
        return -temperature * torch.logsumexp(prepared / temperature, dim=1)
    return energy_rows(prepared, temperature=temperature)


def energy_rows(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the energy as `energy_score` does, without a look at the values; NaN where the largest logit is infinite.

    Args:
        logits: Shape ``(batch, classes)``, float32 or float64.
        temperature: Temperature T, above 0.

    Returns:
        Scores, shape ``(batch,)``, dtype of `logits`.

    Example:
        >>> import torch
        >>> energy_rows(torch.tensor([[0.0, 0.0]])).tolist()
        [-0.6931471824645996]

    """
    largest = logits.amax(1, keepdim=True)
    exponents = logits - largest
    if temperature != 1.0:
        exponents = exponents / temperature
    return -largest[:, 0] - temperature * exponents.exp().sum(1).log()


def msp_score(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return minus the maximum softmax probability: -max_i softmax(f / T)_i.

    Args:
        logits: Shape ``(batch, classes)``.
        temperature: Temperature T, above 0.

    Returns:
        Scores in [-1, -1/classes], shape ``(batch,)``, device of `logits`.

    Raises:
        ShapeError: If `logits` is no matrix.
        OptionError: If `temperature` is not positive and finite.

    Example:
        >>> import torch
        >>> msp_score(torch.tensor([[0.0, 0.0]])).tolist()
        [-0.5]

    References:
        Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples", ICLR 2017.

    """
    return -_log_probabilities(logits, temperature=temperature).amax(1).exp()


def max_logit_score(logits: Tensor) -> Tensor:
    """Return minus the largest logit: -max_i f_i.

    Args:
        logits: Shape ``(batch, classes)``.

    Returns:
        Scores, shape ``(batch,)``, in units of the logits, device of `logits`.

    Raises:
        ShapeError: If `logits` is no matrix.

    Example:
        >>> import torch
        >>> max_logit_score(torch.tensor([[1.0, 3.0]])).tolist()
        [-3.0]

    References:
        Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022.

    """
    return -_prepared(logits).amax(1)


def entropy_score(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the entropy of the softmax in nats: -sum_i p_i log p_i with p = softmax(f / T).

    Args:
        logits: Shape ``(batch, classes)``.
        temperature: Temperature T, above 0.

    Returns:
        Scores in [0, log(classes)], shape ``(batch,)``, device of `logits`.

    Raises:
        ShapeError: If `logits` is no matrix.
        OptionError: If `temperature` is not positive and finite.

    Example:
        >>> import torch
        >>> entropy_score(torch.tensor([[0.0, 0.0]])).tolist()
        [0.6931471824645996]

    References:
        Chan et al., "Entropy Maximization and Meta Classification for Out-of-Distribution Detection in Semantic
        Segmentation", ICCV 2021, where the entropy serves as the score.

    """
    exponents = _exponents(logits, temperature=temperature)
    powers = exponents.exp()
    others = powers.scatter(1, exponents.argmax(1, keepdim=True), 0.0).sum(1)  # all but that of a largest, which is 1
    terms = torch.where(exponents.isneginf(), 0.0, powers * exponents)
    return others.log1p() - terms.sum(1) / (1 + others)  # log sum - mean exponent: nothing cancels


def gen_score(logits: Tensor, *, temperature: float = 1.0, gamma: float = 0.1, top: int = 100) -> Tensor:
    """Return the generalised entropy sum_i (p_i (1 - p_i))^gamma over the `top` largest probabilities.

    Args:
        logits: Shape ``(batch, classes)``.
        temperature: Temperature T of p = softmax(f / T), above 0.
        gamma: Exponent in (0, 1).
        top: Number of the largest probabilities summed; all of them where there are fewer classes.

    Returns:
        Scores, at least 0, shape ``(batch,)``, device of `logits`.

    Raises:
        ShapeError: If `logits` is no matrix.
        OptionError: If `temperature`, `gamma` or `top` is out of range.

    Example:
        >>> import torch
        >>> gen_score(torch.tensor([[0.0, 0.0]]), gamma=0.5).tolist()
        [1.0]

    References:
        Liu et al., "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection", CVPR 2023; gamma 0.1
        and top 100 are its ImageNet setting.

    """
    if not 0 < gamma < 1:
        raise OptionError(f"`gamma` must lie in (0, 1), got {gamma!r}.")
    if top < 1:
        raise OptionError(f"`top` must be at least 1, got {top!r}.")
    log_probabilities = _log_probabilities(logits, temperature=temperature)
    largest, classes = log_probabilities.topk(min(top, logits.shape[1]), dim=1)
    others = log_probabilities.scatter(1, classes[:, :1], -torch.inf).logsumexp(1, keepdim=True)
    log_complement = torch.cat([others, torch.log1p(-largest[:, 1:].exp())], dim=1)  # 1 - p of the largest is a sum
    return torch.exp(gamma * (largest + log_complement)).sum(1)


def score_logits(logits: Tensor, *, score: ScoreName = "energy", temperature: float = 1.0) -> Tensor:
    """Return the named score of the logits; `temperature` serves all but ``"max_logit"``, which has none.

    Args:
        logits: Shape ``(batch, classes)``.
        score: One of `SCORE_NAMES`.
        temperature: Temperature T, above 0.

    Returns:
        Scores, larger = more OOD, shape ``(batch,)``, device of `logits`.

    Raises:
        ShapeError: If `logits` is no matrix.
        OptionError: If `score` is unknown or `temperature` is not positive and finite.

    Example:
        >>> import torch
        >>> score_logits(torch.tensor([[1.0, 3.0]]), score="max_logit").tolist()
        [-3.0]

    """
    match score:
        case "energy":
            return energy_score(logits, temperature=temperature)
        case "msp":
            return msp_score(logits, temperature=temperature)
        case "max_logit":
            return max_logit_score(logits)
        case "entropy":
            return entropy_score(logits, temperature=temperature)
        case "gen":
            return gen_score(logits, temperature=temperature)
    raise OptionError(f"`score` must be one of {', '.join(SCORE_NAMES)}, got {score!r}.")


def _log_probabilities(logits: Tensor, *, temperature: float) -> Tensor:
    """Return log softmax(f / T)."""
    return torch.log_softmax(_exponents(logits, temperature=temperature), dim=1)


def _exponents(logits: Tensor, *, temperature: float) -> Tensor:
    """Return (f - max f) / T: the largest logit is taken off before the division, which is exact at any T."""
    temperature = checked_temperature(temperature)
    prepared = _prepared(logits, temperature=temperature)
    return (prepared - prepared.amax(1, keepdim=True)) / temperature


def _prepared(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    checked_matrix(logits, name="logits", axes="(batch, classes)")
    is_wide = logits.dtype == torch.float64 or temperature > LARGEST_FLOAT32_TEMPERATURE
    return logits.double() if is_wide else logits.float()
