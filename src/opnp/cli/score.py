"""``opnp score``: a detector's verdict on cached features, one row a sample."""

import warnings
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from opnp.cli.options import DetectorFile, FeaturesFile, JsonFlag, RankTimeout
from opnp.cli.output import print_facts, print_json, progress_bar
from opnp.data import FeatureSource, feature_part, open_features, write_score_table
from opnp.detector import OPNP
from opnp.detector.blocks import feature_blocks
from opnp.distributed import gathered, launched, require_equal, together
from opnp.errors import EmptyDataError, UncalibratedWarning

__all__ = ["score"]

_DTYPES = {"predicted_class": torch.int64, "score": torch.float32, "p_value": torch.float64, "is_ood": torch.bool}
"""Columns of a score file, with the dtype that one has where there is no row."""


def score(
    detector: DetectorFile,
    features: FeaturesFile,
    out: Annotated[Path, typer.Option(help="Score file to write, ending in .csv or .parquet.")],
    rank_timeout: RankTimeout = 1800,
    json: JsonFlag = False,
) -> None:
    """Score cached features, and write index, predicted class, score, p-value and verdict of each sample.

    Larger score = more OOD. A detector that was never calibrated leaves p-value and verdict empty. Several processes
    score together: `torchrun --nproc-per-node 2 -m opnp score ...`; the table is in the order of the rows.
    """
    with launched(timeout=rank_timeout) as ranks:
        with together(ranks):
            loaded, source = OPNP.load(detector), open_features(features)
            if source.rows == 0:
                raise EmptyDataError(f"{features} holds no rows: at least one sample is needed.")
        require_equal(f"({source.rows}, {source.width})", ranks, what="features of shape")
        with together(ranks):
            part = feature_part(source, *ranks.part(source.rows))
            own = _columns(loaded, part, is_quiet=json or not ranks.is_first)
        columns = {name: torch.cat(gathered(values, ranks)) for name, values in own.items()}
        with together(ranks):
            if ranks.is_first:
                _write(out, columns, rows=source.rows)
        if ranks.is_first:
            _tell(loaded, columns, out=out, json=json)


def _columns(detector: OPNP, source: FeatureSource, *, is_quiet: bool) -> dict[str, Tensor]:
    """Return the columns of a score file for the rows of a source."""
    blocks = feature_blocks(source, detector.sensitivity.weight, is_part=True)
    bar = progress_bar("scoring", is_quiet=is_quiet)
    names = list(_DTYPES) if detector.is_calibrated else ["predicted_class", "score"]
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for rows, _ in blocks if bar is None else bar(blocks):
        if detector.is_calibrated:
            found = detector.verdict_features(rows)._asdict()
        else:
            found = {"predicted_class": detector.classify_features(rows), "score": detector.score_features(rows)}
        for name, values in found.items():
            parts[name].append(values)
    return {name: torch.cat(parts[name]) if parts[name] else torch.empty(0, dtype=_DTYPES[name]) for name in names}


def _write(out: Path, columns: dict[str, Tensor], *, rows: int) -> None:
    table: dict[str, list[object]] = {"index": list(range(rows))}
    for name in _DTYPES:
        table[name] = columns[name].tolist() if name in columns else [None] * rows
    write_score_table(out, table)


def _tell(detector: OPNP, columns: dict[str, Tensor], *, out: Path, json: bool) -> None:
    samples = len(columns["score"])
    facts: dict[str, object] = {"samples": samples, "out": str(out)}
    if detector.is_calibrated:
        flagged = int(columns["is_ood"].sum())
        facts |= {"flagged": flagged, "flagged_share": flagged / samples, "keep": detector.keep}
    else:
        warnings.warn(
            "this detector is not calibrated: p_value and is_ood are left empty.", UncalibratedWarning, stacklevel=1
        )
    if json:
        print_json(facts)
    else:
        print_facts(facts)
