"""What a run says, in a sentence: what was chosen, what it gains over the plain energy, and what it costs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from opnp.report.page.noise import auroc_noise, mean_noise, share_noise
from opnp.report.page.wording import LEAST_CHANGE, count_text, settings_words, share_change
from opnp.report.results import ReportedModel, ReportedRow
from opnp.report.series.wording import fused_members, listed, method_label, percent
from opnp.values.figures import DetectionFigures, Nearness

__all__ = ["Outcome", "Verdict", "fusion_sentences", "model_verdict", "settings_source"]

Outcome = Literal["gain", "mixed", "none", "loss", "unknown"]
_TITLES: dict[Outcome, str] = {
    "gain": "Gains",
    "mixed": "Gains and loses",
    "none": "No gain",
    "loss": "Loses",
    "unknown": "No comparison",
}
_SIDES: tuple[Nearness, ...] = ("far", "near")
_FALLS = ("falls", "rises")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run says.

    Attributes:
        outcome: What opnp as it is used brings against the plain energy: better or equal on every side is a ``gain``,
            worse or equal a ``loss``, better here and worse there ``mixed``; differences below a tenth of a per cent,
            and those that so few samples show by chance, count for nothing.
        title: The outcome in a word or two.
        sentence: All of it in a sentence.
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
    """How a figure changes: its name, what it does, by how much it becomes better, and whether that counts."""

    name: str
    what: str
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
    def words(self) -> str:
        """Return how FPR95 changes, and AUROC where it falls or goes the other way."""
        fpr95, auroc = self.changes
        words = f"FPR95 of {self.name} OOD {fpr95.what}"
        if auroc.gain <= -LEAST_CHANGE or auroc.step * fpr95.step < 0:
            words += f" {'as' if fpr95.step < 0 and auroc.gain < 0 else 'while'} AUROC {auroc.what}"
        return words


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
    if model.chosen is None:
        return _without_choice(model)
    row = model.row(model.chosen)
    chosen = (f"{row.method}: {settings_words(row.settings)}", settings_source(row.settings))
    samples = model.id_samples.get(row.split, 0)
    head, flagged = tuple(_head_changes(row, samples)), tuple(_flagged(row))
    if model.baseline is None:
        sentence = f"{row.method} uses {settings_words(row.settings)}; no energy was judged by the same ID samples."
        costs = (*_worse(head), *flagged)
        return Verdict(
            "unknown", _TITLES["unknown"], sentence, chosen, _better(head), costs, (*_equal(head), *_kept_answers(row))
        )
    baseline = model.row(model.baseline)
    sides = [
        _Side(name, before, after, samples, tuple(model.counts.get(f"ood_{each}", 0) for each in model.sets(name)))
        for name in _SIDES
        if (before := getattr(baseline, name)) is not None and (after := getattr(row, name)) is not None
    ]
    changes = [change for side in sides for change in side.changes]
    outcome = _outcome(changes)
    return Verdict(
        outcome,
        _TITLES[outcome],
        _sentence(model, row, sides, outcome, head),
        chosen,
        (*_better(changes), *_better(head)),
        (*_worse(changes), *_worse(head), *flagged),
        (*_equal(changes), *_equal(head), *_kept_answers(row)),
    )


def fusion_sentences(model: ReportedModel) -> tuple[str, ...]:
    """Return what the fusion, and each of its members by itself, lose against the best published single score.

    One sentence a row, in the order of the record; none where no published single score ran.

    """
    best = model.best_single
    if best is None or best.mean is None:
        return ()
    found = []
    for row in model.methods:
        regret = model.regret(row)
        if row.mean is not None and regret is not None and fused_members(row.settings):
            single = f"{best.method} ({percent(best.mean.auroc, 2)})"
            lost = f"{100 * regret:.2f} points below {single}" if regret > 0 else f"no less than {single}"
            found.append(f"{row.method}: mean AUROC {percent(row.mean.auroc, 2)}, {lost}.")
    return tuple(found)


def _without_choice(model: ReportedModel) -> Verdict:
    ran = [row for row in model.methods if row.mean is not None]
    sentence = "No row of opnp as it is used ran, so there is nothing to compare with the energy."
    best = max(ran, key=lambda row: 0.0 if row.mean is None else row.mean.auroc, default=None)
    if best is not None and best.mean is not None:
        sentence += f" Of {len(ran)} methods, {best.method} has the highest mean AUROC, {percent(best.mean.auroc)}."
    return Verdict("unknown", _TITLES["unknown"], sentence, (), (), ())


def _sentence(
    model: ReportedModel, row: ReportedRow, sides: Sequence[_Side], outcome: Outcome, head: Sequence[_Change]
) -> str:
    samples = model.id_samples.get(row.split)
    same = f"the same {count_text(samples)} ID samples" if samples else "the same ID samples"
    start = f"{row.method} {'chose' if 'tuning' in row.settings else 'uses'} {settings_words(row.settings)}"
    against = f"against {method_label(model.baseline or '')} on {same}"
    parts = listed([side.words for side in sides])
    if outcome == "unknown":
        return f"{start}; there are no figures to compare with the energy."
    word = {"gain": "it gains", "mixed": "it gains and loses", "none": "it gains nothing", "loss": "it loses"}[outcome]
    worse = [change.words for change in head if change.step < 0]
    price = f"; its cost: {listed(worse)}" if worse else ""
    slight = [change.words for change in head if change.step == 0 and change.gain <= -LEAST_CHANGE]
    if slight and not worse:
        price = f"; {listed(slight)}"
    elif head and not worse:
        price = "; the head it scores with is no less accurate" + (
            " and no worse calibrated" if row.after is not None else ""
        )
    return f"{start}: {word} {against}: {parts}{price}."


def settings_source(settings: Mapping[str, object], *, is_tuned: bool = False) -> str:
    """Return what settings were chosen by.

    Args:
        settings: Settings as JSON values; in records of version 0.1 with ``tuning`` among them where they were chosen.
        is_tuned: Whether ratios were chosen on OOD validation data.

    Example:
        >>> settings_source({"members": ["gen", "vim"]})
        'the same for every model: nothing is tuned, and no OOD data are used'
        >>> settings_source({"tuning": {"samples": 2000, "source": "validation", "tried": 85}})
        'chosen without OOD data, by 2000 validation samples, 85 settings tried'
        >>> settings_source({})
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


def _better(changes: Iterable[_Change]) -> tuple[str, ...]:
    return tuple(change.words for change in changes if change.step > 0)


def _worse(changes: Iterable[_Change]) -> tuple[str, ...]:
    return tuple(change.words for change in changes if change.step < 0)


def _equal(changes: Iterable[_Change]) -> tuple[str, ...]:
    return tuple(change.words for change in changes if change.step == 0)


def _change(
    name: str, before: float, after: float, *, sign: Literal[-1, 1], noise: float = 0.0, samples: int = 0
) -> _Change:
    """Return a change; `sign` is 1 where more is better. It counts from a tenth of a per cent and beyond the noise."""
    what, size = share_change(before, after, verbs=_FALLS), abs(after - before)
    if LEAST_CHANGE <= size <= noise:
        what += f" (within the noise of {count_text(samples)} samples)"
    return _Change(name, what, sign * (after - before), size >= LEAST_CHANGE and size > noise)


def _outcome(changes: Sequence[_Change]) -> Outcome:
    if not changes:
        return "unknown"
    is_better, is_worse = any(each.step > 0 for each in changes), any(each.step < 0 for each in changes)
    if is_better:
        return "mixed" if is_worse else "gain"
    return "loss" if is_worse else "none"
