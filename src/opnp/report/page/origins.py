"""What is needed to make a run again: versions, seeds, data with their digests, settings of every row."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from opnp.report.page.wording import count_text
from opnp.report.results import ReportedModel, Results
from opnp.report.series.wording import brief_percent, ratio_text

__all__ = ["DataRow", "Fact", "MethodOrigin", "data_rows", "facts_of_values", "method_origins", "run_facts"]

_MOST_LETTERS = 400


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact: its name, and its value as text."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class DataRow:
    """A data set.

    Attributes:
        name: Its name.
        nearness: ``near`` or ``far``; empty for data that are not OOD.
        samples: How many there are, as text.
        sha256: Digest of its file; empty where the record has none.

    """

    name: str
    nearness: str
    samples: str
    sha256: str


@dataclass(frozen=True, slots=True)
class MethodOrigin:
    """A row of the table of methods with what it was run with.

    Attributes:
        method: Its name.
        source: Package that computed it.
        citation: Where the settings come from; empty where the record does not say.
        settings: Its settings as JSON.
        notes: Warnings that were issued.

    """

    method: str
    source: str
    citation: str
    settings: str
    notes: tuple[str, ...]


def run_facts(results: Results, *, keep: float) -> tuple[Fact, ...]:
    """Return seeds, versions and options of a run, and of this report.

    Args:
        results: Records of a results folder.
        keep: Share of ID kept at the thresholds that figures draw.

    """
    return tuple(_run_facts(results, keep))


def data_rows(results: Results, name: str) -> tuple[DataRow, ...]:
    """Return the data of a model, from the benchmark, the sweep or the demo."""
    models = (*results.models, results.swept(name))
    model = next((each for each in models if each is not None and each.model == name), None)
    if model is None:
        return ()
    return tuple(
        DataRow(each, model.nearness.get(each.removeprefix("ood_"), ""), count_text(source.samples), source.sha256)
        for each, source in model.data.items()
    )


def method_origins(model: ReportedModel) -> tuple[MethodOrigin, ...]:
    """Return what every row of a model was run with."""
    return tuple(
        MethodOrigin(
            method=row.method,
            source=row.source,
            citation=row.citation,
            settings=json.dumps(row.settings, sort_keys=True, ensure_ascii=False),
            notes=row.notes,
        )
        for row in model.methods
    )


def facts_of_values(values: Mapping[str, object], prefix: str = "") -> Iterator[Fact]:
    """Return JSON values as facts, one for each that is no list or mapping; long texts and lists are counted.

    Example:
        >>> [(fact.name, fact.value) for fact in facts_of_values({"keep": 0.95, "counts": {"train": 7}, "x": [1, 2]})]
        [('keep', '0.95'), ('counts: train', '7'), ('x', '2 values')]

    """
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from facts_of_values(value, f"{name}: ")
        elif isinstance(value, list | tuple):
            yield Fact(name, f"{len(value)} values")
        else:
            text = "none" if value is None else str(value)
            yield Fact(name, text if len(text) <= _MOST_LETTERS else f"{len(text)} letters")


def _run_facts(results: Results, keep: float) -> Iterator[Fact]:
    if (bench := results.bench) is not None:
        yield Fact("seed", str(bench.seed))
        yield Fact("bins of calibration errors", str(bench.calibration_bins))
    if (demo := results.demo) is not None:
        yield Fact("seed", str(demo.seed))
        yield Fact("share of ID that thresholds are calibrated to keep", brief_percent(demo.keep))
    if (sweep := results.sweep) is not None:
        yield Fact("seed of the sweep", str(sweep.seed))
        base = sweep.base
        ratios = (base.w_min, base.w_max, base.o_min, base.o_max)
        yield Fact(
            "base of the sweep",
            f"rho_w_min, rho_w_max, rho_o_min, rho_o_max = {', '.join(map(ratio_text, ratios))}; "
            f"scope {base.scope}, neuron {base.neuron}",
        )
    yield Fact("share of ID kept at the thresholds of figures", brief_percent(keep))
    records = (results.bench, results.demo, results.sweep, results.fit)
    versions = _merged(record.versions for record in records if record is not None)
    for package, version in sorted(versions.items()):
        yield Fact(f"{package} version", version)


def _merged(versions: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return versions by package; those that differ between records stand beside each other."""
    found: dict[str, list[str]] = {}
    for each in versions:
        for package, version in each.items():
            known = found.setdefault(package, [])
            if version not in known:
                known.append(version)
    return {package: ", ".join(known) for package, known in found.items()}
