"""``opnp score``: a detector's verdict on cached features, one row a sample."""

import warnings
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from opnp.cli.options import DetectorFile, FeaturesFile, JsonFlag
from opnp.cli.output import print_facts, print_json, progress_bar
from opnp.data import read_features, write_score_table
from opnp.detector import OPNP
from opnp.errors import UncalibratedWarning

__all__ = ["score"]

_ROWS = 8192


def score(
    detector: DetectorFile,
    features: FeaturesFile,
    out: Annotated[Path, typer.Option(help="Score file to write, ending in .csv or .parquet.")],
    json: JsonFlag = False,
) -> None:
    """Score cached features, and write index, predicted class, score, p-value and verdict of each sample.

    Larger score = more OOD. A detector that was never calibrated leaves p-value and verdict empty.
    """
    loaded = OPNP.load(detector)
    rows = torch.split(read_features(features).features, _ROWS)
    bar = progress_bar("scoring", is_quiet=json)
    parts = [_columns(loaded, part) for part in (rows if bar is None else bar(rows))]
    table: dict[str, list[object]] = {"index": list(range(sum(len(part["score"]) for part in parts)))}
    table |= {name: [value for part in parts for value in part[name]] for name in parts[0]}
    write_score_table(out, table)
    facts: dict[str, object] = {"samples": len(table["index"]), "out": str(out)}
    if loaded.is_calibrated:
        flagged = sum(map(bool, table["is_ood"]))
        facts |= {"flagged": flagged, "flagged_share": flagged / len(table["index"]), "keep": loaded.keep}
    else:
        warnings.warn(
            "this detector is not calibrated: p_value and is_ood are left empty.", UncalibratedWarning, stacklevel=1
        )
    if json:
        print_json(facts)
    else:
        print_facts(facts)


def _columns(detector: OPNP, features: Tensor) -> dict[str, list[object]]:
    """Return the columns of a score file for some rows."""
    if detector.is_calibrated:
        return {name: values.tolist() for name, values in detector.verdict_features(features)._asdict().items()}
    scores = detector.score_features(features).tolist()
    empty: list[object] = [None] * len(scores)
    classes = detector.classify_features(features).tolist()
    return {"predicted_class": classes, "score": scores, "p_value": empty, "is_ood": empty}
