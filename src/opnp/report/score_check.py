"""What the scores of a folder lack, and where they are not those that its record was made of."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from opnp.report.results import ReportedModel, Results
from opnp.report.series.score_arithmetic import keeping_threshold
from opnp.report.series.wording import listed, method_label, set_label

__all__ = ["score_faults"]

_Scores = NDArray[np.float64]
_KEEP = 0.95
_TOLERANCE = 1e-9


def score_faults(results: Results, model: ReportedModel) -> tuple[str, ...]:
    """Return what is missing or stale in the scores of the rows that are compared, a sentence each.

    Scores are stale where their FPR95 on a set is not that of the record. A folder without any scores of the model has
    no faults: nothing is drawn of them.

    Args:
        results: Records of a results folder; its scores are read.
        model: One of its models.

    Raises:
        DataFileError: If the file of scores cannot be read.
        MissingExtraError: If pyarrow, which Parquet needs, is not installed.

    """
    methods = [method for method in (model.chosen, model.baseline) if method is not None]
    scores = {method: results.scores(model.model, method) for method in methods}
    found = {method: by_set for method, by_set in scores.items() if by_set is not None}
    return tuple(_faults(model, methods, found)) if found else ()


def _faults(model: ReportedModel, methods: list[str], scores: Mapping[str, Mapping[str, _Scores]]) -> Iterator[str]:
    stale = []
    for method in methods:
        label, by_set = method_label(method), scores.get(method)
        if by_set is None or "test" not in by_set:
            what = "any scores" if by_set is None else "scores of ID samples"
            yield f"The file of scores lacks {what} of {label}: the figures of scores leave it out."
            continue
        missing = [name for name in model.nearness if f"ood_{name}" not in by_set]
        if missing:
            names = listed([set_label(name) for name in sorted(missing)])
            yield (
                f"The file of scores lacks {names} for {label}: thresholds and figures of scores leave out what the "
                f"table includes."
            )
        stale += [f"{label} on {set_label(name)}" for name in _stale(model, method, by_set)]
    if stale:
        yield (
            f"The file of scores is not the one that the results were made of: FPR95 differs for {listed(stale)}. "
            f"Thresholds and figures of scores do not belong to the table."
        )


def _stale(model: ReportedModel, method: str, by_set: Mapping[str, _Scores]) -> Iterator[str]:
    """Return the sets whose recorded FPR95 is not that of the scores."""
    threshold = keeping_threshold(by_set["test"], _KEEP)
    for name, figures in sorted((model.row(method).detection or {}).items()):
        outside = by_set.get(f"ood_{name}")
        if outside is not None and abs(float(np.mean(outside <= threshold)) - figures.fpr95) > _TOLERANCE:
            yield name
