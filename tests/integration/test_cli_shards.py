"""The command line on folders of shards, with checkpoints and devices: the same job as on files."""

import json
from pathlib import Path

import pytest
import torch

from opnp import OPNP
from opnp.data import FeatureShardWriter, read_features
from tests.in_process import Opnp


@pytest.fixture
def sharded(cached: Path) -> Path:
    """Return the folder of features and a head, where training and test features are in shards as well."""
    for name in ("train", "test"):
        found = read_features(cached / f"{name}.safetensors")
        with FeatureShardWriter(cached / name, rows_per_shard=70, dtype=torch.float32) as writer:
            writer.write(found.features, found.labels)
    return cached


_PAPER = ("--rho-w-min", "0.3", "--shaping", "react:0.9")


@pytest.fixture(params=[_PAPER, ()], ids=["the paper's method", "the fusion"])
def kind(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Return the options of a kind of detector."""
    found: tuple[str, ...] = request.param
    return found


def fit(opnp: Opnp, folder: Path, features: str, *options: object) -> bytes:
    """Run a fit, and return the bytes of its detector."""
    out = folder / "detector.safetensors"
    given = ("--features", folder / features, "--head", folder / "head.safetensors")
    outcome = opnp("fit", *given, "--out", out, *options)
    assert outcome.code == 0, outcome.err
    return out.read_bytes()


def test_shards_and_their_file_give_the_same_detector(opnp: Opnp, sharded: Path, kind: tuple[str, ...]) -> None:
    assert fit(opnp, sharded, "train", *kind) == fit(opnp, sharded, "train.safetensors", *kind)


def test_shards_and_their_file_give_the_same_scores(opnp: Opnp, sharded: Path, kind: tuple[str, ...]) -> None:
    fit(opnp, sharded, "train", "--validation", sharded / "validation.safetensors", *kind)
    tables = []
    for name in ("test", "test.safetensors"):
        out = sharded / "scores.csv"
        outcome = opnp(
            "score", "--detector", sharded / "detector.safetensors", "--features", sharded / name, "--out", out
        )
        assert outcome.code == 0, outcome.err
        tables.append(out.read_bytes())
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 51


def test_shards_can_be_tuned_on(opnp: Opnp, sharded: Path) -> None:
    known, ood = sharded / "validation.safetensors", sharded / "test"
    outcomes = [
        opnp("tune", "--features", name, "--head", sharded / "head.safetensors", "--json", *files)
        for name in (sharded / "train", sharded / "train.safetensors")
        for files in (
            ("--validation", known, "--val-ood", ood),
            ("--validation", known, "--val-ood", f"{ood}.safetensors"),
        )
    ]
    assert [outcome.code for outcome in outcomes] == [0] * 4, outcomes[0].err
    assert len({outcome.out for outcome in outcomes}) == 1
    assert json.loads(outcomes[0].out)["tuned"]["searched"] == [100, 25]


def test_a_checkpoint_changes_nothing_and_goes_with_the_run(opnp: Opnp, sharded: Path, kind: tuple[str, ...]) -> None:
    plain = fit(opnp, sharded, "train", "--batch-size", 16, *kind)
    checkpoint = sharded / "fit.checkpoint"
    kept = ("--checkpoint", checkpoint, "--checkpoint-every", 2)
    assert fit(opnp, sharded, "train", "--batch-size", 16, *kept, *kind) == plain
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    ("options", "others"),
    [(("--rho-w-min", "0.3"), ("--rho-w-min", "0.3", "--temperature", 2)), ((), ("--members", "gen,vim"))],
    ids=["the paper's method", "the fusion"],
)
def test_a_checkpoint_stays_where_the_detector_could_not_be_written(
    opnp: Opnp,
    sharded: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    others: tuple[object, ...],
) -> None:
    def full(_detector: OPNP, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    checkpoint = sharded / "fit.checkpoint"
    given = ("--features", sharded / "train", "--head", sharded / "head.safetensors")
    kept = ("--batch-size", 16, "--checkpoint", checkpoint, "--checkpoint-every", 2)
    with monkeypatch.context() as patch:
        patch.setattr(OPNP, "save", full)
        outcome = opnp("fit", *given, *kept, *options, "--out", sharded / "detector")
    assert outcome.code == 2
    assert "No space left on device" in outcome.err
    assert checkpoint.exists()
    outcome = opnp("fit", *given, *kept, *others, "--out", sharded / "detector")
    assert outcome.code == 2
    assert "is a checkpoint of another run (settings: " in outcome.err
    assert opnp("fit", *given, *kept, *options, "--out", sharded / "detector").code == 0
    assert not checkpoint.exists()
    assert OPNP.load(sharded / "detector").samples == 400


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "abacus"), "`--device` must be a device of this machine, got 'abacus'"),
        (("--batch-size", 0), "`batch_size` must be a positive number of rows, got 0"),
        (("--checkpoint", "file", "--checkpoint-every", 0), "`Checkpoint.every` must be a positive number"),
        (("--rank-timeout", -1), "`timeout` must be a positive number of seconds"),
        (("--rank-timeout", "1e30"), "`timeout` must be a positive number of seconds, at most 1000000000, got 1e+30"),
    ],
)
def test_options_out_of_range(opnp: Opnp, sharded: Path, options: tuple[object, ...], message: str) -> None:
    given = ("--features", sharded / "train", "--head", sharded / "head.safetensors", "--rho-w-min", "0.3")
    outcome = opnp("fit", *given, *options, "--out", sharded / "detector")
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_an_unfinished_folder_and_an_empty_file_are_messages(opnp: Opnp, sharded: Path) -> None:
    (sharded / "train" / "index.json").unlink()
    outcome = opnp("fit", "--features", sharded / "train", "--head", sharded / "head.safetensors", "--out", "x")
    assert outcome.code == 2
    assert "is a folder without index.json" in outcome.err
    fit(opnp, sharded, "train.safetensors")
    from opnp.data import write_features

    write_features(sharded / "none", torch.empty(0, 32))
    outcome = opnp(
        "score", "--detector", sharded / "detector.safetensors", "--features", sharded / "none", "--out", "x.csv"
    )
    assert outcome.code == 2
    assert "none holds no rows: at least one sample is needed" in outcome.err
