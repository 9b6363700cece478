"""The command line does the same job as the library."""

import csv
import json
from pathlib import Path

import pytest
import torch

from opnp import OPNP, Ratios, ReAct
from opnp.data import read_features, read_head
from tests.in_process import Opnp


@pytest.fixture
def detector_file(opnp: Opnp, cached: Path) -> Path:
    out = cached / "detector.safetensors"
    outcome = opnp(
        *("fit", "--features", cached / "train.safetensors", "--head", cached / "head.safetensors"),
        *("--validation", cached / "validation.safetensors", "--rho-w-min", "0.3", "--rho-o-max", "0.1"),
        *("--neuron", "aggregate", "--scope", "class", "--shaping", "react:0.95", "--keep", "0.9", "--out", out),
    )
    assert outcome.code == 0, outcome.err
    return out


def library_detector(cached: Path) -> OPNP:
    head = read_head(cached / "head.safetensors")
    detector = OPNP(
        ratios=Ratios(w_min=0.3, o_max=0.1), neuron="aggregate", scope="class", shaping=ReAct(0.95)
    ).fit_features(read_features(cached / "train.safetensors").features, weight=head.weight, bias=head.bias)
    return detector.calibrate_features(read_features(cached / "validation.safetensors").features, keep=0.9)


def test_fit_writes_the_detector_that_the_library_makes(cached: Path, detector_file: Path) -> None:
    written, made = OPNP.load(detector_file), library_detector(cached)
    features = read_features(cached / "test.safetensors").features
    assert written.settings == made.settings
    for left, right in zip(written.verdict_features(features), made.verdict_features(features), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_score_writes_the_verdicts_of_the_library(opnp: Opnp, cached: Path, detector_file: Path, ending: str) -> None:
    out = cached / f"scores.{ending}"
    outcome = opnp(
        "score", "--detector", detector_file, "--features", cached / "test.safetensors", "--out", out, "--json"
    )
    assert outcome.code == 0, outcome.err
    verdict = library_detector(cached).verdict_features(read_features(cached / "test.safetensors").features)
    if ending == "csv":
        with out.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        table = {name: [row[name] for row in rows] for name in rows[0]}
        assert [float(value) for value in table["score"]] == verdict.score.tolist()
        assert [value == "True" for value in table["is_ood"]] == verdict.is_ood.tolist()
    else:
        from pyarrow import parquet

        table = parquet.read_table(out).to_pydict()
        assert table["score"] == verdict.score.tolist()
        assert table["is_ood"] == verdict.is_ood.tolist()
    assert list(table) == ["index", "predicted_class", "score", "p_value", "is_ood"]
    assert [float(value) for value in table["p_value"]] == verdict.p_value.tolist()
    assert [int(value) for value in table["predicted_class"]] == verdict.predicted_class.tolist()
    facts = json.loads(outcome.out)
    assert (facts["samples"], facts["flagged"]) == (50, int(verdict.is_ood.sum()))


def test_an_uncalibrated_detector_scores_and_leaves_verdicts_empty(opnp: Opnp, cached: Path) -> None:
    detector, out = cached / "detector.safetensors", cached / "scores.csv"
    head = cached / "head_without_bias.safetensors"
    fitted = opnp(
        "fit", "--features", cached / "train.safetensors", "--head", head, "--rho-w-min", "0.1", "--out", detector
    )
    assert fitted.code == 0
    assert "no p-value and no verdict" in fitted.err
    outcome = opnp("score", "--detector", detector, "--features", cached / "test.safetensors", "--out", out)
    assert outcome.code == 0
    assert "not calibrated" in outcome.err
    with out.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["p_value"], row["is_ood"]) for row in rows} == {("", "")}
    expected = OPNP.load(detector).score_features(read_features(cached / "test.safetensors").features)
    assert [float(row["score"]) for row in rows] == expected.tolist()


def test_inspect_tells_what_was_pruned(opnp: Opnp, cached: Path, detector_file: Path) -> None:
    facts = json.loads(opnp("inspect", detector_file, "--json").out)
    made = library_detector(cached)
    assert facts["pruned_weights"] == int((~made.masks.weight).sum()) == 5 * round(0.3 * 32)
    assert facts["pruned_neurons"] == 3
    assert facts["threshold"] == made.threshold
    assert facts["weight_sensitivity_mean"] == float(made.sensitivity.weight.mean())
    assert facts["settings"] == made.settings.to_json()
    text = opnp("inspect", detector_file)
    assert text.code == 0
    assert "--rho-w-min 0.3" in text.out


def test_the_same_command_writes_the_same_bytes(opnp: Opnp, cached: Path) -> None:
    arguments = ("fit", "--features", cached / "train.safetensors", "--head", cached / "head.safetensors")
    for name in ("one", "two"):
        outcome = opnp(
            *arguments,
            *("--validation", cached / "validation.safetensors", "--rho-w-min", "0.2", "--out", cached / name),
        )
        assert outcome.code == 0
    assert (cached / "one").read_bytes() == (cached / "two").read_bytes()


def test_version_and_help(opnp: Opnp) -> None:
    assert opnp("--version").out.startswith("opnp 0.")
    helped = opnp("--help")
    assert helped.code == 0
    assert all(command in helped.out for command in ("demo", "fit", "score", "inspect"))
