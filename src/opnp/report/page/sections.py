"""What the page shows of each model, in its order: verdict, methods, thresholds, figures, gallery, data."""

from dataclasses import dataclass
from itertools import chain

from opnp.report.named_figures import NamedFigure, named_figures, scores_to_compare
from opnp.report.page.explorer import Explorer, threshold_explorer
from opnp.report.page.fits import fit_explorer, fit_facts, fit_verdict
from opnp.report.page.galleries import Gallery, fitting_galleries, galleries
from opnp.report.page.origins import DataRow, Fact, MethodOrigin, data_rows, method_origins, run_facts
from opnp.report.page.tables import Table, methods_table, sets_table, sweep_table
from opnp.report.page.verdict import Verdict, fusion_sentences, model_verdict
from opnp.report.page.wording import count_text
from opnp.report.results import ReportedModel, Results
from opnp.report.score_check import score_faults
from opnp.report.series.wording import percent
from opnp.values.fit import FitRecord
from opnp.values.pictures import ModelPictures
from opnp.values.sweep import SweepRecord, SweptModel

__all__ = ["ModelSection", "PageContent", "page_content"]

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
        fusion: What the fusion and each member lose against the best published single score, a sentence each.
        faults: What its scores lack, or where they are not those of its results.
        tables_title: What the tables are about.
        tables: Tables of results; those after the first are folded.
        explorer: What each threshold does, or None where there are no scores.
        figures: Its figures.
        galleries: Its images.
        facts: What else it was made with.
        data: Its data.
        origins: What each of its rows was run with.

    """

    key: str
    name: str
    subtitle: str
    verdict: Verdict | None
    sentence: str
    fusion: tuple[str, ...]
    faults: tuple[str, ...]
    tables_title: str
    tables: tuple[Table, ...]
    explorer: Explorer | None
    figures: tuple[NamedFigure, ...]
    galleries: tuple[Gallery, ...]
    facts: tuple[Fact, ...]
    data: tuple[DataRow, ...]
    origins: tuple[MethodOrigin, ...]


@dataclass(frozen=True, slots=True)
class PageContent:
    """All that the page shows.

    Attributes:
        title: Title of the page.
        keep: Share of ID kept that thresholds start at.
        models: The models.
        facts: What is needed to make the run again.

    """

    title: str
    keep: float
    models: tuple[ModelSection, ...]
    facts: tuple[Fact, ...]


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
    names = list(dict.fromkeys(chain(_model_names(results), (figure.model for figure in figures), fitted)))
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
    return PageContent(_TITLE, keep, tuple(models), run_facts(results, keep=keep))


def _model_names(results: Results) -> list[str]:
    names = [model.model for model in results.models]
    if results.sweep is not None:
        names += [model.model for model in results.sweep.models]
    if results.pictures is not None and not results.models:
        names += [model.model for model in results.pictures.models]
    return names


def _section(
    results: Results,
    name: str,
    *,
    fit: FitRecord | None,
    key: str,
    figures: tuple[NamedFigure, ...],
    shown: tuple[Gallery, ...],
    pictures: ModelPictures | None,
) -> ModelSection:
    model = next((each for each in results.models if each.model == name), None)
    swept = results.swept(name)
    tables: tuple[Table, ...] = () if model is None else (methods_table(model), sets_table(model))
    if results.sweep is not None and swept is not None:
        tables += (sweep_table(results.sweep, swept),)
    verdict, explorer, sentence = None, None, ""
    if model is not None:
        verdict, explorer = model_verdict(model), _explorer(results, model)
    elif fit is not None:
        verdict, explorer = fit_verdict(fit), fit_explorer(fit)
    else:
        sentence = _sweep_sentence(results.sweep, swept) if results.sweep and swept else _picture_sentence(pictures)
    return ModelSection(
        key=key,
        name=name,
        subtitle=_subtitle(model, swept or fit),
        verdict=verdict,
        sentence=sentence,
        fusion=() if model is None else fusion_sentences(model),
        faults=() if model is None else score_faults(results, model),
        tables_title="Curves" if model is None else "Methods",
        tables=tables,
        explorer=explorer,
        figures=figures,
        galleries=shown,
        facts=() if fit is None else fit_facts(fit),
        data=data_rows(results, name),
        origins=() if model is None else method_origins(model),
    )


def _explorer(results: Results, model: ReportedModel) -> Explorer | None:
    scores = scores_to_compare(results, model)
    if not scores:
        return None
    return threshold_explorer({method: scores[method] for method in reversed(list(scores))}, model.nearness)


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
