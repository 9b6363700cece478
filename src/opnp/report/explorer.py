"""What each threshold does: ID flagged and OOD missed at many shares of ID kept, counted, and what that says of others.

A share that was counted on n samples is not the share of all inputs like them. Who moves a slider reads many shares and
stops at one that pleases, so that an interval for a single one promises too much. `share_band` holds at all thresholds
of the slider at once. It is what two bands leave, each with half of the probability of failing, a = (1 - level) / 2:

    |q - c / n| <= sqrt(log(2 / a) / (2 n)),  and  n KL(c / n || q) <= log(2 K / a)

with c samples counted of n, K thresholds, and q the share of all. The first is that of Dvoretzky, Kiefer, Wolfowitz and
Massart. It is as wide everywhere: 0.3 % to 9.7 % where 5 % of 1 000 are flagged. The second is narrow where shares are
small, which is where thresholds are put: 2.4 % to 8.8 %. It is Chernoff's bound for each side of each threshold, by the
sum of their probabilities. Neither needs quantiles of a distribution, so that the page computes the same.

References:
    Massart, Annals of Probability 1990; Owen, "Nonparametric Likelihood Confidence Bands for a Distribution Function",
    JASA 1995, for bands of this form.

"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opnp.errors import EmptyDataError, OptionError
from opnp.report.results import Scores
from opnp.report.wording import method_label, set_title
from opnp.values.figures import Nearness
from opnp.values.fit import FitRecord

__all__ = [
    "KEEPS",
    "LEVEL",
    "ExploredMethod",
    "ExploredSet",
    "Explorer",
    "band_text",
    "explorer_values",
    "fit_explorer",
    "keeping_threshold",
    "ordered_sets",
    "require_keep",
    "share_band",
    "threshold_explorer",
]

KEEPS = range(500, 1000)
"""Shares of ID kept, in thousandths."""
LEVEL = 0.95
"""Probability with which a band of the explorer holds at all thresholds at once, at least."""
_STEPS = 40


def require_keep(keep: float) -> None:
    """Raise an error unless the explorer can start at this share of ID kept.

    Raises:
        OptionError: If `keep` lies outside [0.5, 0.999].

    """
    if not KEEPS[0] <= 1000 * keep <= KEEPS[-1]:
        raise OptionError(
            f"`keep` must lie between {KEEPS[0] / 1000} and {KEEPS[-1] / 1000} for a report, got {keep!r}. "
            f"Give 0.95 for 95 %."
        )


@dataclass(frozen=True, slots=True)
class ExploredSet:
    """How many of an OOD set are missed.

    Attributes:
        set: Name of the set, without ``ood_``.
        title: Its name for readers, with its nearness.
        samples: How many there are.
        missed: How many score no higher than the threshold, by share of ID kept.

    """

    set: str
    title: str
    samples: int
    missed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExploredMethod:
    """What the thresholds of one method do.

    Attributes:
        method: Name of the row.
        samples: ID samples.
        thresholds: By share of ID kept: inputs that score above it are flagged.
        flagged: ID samples that are flagged, by share of ID kept.
        sets: The OOD sets.

    """

    method: str
    samples: int
    thresholds: tuple[float, ...]
    flagged: tuple[int, ...]
    sets: tuple[ExploredSet, ...]

    @property
    def choices(self) -> int:
        """How many thresholds there are to choose from: one a share of ID kept, and no more than there are samples."""
        return min(len(self.thresholds), self.samples)


@dataclass(frozen=True, slots=True)
class Explorer:
    """What the thresholds of some methods do.

    Attributes:
        keeps: Shares of ID kept, in thousandths, ascending.
        methods: The methods; all have the same OOD sets.
        level: Probability with which a band holds at all thresholds at once, at least.

    """

    keeps: tuple[int, ...]
    methods: tuple[ExploredMethod, ...]
    level: float = LEVEL

    def place(self, keep: float) -> int:
        """Return the place of the share that is nearest to `keep`."""
        return min(range(len(self.keeps)), key=lambda place: abs(self.keeps[place] - 1000 * keep))


def threshold_explorer(
    scores: Mapping[str, Scores], nearness: Mapping[str, Nearness], *, keeps: Iterable[int] = KEEPS
) -> Explorer:
    """Return what every threshold does to every set.

    Args:
        scores: Scores by method and set: ``test`` and ``ood_*``.
        nearness: ``near`` or ``far`` by name of the OOD set, without ``ood_``.
        keeps: Shares of ID to keep, in thousandths.

    Returns:
        Thresholds and counts; OOD sets that every method has scores for, near before far.

    Raises:
        EmptyDataError: If a method has no ID scores.

    Example:
        >>> scores = {"Energy": {"test": np.array([1.0, 2.0, 3.0, 9.0]), "ood_far": np.array([3.0, 4.0, 10.0])}}
        >>> [method] = threshold_explorer(scores, {"far": "far"}, keeps=[750, 950]).methods
        >>> method.thresholds, method.flagged, method.sets[0].missed
        ((3.0, 9.0), (1, 0), (1, 2))

    """
    shares = tuple(keeps)
    titles = {name: set_title(name, nearness[name]) for name in ordered_sets(scores, nearness)}
    return Explorer(shares, tuple(_explored(method, by_set, titles, shares) for method, by_set in scores.items()))


def ordered_sets(scores: Mapping[str, Scores], nearness: Mapping[str, Nearness]) -> list[str]:
    """Return the OOD sets that every method has scores for, near before far, without ``ood_``."""
    known = [name for name in nearness if all(f"ood_{name}" in by_set for by_set in scores.values())]
    return sorted(known, key=lambda name: (nearness[name] != "near", name))


def keeping_threshold(id_scores: NDArray[np.float64], keep: float) -> float:
    """Return the smallest ID score that at least the share `keep` of the ID scores do not exceed.

    An input is kept where its score does not exceed the threshold. It is that of `opnp.core.fpr_at_tpr`.

    Args:
        id_scores: Scores of ID samples, shape ``(n,)``.
        keep: Share of ID to keep, in (0, 1), taken as the decimal it is written as.

    Raises:
        OptionError: If `keep` lies outside (0, 1).
        EmptyDataError: If there are no scores.

    Example:
        >>> keeping_threshold(np.array([1.0, 4.0, 2.0, 3.0]), 0.75)
        3.0

    """
    if not 0 < keep < 1:
        raise OptionError(f"`keep` must lie between 0 and 1, got {keep!r}. Give 0.95 for 95 %.")
    if len(id_scores) == 0:
        raise EmptyDataError("There are no ID scores: a threshold needs at least one.")
    place = math.ceil(Fraction(str(keep)) * len(id_scores)) - 1
    return float(np.partition(id_scores, place)[place])


def share_band(
    counts: NDArray[np.int64], samples: int, *, thresholds: int, level: float = LEVEL
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return bounds of the share of all inputs that lie above, or up to, each of some thresholds at once.

    It holds for thresholds that do not depend on the samples, as at an OOD set; and for thresholds that are the samples
    of chosen ranks, as at the ID samples, where no two of them are equal.

    Args:
        counts: How many samples were counted at each threshold, any shape.
        samples: The number n that they are of, at least 1.
        thresholds: How many thresholds there are in all to choose from.
        level: Probability with which all bounds hold, at least, in (0, 1).

    Returns:
        Lower and upper bounds in [0, 1], of the shape of `counts`.

    Example:
        >>> low, high = share_band(np.array([0, 50]), 1000, thresholds=500)
        >>> low.round(4).tolist(), high.round(4).tolist()
        ([0.0, 0.0244], [0.0105, 0.0882])

    """
    risk = (1 - level) / 2
    most, reach = math.log(2 * thresholds / risk) / samples, math.sqrt(math.log(2 / risk) / (2 * samples))
    shares = counts / samples
    found = []
    for end in (0.0, 1.0):
        inside, outside = shares, np.full_like(shares, end)
        for _ in range(_STEPS):
            middle = (inside + outside) / 2
            is_inside = _divergence(shares, middle) <= most
            inside, outside = np.where(is_inside, middle, inside), np.where(is_inside, outside, middle)
        found.append(outside)
    return np.maximum(found[0], shares - reach), np.minimum(found[1], shares + reach)


def band_text(count: int, samples: int, thresholds: int) -> str:
    r"""Return the band of a count as a reader sees it, in per cent.

    Example:
        >>> band_text(50, 1000, 500)
        '2.44 to 8.82\xa0%'

    """
    low, high = share_band(np.array([count]), samples, thresholds=thresholds)
    return f"{100 * low[0]:.2f} to {100 * high[0]:.2f}\N{NO-BREAK SPACE}%"


def _divergence(found: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return KL(found || other) of two coins, where 0 log 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        heads = np.where(found > 0, found * np.log(found / other), 0.0)
        tails = np.where(found < 1, (1 - found) * np.log((1 - found) / (1 - other)), 0.0)
    return heads + tails


def _explored(method: str, by_set: Scores, titles: Mapping[str, str], keeps: Iterable[int]) -> ExploredMethod:
    """Return what the thresholds of one method do.

    The threshold at a share of k thousandths is the smallest ID score that at least k of 1000 ID scores do not exceed,
    as in `opnp.core.fpr_at_tpr`; an input is flagged where its score is above it.
    """
    inside = np.sort(by_set["test"])
    if len(inside) == 0:
        raise EmptyDataError("There are no ID scores: a threshold needs at least one.")
    needed = [-(-keep * len(inside) // 1000) for keep in keeps]  # rounded up, in whole numbers: exact
    thresholds = inside[np.array(needed, dtype=np.int64) - 1]
    sets = []
    for name, title in titles.items():
        outside = np.sort(by_set[f"ood_{name}"])
        missed = np.searchsorted(outside, thresholds, side="right")
        sets.append(ExploredSet(name, title, len(outside), tuple(missed.tolist())))
    flagged = len(inside) - np.searchsorted(inside, thresholds, side="right")
    return ExploredMethod(method, len(inside), tuple(thresholds.tolist()), tuple(flagged.tolist()), tuple(sets))


def fit_explorer(record: FitRecord) -> Explorer | None:
    """Return what each threshold flags of the calibration samples; None without them, or where classes have theirs."""
    if not record.calibration_scores or record.calibrated_by is not None:
        return None
    return threshold_explorer({"OPNP": {"test": np.array(record.calibration_scores, dtype=np.float64)}}, {})


def explorer_values(explorer: Explorer) -> dict[str, Any]:
    """Return an explorer as JSON values for the script of the page.

    Example:
        >>> scores = {"Energy": {"test": np.array([1.0, 2.0])}}
        >>> explorer_values(threshold_explorer(scores, {}, keeps=[500]))["methods"][0]["flagged"]
        [1]

    """
    return {
        "keeps": list(explorer.keeps),
        "level": explorer.level,
        "methods": [
            {
                "method": method.method,
                "name": method_label(method.method),
                "samples": method.samples,
                "thresholds": [f"{threshold:.6g}" for threshold in method.thresholds],
                "flagged": list(method.flagged),
                "sets": [
                    {"set": each.set, "samples": each.samples, "missed": list(each.missed)} for each in method.sets
                ],
            }
            for method in explorer.methods
        ],
    }
