"""On cached features the command line does the same job as the library: fit, score, inspect and tune."""

import csv
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from opnp import OPNP, PANEL, Ratios, ReAct
from opnp.cli.score import discoveries
from opnp.core import benjamini_hochberg, fewest_discoveries
from opnp.data import FeatureShardWriter, read_features, read_head, write_features
from tests.in_process import Opnp, Outcome, done, refused
from tests.integration.cli_world import write_cached


@dataclass(frozen=True)
class Form:
    """One detector on the command line and in the library."""

    options: str
    arguments: dict[str, Any]


PAPER = Form(
    "--rho-w-min 0.3 --rho-o-max 0.1 --neuron aggregate --scope class --shaping react:0.95",
    {"ratios": Ratios(w_min=0.3, o_max=0.1), "neuron": "aggregate", "scope": "class", "shaping": ReAct(0.95)},
)
FUSION = Form("", {})
FORMS = (
    PAPER,
    FUSION,
    Form("--members gen,vim", {"members": ("gen", "vim")}),
    Form("--rho-w-min 0.2", {"ratios": Ratios(w_min=0.2)}),
    Form("--score msp --temperature 2", {"score": "msp", "temperature": 2.0}),
    Form("--shaping none", {"ratios": Ratios()}),
    Form("--precision float64", {"precision": "float64"}),
)
KINDS = pytest.mark.parametrize("form", [PAPER, FUSION], ids=["the paper's method", "the fusion"])
TRAIN = "fit --features train.safetensors --head head.safetensors --out d.st"
KNOWN = f"{TRAIN} --validation validation.safetensors --keep 0.9"
SCORE = "score --detector d.st --features test.safetensors --out"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with features and a head, where training and test features are in shards as well."""
    monkeypatch.chdir(write_cached(tmp_path))
    for name in ("train", "test"):
        found = read_features(tmp_path / f"{name}.safetensors")
        with FeatureShardWriter(tmp_path / name, rows_per_shard=70, dtype=torch.float32) as writer:
            writer.write(found.features, found.labels)
    return tmp_path


def features_of(name: str) -> torch.Tensor:
    return read_features(f"{name}.safetensors").features


def library_detector(form: Form) -> OPNP:
    head = read_head("head.safetensors")
    detector = OPNP(**form.arguments).fit_features(features_of("train"), weight=head.weight, bias=head.bias)
    return detector.calibrate_features(features_of("validation"), keep=0.9)


def rows_of(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def shown(outcome: Outcome) -> dict[str, str]:
    """Return the facts of a printed table by name; of a value over several lines the first."""
    rows = [line.split(maxsplit=1) for line in outcome.out.splitlines() if line[:1].strip()]
    return {row[0]: row[1].strip() if len(row) > 1 else "" for row in rows}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.options or "the fusion")
def test_fit_and_score_are_those_of_the_library(opnp: Opnp, form: Form) -> None:
    done(opnp, *KNOWN.split(), *form.options.split())
    written, made = OPNP.load("d.st"), library_detector(form)
    features = features_of("test")
    assert (written.settings, written.members) == (made.settings, made.members)
    verdict, why = made.verdict_features(features), made.explain_features(features)
    for left, right in zip(written.explain_features(features)[1:], why[1:], strict=True):
        assert torch.equal(left, right)
    facts = json.loads(done(opnp, *SCORE.split(), "s.csv", "--json").out)
    assert (facts["samples"], facts["flagged"]) == (50, int(verdict.is_ood.sum()))
    rows = rows_of("s.csv")
    assert list(rows[0]) == ["index", "predicted_class", "score", "p_value", "is_ood", "calibration_samples"]
    assert [int(row["predicted_class"]) for row in rows] == verdict.predicted_class.tolist()
    assert [float(row["score"]) for row in rows] == verdict.score.tolist()
    assert [float(row["p_value"]) for row in rows] == verdict.p_value.tolist()
    assert [row["is_ood"] for row in rows] == [str(each) for each in verdict.is_ood.tolist()]


def test_members_may_have_spaces_and_parquet_holds_the_same(opnp: Opnp) -> None:
    from pyarrow import parquet

    done(opnp, *KNOWN.split(), "--members", "norm, opnp")
    assert OPNP.load("d.st").members == ("norm", "opnp")
    for name in ("s.csv", "s.parquet"):
        done(opnp, *SCORE.split(), name, "--explain")
    table, rows = parquet.read_table("s.parquet").to_pydict(), rows_of("s.csv")
    assert {"p_value_norm", "share_opnp"} < set(table)
    assert {name: [str(each) for each in column] for name, column in table.items()} == {
        name: [row[name] for row in rows] for name in rows[0]
    }


@pytest.mark.parametrize("validation", ["train.safetensors", "copy.safetensors", "train"])
def test_training_samples_are_no_held_out_samples(opnp: Opnp, validation: str) -> None:
    shutil.copy("train.safetensors", "copy.safetensors")
    given = KNOWN.replace("validation.safetensors", validation)
    if validation == "train":
        given = given.replace("train.safetensors", "train")
    told = done(opnp, *given.split(), "--rho-w-min", "0.3").err
    assert f"`--validation` holds the training samples ({validation})" in " ".join(told.split())
    assert "holds the training samples" not in done(opnp, *KNOWN.split(), "--rho-w-min", "0.3").err


@KINDS
def test_an_uncalibrated_detector_scores_and_leaves_verdicts_empty(opnp: Opnp, form: Form) -> None:
    given = TRAIN.replace("head.st", "head_without_bias.st")
    assert "no p-value and no verdict" in done(opnp, *given.split(), *form.options.split()).err
    assert "not calibrated" in done(opnp, *SCORE.split(), "s.csv").err
    rows = rows_of("s.csv")
    assert {(row["p_value"], row["is_ood"]) for row in rows} == {("", "")}
    assert [float(row["score"]) for row in rows] == OPNP.load("d.st").score_features(features_of("test")).tolist()


@KINDS
def test_files_shards_and_checkpoints_give_the_same_bytes(opnp: Opnp, form: Form) -> None:
    written, tables = set(), set()
    kept = ("--checkpoint", "fit.checkpoint", "--checkpoint-every", 2)
    for train, options in (("train", ()), ("train.safetensors", ()), ("train", kept), ("train", ())):
        done(opnp, *KNOWN.replace("train.safetensors", train).split(), *form.options.split(), *options)
        written.add(Path("d.st").read_bytes())
        for test in ("test", "test.safetensors"):
            done(opnp, *SCORE.replace("test.safetensors", test).split(), "s.csv")
            tables.add(Path("s.csv").read_bytes())
    assert (len(written), len(tables)) == (1, 1)
    assert not Path("fit.checkpoint").exists()


@pytest.mark.parametrize(("options", "others"), [("--rho-w-min 0.3", "--temperature 2"), ("", "--members gen,vim")])
def test_a_checkpoint_stays_where_the_detector_could_not_be_written(
    opnp: Opnp, monkeypatch: pytest.MonkeyPatch, options: str, others: str
) -> None:
    def full(_detector: OPNP, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    given = f"{TRAIN} --batch-size 16 --checkpoint fit.checkpoint --checkpoint-every 2"
    with monkeypatch.context() as patch:
        patch.setattr(OPNP, "save", full)
        assert "No space left on device" in refused(opnp, *given.split(), *options.split())
    assert Path("fit.checkpoint").exists()
    other = refused(opnp, *given.split(), *options.split(), *others.split())
    assert "is a checkpoint of another run (settings: " in other
    done(opnp, *given.split(), *options.split())
    assert not Path("fit.checkpoint").exists()
    assert OPNP.load("d.st").samples == 400


def test_inspect_tells_what_was_pruned(opnp: Opnp) -> None:
    done(opnp, *KNOWN.split(), *PAPER.options.split())
    facts, made = json.loads(done(opnp, "inspect", "d.st", "--json").out), library_detector(PAPER)
    assert facts["pruned_weights"] == int((~made.masks.weight).sum()) == 5 * round(0.3 * 32)
    assert facts["pruned_neurons"] == 3
    assert facts["threshold"] == made.threshold
    assert facts["weight_sensitivity_mean"] == float(made.sensitivity.weight.mean())
    assert facts["settings"] == made.settings.to_json()
    assert not {"members", "left_out", "tuned"} & set(facts)
    assert "--rho-w-min 0.3" in done(opnp, "inspect", "d.st").out


@pytest.mark.parametrize("is_equal", [False, True])
def test_inspect_tells_what_is_fused_and_what_is_left_out(opnp: Opnp, is_equal: bool) -> None:
    if is_equal:  # features that are multiples of each other leave Mahalanobis and ViM nothing to see
        write_features("train.safetensors", torch.rand(1, 32) * torch.linspace(1, 2, 400)[:, None])
    outcome = done(opnp, *TRAIN.split(), "--json")
    fitted, made = json.loads(outcome.out), OPNP.load("d.st")
    fitted.pop("id_accuracy", None)  # of this pass, and not stored
    assert ("The fusion goes without mahalanobis (" in outcome.err) == is_equal
    assert ({"mahalanobis", "vim"} <= set(made.left_out)) == is_equal
    assert made.members == tuple(name for name in PANEL if name not in made.left_out)
    assert (fitted["members"], fitted["left_out"]) == (list(made.members), made.left_out)
    inspected = json.loads(done(opnp, "inspect", "d.st", "--json").out)
    assert {**inspected, "out": "d.st"} == {**inspected, **fitted}
    text = shown(done(opnp, "inspect", "d.st"))
    assert text["members"] == ", ".join(made.members)
    left_out = "none" if not is_equal else f"mahalanobis: {made.left_out['mahalanobis']}"[:40]
    assert text["left_out"].startswith(left_out)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [("", {}), ("--score max_logit --shaping react:0.9", {"score": "max_logit", "shaping": ReAct(0.9)})],
)
def test_tune_writes_the_detector_that_the_library_tunes(opnp: Opnp, options: str, arguments: dict[str, Any]) -> None:
    write_features("ood.safetensors", 1.5 * torch.rand(80, 32, generator=torch.Generator().manual_seed(2)) - 0.2)
    sets = "--validation validation.safetensors --val-ood ood.safetensors"
    given = f"tune --features train --head head.safetensors {sets} --keep 0.9 {options}".split()
    facts = json.loads(done(opnp, *given, "--json").out)
    assert not Path("tuned.st").exists()
    assert json.loads(done(opnp, *given, "--out", "tuned.st", "--json").out) == facts | {"out": "tuned.st"}

    head = read_head("head.safetensors")
    made = OPNP(ratios="tuned", **arguments).fit_features(
        features_of("train"),
        weight=head.weight,
        bias=head.bias,
        validation=features_of("validation"),
        validation_ood=features_of("ood"),
        keep=0.9,
    )
    tuning, loaded = made.tuning, OPNP.load("tuned.st")
    assert tuning is not None
    assert loaded.tuning == tuning
    assert loaded.settings == made.settings == tuning.settings
    assert made.settings.ratios != Ratios()
    assert facts["tuned"] == json.loads(json.dumps(tuning.to_json())) | {"gain": tuning.gain}
    assert (facts["tuned"]["searched"], facts["tuned"]["unsearched"]) == ([100, 40], [100, 40])
    assert (facts["calibration_samples"], facts["keep"], facts["threshold"]) == (100, 0.9, made.threshold)
    for left, right in zip(*(each.verdict_features(features_of("test")) for each in (loaded, made)), strict=True):
        assert torch.equal(left, right)
    text = shown(done(opnp, *given))
    said = f"{tuning.tried} settings tried; on samples not searched AUROC {100 * tuning.auroc:.2f}, plain energy"
    assert text["tuned"].startswith(said)
    assert text["settings"].startswith("--rho-")
    assert shown(done(opnp, "inspect", "tuned.st"))["tuned"] == text["tuned"]


def test_people_get_four_digits_and_programs_all_of_them(opnp: Opnp) -> None:
    done(opnp, *KNOWN.split())
    threshold = OPNP.load("d.st").threshold
    printed = done(opnp, "inspect", "d.st").out
    assert re.search(rf"^threshold +{re.escape(f'{threshold:.4g}')} *$", printed, flags=re.MULTILINE)
    assert json.loads(done(opnp, "inspect", "d.st", "--json").out)["threshold"] == threshold
    assert "None" not in done(opnp, *["score", "d.st", "--features", "test.safetensors"]).out


@pytest.mark.parametrize("options", ["--explain", ""])
def test_programs_get_the_most_ood_rows_that_people_are_shown(opnp: Opnp, options: str) -> None:
    features = torch.cat([features_of("test"), torch.full((1, 32), 1e30)])
    write_features("odd.safetensors", features)
    done(opnp, *(KNOWN if options else TRAIN).split(), "--members", "gen,norm")
    given = f"score d.st --features odd.safetensors {options}".split()
    facts = json.loads(done(opnp, *given, "--json").out)
    made = OPNP.load("d.st").score_features(features)
    order = made.argsort(descending=True, stable=True)[:20].tolist()
    assert [row["index"] for row in facts["most_ood"]] == order
    assert [float(row["score"]) for row in facts["most_ood"]] == made[order].tolist()
    assert facts["most_ood"][0]["index"] == 50
    printed = done(opnp, *given).out
    assert [int(row) for row in re.findall(r"^. +(\d+) .", printed, flags=re.MULTILINE)] == order
    assert ("share_norm" in facts["most_ood"][0]) is bool(options)
    assert ("p_value" in facts["most_ood"][0]) is bool(options)
    assert "most_ood" not in json.loads(done(opnp, *given, "--out", "s.csv", "--json").out)


# ------------------------------------------------------------------------------------------------- verdicts of batches
@KINDS
def test_calibration_by_class_is_that_of_the_library(opnp: Opnp, form: Form) -> None:
    facts = json.loads(done(opnp, *KNOWN.split(), *form.options.split(), "--calibrate-by", "predicted", "--json").out)
    made = library_detector(form).calibrate_features(features_of("validation"), keep=0.9, by="predicted")
    groups = [
        {"name": group.name, "classes": list(group.classes), "samples": group.samples, "threshold": group.threshold}
        for group in made.calibration_groups
    ]
    assert (facts["calibrated_by"], facts["calibration_groups"]) == ("predicted", groups)
    assert "threshold" not in facts
    assert json.loads(done(opnp, "inspect", "d.st", "--json").out)["calibration_groups"] == groups
    assert shown(done(opnp, "inspect", "d.st"))["calibrated_by"] == "predicted class"
    verdict = made.verdict_features(features_of("test"))
    done(opnp, *SCORE.split(), "s.csv")
    rows = rows_of("s.csv")
    assert [float(row["p_value"]) for row in rows] == verdict.p_value.tolist()
    judging = [made.calibration_group_of(label) for label in verdict.predicted_class.tolist()]
    assert [row["calibration_group"] for row in rows] == [group.name for group in judging]
    assert [int(row["calibration_samples"]) for row in rows] == [group.samples for group in judging]


def test_calibration_by_class_needs_held_out_samples(opnp: Opnp) -> None:
    assert "give them with `--validation`" in refused(opnp, *TRAIN.split(), "--calibrate-by", "predicted")


def test_discoveries_are_those_of_the_whole_file(opnp: Opnp) -> None:
    done(opnp, *KNOWN.split())
    made, features = library_detector(FUSION), features_of("test")
    wanted = benjamini_hochberg(made.p_value_features(features), fdr=0.05)
    outcome = done(opnp, *SCORE.split(), "s.csv", "--fdr", 0.05, "--json")
    facts = json.loads(outcome.out)
    assert (facts["fdr"], facts["discoveries"]) == (0.05, int(wanted.sum()))
    assert [row["is_discovery"] for row in rows_of("s.csv")] == [str(each) for each in wanted.tolist()]
    samples = len(made.calibration_scores)
    fewest = fewest_discoveries(samples, tested=50, fdr=0.05)
    assert fewest > 1
    assert outcome.err == (
        f"opnp: of 50 inputs at an FDR of 0.05, {samples} calibration samples show {fewest} discoveries or more, never "
        f"fewer; a single one takes 999 samples.\n"
    )
    assert "can show no discovery" in done(opnp, *SCORE.split()[:-1], "--fdr", 0.001).err


def test_the_columns_of_a_file_are_enough_for_its_discoveries() -> None:
    found, note = discoveries([1 / 200] * 30 + [0.5] * 70, [199] * 100, fdr=0.1)
    assert found == [True] * 30 + [False] * 70
    assert note is not None
    assert note.startswith("of 100 inputs at an FDR of 0.1, 199 calibration samples show 5 discoveries or more")
    assert discoveries([0.001, 0.9], [999, 30], fdr=0.1) == ([True, False], None)
    assert "60 calibration samples of the largest group can show no" in str(
        discoveries([0.9] * 9, [60, *[30] * 8], fdr=0.001)[1]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--fdr 1.5", "`--fdr` must be a fraction in (0, 1), got 1.5"),
        ("--fdr 5", "written as fractions: 0.05"),
        ("--fdr 0.1", "`--fdr` needs a calibrated detector: inputs are judged by calibration samples"),
    ],
)
def test_discoveries_need_a_level_and_a_calibration(opnp: Opnp, options: str, message: str) -> None:
    done(opnp, *TRAIN.split())
    assert message in refused(opnp, *SCORE.split(), "s.csv", *options.split())
    assert not Path("s.csv").exists()
