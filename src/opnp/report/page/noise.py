"""How far a figure may be off by chance alone: two standard errors, by the number of samples it was taken over.

Both rows of a comparison are judged by the same samples, whose chance they share, so the true error of a difference is
rather smaller: what is beyond these bounds is told from chance with some room.

References:
    Hanley and McNeil, "The meaning and use of the area under a receiver operating characteristic curve", 1982.

"""

import math
from collections.abc import Sequence

__all__ = ["auroc_noise", "mean_noise", "share_noise"]

_ERRORS = 2


def share_noise(share: float, samples: int) -> float:
    """Return two standard errors of a share of samples, 0 where their number is not known.

    Example:
        >>> share_noise(0.5, 100)
        0.1

    """
    return _ERRORS * math.sqrt(share * (1 - share) / samples) if samples > 0 else 0.0


def auroc_noise(auroc: float, id_samples: int, ood_samples: int) -> float:
    """Return two standard errors of an AUROC, by Hanley and McNeil, 0 where a number of samples is not known.

    Example:
        >>> round(auroc_noise(0.9, 250, 250), 4)
        0.0286

    """
    if id_samples <= 0 or ood_samples <= 0:
        return 0.0
    square = auroc * auroc
    both_ood, both_id = auroc / (2 - auroc) - square, 2 * square / (1 + auroc) - square
    spread = auroc * (1 - auroc) + (ood_samples - 1) * both_ood + (id_samples - 1) * both_id
    return _ERRORS * math.sqrt(max(spread, 0.0) / (id_samples * ood_samples))


def mean_noise(noises: Sequence[float]) -> float:
    """Return two standard errors of the mean of figures over different samples, 0 of none.

    Example:
        >>> mean_noise([0.3, 0.4])
        0.25

    """
    return math.hypot(*noises) / len(noises) if noises else 0.0
