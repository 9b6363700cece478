"""What a run says: the outcome in one short sentence, what was chosen, what it gains over the plain energy, and costs.

What no more than two standard errors show is put down to chance. Both rows of a comparison are judged by the same
samples, whose chance they share, so the true error of a difference is rather smaller: what is beyond these bounds is
told from chance with some room.

References:
    Hanley and McNeil, "The meaning and use of the area under a receiver operating characteristic curve", 1982.

"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from opnp.report.results import ReportedModel, ReportedRow
from opnp.report.wording import (
    LEAST_CHANGE,
    brief_percent,
    count_text,
    fused_members,
    listed,
    method_label,
    percent,
    settings_words,
    share_change,
)
from opnp.values.figures import DetectionFigures, Nearness
from opnp.values.fit import FitRecord

__all__ = ["Verdict", "auroc_noise", "fit_verdict", "model_verdict", "share_noise"]

Outcome = Literal["gain", "mixed", "none", "loss", "unknown"]
_TITLES: dict[Outcome, str] = {
    "gain": "Gains",
    "mixed": "Gains and loses",
    "none": "No gain",
    "loss": "Loses",
    "unknown": "No comparison",
}
_SIDES: tuple[Nearness, ...] = ("far", "near")
_ERRORS = 2
"""Standard errors that chance is believed to reach."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run says.

    Attributes:
        outcome: What opnp as it is used brings against the plain energy: better or equal on every side is a ``gain``,
            worse or equal a ``loss``, better here and worse there ``mixed``; differences below a tenth of a per cent,
            and those that so few samples show by chance, count for nothing.
        title: The outcome in a word or two.
        sentence: The outcome in one short sentence.
        chosen: What was chosen, and by what.
        gains: What it gains; empty where it gains nothing.
        costs: What it costs; empty where nothing is known of it.
        unchanged: What stays as it was, or changes no more than by chance.

    """

    outcome: Outcome
    title: str
    sentence: str
    chosen: tuple[str, ...]
    gains: tuple[str, ...]
    costs: tuple[str, ...]
    unchanged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Change:
    """How a figure changes: name, what it does, the same in brief, by how much it becomes better, if that counts."""

    name: str
    what: str
    brief: str
    gain: float
    counts: bool

    @property
    def words(self) -> str:
        return f"{self.name} {self.what}"

    @property
    def step(self) -> int:
        """1 where it becomes better, -1 where it becomes worse, 0 where the difference does not count."""
        return (self.gain > 0) - (self.gain < 0) if self.counts else 0


@dataclass(frozen=True, slots=True)
class _Side:
    """The energy and the chosen row on near, or on far, OOD; samples by set, ID samples first."""

    name: Nearness
    before: DetectionFigures
    after: DetectionFigures
    id_samples: int
    ood_samples: tuple[int, ...]

    @property
    def changes(self) -> tuple[_Change, ...]:
        """Return how FPR95 and AUROC change."""
        before, after = self.before, self.after
        middle = (before.fpr95 + after.fpr95) / 2, (before.auroc + after.auroc) / 2
        noises = (
            mean_noise([share_noise(middle[0], samples) for samples in self.ood_samples]),
            mean_noise([auroc_noise(middle[1], self.id_samples, samples) for samples in self.ood_samples]),
        )
        name, samples = f"{self.name} OOD", sum(self.ood_samples)
        return (
            _change(f"{name}: FPR95", before.fpr95, after.fpr95, sign=-1, noise=noises[0], samples=samples),
            _change(f"{name}: AUROC", before.auroc, after.auroc, sign=1, noise=noises[1], samples=samples),
        )

    @property
    def named(self) -> tuple[str, ...]:
        """Return what a sentence names: AUROC, or FPR95 where that alone counts; both where they go two ways."""
        fpr95, auroc = self.changes
        if auroc.step == 0 and fpr95.step == 0:
            return ()
        found = [auroc] if auroc.step else [fpr95]
        if auroc.step * fpr95.step < 0:
            found.append(fpr95)
        return tuple(f"{each.brief} ({self.name})" for each in found)


def model_verdict(model: ReportedModel) -> Verdict:
    """Return what the rows of a model say.

    Example:
        >>> from opnp.report.results import models_of_demo
        >>> from opnp.values.bench import DemoRecord, DemoRow
        >>> from opnp.values.figures import DetectionFigures
        >>> def row(name, fpr95, auroc):
        ...     figures = {"far": DetectionFigures(fpr95, 0.5, auroc)}
        ...     return DemoRow(name, {"ratios": {"w_min": 0.3}}, figures, 0.99, 0.98, 0.05, -5.0)
        >>> rows = (row("Energy", 0.4, 0.9), row("OPNP", 0.3, 0.92))
        >>> [model] = models_of_demo(DemoRecord("digits", 0, 0.95, {"test": 253}, {}, rows))
        >>> verdict = model_verdict(model)
        >>> verdict.outcome, verdict.gains
        ('gain', ('far OOD: FPR95 falls from 40.0 % to 30.0 %', 'far OOD: AUROC rises from 90.0 % to 92.0 %'))
        >>> verdict.unchanged[0]
        'ID accuracy of the head it scores with falls from 99.0 % to 98.0 % (within the noise of 253 samples)'

    """
    row, baseline = model.chosen, model.baseline
    if row is None:
        return _without_choice(model)
    samples = model.id_samples.get(row.split, 0)
    sides = [
        _Side(name, before, after, samples, tuple(model.counts.get(f"ood_{each}", 0) for each in model.sets(name)))
        for name in _SIDES
        if (before := getattr(baseline, name, None)) is not None and (after := getattr(row, name)) is not None
    ]
    changes = [change for side in sides for change in side.changes]
    outcome = _outcome(changes)
    gains, costs, unchanged = (_words([*changes, *_head_changes(row, samples)], step) for step in (1, -1, 0))
    regret = model.regret(row)
    compared = () if regret is None else (_regret_words(model, regret),)
    source = _settings_source(row.settings, is_tuned=row.group == "tuned")
    return Verdict(
        outcome,
        _TITLES[outcome],
        _sentence(row, baseline, sides, outcome),
        (f"{row.method}: {settings_words(row.settings)}", source, *_judged_by(samples)),
        gains,
        (*costs, *(compared if regret else ()), *_flagged(row)),
        (*unchanged, *(() if regret else compared), *_kept_answers(row)),
    )


def _regret_words(model: ReportedModel, regret: float) -> str:
    """Return how a mean AUROC compares with that of the best published single score."""
    best = "" if model.best_single is None else model.best_single.method
    single = f"the best of {len(model.single_scores)} published single scores, {best}, chosen with hindsight"
    return f"mean AUROC {100 * regret:.2f} points below {single}" if regret > 0 else f"mean AUROC no less than {single}"


def _without_choice(model: ReportedModel) -> Verdict:
    ran = [row for row in model.methods if row.mean is not None]
    sentence = "No row of opnp as it is used ran: there is nothing to compare with the energy."
    best = max(ran, key=lambda row: 0.0 if row.mean is None else row.mean.auroc, default=None)
    found: tuple[str, ...] = ()
    if best is not None and best.mean is not None:
        found = (f"of {len(ran)} methods, {best.method} has the highest mean AUROC, {percent(best.mean.auroc)}",)
    return Verdict("unknown", _TITLES["unknown"], sentence, found, (), ())


def _sentence(row: ReportedRow, baseline: ReportedRow | None, sides: Sequence[_Side], outcome: Outcome) -> str:
    if baseline is None:
        return f"{row.method} has nothing to be compared with: no energy was judged by the same ID samples."
    if outcome == "unknown":
        return f"{row.method} has no figures to compare with the energy."
    verb = {"gain": "gains", "mixed": "gains and loses", "none": "gains nothing", "loss": "loses"}[outcome]
    parts = listed([words for side in sides for words in side.named])
    return f"{row.method} {verb} against {method_label(baseline.method)}{f': {parts}' if parts else ''}."


def _judged_by(samples: int) -> Iterator[str]:
    if samples:
        yield f"both judged on the same {count_text(samples)} ID samples"


def _settings_source(settings: Mapping[str, object], *, is_tuned: bool = False) -> str:
    """Return what settings were chosen by.

    Args:
        settings: Settings as JSON values; in records of version 0.1 with ``tuning`` among them where they were chosen.
        is_tuned: Whether ratios were chosen on OOD validation data.

    Example:
        >>> _settings_source({"members": ["gen", "vim"]})
        'the same for every model: nothing is tuned, and no OOD data are used'
        >>> _settings_source({"tuning": {"samples": 2000, "source": "validation", "tried": 85}})
        'chosen without OOD data, by 2000 validation samples, 85 settings tried'
        >>> _settings_source({})
        'fixed settings, not chosen by data'

    """
    if is_tuned:
        return "ratios chosen on OOD validation data"
    tuning = settings.get("tuning")
    if isinstance(tuning, Mapping):
        by = f"{tuning.get('samples')} {tuning.get('source')} samples"
        return f"chosen without OOD data, by {by}, {tuning.get('tried')} settings tried"
    if fused_members(settings):
        return "the same for every model: nothing is tuned, and no OOD data are used"
    return "fixed settings, not chosen by data"


def _head_changes(row: ReportedRow, samples: int) -> Iterator[_Change]:
    if row.accuracy is not None and row.accuracy_after is not None:
        name = "ID accuracy of the head it scores with"
        noise = share_noise((row.accuracy + row.accuracy_after) / 2, samples)
        yield _change(name, row.accuracy, row.accuracy_after, sign=1, noise=noise, samples=samples)
    if row.before is not None and row.after is not None:
        name = "calibration error (ECE) of the head it scores with"
        yield _change(name, row.before.ece, row.after.ece, sign=-1)


def _kept_answers(row: ReportedRow) -> Iterator[str]:
    if row.accuracy is not None:
        yield f"answers come from the original head and keep its ID accuracy, {percent(row.accuracy)}"


def _flagged(row: ReportedRow) -> Iterator[str]:
    if row.flagged_id is not None and row.threshold is not None:
        yield f"{percent(row.flagged_id)} of ID test inputs are flagged at the calibrated threshold {row.threshold:.4g}"


def _words(changes: Iterable[_Change], step: int) -> tuple[str, ...]:
    return tuple(change.words for change in changes if change.step == step)


def _change(
    name: str, before: float, after: float, *, sign: Literal[-1, 1], noise: float = 0.0, samples: int = 0
) -> _Change:
    """Return a change; `sign` is 1 where more is better. It counts from a tenth of a per cent and beyond the noise."""
    what, size = share_change(before, after), abs(after - before)
    if LEAST_CHANGE <= size <= noise:
        what += f" (within the noise of {count_text(samples)} samples)"
    brief = f"{name.rpartition(': ')[2]} {percent(after)} instead of {percent(before)}"
    return _Change(name, what, brief, sign * (after - before), size >= LEAST_CHANGE and size > noise)


def _outcome(changes: Sequence[_Change]) -> Outcome:
    if not changes:
        return "unknown"
    is_better, is_worse = any(each.step > 0 for each in changes), any(each.step < 0 for each in changes)
    if is_better:
        return "mixed" if is_worse else "gain"
    return "loss" if is_worse else "none"


def fit_verdict(record: FitRecord) -> Verdict:
    """Return what a fit says of itself: of OOD only what ratios gained that were chosen on OOD validation data."""
    start, chosen = "The detector is not calibrated, so it flags nothing", [settings_words(record.settings)]
    chosen.append(_settings_source(record.settings, is_tuned=record.tuning is not None))
    if record.keep is not None and (record.threshold is not None or record.calibrated_by is not None):
        above = "the threshold of their predicted class" if record.threshold is None else f"{record.threshold:.6g}"
        start = f"The detector flags inputs that score above {above}"
        scores = count_text(len(record.calibration_scores))
        chosen.append(f"threshold calibrated by {scores} held-out scores to keep {brief_percent(record.keep)} of ID")
    known, tuned = "without OOD data, what it gains is not known", list[_Change]()
    if (tuning := record.tuning) is not None:
        known = "what it gains on other OOD data than its ratios were chosen on is not known"
        name = "against the plain energy, AUROC on OOD validation samples that were not searched"
        tuned = [_change(name, tuning.energy_auroc, tuning.auroc, sign=1)]
    return Verdict(
        "unknown",
        "No OOD data" if record.tuning is None else "Chosen on OOD data",
        f"{start}; {known}.",
        tuple(chosen),
        _words(tuned, 1),
        (*_words(tuned, -1), *_costs(record)),
        (*_words(tuned, 0), "answers come from the original head and keep its ID accuracy"),
    )


def _costs(record: FitRecord) -> Iterator[str]:
    if record.expected_flagged is not None:
        yield f"{percent(record.expected_flagged)} of ID inputs are flagged, in expectation"
    for name, reason in record.left_out.items():
        yield f"{name} is left out: {reason}"


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
