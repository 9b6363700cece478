"""``--ray`` of ``opnp score`` and ``opnp fit``: ranges of rows as tasks of a cluster, cut where one process cuts them.

Blocks of features and batches of inputs are those of one process, so that answers are the same bits whoever gives them.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import typer
from torch import Tensor

from opnp.adapters.ray import (
    BatchOfArrays,
    cluster,
    cluster_cores,
    feature_batch,
    plain_errors,
    rows_dataset,
    summed,
    worker_device,
)
from opnp.adapters.toolkits import bytes_of, detector_from
from opnp.cli.options import HeadOptions, RunOptions, require_out_folder, warn_unless_held_out
from opnp.cli.running import OpenedModel, model_errors, with_known_order
from opnp.cli.score import answers_of, score_columns
from opnp.data import (
    FeatureSource,
    InputSet,
    feature_names_of,
    feature_part,
    open_features,
    read_head,
    unreadable_summary,
)
from opnp.data.addresses import ImagesAtAddress, opened_place
from opnp.data.parquet import ParquetFeatures, is_parquet, parquet_dataset
from opnp.data.tables import score_table
from opnp.detector import OPNP
from opnp.detector.fit_pass import BATCH_ROWS, feature_blocks
from opnp.distributed import Ranks
from opnp.errors import DataFileError, EmptyDataError, OptionError
from opnp.model import BatchHalving, axes_of, find_head, head_stream
from opnp.values.settings import CalibratedBy

_Options = TypeVar("_Options", bound=RunOptions)

__all__ = ["fit_features", "fit_model", "score_on_cluster"]

_BLOCKS = 8
"""Blocks of features, or batches of inputs, of a task of a fit, at most. Its sums add up alike on every cluster."""
_FEWEST_TASKS = 16
_BLOCKS_SCORED, _TASKS_A_CORE = 16, 8
"""The same of a task that scores, and the tasks of a core, at least: between two it waits a tenth of a second."""
_SHOWN = 5
_SUMMED_UP = ("score", "p_value", "is_ood", "calibration_samples")
"""Columns of a score table that its summary and discoveries come from."""


# ---------------------------------------------------------------------------------------------------------------- score
def score_on_cluster(
    detector: OPNP,
    file: Path,
    *,
    address: str,
    features: Path | None,
    data: Path | None,
    out: Path,
    model: str | None,
    options: RunOptions,
    is_explained: bool,
    is_forced: bool,
    is_quiet: bool,
) -> tuple[dict[str, Any], dict[str, object]]:
    """Write the score table of features or inputs as a folder of Parquet files.

    Returns:
        Columns of the table in the order of its rows, for a summary and discoveries, and facts of inputs alone.

    Raises:
        OpnpError: As one process raises it, or because there is no such cluster.

    """
    options = _of_worker(options)
    place = _address(out)
    _require_empty(place, out)
    content = bytes_of(detector)
    inputs = None
    with cluster(address, is_quiet=is_quiet, device=options.device), plain_errors():
        if features is None and data is not None and is_parquet(_address(data)):
            features, data = data, None
        if features is not None:
            names = detector.feature_names
            source = _source(_address(features), names)
            feature_blocks(
                source, detector.sensitivity.weight, feature_names=names
            )  # raises if they are of another head
            make: Any = partial(
                _FeatureVerdicts, content, _address(features), listing=_listing(source), is_explained=is_explained
            )
            rows, size = source.rows, BATCH_ROWS
        elif data is not None:
            whole = _address(data)
            opened = OpenedModel.of_detector(detector, file, model, _of_driver(options), is_forced=is_forced)
            inputs = _inputs(opened, whole, is_labelled=False)
            make = partial(
                _InputVerdicts,
                content,
                file.absolute(),
                name=model,
                options=options,
                is_forced=is_forced,
                data=whole,
                listing=_listing(inputs),
                is_explained=is_explained,
            )
            rows, size = len(inputs), options.inputs_a_batch
        size = _rows_of_a_task(rows, size, most=_BLOCKS_SCORED, tasks=_TASKS_A_CORE * cluster_cores())
        found = rows_dataset(make, rows, size=size, device=options.device)
        try:
            found.write_parquet(place, write_page_checksum=True)
        except BaseException:  # a part of the rows is no table
            filesystem, folder = opened_place(place)
            filesystem.delete_dir_contents(folder, missing_dir_ok=True)
            raise
    return _read_back(place, inputs, rows)


def _read_back(place: str, inputs: InputSet | None, rows: int) -> tuple[dict[str, Any], dict[str, object]]:
    """Return the columns of a score table that a summary needs, and how many inputs could not be read; tell which.

    Raises:
        DataFileError: If rows are missing that could be read, or are there twice.
        EmptyDataError: If no input can be read.

    """
    found: Any = parquet_dataset(place) if is_parquet(place) else None
    is_empty = found is None or found.count_rows() == 0
    table: Any = None if is_empty else found.to_table(columns=["index", *_SUMMED_UP]).sort_by("index")
    index = np.arange(0) if table is None else table["index"].to_numpy()
    lost = np.flatnonzero(np.bincount(index, minlength=rows)[:rows] == 0)
    if doubled := len(index) + len(lost) - rows:
        raise DataFileError(
            f"{place} holds rows twice ({doubled}): another run wrote there meanwhile. Give `--out` its own folder."
        )
    if any(inputs is None or not _reason(inputs, row) for row in lost.tolist()):
        raise DataFileError(
            f"{place}: {len(lost)} of {rows} rows are missing where this process looks, so that workers wrote to "
            f"disks of their own. Give `--out` a new folder on a disk that all machines share, or an address such as "
            f"s3://bucket/scores."
        )
    if inputs is not None and table is None:
        raise EmptyDataError(f"{inputs.source.path} holds nothing to work on: none of {rows} inputs could be read.")
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in _SUMMED_UP}
    if inputs is None:
        return columns, {}
    if len(lost):
        told = [(inputs.names[row], _reason(inputs, row)) for row in lost[: _SHOWN + 1].tolist()]
        told += [("", "")] * (len(lost) - len(told))
        typer.echo(f"opnp: {inputs.source.path}: {unreadable_summary(told, total=rows)}", err=True)
    return columns, {"unreadable": len(lost)}


def _reason(inputs: InputSet, row: int) -> str:
    """Return why an input cannot be read; nothing of one that can."""
    try:
        inputs.read(row)
    except DataFileError as error:
        return str(error)
    return ""


class _FeatureVerdicts:
    """Verdicts on ranges of cached features, in a worker."""

    def __init__(self, content: bytes, place: str, *, listing: str, is_explained: bool) -> None:
        self.detector, self.is_explained = detector_from(content), is_explained
        self.source = _source(place, self.detector.feature_names)
        _require_listing(self.source, listing, place)

    def __call__(self, start: int, stop: int) -> Iterator[Any]:
        part = feature_part(self.source, start, stop)
        blocks = feature_blocks(part, self.detector.sensitivity.weight, is_inside=False)
        yield _table(self.detector, blocks, {"index": [*range(start, stop)]}, is_explained=self.is_explained)


class _InputVerdicts:
    """Verdicts on ranges of inputs of a model, in a worker."""

    def __init__(
        self,
        content: bytes,
        file: Path,
        *,
        name: str | None,
        options: RunOptions,
        is_forced: bool,
        data: str,
        listing: str,
        is_explained: bool,
    ) -> None:
        self.detector, self.is_explained = detector_from(content), is_explained
        self.opened = OpenedModel.of_detector(self.detector, file, name, options, is_forced=is_forced)
        self.inputs = _inputs(self.opened, data, is_labelled=False)
        _require_listing(self.inputs, listing, data)

    def __call__(self, start: int, stop: int) -> Iterator[Any]:
        # A set of its own: what a pass could not read is left out of the batches of the next one.
        inputs = InputSet(self.inputs.source, self.inputs.transform, is_strict=self.inputs.is_strict)
        place, blocks = self.detector.sensitivity.weight.device, list[Tensor]()
        with model_errors(self.opened.model, inputs.source.path):
            try:
                with self.detector.feature_batches(self.opened.batches(inputs, rows=range(start, stop))) as found:
                    blocks += [rows.to(place) for rows in found]
            except EmptyDataError:  # other ranges may have some that can be read
                return
        readable = inputs.readable
        index = readable[(readable >= start) & (readable < stop)].tolist()
        first = {"index": index, "name": [inputs.names[row] for row in index]}
        yield _table(self.detector, blocks, first, is_explained=self.is_explained)


def _table(detector: OPNP, blocks: Iterable[Tensor], first: dict[str, list[object]], *, is_explained: bool) -> Any:  # noqa: ANN401  # a table of Arrow
    """Return rows of a score file, with the columns of one that one process writes."""
    answers = answers_of(detector, blocks, is_explained=is_explained)
    return score_table(score_columns(detector, answers, first, Ranks()))


def add_column(out: Path, name: str, values: Sequence[object]) -> None:
    """Add a column to a score table that is a folder of Parquet files, one value a row in the order of the rows."""
    from pyarrow import parquet

    filesystem, folder = opened_place(_address(out))
    found = parquet_dataset(folder, filesystem=filesystem)
    order, column = np.sort(found.to_table(columns=["index"])["index"].to_numpy()), np.asarray(values)
    for file in found.files:  # one at a time, each whole or not at all
        table = parquet.read_table(file, filesystem=filesystem, page_checksum_verification=True)
        mine = column[np.searchsorted(order, table["index"].to_numpy())]
        parent, _, own = file.rpartition("/")
        part = f"{parent}/.{own}.part"
        whole = table.append_column(name, [mine])
        try:
            parquet.write_table(whole, part, filesystem=filesystem, write_page_checksum=True)
            filesystem.move(part, file)
        except BaseException:
            with suppress(OSError):  # it may not be there yet
                filesystem.delete_file(part)
            raise


# ------------------------------------------------------------------------------------------------------------------ fit
def fit_features(
    address: str,
    features: Path,
    head: Path,
    detector: OPNP,
    *,
    validation: Path | None,
    keep: float,
    by: CalibratedBy | None,
    is_quiet: bool,
) -> None:
    """Fit a detector on cached features, and calibrate it here on held-out ones."""
    from opnp.core.conformal import flagged_rank

    place, classifier = _address(features), read_head(head)
    warn_unless_held_out(validation, training=features)
    with cluster(address, is_quiet=is_quiet), plain_errors():
        source = _source(place)
        feature_blocks(source, classifier.weight)
        names = feature_names_of(source)
        held_out = None if validation is None else _source(_address(validation), names)
        if held_out is not None:
            flagged_rank(held_out.rows, keep=keep)  # raises if these are too few, before the pass
        size = _rows_of_a_task(source.rows, BATCH_ROWS)
        found = rows_dataset(partial(_TrainingFeatures, place, _listing(source)), source.rows, size=size)
        total = summed(found, classifier.weight, classifier.bias, detector.settings)
    detector.fit_sum(total, feature_names=names)
    if held_out is not None:
        detector.calibrate_features(held_out, keep=keep, by=by)


def fit_model(
    address: str,
    model: str,
    data: Path,
    detector: OPNP,
    *,
    options: HeadOptions,
    validation: Path | None,
    head: str | None,
    keep: float,
    by: CalibratedBy | None,
    is_quiet: bool,
) -> tuple[OpenedModel, InputSet, dict[str, int]]:
    """Fit a detector by a model, and calibrate it here; return the model, its inputs, and how many were unreadable."""
    from opnp.core.conformal import flagged_rank

    options = _of_worker(options)
    whole, logits = _address(data), options.logits_place
    warn_unless_held_out(validation, training=data)
    opened = OpenedModel.of(model, _of_driver(options))
    ordered = partial(with_known_order, opened=opened, head=head, logits=logits)
    training = ordered(_inputs(opened, whole, is_labelled=True))
    held_out = None if validation is None else ordered(opened.inputs(validation))
    if held_out is not None:
        flagged_rank(len(held_out), keep=keep)
    with model_errors(opened.model, data):
        first = training.first_batch()
        inputs = first[0] if isinstance(first, tuple) else first
        layer = find_head(opened.model, inputs, head=head, logits=logits, device=opened.device)
    with cluster(address, is_quiet=is_quiet, device=options.device), plain_errors():
        size = _rows_of_a_task(len(training), options.inputs_a_batch)
        make = partial(_TrainingInputs, model, options, whole, _listing(training), head)
        found = rows_dataset(make, len(training), size=size, device=options.device)
        total = summed(found, layer.weight, layer.bias, detector.settings)
    detector.fit_sum(total, head_name=layer.name, axes=axes_of(inputs))
    detector.attach(opened.model, device=opened.device, auto_batch=options.auto_batch)
    counts = {"data": len(training) - total.seen}
    if counts["data"]:
        typer.echo(f"opnp: {data}: {counts['data']} of {len(training)} inputs could not be read.", err=True)
    if held_out is not None:
        detector.calibrate(opened.batches(held_out), keep=keep, by=by)
        counts["validation"] = len(held_out.reasons)
        if held_out.reasons:
            typer.echo(f"opnp: {validation}: {unreadable_summary(held_out.unreadable, total=len(held_out))}", err=True)
    return opened, training, counts


class _TrainingFeatures:
    """Cached features and their labels by range, in a worker."""

    def __init__(self, place: str, listing: str) -> None:
        self.source = _source(place)
        _require_listing(self.source, listing, place)

    def __call__(self, start: int, stop: int) -> Iterator[BatchOfArrays]:
        for first in range(start, stop, BATCH_ROWS):
            yield feature_batch(*self.source.read(first, min(first + BATCH_ROWS, stop)))


class _TrainingInputs:
    """Features of a model and labels by range, in a worker."""

    def __init__(self, name: str, options: HeadOptions, data: str, listing: str, head: str | None) -> None:
        self.opened, self.options, self.head = OpenedModel.of(name, options), options, head
        inputs = _inputs(self.opened, data, is_labelled=True)
        _require_listing(inputs, listing, data)
        self.inputs = with_known_order(inputs, self.opened, head=head, logits=options.logits_place)

    def __call__(self, start: int, stop: int) -> Iterator[BatchOfArrays]:
        inputs = InputSet(self.inputs.source, self.inputs.transform, is_strict=self.inputs.is_strict)
        with model_errors(self.opened.model, inputs.source.path):
            try:
                stream = head_stream(
                    self.opened.model,
                    self.opened.batches(inputs, rows=range(start, stop)),
                    head=self.head,
                    logits=self.options.logits_place,
                    device=self.opened.device,
                    halving=BatchHalving(is_on=self.options.auto_batch),
                )
                with stream as opened:
                    for features, _, labels in opened.batches:
                        yield feature_batch(features, None if labels is None else labels.cpu())
            except EmptyDataError:  # as above
                return


# --------------------------------------------------------------------------------------------------------------- places
def _address(path: Path) -> str:
    """Return a path as every worker finds it: absolute, or an address, of which a path has lost one of two slashes.

    Example:
        >>> _address(Path("s3://bucket/folder")), _address(Path("file:///data/folder"))
        ('s3://bucket/folder', '/data/folder')

    """
    found = re.fullmatch(r"([a-z][a-z0-9+.-]+):/([^/].*)", str(path), flags=re.DOTALL)
    if found is None:
        return str(path.absolute())
    return f"/{found[2]}" if found[1] == "file" else f"{found[1]}://{found[2]}"


def _inputs(opened: OpenedModel, place: str, *, is_labelled: bool) -> InputSet:
    """Return the inputs of a model at a path that every worker can read, or images at an address, without labels."""
    if "://" not in place:
        return opened.inputs(Path(place), is_labelled=is_labelled)
    return InputSet(ImagesAtAddress.of(place), opened.transform, is_strict=opened.options.strict)


def _source(place: str, names: Sequence[str] | None = None) -> FeatureSource:
    if is_parquet(place):
        return ParquetFeatures(place, feature_names=names)
    if "://" in place:
        raise DataFileError(f"{place} must be a Parquet file, or a folder of such: other files are read from a disk.")
    return open_features(place, feature_names=names)


def _listing(source: FeatureSource | InputSet) -> str:
    """Return the SHA-256 of what gives rows their numbers: names of inputs, or files and how many rows each has."""
    if isinstance(source, InputSet):
        listed = [*source.names]
    else:
        listed = [str(source.rows)]
        if isinstance(source, ParquetFeatures):
            listed += [f"{path}\0{count}" for path, count in source.row_groups]
    return hashlib.sha256("\0".join(listed).encode(errors="surrogatepass")).hexdigest()


def _require_listing(source: FeatureSource | InputSet, expected: str, place: str) -> None:
    """Raise unless a worker numbers the rows as the process that gave it ranges of them."""
    if _listing(source) != expected:
        raise DataFileError(
            f"{place} changed while it was read, or machines see other files there: let nothing write to it, and start "
            f"again."
        )


def _of_worker(options: _Options) -> _Options:
    """Return the options of a worker, which reads its inputs itself where nobody says otherwise, and sees one GPU."""
    return replace(options, workers=options.workers or 0, device=worker_device(options.device))


def _of_driver(options: _Options) -> _Options:
    """Return the options of this process, which may have no such device, or need it for a worker."""
    return replace(options, device=None)


def _rows_of_a_task(rows: int, block: int, *, most: int = _BLOCKS, tasks: int = _FEWEST_TASKS) -> int:
    """Return rows that are whole blocks, so that no block is cut; of few rows a task has few."""
    blocks = -(-rows // block)
    return block * max(1, min(most, -(-blocks // tasks)))


def _require_empty(place: str, out: Path) -> None:
    """Raise unless a folder to write is new or empty: files of another run in it would be read as rows of this one."""
    from pyarrow import fs

    if "://" not in place:
        require_out_folder(out)
    filesystem, folder = opened_place(place)
    if filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
        raise OptionError(f"`--out` must be a new or an empty folder with `--ray`, and {place} holds files.")
