"""``opnp score``: a detector's verdict on inputs of a model, or on cached features, one row a sample."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opnp.cli.options import (
    DataPath,
    DetectorFile,
    DetectorOption,
    FeaturesFileOrNone,
    ForceFlag,
    JsonFlag,
    ModelNameOrNone,
    RankTimeout,
    RayAddress,
    RunOptions,
    given_options,
    one_of,
    require_form,
    require_out_file,
)
from opnp.cli.output import print_result, print_table, progress_bar
from opnp.errors import EmptyDataError, NotCalibratedError, OptionError, UncalibratedWarning
from opnp.values.settings import RANK_TIMEOUT

if TYPE_CHECKING:
    from torch import Tensor

    from opnp.cli.running import OpenedModel
    from opnp.detector import OPNP
    from opnp.distributed import Ranks

    Table = dict[str, list[object]]

_SHOWN = 20
"""Rows that are printed where no file is written."""

_COLUMNS = {"predicted_class": "int64", "score": "float32", "p_value": "float64", "is_ood": "bool"}
_CALIBRATION = "calibration_samples"
"""Columns of a score file, with the dtype that one has where there is no row."""


def score(
    detector_file: DetectorFile = None,
    data_path: Annotated[
        Path | None, typer.Argument(metavar="DATA", help="Inputs to score, as --data.", show_default=False)
    ] = None,
    *,
    detector: DetectorOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Score file to write, ending in .csv or .parquet; with --ray, a new folder of Parquet files. Default: "
            "print a table."
        ),
    ] = None,
    features: FeaturesFileOrNone = None,
    data: DataPath = None,
    model: ModelNameOrNone = None,
    options: RunOptions,
    force: ForceFlag = False,
    fdr: Annotated[
        float | None,
        typer.Option(
            help="Add `is_discovery`: inputs of the whole file that are OOD, of which at most this share is ID in "
            "expectation (Benjamini-Hochberg)."
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Add each member's p-value and its share of the score.")
    ] = False,
    ray: RayAddress = None,
    rank_timeout: RankTimeout = RANK_TIMEOUT,
    json: JsonFlag = False,
) -> None:
    """Score inputs of a model or cached features: class, score, p-value and verdict of each sample.

    Larger score = more OOD. A detector that was never calibrated leaves p-value and verdict empty. `is_ood` judges each
    input by itself, `is_discovery` all of them together. With --model the
    table names the inputs, and leaves those out that cannot be read. A detector that was fitted on a model by name
    needs no more than DETECTOR and DATA: it remembers model, weights and how inputs are made. Without --out the most
    OOD of the samples are printed, with --json as `most_ood`. Several processes score together:
    `torchrun --nproc-per-node 2 -m opnp score ...`; the table is in the order of the rows. So do the workers of a
    cluster, with --ray; --data may be Parquet of features there, as --features.
    """
    from opnp.cli.running import OpenedModel
    from opnp.data import write_score_table
    from opnp.detector import OPNP
    from opnp.distributed import launched, together

    file = one_of(detector_file, detector, option="--detector")
    data = data_path if data is None else one_of(data_path, data, option="--data")
    require_form(
        features=features,
        model=model or data,
        inputs="`--data PATH`",
        of_model={"--data": data, **given_options(options)},
    )
    if model is not None and data is None:
        raise OptionError("`--model` needs the inputs to score: give `--data PATH`.")
    if ray is not None:
        _score_with_ray(
            ray,
            file,
            features=features,
            data=data,
            out=out,
            model=model,
            options=options,
            is_explained=explain,
            is_forced=force,
            fdr=fdr,
            is_json=json,
        )
        return
    _require_name(out)
    with launched(device=options.device or "cpu", timeout=rank_timeout) as ranks:
        with together(ranks):
            if ranks.is_first:
                require_out_file(out)
            loaded = OPNP.load(file)
            _require_calibrated(loaded, explain=explain, fdr=fdr)
        is_quiet = json or not ranks.is_first
        facts: dict[str, object] = {}
        if features is not None:
            table = _of_features(loaded, features, ranks, is_explained=explain, is_quiet=is_quiet)
        elif data is not None:
            with together(ranks):
                opened = OpenedModel.of_detector(loaded, file, model, options, is_forced=force)
            table, facts["unreadable"] = _of_inputs(
                loaded, opened, data, ranks, is_explained=explain, is_quiet=is_quiet
            )
        facts |= _add_discoveries(table, fdr, is_quiet=not ranks.is_first)
        with together(ranks):
            if ranks.is_first and out is not None:
                write_score_table(out, table)
        if not ranks.is_first:
            return
    if out is None:
        facts |= _told_most_ood(table, json=json)
    print_result(_summary(loaded, table) | {"out": None if out is None else str(out)} | facts, json=json)


def _score_with_ray(
    address: str,
    file: Path,
    *,
    features: Path | None,
    data: Path | None,
    out: Path | None,
    model: str | None,
    options: RunOptions,
    is_explained: bool,
    is_forced: bool,
    fdr: float | None,
    is_json: bool,
) -> None:
    from opnp.cli.cluster import add_column, score_on_cluster
    from opnp.detector import OPNP

    if out is None:
        raise OptionError("`--ray` writes a folder of Parquet files: give `--out FOLDER`.")
    loaded = OPNP.load(file)
    _require_calibrated(loaded, explain=is_explained, fdr=fdr)
    columns, facts = score_on_cluster(
        loaded,
        file,
        address=address,
        features=features,
        data=data,
        out=out,
        model=model,
        options=options,
        is_explained=is_explained,
        is_forced=is_forced,
        is_quiet=is_json,
    )
    facts |= _add_discoveries(columns, fdr, is_quiet=False)
    if fdr is not None:
        add_column(out, "is_discovery", columns["is_discovery"])
    print_result(_summary(loaded, columns) | {"out": str(out)} | facts, json=is_json)


def _require_name(out: Path | None) -> None:
    """Raise if what shall be written has no name of a score file."""
    from opnp.data import require_score_file

    if out is not None:
        require_score_file(out)


def discoveries(
    p_values: Sequence[object], samples: Sequence[object], *, fdr: float
) -> tuple[list[object], str | None]:
    """Return which rows of a whole score file are discoveries, and a sentence where single ones cannot be.

    Args:
        p_values: Column ``p_value`` of all rows.
        samples: Column ``calibration_samples`` of all rows.
        fdr: Level of the false discovery rate, in (0, 1).

    """
    import torch

    from opnp.core import benjamini_hochberg, discovery_samples, fewest_discoveries

    values = torch.tensor(p_values, dtype=torch.float64, device="cpu")
    counts = {int(str(count)) for count in samples}
    tested, most = len(values), max(counts)
    fewest, note = fewest_discoveries(most, tested=tested, fdr=fdr), None
    if fewest > 1:
        known = f"{most} calibration samples{' of the largest group' if len(counts) > 1 else ''}"
        needed = discovery_samples(1, tested=tested, fdr=fdr)
        shown = f"show {fewest} discoveries or more, never fewer" if fewest <= tested else "can show no discovery"
        note = f"of {tested} inputs at an FDR of {fdr:g}, {known} {shown}; a single one takes {needed} samples."
    return benjamini_hochberg(values, fdr=fdr).tolist(), note


def _add_discoveries(table: "Table", fdr: float | None, *, is_quiet: bool) -> dict[str, object]:
    """Add the column of discoveries to a score table if a level is given, and return what there is to say of it."""
    if fdr is None:
        return {}
    table["is_discovery"], note = discoveries(table["p_value"], table[_CALIBRATION], fdr=fdr)
    if note is not None and not is_quiet:
        typer.echo(f"opnp: {note}", err=True)
    return {"fdr": fdr, "discoveries": sum(map(bool, table["is_discovery"]))}


def _require_calibrated(detector: "OPNP", *, explain: bool, fdr: float | None) -> None:
    """Raise if a level is none, or what is asked for takes a calibrated detector and this one is not."""
    from opnp.core.checks import checked_fraction

    if fdr is not None:
        checked_fraction(fdr, name="--fdr")
    if (explain or fdr is not None) and not detector.is_calibrated:
        option, judged = ("--explain", "members") if explain else ("--fdr", "inputs")
        raise NotCalibratedError(
            f"`{option}` needs a calibrated detector: {judged} are judged by calibration samples. Fit it with "
            f"`--validation`."
        )


def _summary(detector: "OPNP", table: "Mapping[str, Sequence[object]]") -> dict[str, object]:
    """Return how many samples a table holds, and how many of them are flagged."""
    samples = len(table["score"])
    if detector.is_calibrated:
        flagged = sum(map(bool, table["is_ood"]))
        return {"samples": samples, "flagged": flagged, "flagged_share": flagged / samples, "keep": detector.keep}
    warnings.warn(
        "this detector is not calibrated: p_value and is_ood are left empty.", UncalibratedWarning, stacklevel=1
    )
    return {"samples": samples}


def _of_features(detector: "OPNP", path: Path, ranks: "Ranks", *, is_explained: bool, is_quiet: bool) -> "Table":
    """Return the score table of cached features, on every rank."""
    from opnp.data import feature_part, open_features
    from opnp.detector.fit_pass import feature_blocks, shown
    from opnp.distributed import require_equal, together

    with together(ranks):
        source = open_features(path, feature_names=detector.feature_names)
        if source.rows == 0:
            raise EmptyDataError(f"{path} holds no rows: at least one sample is needed.")
    require_equal(f"({source.rows}, {source.width})", ranks, what="features of shape")
    with together(ranks):
        part = feature_part(source, *ranks.part(source.rows))
        blocks = feature_blocks(part, detector.sensitivity.weight, is_part=True, is_inside=False)
        own = answers_of(detector, shown(blocks, progress_bar("scoring", is_quiet=is_quiet)), is_explained=is_explained)
    return score_columns(detector, own, {"index": [*range(source.rows)]}, ranks)


def _of_inputs(
    detector: "OPNP", opened: "OpenedModel", data: Path, ranks: "Ranks", *, is_explained: bool, is_quiet: bool
) -> "tuple[Table, int]":
    """Return the score table of inputs, and how many of them could not be read, on every rank."""
    import torch

    from opnp.cli.running import model_errors, unreadable_of_all
    from opnp.detector.fit_pass import shown
    from opnp.distributed import gathered, require_equal, together

    with together(ranks):
        inputs = opened.inputs(data, is_labelled=False)
    require_equal(str(len(inputs)), ranks, what="inputs in number")
    start, stop = ranks.part(len(inputs))
    own = answers_of(detector, [], is_explained=is_explained)
    index = torch.empty(0, dtype=torch.int64, device="cpu")
    with together(ranks), model_errors(opened.model, data):
        batches = shown(opened.batches(inputs, rows=range(start, stop)), progress_bar("scoring", is_quiet=is_quiet))
        place = detector.sensitivity.weight.device
        try:
            with detector.feature_batches(batches) as found:
                own = answers_of(detector, (rows.to(place) for rows in found), is_explained=is_explained)
        except EmptyDataError:  # other ranks may have some that can be read
            if ranks.is_alone:
                raise
        readable = inputs.readable
        index = readable[(readable >= start) & (readable < stop)]
    rows: list[int] = torch.cat(gathered(index, ranks)).tolist()
    if not rows:
        raise EmptyDataError(f"{data} holds nothing to work on: none of {len(inputs)} inputs could be read.")
    first: Table = {"index": [*rows], "name": [inputs.names[row] for row in rows]}
    return score_columns(detector, own, first, ranks), unreadable_of_all(inputs, ranks)


def answers_of(detector: "OPNP", blocks: "Iterable[Tensor]", *, is_explained: bool) -> "dict[str, Tensor]":
    """Return what a detector answers on blocks of features, by column of a score file."""
    import torch

    names = _COLUMNS if detector.is_calibrated else ("predicted_class", "score")
    dtypes = {name: getattr(torch, _COLUMNS[name]) for name in names}
    if is_explained:
        dtypes |= {f"{what}_{name}": torch.float64 for name in detector.explained for what in ("p_value", "share")}
    parts: dict[str, list[Tensor]] = {name: [] for name in dtypes}
    for rows in blocks:
        if detector.is_calibrated:
            found = detector.verdict_features(rows)._asdict()
        else:
            found = {"predicted_class": detector.classify_features(rows), "score": detector.score_features(rows)}
        if is_explained:
            why = detector.explain_features(rows)
            for place, name in enumerate(why.members):
                found |= {f"p_value_{name}": why.p_value[:, place], f"share_{name}": why.share[:, place]}
        for name, values in found.items():
            parts[name].append(values)
    return {
        name: torch.cat(found) if found else torch.empty(0, dtype=dtypes[name], device="cpu")
        for name, found in parts.items()
    }


def score_columns(detector: "OPNP", answers: "Mapping[str, Tensor]", first: "Table", ranks: "Ranks") -> "Table":
    """Return all columns of a score file: the first ones, and what all ranks answer in the order of the rows.

    Values are None in columns that the detector has none for.
    """
    import torch

    from opnp.distributed import gathered

    columns = {name: torch.cat(gathered(values, ranks)).tolist() for name, values in answers.items()}
    rows = len(columns["score"])
    table = first | {name: columns.get(name, [None] * rows) for name in dict.fromkeys((*_COLUMNS, *columns))}
    return _with_names(_with_calibration(table, detector), detector.class_names)


def _with_calibration(table: "Table", detector: "OPNP") -> "Table":
    """Return a score table with how many calibration samples judged each row, and by class the group that did."""
    labels = table["predicted_class"]
    if not detector.is_calibrated:
        return _after(table, "is_ood", {_CALIBRATION: [None] * len(labels)})
    groups = {label: detector.calibration_group_of(int(str(label))) for label in set(labels)}
    samples, names = ({label: getattr(each, what) for label, each in groups.items()} for what in ("samples", "name"))
    columns: Table = {_CALIBRATION: [*map(samples.__getitem__, labels)]}
    if detector.calibrated_by is not None:
        columns["calibration_group"] = [*map(names.__getitem__, labels)]
    return _after(table, "is_ood", columns)


def _after(table: "Table", name: str, columns: "Table") -> "Table":
    """Return a table with further columns behind one of these names."""
    found: Table = {}
    for column, values in table.items():
        found[column] = values
        found |= columns if column == name else {}
    return found


def _with_names(table: "Table", names: Sequence[str] | None) -> "Table":
    """Return a score table with the name of each class beside its number, where names are known."""
    if names is None:
        return table
    return _after(
        table, "predicted_class", {"class_name": [names[int(str(number))] for number in table["predicted_class"]]}
    )


def _most_ood(table: "Table") -> list[dict[str, object]]:
    """Return the samples with the largest scores, without columns that say nothing."""
    order = sorted(range(len(table["score"])), key=lambda row: float(str(table["score"][row])), reverse=True)
    hidden = "index" if "name" in table else "name"
    shown = [name for name, values in table.items() if name not in (hidden, _CALIBRATION) and values[0] is not None]
    return [{name: table[name][row] for name in shown} for row in order[:_SHOWN]]


def _told_most_ood(table: "Table", *, json: bool) -> dict[str, object]:
    """Print the samples with the largest scores, numbers with four digits; or return them as facts for programs."""
    rows, left = _most_ood(table), len(table["score"]) - _SHOWN
    if json:
        return {"most_ood": [{name: _json(value) for name, value in row.items()} for row in rows]}
    title = "Most OOD first" + (f"; {left} more with smaller scores: --out FILE writes all" if left > 0 else "")
    texts = ([_text(value, name) for name, value in row.items()] for row in rows)
    print_table(title, [name.replace("_", " ") for name in rows[0]], texts)
    return {}


def _json(value: object) -> object:
    """Return a value as JSON has it: a score that is infinite is "inf"."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: object, column: str) -> str:
    if isinstance(value, bool):
        return ("discovery" if value else "-") if column == "is_discovery" else "OOD" if value else "known"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
