"""What goes wrong on the command line ends in one message and exit code 2, never in a traceback."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from opnp import MEMBERS
from opnp.data import write_features
from tests.in_process import Opnp


def refused(opnp: Opnp, *arguments: object) -> str:
    """Return the message of a run that must fail with exit code 2 and nothing but a message."""
    outcome = opnp(*arguments)
    assert outcome.code == 2, (outcome.out, outcome.err)
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith("opnp: ")
    return outcome.err


def fit_arguments(cached: Path, **changes: object) -> list[object]:
    values: dict[str, object] = {
        "features": cached / "train.safetensors",
        "head": cached / "head.safetensors",
        "rho-w-min": 0.1,
        "out": cached / "detector.safetensors",
    }
    values |= {name.replace("_", "-"): value for name, value in changes.items()}
    return ["fit", *(text for name, value in values.items() for text in (f"--{name}", value))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": "missing.safetensors"}, "missing.safetensors does not exist"),
        ({"features": "."}, "is a folder"),
        ({"rho_w_min": 1.5}, r"`w_min` must be a fraction in [0, 1), got 1.5. Percentages are written"),
        ({"rho_w_min": 0.6, "rho_w_max": 0.4}, "at least one entry must be left"),
        ({"temperature": 0}, "`temperature` must be a positive finite number"),
        ({"shaping": "ash:0.9"}, "`--shaping` must be none, react:Q"),
        ({"shaping": "react:9"}, "`ReAct.quantile` must be a fraction"),
        ({"members": "gen,vim"}, "`members` choose scores to fuse, and `ratios` belongs to the pruned head alone"),
        ({"out": "missing/detector.safetensors"}, "missing is no folder"),
    ],
)
def test_fit_refuses(opnp: Opnp, cached: Path, changes: dict[str, object], message: str) -> None:
    assert message in refused(opnp, *fit_arguments(cached, **changes))
    assert not (cached / "detector.safetensors").exists()


@pytest.mark.parametrize("members", ["gen,cim", "gen,gen", "", "gen,"])
def test_fit_names_the_members_that_there_are(opnp: Opnp, cached: Path, members: str) -> None:
    given = ("--features", cached / "train.safetensors", "--head", cached / "head.safetensors")
    message = refused(opnp, "fit", *given, "--members", members, "--out", cached / "detector.safetensors")
    assert "`members` must be one or more different names among gen, energy, react, scale, " in message
    assert all(name in message for name in MEMBERS)
    assert all(repr(name) in message for name in members.split(","))
    assert not (cached / "detector.safetensors").exists()


def test_tune_says_how_many_samples_it_needs(opnp: Opnp, cached: Path) -> None:
    given = ("--features", cached / "train.safetensors", "--head", cached / "head.safetensors")
    write_features(cached / "few.safetensors", torch.rand(39, 32))
    for few in ("validation", "val-ood"):
        files = {"validation": "validation", "val-ood": "test"} | {few: "few"}
        options = [text for name, file in files.items() for text in (f"--{name}", cached / f"{file}.safetensors")]
        message = refused(opnp, "tune", *given, *options, "--out", cached / "detector.safetensors")
        assert f"at least 40 samples in `{few.replace('val-', 'validation_')}` to be tuned on, got 39" in message
    assert not (cached / "detector.safetensors").exists()


def test_a_fusion_of_too_few_samples_says_what_to_do(opnp: Opnp, cached: Path) -> None:
    write_features(cached / "few.safetensors", torch.rand(1, 32))
    given = ("--features", cached / "few.safetensors", "--head", cached / "head.safetensors")
    message = refused(opnp, "fit", *given, "--out", cached / "detector.safetensors")
    assert "A fusion needs at least two training samples, got 1" in message


def test_fit_names_the_file_and_what_it_holds(opnp: Opnp, cached: Path) -> None:
    message = refused(opnp, *fit_arguments(cached, features=cached / "head.safetensors"))
    assert "must hold the tensor `features`" in message
    assert "bias, weight" in message


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "1 NaN"), (float("inf"), "1 infinite")])
def test_fit_counts_what_is_not_finite(opnp: Opnp, cached: Path, value: float, word: str) -> None:
    features = torch.rand(100, 32)
    features[37, 4] = value
    write_features(cached / "broken.safetensors", features)
    message = refused(opnp, *fit_arguments(cached, features=cached / "broken.safetensors"))
    assert word in message
    assert "rows 37" in message


def test_fit_refuses_features_of_another_width(opnp: Opnp, cached: Path) -> None:
    write_features(cached / "wide.safetensors", torch.rand(10, 33))
    message = refused(opnp, *fit_arguments(cached, features=cached / "wide.safetensors"))
    assert "must have 32 columns" in message


def test_fit_says_how_many_calibration_samples_it_needs(opnp: Opnp, cached: Path) -> None:
    write_features(cached / "few.safetensors", torch.rand(18, 32))
    message = refused(opnp, *fit_arguments(cached, validation=cached / "few.safetensors"))
    assert "at least 19 calibration samples, got 18" in message


def test_truncated_and_foreign_files_are_refused(opnp: Opnp, cached: Path) -> None:
    detector = cached / "detector.safetensors"
    assert opnp(*fit_arguments(cached)).code == 0
    whole = detector.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        detector.write_bytes(whole[:size])
        assert "no readable safetensors file" in refused(opnp, "inspect", detector)
    save_file({"weight": torch.rand(2, 2)}, detector)
    assert "holds no opnp metadata" in refused(opnp, "inspect", detector)


def test_score_refuses_an_unknown_ending(opnp: Opnp, cached: Path) -> None:
    assert opnp(*fit_arguments(cached)).code == 0
    arguments = ("score", "--detector", cached / "detector.safetensors", "--features", cached / "test.safetensors")
    assert "must end in .csv or .parquet" in refused(opnp, *arguments, "--out", cached / "scores.xlsx")


def test_parquet_without_pyarrow_names_the_extra(opnp: Opnp, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opnp(*fit_arguments(cached)).code == 0
    monkeypatch.setattr("opnp.data.tables.find_spec", lambda name: None)
    arguments = ("score", "--detector", cached / "detector.safetensors", "--features", cached / "test.safetensors")
    assert "pip install 'opnp[bench]'" in refused(opnp, *arguments, "--out", cached / "scores.parquet")


def test_the_demo_without_scikit_learn_names_the_extra(
    opnp: Opnp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opnp.bench.demo.find_spec", lambda name: None)
    assert "pip install 'opnp[bench]'" in refused(opnp, "demo", "--out", tmp_path / "demo")


def test_a_full_disk_is_a_message(opnp: Opnp, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("opnp.files.os.fsync", full)
    assert "No space left on device" in refused(opnp, *fit_arguments(cached))
    assert sorted(path.name for path in cached.iterdir() if "detector" in path.name) == []


def test_a_missing_option_is_a_usage_error(opnp: Opnp) -> None:
    for command, option in {"fit": "--out", "score": "--detector", "tune": "--features"}.items():
        outcome = opnp(command)
        assert outcome.code == 2
        assert option in outcome.err
