"""No command writes over what it was given to read, nor over what it has just written."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opnp.bench.demo import DEMO_FILES
from opnp.bench.run import BENCH_FILES
from opnp.bench.sweep import SWEEP_FILES
from opnp.cli.distinct_files import require_distinct_files
from opnp.data import write_features, write_head
from opnp.errors import OptionError
from tests.in_process import Opnp
from tests.unit.bench.bench_world import write_world
from tests.unit.bench.image_world import OPTIONS, class_images, write_module
from tests.unit.data.image_files import write_tensors

_SETS = (
    *("--id", "images/test.safetensors", "--train", "images/train.safetensors"),
    *("--ood", "x=images/test.safetensors", "--methods", "energy"),
)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    features = torch.rand(40, 8, generator=torch.Generator().manual_seed(0))
    write_features(tmp_path / "train.safetensors", features)
    write_head(tmp_path / "head.safetensors", torch.eye(3, 8), bias=torch.zeros(3))
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "train.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "train.safetensors"), "`--out` would write over .*train.safetensors, which is given as `features`"),
        (("--out", "link.safetensors"), "`--out` would write over .*train.safetensors, which is given as `features`"),
        (("--out", "head.safetensors"), "`--out` would write over .*head.safetensors, which is given as `head`"),
        (("--out", "new", "--checkpoint", "train.safetensors"), "`--checkpoint` would write over .*train.safetensors"),
        (("--out", "new", "--checkpoint", "new"), "`--checkpoint` names the file of `--out`, .*new"),
        (("--out", "new", "--report", "new"), "`--report` names the file of `--out`, .*new"),
    ],
)
def test_a_fit_writes_over_nothing_that_it_was_given(
    opnp: Callable[..., Any], files: Path, options: tuple[str, ...], message: str
) -> None:
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    given = [each if each.startswith("--") else files / each for each in options]
    arguments = ("--features", files / "train.safetensors", "--head", files / "head.safetensors", "--rho-w-min", "0.1")
    outcome = opnp("fit", *arguments, *given)
    assert outcome.code == 2
    assert re.search(message, outcome.err)
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (("demo",), DEMO_FILES),
        (("bench", "--features", "features"), BENCH_FILES),
        (("bench", "--model", "tinynets:net", *OPTIONS, *_SETS), BENCH_FILES),
        (("sweep", "--features", "features"), SWEEP_FILES),
        (
            ("cache", "--model", "tinynets:net", *OPTIONS, "--train", "images/train.safetensors"),
            ("train.safetensors", "test.safetensors", "ood_x.safetensors", "odin.safetensors"),
        ),
    ],
    ids=lambda each: "-".join(each[:2]),
)
def test_folders_of_results_lose_nothing_that_others_wrote(
    opnp: Opnp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], names: tuple[str, ...]
) -> None:
    """``opnp demo --out .`` once wrote over train.safetensors and all its neighbours."""
    write_module(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path / "features")
    (tmp_path / "images").mkdir()
    for seed, name in enumerate(("train", "test")):
        write_tensors(tmp_path / "images" / f"{name}.safetensors", *class_images(8, seed=seed))
    for name in names:
        folder = tmp_path / f"of {name}"
        folder.mkdir()
        (folder / name).write_bytes(b"mine")
        outcome = opnp(*command, "--out", folder)
        assert outcome.code == 2
        assert re.search(rf"of {name} holds {name}(, which opnp did not write| without source\.json)", outcome.err)
        assert [(path.name, path.read_bytes()) for path in folder.rglob("*")] == [(name, b"mine")]


def test_features_are_not_cached_over_the_inputs(tmp_path: Path) -> None:
    for name in ("train.safetensors", "ood_far.safetensors", "images.safetensors"):
        (tmp_path / name).touch()
    for given in ({"train": tmp_path / "train.safetensors"}, {"ood": [f"far={tmp_path / 'ood_far.safetensors'}"]}):
        with pytest.raises(OptionError, match=r"`--out` would write over .*: name another\."):
            require_distinct_files({**given, "out": tmp_path})
        require_distinct_files({**given, "out": tmp_path / "features"})
    require_distinct_files({"train": tmp_path / "images.safetensors", "out": tmp_path})


def test_names_before_paths_are_looked_behind_and_folders_may_be_shared(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(OptionError, match="given as `ood`"):
        require_distinct_files({"ood": [f"far={tmp_path / 'a.csv'}"], "out": tmp_path / "a.csv"})
    require_distinct_files({"features": tmp_path, "out": tmp_path})
    require_distinct_files({"data": "\0", "out": tmp_path / "b.csv", "keep": 0.95, "strict": True, "report": None})
