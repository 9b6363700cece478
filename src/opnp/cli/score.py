"""``opnp score``: a detector's verdict on inputs of a model, or on cached features, one row a sample."""

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
    explain: Annotated[
        bool, typer.Option("--explain", help="Add each member's p-value and its share of the score.")
    ] = False,
    ray: RayAddress = None,
    rank_timeout: RankTimeout = RANK_TIMEOUT,
    json: JsonFlag = False,
) -> None:
    """Score inputs of a model or cached features: class, score, p-value and verdict of each sample.

    Larger score = more OOD. A detector that was never calibrated leaves p-value and verdict empty. With --model the
    table names the inputs, and leaves those out that cannot be read. A detector that was fitted on a model by name
    needs no more than DETECTOR and DATA: it remembers model, weights and how inputs are made. Without --out the most
    OOD of the samples are printed. Several processes score together:
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
            is_json=json,
        )
        return
    _require_name(out)
    with launched(device=options.device or "cpu", timeout=rank_timeout) as ranks:
        with together(ranks):
            if ranks.is_first:
                require_out_file(out)
            loaded = OPNP.load(file)
            if explain:
                _require_calibrated(loaded)
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
        table = _with_names(table, loaded.origin.class_names if loaded.origin else None)
        with together(ranks):
            if ranks.is_first and out is not None:
                write_score_table(out, table)
        if not ranks.is_first:
            return
    if out is None and not json:
        _print_most_ood(table)
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
    is_json: bool,
) -> None:
    from opnp.cli.cluster import score_on_cluster
    from opnp.detector import OPNP

    if out is None:
        raise OptionError("`--ray` writes a folder of Parquet files: give `--out FOLDER`.")
    loaded = OPNP.load(file)
    if is_explained:
        _require_calibrated(loaded)
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
    print_result(_summary(loaded, columns) | {"out": str(out)} | facts, json=is_json)


def _require_name(out: Path | None) -> None:
    """Raise if what shall be written has no name of a score file."""
    from opnp.data import require_score_file

    if out is not None:
        require_score_file(out)


def _require_calibrated(detector: "OPNP") -> None:
    if not detector.is_calibrated:
        raise NotCalibratedError(
            "`--explain` needs a calibrated detector: members are judged by calibration samples. Fit it with "
            "`--validation`."
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
        source = open_features(path)
        if source.rows == 0:
            raise EmptyDataError(f"{path} holds no rows: at least one sample is needed.")
    require_equal(f"({source.rows}, {source.width})", ranks, what="features of shape")
    with together(ranks):
        part = feature_part(source, *ranks.part(source.rows))
        blocks = feature_blocks(part, detector.sensitivity.weight, is_part=True, is_inside=False)
        own = _columns(detector, shown(blocks, progress_bar("scoring", is_quiet=is_quiet)), is_explained=is_explained)
    return {"index": [*range(source.rows)], **_joined(own, ranks)}


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
    own, index = _columns(detector, [], is_explained=is_explained), torch.empty(0, dtype=torch.int64, device="cpu")
    with together(ranks), model_errors(opened.model, data):
        batches = shown(opened.batches(inputs, rows=range(start, stop)), progress_bar("scoring", is_quiet=is_quiet))
        place = detector.sensitivity.weight.device
        try:
            with detector.feature_batches(batches) as found:
                own = _columns(detector, (rows.to(place) for rows in found), is_explained=is_explained)
        except EmptyDataError:  # other ranks may have some that can be read
            if ranks.is_alone:
                raise
        readable = inputs.readable
        index = readable[(readable >= start) & (readable < stop)]
    rows: list[int] = torch.cat(gathered(index, ranks)).tolist()
    if not rows:
        raise EmptyDataError(f"{data} holds nothing to work on: none of {len(inputs)} inputs could be read.")
    table: Table = {"index": [*rows], "name": [inputs.names[row] for row in rows], **_joined(own, ranks)}
    return table, unreadable_of_all(inputs, ranks)


def _columns(detector: "OPNP", blocks: "Iterable[Tensor]", *, is_explained: bool) -> "dict[str, Tensor]":
    """Return the columns of a score file for blocks of features."""
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


def _joined(own: "dict[str, Tensor]", ranks: "Ranks") -> "Table":
    """Return the columns of all ranks in the order of the rows; None in those that the detector has no values for."""
    import torch

    from opnp.distributed import gathered

    columns = {name: torch.cat(gathered(values, ranks)).tolist() for name, values in own.items()}
    rows = len(columns["score"])
    return {name: columns.get(name, [None] * rows) for name in dict.fromkeys((*_COLUMNS, *columns))}


def _with_names(table: "Table", names: Sequence[str] | None) -> "Table":
    """Return a score table with the name of each class beside its number, where names are known."""
    if names is None:
        return table
    found: Table = {}
    for column, values in table.items():
        found[column] = values
        if column == "predicted_class":
            found["class_name"] = [names[int(str(number))] for number in values]
    return found


def _print_most_ood(table: "Table") -> None:
    """Print the samples with the largest scores, numbers with four digits."""
    order = sorted(range(len(table["score"])), key=lambda row: float(str(table["score"][row])), reverse=True)
    hidden = "index" if "name" in table else "name"
    shown = [name for name, values in table.items() if name != hidden and values[0] is not None]
    left = len(order) - _SHOWN
    title = "Most OOD first" + (f"; {left} more with smaller scores: --out FILE writes all" if left > 0 else "")
    rows = ([_text(table[name][row]) for name in shown] for row in order[:_SHOWN])
    print_table(title, [name.replace("_", " ") for name in shown], rows)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "OOD" if value else "known"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
