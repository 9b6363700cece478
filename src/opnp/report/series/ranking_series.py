"""Methods in the order of how well they do, near and far OOD apart."""

from dataclasses import dataclass

from opnp.report.results import ReportedModel, ReportedRow
from opnp.report.series.wording import percent
from opnp.values.bench import Group

__all__ = ["RankedMethod", "RankingSeries", "ranking_series"]


@dataclass(frozen=True, slots=True)
class RankedMethod:
    """A method.

    Attributes:
        method: Name of the row.
        group: Group of the row.
        role: ``chosen`` for opnp as it is used, ``baseline`` for the energy beside it, ``other``.
        auroc: Mean AUROC over all OOD sets: what methods are ordered by.
        near_auroc: Mean over the near sets, or None if there are none.
        far_auroc: Mean over the far sets, or None if there are none.
        near_fpr95: Mean FPR95, ID positive, over the near sets, or None.
        far_fpr95: The same over the far sets, or None.

    """

    method: str
    group: Group
    role: str
    auroc: float
    near_auroc: float | None
    far_auroc: float | None
    near_fpr95: float | None
    far_fpr95: float | None


@dataclass(frozen=True, slots=True)
class RankingSeries:
    """Methods, the best first.

    Attributes:
        model: Name of the model.
        title: The finding.
        alt: The finding with its numbers, for readers who do not see the figure.
        methods: Those that ran, by mean AUROC, the best first.
        failed: Names of the rows without figures.

    """

    model: str
    title: str
    alt: str
    methods: tuple[RankedMethod, ...]
    failed: tuple[str, ...]


def ranking_series(model: ReportedModel) -> RankingSeries | None:
    """Return the methods of a model in the order of their mean AUROC, or None where none ran."""
    methods = tuple(
        sorted(
            (_ranked(row, model) for row in model.methods if row.mean is not None),
            key=lambda each: (-each.auroc, each.method),
        )
    )
    if not methods:
        return None
    places = [
        f"{each.method} is {place} of {len(methods)}" for place, each in enumerate(methods, 1) if each.role == "chosen"
    ]
    best = f"{methods[0].method} has the highest mean AUROC, {percent(methods[0].auroc)}"
    title = best if methods[0].role == "chosen" or not places else f"{places[0]} by mean AUROC; {best}"
    parts = [f"{place}. {each.method} {percent(each.auroc)}" for place, each in enumerate(methods, 1)]
    return RankingSeries(
        model=model.model,
        title=title,
        alt=f"Methods by mean AUROC over the OOD sets. {title}. {', '.join(parts[:10])}"
        + (f", and {len(parts) - 10} more." if len(parts) > 10 else "."),
        methods=methods,
        failed=tuple(row.method for row in model.methods if row.mean is None),
    )


def _ranked(row: ReportedRow, model: ReportedModel) -> RankedMethod:
    role = {model.chosen: "chosen", model.baseline: "baseline"}.get(row.method, "other")
    return RankedMethod(
        method=row.method,
        group=row.group,
        role=role,
        auroc=0.0 if row.mean is None else row.mean.auroc,
        near_auroc=None if row.near is None else row.near.auroc,
        far_auroc=None if row.far is None else row.far.auroc,
        near_fpr95=None if row.near is None else row.near.fpr95,
        far_fpr95=None if row.far is None else row.far.fpr95,
    )
