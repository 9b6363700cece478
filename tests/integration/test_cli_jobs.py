"""The command line does the same job as the library."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from opnp import OPNP, PANEL, Ratios, ReAct
from opnp.data import FeatureSet, read_features, read_head, write_features
from tests.in_process import Opnp, Outcome


@dataclass(frozen=True)
class Form:
    """One detector on the command line and in the library."""

    name: str
    options: tuple[str, ...]
    arguments: dict[str, Any]


PAPER = Form(
    "the paper's method",
    (
        *("--rho-w-min", "0.3", "--rho-o-max", "0.1", "--neuron", "aggregate", "--scope", "class"),
        *("--shaping", "react:0.95"),
    ),
    {"ratios": Ratios(w_min=0.3, o_max=0.1), "neuron": "aggregate", "scope": "class", "shaping": ReAct(0.95)},
)
FORMS = (
    PAPER,
    Form("the fusion", (), {}),
    Form("a fusion of two", ("--members", "gen,vim"), {"members": ("gen", "vim")}),
    Form("spaces after commas", ("--members", "norm, opnp"), {"members": ("norm", "opnp")}),
    Form("one ratio", ("--rho-w-min", "0.2"), {"ratios": Ratios(w_min=0.2)}),
    Form("a score", ("--score", "msp", "--temperature", "2"), {"score": "msp", "temperature": 2.0}),
    Form("the plain energy", ("--shaping", "none"), {"ratios": Ratios()}),
    Form("double precision", ("--precision", "float64"), {"precision": "float64"}),
)


def fitted(opnp: Opnp, cached: Path, *options: object) -> Outcome:
    """Fit on the cached features, calibrated at 0.9, into ``detector.safetensors``."""
    return opnp(
        *("fit", "--features", cached / "train.safetensors", "--head", cached / "head.safetensors"),
        *("--validation", cached / "validation.safetensors", "--keep", "0.9"),
        *(*options, "--out", cached / "detector.safetensors"),
    )


@pytest.fixture(params=FORMS, ids=lambda form: form.name)
def form(request: pytest.FixtureRequest) -> Form:
    found: Form = request.param
    return found


def library_detector(cached: Path, form: Form) -> OPNP:
    head = read_head(cached / "head.safetensors")
    detector = OPNP(**form.arguments).fit_features(
        read_features(cached / "train.safetensors").features, weight=head.weight, bias=head.bias
    )
    return detector.calibrate_features(read_features(cached / "validation.safetensors").features, keep=0.9)


def test_fit_writes_the_detector_that_the_library_makes(opnp: Opnp, cached: Path, form: Form) -> None:
    outcome = fitted(opnp, cached, *form.options)
    assert outcome.code == 0, outcome.err
    written, made = OPNP.load(cached / "detector.safetensors"), library_detector(cached, form)
    features = read_features(cached / "test.safetensors").features
    assert (written.settings, written.members) == (made.settings, made.members)
    for left, right in zip(written.verdict_features(features), made.verdict_features(features), strict=True):
        assert torch.equal(left, right)
    for left, right in zip(written.explain_features(features)[1:], made.explain_features(features)[1:], strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_score_writes_the_verdicts_of_the_library(opnp: Opnp, cached: Path, form: Form, ending: str) -> None:
    assert fitted(opnp, cached, *form.options).code == 0
    detector, out = cached / "detector.safetensors", cached / f"scores.{ending}"
    outcome = opnp("score", "--detector", detector, "--features", cached / "test.safetensors", "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    verdict = library_detector(cached, form).verdict_features(read_features(cached / "test.safetensors").features)
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


@pytest.mark.parametrize("options", [("--rho-w-min", "0.1"), ()], ids=["the paper's method", "the fusion"])
def test_an_uncalibrated_detector_scores_and_leaves_verdicts_empty(
    opnp: Opnp, cached: Path, options: tuple[str, ...]
) -> None:
    detector, out = cached / "detector.safetensors", cached / "scores.csv"
    head = cached / "head_without_bias.safetensors"
    outcome = opnp("fit", "--features", cached / "train.safetensors", "--head", head, *options, "--out", detector)
    assert outcome.code == 0
    assert "no p-value and no verdict" in outcome.err
    outcome = opnp("score", "--detector", detector, "--features", cached / "test.safetensors", "--out", out)
    assert outcome.code == 0
    assert "not calibrated" in outcome.err
    with out.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["p_value"], row["is_ood"]) for row in rows} == {("", "")}
    expected = OPNP.load(detector).score_features(read_features(cached / "test.safetensors").features)
    assert [float(row["score"]) for row in rows] == expected.tolist()


def test_inspect_tells_what_was_pruned(opnp: Opnp, cached: Path) -> None:
    assert fitted(opnp, cached, *PAPER.options).code == 0
    detector_file = cached / "detector.safetensors"
    facts = json.loads(opnp("inspect", detector_file, "--json").out)
    made = library_detector(cached, PAPER)
    assert facts["pruned_weights"] == int((~made.masks.weight).sum()) == 5 * round(0.3 * 32)
    assert facts["pruned_neurons"] == 3
    assert facts["threshold"] == made.threshold
    assert facts["weight_sensitivity_mean"] == float(made.sensitivity.weight.mean())
    assert facts["settings"] == made.settings.to_json()
    assert not {"members", "left_out", "tuned"} & set(facts)
    text = opnp("inspect", detector_file)
    assert text.code == 0
    assert "--rho-w-min 0.3" in text.out


def test_inspect_tells_what_is_fused_and_what_is_left_out(opnp: Opnp, cached: Path) -> None:
    outcome = fitted(opnp, cached, "--json")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert (facts["members"], facts["left_out"]) == (list(PANEL), {})
    assert (facts["training_samples"], facts["pruned_weights"]) == (400, 5 * 32 / 2)
    inspected = json.loads(opnp("inspect", cached / "detector.safetensors", "--json").out)
    assert {name: inspected[name] for name in facts if name != "out"} == {
        name: value for name, value in facts.items() if name != "out"
    }
    text = lines(opnp("inspect", cached / "detector.safetensors").out)
    assert text["members"] == ", ".join(PANEL)
    assert text["left_out"] == "none"

    equal = torch.rand(100, 32, generator=torch.Generator().manual_seed(1))[:1] * torch.linspace(1, 2, 400)[:, None]
    write_features(cached / "train.safetensors", equal)
    outcome = fitted(opnp, cached)
    assert outcome.code == 0, outcome.err
    assert "The fusion goes without mahalanobis (" in outcome.err
    made = OPNP.load(cached / "detector.safetensors")
    assert {"mahalanobis", "vim"} <= set(made.left_out)
    facts = json.loads(opnp("inspect", cached / "detector.safetensors", "--json").out)
    assert (facts["members"], facts["left_out"]) == (list(made.members), made.left_out)
    for found in (outcome, opnp("inspect", cached / "detector.safetensors")):
        text = lines(found.out)
        assert text["members"] == ", ".join(made.members)
        assert text["left_out"].startswith(f"mahalanobis: {made.left_out['mahalanobis']}"[:40])


def lines(printed: str) -> dict[str, str]:
    """Return the facts of a printed table by name; of a value over several lines the first."""
    rows = [line.split(maxsplit=1) for line in printed.splitlines() if line[:1].strip()]
    return {row[0]: row[1].strip() if len(row) > 1 else "" for row in rows}


def tuning_sets(cached: Path) -> tuple[FeatureSet, FeatureSet]:
    """Write OOD validation features, and return the ID and the OOD ones."""
    write_features(
        cached / "ood.safetensors", 1.5 * torch.rand(80, 32, generator=torch.Generator().manual_seed(2)) - 0.2
    )
    return read_features(cached / "validation.safetensors"), read_features(cached / "ood.safetensors")


@pytest.mark.parametrize(
    ("options", "arguments"),
    [((), {}), (("--score", "max_logit", "--shaping", "react:0.9"), {"score": "max_logit", "shaping": ReAct(0.9)})],
)
def test_tune_writes_the_detector_that_the_library_tunes(
    opnp: Opnp, cached: Path, options: tuple[str, ...], arguments: dict[str, Any]
) -> None:
    known, ood = tuning_sets(cached)
    given = (
        *("tune", "--features", cached / "train.safetensors", "--head", cached / "head.safetensors", "--keep", "0.9"),
        *("--validation", cached / "validation.safetensors", "--val-ood", cached / "ood.safetensors", *options),
    )
    outcome = opnp(*given, "--json")
    assert outcome.code == 0, outcome.err
    assert not (cached / "tuned.safetensors").exists()
    facts = json.loads(outcome.out)
    assert "out" not in facts

    written = opnp(*given, "--out", cached / "tuned.safetensors", "--json")
    assert written.code == 0, written.err
    assert json.loads(written.out) == facts | {"out": str(cached / "tuned.safetensors")}

    head = read_head(cached / "head.safetensors")
    made = OPNP(ratios="tuned", **arguments).fit_features(
        read_features(cached / "train.safetensors").features,
        weight=head.weight,
        bias=head.bias,
        validation=known.features,
        validation_ood=ood.features,
        keep=0.9,
    )
    tuning, loaded = made.tuning, OPNP.load(cached / "tuned.safetensors")
    assert tuning is not None
    assert loaded.tuning == tuning
    assert loaded.settings == made.settings == tuning.settings
    assert made.settings.ratios != Ratios()
    assert facts["tuned"] == tuning.to_json() | {"gain": tuning.gain}
    assert (facts["tuned"]["searched"], facts["tuned"]["unsearched"]) == ([100, 40], [100, 40])
    assert (facts["calibration_samples"], facts["keep"], facts["threshold"]) == (100, 0.9, made.threshold)
    features = read_features(cached / "test.safetensors").features
    for left, right in zip(loaded.verdict_features(features), made.verdict_features(features), strict=True):
        assert torch.equal(left, right)

    text = opnp(*given)
    assert text.code == 0
    shown = f"{tuning.tried} settings tried; on samples not searched AUROC {100 * tuning.auroc:.2f}, plain energy"
    assert lines(text.out)["tuned"].startswith(shown)
    assert lines(text.out)["settings"].startswith("--rho-")
    inspected = opnp("inspect", cached / "tuned.safetensors")
    assert lines(inspected.out)["tuned"] == lines(text.out)["tuned"]


@pytest.mark.parametrize("options", [("--rho-w-min", "0.2"), ()], ids=["the paper's method", "the fusion"])
def test_the_same_command_writes_the_same_bytes(opnp: Opnp, cached: Path, options: tuple[str, ...]) -> None:
    written = []
    for _ in range(2):
        assert fitted(opnp, cached, *options).code == 0
        written.append((cached / "detector.safetensors").read_bytes())
    assert written[0] == written[1]


def test_version_and_help(opnp: Opnp) -> None:
    assert opnp("--version").out.startswith("opnp 0.")
    helped = opnp("--help")
    assert helped.code == 0
    assert all(command in helped.out for command in ("demo", "fit", "score", "inspect"))
