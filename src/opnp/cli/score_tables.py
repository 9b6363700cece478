"""The tables of ``opnp score``: class, score, p-value and verdict of features, or of a model's inputs."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from opnp.cli.model_inputs import RunOptions, model_errors, unreadable_of_all
from opnp.cli.output import progress_bar
from opnp.data import feature_part, open_features
from opnp.detector import OPNP
from opnp.detector.attachment import ModelLink, linked_by_digest
from opnp.detector.blocks import feature_blocks
from opnp.detector.storage import read_detector
from opnp.distributed import Ranks, gathered, require_equal, together
from opnp.errors import EmptyDataError
from opnp.model import BatchHalving

__all__ = ["feature_scores", "input_scores"]

_DTYPES = {"predicted_class": torch.int64, "score": torch.float32, "p_value": torch.float64, "is_ood": torch.bool}
"""Columns of a score file, with the dtype that one has where there is no row."""


def feature_scores(
    detector: OPNP, path: Path, ranks: Ranks, *, is_explained: bool, is_quiet: bool
) -> dict[str, list[object]]:
    """Return the score table of cached features, on every rank."""
    with together(ranks):
        source = open_features(path)
        if source.rows == 0:
            raise EmptyDataError(f"{path} holds no rows: at least one sample is needed.")
    require_equal(f"({source.rows}, {source.width})", ranks, what="features of shape")
    with together(ranks):
        part = feature_part(source, *ranks.part(source.rows))
        blocks = feature_blocks(part, detector.sensitivity.weight, is_part=True)
        bar = progress_bar("scoring", is_quiet=is_quiet)
        own = _columns(detector, blocks if bar is None else bar(blocks), is_explained=is_explained)
    table: dict[str, list[object]] = {"index": [*range(source.rows)]}
    return table | _joined(own, ranks)


def input_scores(
    detector: OPNP, path: Path, run: RunOptions, ranks: Ranks, *, is_explained: bool, is_quiet: bool
) -> tuple[dict[str, list[object]], dict[str, object]]:
    """Return the score table of inputs, and how many of them could not be read, on every rank."""
    with together(ranks):
        opened = run.opened()
        inputs = opened.inputs(run.data, is_labelled=False)
    require_equal(str(len(inputs)), ranks, what="inputs in number")
    start, stop = ranks.part(len(inputs))
    own, index = _columns(detector, [], is_explained=is_explained), torch.empty(0, dtype=torch.int64)
    with together(ranks), model_errors(opened.model, run.data):
        link = replace(_linked(path, opened.model), device=opened.device, halving=BatchHalving(is_on=run.auto_batch))
        bar = progress_bar("scoring", is_quiet=is_quiet)
        batches = opened.batches(inputs, rows=range(start, stop), is_labelled=False)
        place = detector.sensitivity.weight.device
        try:
            with link.feature_batches(batches if bar is None else bar(batches)) as found:
                rows_of = (features.to(place) for features, _ in found)
                own = _columns(detector, rows_of, is_explained=is_explained)
        except EmptyDataError:  # other ranks may have some that can be read
            if ranks.is_alone:
                raise
        readable = inputs.readable
        index = readable[(readable >= start) & (readable < stop)]
    rows: list[int] = torch.cat(gathered(index, ranks)).tolist()
    if not rows:
        raise EmptyDataError(f"{run.data} holds nothing to work on: none of {len(inputs)} inputs could be read.")
    table: dict[str, list[object]] = {"index": [*rows], "name": [inputs.names[row] for row in rows]}
    return table | _joined(own, ranks), {"unreadable": unreadable_of_all(inputs, ranks)}


def _linked(path: Path, model: nn.Module) -> ModelLink:
    """Return the tie between a saved detector and the model that it was fitted on."""
    state = read_detector(path)
    return linked_by_digest(model, weight=state.weight, bias=state.bias, name=state.head_name, axes=state.axes)


def _columns(detector: OPNP, blocks: Iterable[Tensor], *, is_explained: bool) -> dict[str, Tensor]:
    """Return the columns of a score file for blocks of features."""
    dtypes = {name: _DTYPES[name] for name in (_DTYPES if detector.is_calibrated else ("predicted_class", "score"))}
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
    return {name: torch.cat(found) if found else torch.empty(0, dtype=dtypes[name]) for name, found in parts.items()}


def _joined(own: dict[str, Tensor], ranks: Ranks) -> dict[str, list[object]]:
    """Return the columns of all ranks in the order of the rows; None in those that the detector has no values for."""
    columns = {name: torch.cat(gathered(values, ranks)).tolist() for name, values in own.items()}
    rows = len(columns["score"])
    return {name: columns.get(name, [None] * rows) for name in dict.fromkeys((*_DTYPES, *columns))}
