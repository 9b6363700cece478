"""The regrets of the record are those that a program of its own comes to, from scores and features alone."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

from opnp.bench.features import read_feature_folder
from opnp.bench.records import write_scores
from studies import independent_regret
from studies.panel import judged
from tests.real.locations import DATA, needs_data

pytestmark = [pytest.mark.real, needs_data]

RECORD = Path(__file__).parents[2] / "docs" / "records" / "panel.json"
QUICK = "mlperf_resnet8_large_cifar10"
MODELS = sorted(json.loads(RECORD.read_text(encoding="utf-8"))["best_single"])


@pytest.mark.parametrize(
    "model", [pytest.param(each, marks=[] if each == QUICK else [pytest.mark.long]) for each in MODELS]
)
@pytest.mark.filterwarnings("ignore::opnp.errors.SignedFeaturesWarning")
def test_the_regrets_are_those_of_the_record(tmp_path: Path, model: str) -> None:
    blocks = judged(read_feature_folder(DATA / "features" / model), splits=1).blocks(model)
    write_scores(tmp_path / "scores.parquet", blocks)
    scores = independent_regret.read(tmp_path / "scores.parquet")
    found = independent_regret.regrets(scores)
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    assert set(found) == {"OPNP()"} | {name for name, row in rows.items() if row["kind"] == "single"}
    assert independent_regret.gap_from_record(found, rows) <= independent_regret.POINTS
    assert independent_regret.gap_from_features(scores, DATA / "features") <= independent_regret.ROUNDING
    found["OPNP()"][model] += 0.01
    scores[model]["MSP"]["test"] = scores[model]["MSP"]["test"] + 0.01
    assert independent_regret.gap_from_record(found, rows) > independent_regret.POINTS
    assert independent_regret.gap_from_features(scores, DATA / "features") > independent_regret.ROUNDING
    found["OPNP()"][model] = scores[model]["MSP"]["test"][0] = np.nan
    assert not independent_regret.gap_from_record(found, rows) <= independent_regret.POINTS
    assert not independent_regret.gap_from_features(scores, DATA / "features") <= independent_regret.ROUNDING


def test_the_program_is_short_and_shares_nothing_with_the_library() -> None:
    text = Path(str(independent_regret.__file__)).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    nodes = list(ast.walk(ast.parse(text)))
    named = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    named |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert named
    assert not [name for name in named if name.startswith(("opnp", "studies", "tests"))]
