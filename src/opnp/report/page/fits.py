"""What there is to say of one fit without OOD data: what was chosen by what, and what its thresholds flag."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from opnp.report.page.explorer import Explorer, threshold_explorer
from opnp.report.page.origins import Fact, facts_of_values
from opnp.report.page.verdict import Verdict, settings_source
from opnp.report.page.wording import LEAST_CHANGE, count_text, settings_words, share_change
from opnp.report.series.wording import brief_percent, percent
from opnp.values.fit import FitRecord

__all__ = ["fit_explorer", "fit_facts", "fit_verdict"]


def fit_verdict(record: FitRecord) -> Verdict:
    """Return what a fit says of itself: of OOD only what ratios gained that were chosen on OOD validation data."""
    verb = "uses" if record.tuning is None else "chose"
    sentence = f"The detector {verb} {settings_words(record.settings)}"
    if record.keep is not None and record.threshold is not None:
        scores = count_text(len(record.calibration_scores))
        sentence += (
            f", and flags inputs that score above {record.threshold:.6g}, calibrated by {scores} held-out scores to "
            f"keep {brief_percent(record.keep)} of ID"
        )
    known = "What it gains on other OOD data than those that its ratios were chosen on is not known."
    if record.tuning is None:
        known = "No OOD data were given, so what it gains and misses is not known."
    return Verdict(
        "unknown",
        "No OOD data" if record.tuning is None else "Chosen on OOD data",
        f"{sentence}. {known}",
        (settings_words(record.settings), settings_source(record.settings, is_tuned=record.tuning is not None)),
        tuple(_tuned(record, sign=1)),
        (*_tuned(record, sign=-1), *_costs(record)),
        (*_tuned(record, sign=0), "answers come from the original head and keep its ID accuracy"),
    )


def fit_explorer(record: FitRecord) -> Explorer | None:
    """Return what each threshold flags of the calibration samples, or None without calibration."""
    if not record.calibration_scores:
        return None
    return threshold_explorer({"OPNP": {"test": np.array(record.calibration_scores, dtype=np.float64)}}, {})


def fit_facts(record: FitRecord) -> tuple[Fact, ...]:
    """Return what the detector was fitted on and with."""
    return (
        Fact("training samples", count_text(record.training_samples)),
        Fact("calibration samples", count_text(len(record.calibration_scores))),
        Fact("settings in words", record.settings_text),
        Fact("SHA-256 of the head", record.head_sha256),
        *facts_of_values(record.settings),
    )


def _tuned(record: FitRecord, *, sign: Literal[-1, 0, 1]) -> Iterator[str]:
    """Yield what chosen ratios do to the AUROC if that is a gain (1), a loss (-1) or neither (0)."""
    if (tuning := record.tuning) is None:
        return
    gain = tuning.auroc - tuning.energy_auroc
    if (gain >= LEAST_CHANGE) - (gain <= -LEAST_CHANGE) == sign:
        change = share_change(tuning.energy_auroc, tuning.auroc, verbs=("falls", "rises"))
        yield f"against the plain energy, AUROC on OOD validation samples that were not searched {change}"


def _costs(record: FitRecord) -> Iterator[str]:
    if record.expected_flagged is not None:
        yield f"{percent(record.expected_flagged)} of ID inputs are flagged, in expectation"
    for name, reason in record.left_out.items():
        yield f"{name} is left out: {reason}"
