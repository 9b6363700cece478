"""What the page shows of each model, in its order: verdict, methods, thresholds, figures, gallery, data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from opnp.report.explorer import Explorer, fit_explorer, keeping_threshold, threshold_explorer
from opnp.report.figures import named_figures
from opnp.report.gallery import Gallery, fitting_galleries, galleries
from opnp.report.panels import Figure
from opnp.report.results import ReportedModel, Results, Scores
from opnp.report.tables import (
    Table,
    data_table,
    fit_table,
    methods_table,
    origins_table,
    published_table,
    regrets_table,
    run_table,
    sets_table,
    sweep_table,
)
from opnp.report.verdict import Verdict, fit_verdict, model_verdict
from opnp.report.wording import count_text, listed, method_label, percent, set_label
from opnp.values.fit import FitRecord
from opnp.values.pictures import ModelPictures
from opnp.values.sweep import SweepRecord, SweptModel

__all__ = ["ModelSection", "PageContent", "page_content", "score_faults"]

_TITLE = "Out-of-distribution report"
_GALLERY_BYTES = 2_000_000


@dataclass(frozen=True, slots=True)
class ModelSection:
    """One model.

    Attributes:
        key: A part of its elements' ids, of letters and digits.
        name: Its name.
        subtitle: What else is known of it.
        verdict: What its rows say, or None where there are none.
        sentence: What is said instead of a verdict; empty where there is one.
        faults: What its scores lack, or where they are not those of its results.
        tables_title: What the tables are about.
        tables: Tables of results; those after the first are folded.
        explorer: What each threshold does, or None where there are no scores.
        figures: Its figures.
        galleries: Its images.
        sources: What it was made with and of; the last, of settings, is folded.

    """

    key: str
    name: str
    subtitle: str
    verdict: Verdict | None
    sentence: str
    faults: tuple[str, ...]
    tables_title: str
    tables: tuple[Table, ...]
    explorer: Explorer | None
    figures: tuple[Figure, ...]
    galleries: tuple[Gallery, ...]
    sources: tuple[Table, ...]

    @property
    def parts(self) -> dict[str, str]:
        """Titles of its parts by the ends of their ids, in their order."""
        there = {
            "verdict": ("Verdict", True),
            "methods": (self.tables_title, bool(self.tables)),
            "thresholds": ("Thresholds", self.explorer is not None),
            "figures": ("Figures", bool(self.other_figures)),
            "gallery": ("Gallery", bool(self.galleries)),
            "data": ("Data", bool(self.sources)),
        }
        return {name: title for name, (title, is_there) in there.items() if is_there}

    @property
    def linked_figures(self) -> tuple[Figure, ...]:
        """The figures that show the threshold, and move with it: they stand under the explorer where there is one."""
        return tuple(figure for figure in self.figures if figure.is_linked and self.explorer is not None)

    @property
    def other_figures(self) -> tuple[Figure, ...]:
        """The other figures."""
        return tuple(figure for figure in self.figures if figure not in self.linked_figures)


@dataclass(frozen=True, slots=True)
class PageContent:
    """All that the page shows.

    Attributes:
        title: Title of the page.
        remark: What a reader must know first; empty for nothing.
        keep: Share of ID kept that thresholds start at.
        figures: Figures of all models.
        regrets: Table of all models, or None of one.
        models: The models.
        facts: What is needed to make the run again.

    """

    title: str
    remark: str
    keep: float
    figures: tuple[Figure, ...]
    regrets: Table | None
    models: tuple[ModelSection, ...]
    facts: Table


def page_content(results: Results, *, keep: float = 0.95) -> PageContent:
    """Return what the page shows of a results folder.

    Args:
        results: Records of a results folder; its scores are read.
        keep: Share of ID to keep at the thresholds that are drawn first, in (0, 1).

    Raises:
        OptionError: If `keep` lies outside (0, 1).
        DataFileError: If a file in the folder cannot be read.
        MissingExtraError: If pyarrow, which Parquet needs, is not installed.

    """
    figures, fit = named_figures(results, keep=keep), results.fit
    fitted = () if fit is None else (fit.model,)
    names = list(dict.fromkeys((*results.model_names, *fitted)))
    pictured = [results.pictures_of(name) for name in names]
    shown = fitting_galleries(
        [() if each is None else galleries(each.gallery) for each in pictured], most_bytes=_GALLERY_BYTES
    )
    models = []
    for number, (name, found, pictures) in enumerate(zip(names, shown, pictured, strict=True), 1):
        own = tuple(figure for figure in figures if figure.model == name)
        section = _section(
            results,
            name,
            fit=fit if name in fitted else None,
            key=f"model{number}",
            figures=own,
            shown=found,
            pictures=pictures,
        )
        models.append(section)
    common = tuple(figure for figure in figures if not figure.model)
    return PageContent(
        title=_TITLE,
        remark="" if results.bench is None else results.bench.remark,
        keep=keep,
        figures=common,
        regrets=regrets_table(results.models),
        models=tuple(models),
        facts=run_table(results, keep=keep),
    )


def _section(
    results: Results,
    name: str,
    *,
    fit: FitRecord | None,
    key: str,
    figures: tuple[Figure, ...],
    shown: tuple[Gallery, ...],
    pictures: ModelPictures | None,
) -> ModelSection:
    model = next((each for each in results.models if each.model == name), None)
    swept = results.swept(name)
    tables: tuple[Table, ...] = () if model is None else (methods_table(model), sets_table(model))
    if model is not None and (published := published_table(model)) is not None:
        tables = (tables[0], published, *tables[1:])
    if results.sweep is not None and swept is not None:
        tables += (sweep_table(results.sweep, swept),)
    verdict, explorer, sentence = None, None, ""
    if model is not None:
        verdict, scores = model_verdict(model), results.scores_to_compare(model)
        if scores:
            explorer = threshold_explorer({method: scores[method] for method in reversed(scores)}, model.nearness)
    elif fit is not None:
        verdict, explorer = fit_verdict(fit), fit_explorer(fit)
    else:
        sentence = _sweep_sentence(results.sweep, swept) if results.sweep and swept else _picture_sentence(pictures)
    sources = (
        None if fit is None else fit_table(fit),
        data_table(results, name),
        None if model is None else origins_table(model),
    )
    return ModelSection(
        key=key,
        name=name,
        subtitle=_subtitle(model, swept or fit),
        verdict=verdict,
        sentence=sentence,
        faults=() if model is None else score_faults(results, model),
        tables_title="Curves" if model is None else "Methods",
        tables=tables,
        explorer=explorer,
        figures=figures,
        galleries=shown,
        sources=tuple(each for each in sources if each is not None),
    )


def _subtitle(model: ReportedModel | None, swept: SweptModel | FitRecord | None) -> str:
    if model is not None and model.title:
        return model.title
    head = model if model is not None and model.classes else swept
    if head is None or not head.classes:
        return ""
    return f"head of {count_text(head.classes)} classes and {count_text(head.features)} features"


def _sweep_sentence(record: SweepRecord, model: SweptModel) -> str:
    ran = [point for point in model.points if point.mean is not None]
    energy = (
        "" if model.energy.mean is None else f"; the plain energy has mean AUROC {percent(model.energy.mean.auroc)}"
    )
    sentence = f"A sweep of {count_text(len(ran))} settings on {len(record.curves)} curves{energy}"
    best = max(ran, key=lambda point: 0.0 if point.mean is None else point.mean.auroc, default=None)
    if best is not None and best.mean is not None:
        varied = ", ".join(f"{key} {value}" for key, value in best.varied.items())
        sentence += (
            f", and the best point {percent(best.mean.auroc)} ({best.curve} at {varied}), known with hindsight only"
        )
    return f"{sentence}."


def _picture_sentence(pictures: ModelPictures | None) -> str:
    if pictures is None:
        return "There are no results of this model."
    weights, neurons = pictures.weights, pictures.neurons
    removed = sum(weights.before) - sum(weights.after)
    hidden = "" if removed else " Whether it shapes the features instead, the pictures do not say."
    return (
        f"{pictures.method} removes {count_text(removed)} of {count_text(sum(weights.before))} weights, whole neurons' "
        f"weights included, and {count_text(neurons.removed_lowest + neurons.removed_highest)} of "
        f"{count_text(neurons.neurons)} neurons.{hidden} What it gains or costs needs results of `opnp bench`."
    )


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
    methods = [row.method for row in (model.chosen, model.baseline) if row is not None]
    scores = {method: results.scores(model.model, method) for method in methods}
    found = {method: by_set for method, by_set in scores.items() if by_set is not None}
    return tuple(_faults(model, methods, found)) if found else ()


def _faults(model: ReportedModel, methods: list[str], scores: Mapping[str, Scores]) -> Iterator[str]:
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
        threshold = keeping_threshold(by_set["test"], 0.95)
        for name, figures in sorted((model.row(method).detection or {}).items()):
            outside = by_set.get(f"ood_{name}")
            if outside is not None and abs(float(np.mean(outside <= threshold)) - figures.fpr95) > 1e-9:
                stale.append(f"{label} on {set_label(name)}")
    if stale:
        yield (
            f"The file of scores is not the one that the results were made of: FPR95 differs for {listed(stale)}. "
            f"Thresholds and figures of scores do not belong to the table."
        )
