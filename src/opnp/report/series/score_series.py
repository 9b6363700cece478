"""Score histograms, ID against each OOD set, method beside method: the paper's Figure 5."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from opnp.errors import EmptyDataError
from opnp.report.series.score_arithmetic import keeping_threshold
from opnp.report.series.wording import brief_percent, count_of_sets, listed, method_label, percent, set_title
from opnp.values.figures import Nearness

__all__ = ["ScorePanel", "ScoreSeries", "ordered_sets", "score_series"]

_BINS = 60
_TAIL = 0.0005
_Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScorePanel:
    """ID against one OOD set, by one method.

    Attributes:
        method: Name of the row.
        set: Name of the OOD set, without ``ood_``.
        nearness: ``near`` or ``far``.
        edges: Edges of the bins in units of the score, the same in all panels of a method. The outermost bins hold
            what lies beyond them too: one in 2000 of a set at most, and scores of +inf.
        id_counts: ID samples by bin.
        ood_counts: OOD samples by bin.
        threshold: Score up to which inputs are kept; the last edge where that is +inf.
        kept_ood: Share of OOD samples that are kept there.

    """

    method: str
    set: str
    nearness: Nearness
    edges: tuple[float, ...]
    id_counts: tuple[int, ...]
    ood_counts: tuple[int, ...]
    threshold: float
    kept_ood: float

    @property
    def id_shares(self) -> tuple[float, ...]:
        """Share of the ID samples by bin."""
        return tuple(count / sum(self.id_counts) for count in self.id_counts)

    @property
    def ood_shares(self) -> tuple[float, ...]:
        """Share of the OOD samples by bin."""
        return tuple(count / sum(self.ood_counts) for count in self.ood_counts)


@dataclass(frozen=True, slots=True)
class ScoreSeries:
    """Histograms of scores.

    Attributes:
        model: Name of the model.
        title: The finding.
        alt: The finding with its numbers, for readers who do not see the figure.
        keep: Share of ID that is kept at the thresholds.
        methods: Names of the rows, in the order of the columns.
        sets: Names of the OOD sets, in the order of the rows: near before far.
        panels: One for each set and method, set after set.

    """

    model: str
    title: str
    alt: str
    keep: float
    methods: tuple[str, ...]
    sets: tuple[str, ...]
    panels: tuple[ScorePanel, ...]

    def panel(self, name: str, method: str) -> ScorePanel:
        """Return the panel of an OOD set and a method."""
        return self.panels[self.sets.index(name) * len(self.methods) + self.methods.index(method)]


def score_series(
    model: str,
    scores: Mapping[str, Mapping[str, _Scores]],
    nearness: Mapping[str, Nearness],
    *,
    keep: float = 0.95,
    bins: int = _BINS,
) -> ScoreSeries:
    """Return histograms of scores.

    Args:
        model: Name of the model.
        scores: Scores by method and set: ``test`` and the same ``ood_*`` for all methods.
        nearness: ``near`` or ``far`` by name of the OOD set, without ``ood_``.
        keep: Share of ID to keep, in (0, 1).
        bins: Bins of a histogram.

    Returns:
        What is drawn.

    Raises:
        OptionError: If `keep` lies outside (0, 1).
        EmptyDataError: If there are no ID scores, or no OOD set that every method has scores for.

    Example:
        >>> scores = {"Energy": {"test": np.array([1.0, 2.0]), "ood_far": np.array([2.0, 3.0])}}
        >>> [panel] = score_series("demo", scores, {"far": "far"}, bins=2).panels
        >>> panel.id_counts, panel.ood_counts, panel.threshold, panel.kept_ood
        ((1, 1), (0, 2), 2.0, 0.5)

    """
    names = ordered_sets(scores, nearness)
    if not names:
        raise EmptyDataError("There is no OOD set that every method has scores for: a histogram needs one.")
    edges = {method: _edges(list(by_set.values()), bins) for method, by_set in scores.items()}
    panels = []
    for name in names:
        for method, by_set in scores.items():
            inside, outside = by_set["test"], by_set[f"ood_{name}"]
            threshold = keeping_threshold(inside, keep)
            panel = ScorePanel(
                method=method,
                set=name,
                nearness=nearness[name],
                edges=tuple(edges[method].tolist()),
                id_counts=_counts(inside, edges[method]),
                ood_counts=_counts(outside, edges[method]),
                threshold=float(edges[method][-1]) if np.isinf(threshold) else threshold,
                kept_ood=float(np.mean(outside <= threshold)),
            )
            panels.append(panel)
    methods = tuple(scores)
    means = [
        f"{method_label(method)} {percent(fmean(panel.kept_ood for panel in panels if panel.method == method))}"
        for method in methods
    ]
    return ScoreSeries(
        model=model,
        title=f"OOD kept where {brief_percent(keep)} of ID is kept, mean of {count_of_sets(len(names))}: "
        f"{listed(means[::-1])}",
        alt=_alt(panels, keep),
        keep=keep,
        methods=methods,
        sets=tuple(names),
        panels=tuple(panels),
    )


def ordered_sets(scores: Mapping[str, Mapping[str, _Scores]], nearness: Mapping[str, Nearness]) -> list[str]:
    """Return the OOD sets that every method has scores for, near before far, without ``ood_``."""
    known = [name for name in nearness if all(f"ood_{name}" in by_set for by_set in scores.values())]
    return sorted(known, key=lambda name: (nearness[name] != "near", name))


def _edges(arrays: Sequence[_Scores], bins: int) -> _Scores:
    finite = [each[np.isfinite(each)] for each in arrays]
    low = min((float(np.quantile(each, _TAIL, method="lower")) for each in finite if len(each)), default=0.0)
    high = max((float(np.quantile(each, 1 - _TAIL, method="higher")) for each in finite if len(each)), default=0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def _counts(values: _Scores, edges: _Scores) -> tuple[int, ...]:
    return tuple(np.histogram(values.clip(edges[0], edges[-1]), edges)[0].tolist())


def _alt(panels: Sequence[ScorePanel], keep: float) -> str:
    sets = dict.fromkeys(panel.set for panel in panels)
    parts = [
        f"{set_title(name, next(panel.nearness for panel in panels if panel.set == name))}: "
        + ", ".join(f"{method_label(panel.method)} {percent(panel.kept_ood)}" for panel in panels if panel.set == name)
        for name in sets
    ]
    return f"Histograms of scores, ID against OOD. Share of OOD kept where {brief_percent(keep)} of ID is kept: " + (
        "; ".join(parts) + "."
    )
