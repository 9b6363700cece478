"""What is wrong with the outputs of a command is told before a model is made, and a model that leaves is an error."""

import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from opnp import OPNP, Ratios
from opnp.data import write_features
from opnp.errors import OpnpWarning
from opnp.files import write_atomically
from tests.in_process import Opnp
from tests.unit.bench.image_world import CLASSES, OPTIONS, class_images
from tests.unit.data.image_files import write_tensors

_MODULE = """
import sys
import torch
from torch import nn
from tests.unit.bench.image_world import tiny_model

RUNS = []


def made():
    raise RuntimeError("the model was made")


def leaving():
    sys.exit(0)


class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = tiny_model()
        self.is_left = False

    def forward(self, inputs):
        RUNS.append("run")
        if self.is_left:
            sys.exit(0)
        return self.inner(inputs)


def late():
    model = Late()
    model.is_left = True
    return model


class Noisy(Late):
    def forward(self, inputs):
        return self.inner(inputs + torch.randn_like(inputs))


def half():
    return tiny_model().half()
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with a module of models that must not be made or run, a file and a folder."""
    (tmp_path / "earlynets.py").write_text(_MODULE, encoding="utf-8")
    (tmp_path / "exitnets.py").write_text("raise SystemExit", encoding="utf-8")
    (tmp_path / "file").touch()
    for folder in ("folder.csv", "folder.onnx", "folder.safetensors", "folder.html"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    for module in ("earlynets", "exitnets"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    for seed, (name, rows) in enumerate({"train": 40, "few": 8}.items()):
        write_tensors(tmp_path / f"{name}.safetensors", *class_images(rows, seed=seed))
    return tmp_path


def refused(opnp: Opnp, *arguments: object) -> str:
    """Return the message of a run that must fail with exit code 2 and one line."""
    outcome = opnp(*arguments)
    assert outcome.code == 2, (outcome.out, outcome.err)
    assert outcome.err.startswith("opnp: ")
    assert len(outcome.err.splitlines()) == 1, outcome.err
    return outcome.err


_FIT = "fit --model earlynets:made --data train.safetensors --out"
_SCORE = "score --detector absent.safetensors --model earlynets:made --data train.safetensors --out"
_EXPORT = "export --detector absent.safetensors --model earlynets:made --out"
_CACHE = "cache --model earlynets:made --train train.safetensors --out"
_BENCH = "bench --model earlynets:made --id few.safetensors --train train.safetensors --ood far=few.safetensors --out"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (f"{_FIT} absent/d.safetensors", "absent is no folder: create it before writing d.safetensors there"),
        (f"{_FIT} folder.safetensors", "folder.safetensors is a folder: name a file to write"),
        (f"{_FIT} file/d.safetensors", "file is no folder"),
        (f"{_FIT} {'d' * 300}", "File name too long"),
        (f"{_FIT} d.safetensors --keep 1.5", "`keep` must be a fraction in (0, 1), got 1.5"),
        (f"{_FIT} d.safetensors --report absent/r.html", "absent is no folder"),
        (f"{_FIT} d.safetensors --report folder.html", "folder.html is a folder"),
        (f"{_SCORE} s.xlsx", "s.xlsx: a score file must end in .csv or .parquet, got '.xlsx'"),
        (f"{_SCORE} folder.csv", "folder.csv is a folder: name a file to write"),
        (f"{_SCORE} absent/s.csv", "absent is no folder"),
        (f"{_EXPORT} folder.onnx", "folder.onnx is a folder: name a file to write"),
        (f"{_EXPORT} absent/d.pt2", "absent is no folder"),
        (f"{_EXPORT} d.onnx --tolerance -1", "`--tolerance` must be a share in [0, 1), such as 1e-5, got -1"),
        (f"{_EXPORT} d.onnx --tolerance nan", "got nan"),
        (f"{_CACHE} file", "`--out` must be a folder, or a name for a new one, got file: "),
        (f"{_CACHE} file/features", "/file is a file"),
        (f"{_BENCH} file", "`--out` must be a folder"),
        (f"{_BENCH} new --report absent/r.html", "absent is no folder"),
        ("sweep --features absent --out file", "`--out` must be a folder"),
        ("demo --out file", "`--out` must be a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_first(opnp: Opnp, world: Path, arguments: str, message: str) -> None:
    before = sorted(world.rglob("*"))
    assert message in refused(opnp, *arguments.split(), *(OPTIONS if "--model" in arguments else ()))
    assert sorted(path for path in world.rglob("*") if "__pycache__" not in path.parts) == before


def test_a_report_may_lie_in_the_folder_that_the_command_makes(opnp: Opnp, world: Path) -> None:
    assert "the model was made" in refused(opnp, *_BENCH.split(), "new", "--report", "new/r.html", *OPTIONS)
    assert not (world / "new").exists()


def test_too_few_calibration_samples_are_told_before_the_model_runs(opnp: Opnp, world: Path) -> None:
    arguments = ("fit", "--data", "train.safetensors", "--validation", "few.safetensors", "--out", "d.safetensors")
    assert "19 calibration samples, got 8" in refused(opnp, *arguments, "--model", "earlynets:Late", *OPTIONS)
    assert sys.modules["earlynets"].RUNS == []


def test_too_few_calibration_features_are_told_before_the_pass(
    opnp: Opnp, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def passed(*_: object, **__: object) -> NoReturn:
        pytest.fail("the pass was begun")

    monkeypatch.setattr(OPNP, "fit_features", passed)
    write_features(cached / "few.safetensors", torch.rand(18, 32))
    files = ("--features", cached / "train.safetensors", "--head", cached / "head.safetensors")
    given = ("fit", *files, "--validation", cached / "few.safetensors", "--out", cached / "d.safetensors")
    assert "19 calibration samples, got 18" in refused(opnp, *given)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("exitnets:net", "importing 'exitnets' raised SystemExit"),
        ("earlynets:leaving", "earlynets:leaving() raised SystemExit: 0"),
        ("earlynets:late", "The model failed on train.safetensors: SystemExit: 0. Do size"),
    ],
)
@pytest.mark.parametrize("command", ["fit --data", "cache --train"])
def test_a_model_that_leaves_the_process_is_an_error(
    opnp: Opnp, world: Path, command: str, model: str, message: str
) -> None:
    given = (*command.split(), "train.safetensors", "--model", model, "--out", "new", *OPTIONS)
    assert message in refused(opnp, *given)
    assert not (world / "new" / "train.safetensors").exists()


@pytest.mark.parametrize("command", ["fit --data", "cache --train"])
def test_a_model_of_another_dtype_is_named(opnp: Opnp, world: Path, command: str) -> None:
    given = (*command.split(), "train.safetensors", "--model", "earlynets:half", "--out", "new", *OPTIONS)
    message = refused(opnp, *given)
    assert "The model has torch.float16 weights and refused inputs of torch.float32: " in message
    assert "or take the model in that of the inputs: `model.to(torch.float32)`." in message
    assert (world / "train.safetensors").exists()


def saved(world: Path, model: str) -> Path:
    """Return the file of a calibrated detector of a model in the module."""
    from opnp.adapters import model_from_name

    made, _ = model_from_name(model)
    batches = [torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))]
    OPNP(ratios=Ratios(w_min=0.3)).fit(made, batches).calibrate(batches).save(world / "d.safetensors")
    return world / "d.safetensors"


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_model_with_noise_is_told_to_be_one(opnp: Opnp, world: Path, ending: str) -> None:
    with pytest.warns(OpnpWarning, match="random numbers in eval mode"):
        path = saved(world, "earlynets:Noisy")
    given = ("export", "--detector", path, "--model", "earlynets:Noisy", "--out", f"d.{ending}", *OPTIONS)
    message = refused(opnp, *given)
    assert "other numbers when it is run on the same batch again: random numbers" in message
    assert "tolerance" not in message
    assert not (world / f"d.{ending}").exists()


def test_a_card_that_cannot_be_written_leaves_no_file(opnp: Opnp, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        if str(path).endswith(".card.md"):
            raise OSError(28, "No space left on device")
        write_atomically(path, content)

    monkeypatch.setattr("opnp.files.write_atomically", full)
    path = saved(world, "earlynets:Late")
    given = ("export", "--detector", path, "--model", "earlynets:Late", "--out", "d.pt2", *OPTIONS)
    assert "No space left" in refused(opnp, *given)
    assert not (world / "d.pt2").exists()
    assert not (world / "d.card.md").exists()


def test_an_image_model_without_pillow_names_the_extra(
    opnp: Opnp, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(world, "earlynets:Late")
    monkeypatch.setattr("opnp.data.preprocessing.find_spec", lambda _name: None)
    given = ("export", "--detector", path, "--model", "earlynets:Late", "--out", "d.pt2", *OPTIONS)
    assert "pip install 'opnp[vision]'" in refused(opnp, *given)
    assert len(OPNP.load(path).pruned_head.weight) == CLASSES
