"""What goes wrong on the command line ends in one message and exit code 2, never in a traceback, and leaves no file."""

import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import save_file

from opnp import MEMBERS, OPNP, Ratios
from opnp.data import read_head, write_features
from opnp.errors import OpnpWarning
from opnp.files import write_atomically
from tests.in_process import Opnp, done, refused
from tests.integration.cli_world import MODULES, line, write_cached, write_world
from tests.unit.adapters.hub_folders import write_bert
from tests.unit.bench.bench_world import write_world as write_feature_world
from tests.unit.bench.image_world import CLASSES, tiny_model


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with good and bad inputs of all kinds, and two detectors."""
    folder = write_world(tmp_path_factory.mktemp("refusals"))
    features = write_cached(folder / "f")
    broken = torch.rand(100, 32)
    for name, value in {"nan": float("nan"), "infinite": float("inf")}.items():
        broken[37, 4] = value
        write_features(features / f"{name}.safetensors", broken)
    for name, rows in {"none": 0, "one": 1, "few": 18, "some": 39}.items():
        write_features(features / f"{name}.safetensors", torch.rand(rows, 32))
    write_features(features / "wide.safetensors", torch.rand(10, 33))
    (folder / "unfinished").mkdir()
    (folder / "file").touch()
    for name in ("folder.csv", "folder.onnx", "folder.safetensors", "folder.html"):
        (folder / name).mkdir()
    write_bert(folder / "bert")
    write_feature_world(folder / "w")
    head, images = read_head(features / "head.safetensors"), [torch.randn(40, 3, 8, 8)]
    plain = OPNP(ratios=Ratios(w_min=0.1)).fit_features(torch.rand(50, 32), weight=head.weight, bias=head.bias)
    plain.save(folder / "plain.st")
    OPNP(ratios=Ratios(w_min=0.3)).fit(tiny_model(), images).calibrate(images).save(folder / "tiny.st")
    return folder


@pytest.fixture
def world(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in that folder, with its modules not imported yet."""
    monkeypatch.chdir(shared)
    for module in MODULES:
        monkeypatch.delitem(sys.modules, module, raising=False)
    return shared


_MADE = "--model oddnets:made OPTIONS"
_FIT = f"fit {_MADE} --data train.safetensors"
_SCORE = f"score --detector absent.st {_MADE} --data train.safetensors"
_EXPORT = f"export --detector absent.st {_MADE}"
_CACHE = f"cache {_MADE} --train train.safetensors"
_BENCH = f"bench {_MADE} --id few.safetensors --train train.safetensors --ood far=few.safetensors"
_CACHED = "cache TINY --train train.safetensors --out new"
_SET = "--train train.safetensors --out new"
_JUDGED = "bench TINY --id test.safetensors --train train.safetensors --ood far=few.safetensors --out new"
_TUNE = "tune FEATURES --out d.st"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        # What cannot be written is told before a model is made.
        (f"{_FIT} --out absent/d.st", "absent is no folder: create it before writing d.st there"),
        (f"{_FIT} --out folder.safetensors", "folder.safetensors is a folder: name a file to write"),
        (f"{_FIT} --out file/d.st", "file is no folder"),
        (f"{_FIT} --out {'d' * 300}", "File name too long"),
        (f"{_FIT} --out d.st --keep 1.5", "`keep` must be a fraction in (0, 1), got 1.5"),
        (f"{_FIT} --out d.st --report absent/r.html", "absent is no folder"),
        (f"{_FIT} --out d.st --report folder.html", "folder.html is a folder"),
        (f"{_SCORE} --out s.xlsx", "s.xlsx: a score file must end in .csv or .parquet, got '.xlsx'"),
        (f"{_SCORE} --out folder.csv", "folder.csv is a folder: name a file to write"),
        (f"{_SCORE} --out absent/s.csv", "absent is no folder"),
        (f"{_EXPORT} --out folder.onnx", "folder.onnx is a folder: name a file to write"),
        (f"{_EXPORT} --out absent/d.pt2", "absent is no folder"),
        (f"{_EXPORT} --out d.onnx --tolerance -1", "`--tolerance` must be a share in [0, 1), such as 1e-5, got -1"),
        (f"{_EXPORT} --out d.onnx --tolerance nan", "got nan"),
        (f"{_EXPORT} --out d.bin", "`--out` must end in .onnx or .pt2, got d.bin"),
        (f"{_EXPORT} --out d.onnx --format torch", "`--out` must end in .pt2 with --format torch, got"),
        (f"{_EXPORT} --out d --format onnx", "`--out` must end in .onnx with --format onnx, got"),
        (f"{_CACHE} --out file", "`--out` must be a folder, or a name for a new one, got file: "),
        (f"{_CACHE} --out file/features", "/file is a file"),
        (f"{_BENCH} --out file", "`--out` must be a folder"),
        (f"{_BENCH} --out new --report absent/r.html", "absent is no folder"),
        (f"{_BENCH} --out new --report new/r.html", "the model was made"),  # in the folder that the command makes
        ("sweep --features absent --out file", "`--out` must be a folder"),
        ("demo --out file", "`--out` must be a folder"),
        # Features or a model, each with its own options.
        ("FIT", "one of `--features PATH`, for features that are there, and `--model NAME` with `--data PATH`"),
        ("SCORE --detector tiny.st", "to run the model: got neither"),
        ("FIT --features a --model b:c", "got both"),
        ("bench --out new", "`--model NAME` with `--id PATH` and `--ood NAME=PATH`, to run the model: got neither"),
        (f"{_JUDGED} --features .", "got both"),
        ("FIT --features a", "`--features` need the head they belong to: give `--head FILE`"),
        ("FIT FEATURES --data c", "--data cannot go with `--features`: only `--model` has a use for it"),
        (
            "FIT FEATURES --image-size 8 --strict --workers 2 --head-layer 6 --logits 0",
            "--image-size, --workers, --strict, --head-layer, --logits cannot go",
        ),
        ("SCORE --detector d --features a --device cpu --batch-size 3", "--batch-size, --device cannot go"),
        ("bench --features . --out new --id x --mean 0.5", "--id, --mean cannot go with `--features`"),
        (
            "bench --features . --out new --amp bf16 --channels-last",
            "--amp, --channels-last cannot go with `--features`",
        ),
        ("FIT TINY --data d --checkpoint c", "--checkpoint cannot go with `--model`"),
        ("FIT TINY", "`--model` needs the inputs that it was trained on: give `--data PATH`"),
        ("SCORE --detector d TINY", "`--model` needs the inputs to score: give `--data PATH`"),
        ("bench TINY --out new --ood x=few.safetensors", "`--model` needs inputs to judge by: give `--id PATH`"),
        ("bench TINY --out new --id test.safetensors --train train.safetensors", "give `--ood NAME=PATH`"),
        (
            "bench TINY --out new --id test.safetensors --ood x=few.safetensors",
            "holds test inputs alone: give the training",
        ),
        ("cache TINY --out new", "Give inputs: at least one of `--train PATH`, `--test PATH` and `--ood NAME=PATH`."),
        (f"{_CACHED} --head 6 --head-layer 6", "`--head` is the old name of `--head-layer`: give `--head-layer` alone"),
        # Models and their inputs.
        ("FIT TRAIN --model tinynets", "`model` must be `timm:NAME`"),
        ("FIT TRAIN --model tinynets:net", "No preprocessing is known for the model 'tinynets:net'"),
        ("FIT TRAIN --model hf:nowhere", "nowhere is none, or a model of the hub"),
        ("FIT TRAIN --model hf:.", "holds no config.json"),
        ("FIT TRAIN --model timm:none", "timm has no model 'none'"),
        ("FIT TINY --data nowhere", "nowhere does not exist"),
        ("FIT TINY --data train.jsonl", "train.jsonl holds texts, and the model takes images"),
        ("FIT --model hf:bert TRAIN", "holds images, and the model takes texts"),
        ("FIT --model hf:bert --image-size 8 --data train.jsonl", "takes texts: leave --image-size out"),
        ("FIT TINY TRAIN --weights absent.pt", "absent.pt does not exist"),
        ("FIT TINY TRAIN --device nowhere", "`--device` must be a device of this machine"),
        ("FIT TINY TRAIN --batch-size 0", "`batch_size` must be at least 1"),
        ("FIT TINY TRAIN --workers -1", "`workers` must be 0 or the number of processes"),
        ("FIT TINY TRAIN --head-layer absent", "`head` = 'absent' is no layer of the model"),
        ("FIT TINY TRAIN --logits 3", "logits"),
        ("FIT --model oddnets:Pair OPTIONS TRAIN", "logits"),
        ("FIT --model oddnets:Failing OPTIONS TRAIN", "The model failed on train.safetensors: KeyError: 'lost'"),
        (
            "SCORE --detector tiny.st --model tinynets:other OPTIONS --data test.safetensors",
            "fitted on a head with digest",
        ),
        ("SCORE --detector tiny.st TINY --data nowhere", "nowhere does not exist"),
        ("SCORE --detector tiny.st --model tinynets:net --data test.safetensors --image-size 9", "give --mean, --std"),
        (
            "SCORE --detector plain.st --explain --features f/test.safetensors",
            "`--explain` needs a calibrated detector",
        ),
        ("export --detector plain.st --out d.pt2 TINY", "is not calibrated, and an exported file holds p-values"),
        ("export --detector tiny.st --out d.pt2 --model tinynets:other OPTIONS", "digest"),
        (
            f"cache --model tinynets:net {_SET}",
            "No preprocessing is known for the model 'tinynets:net': give --image-size",
        ),
        ("cache TINY --out new --ood noise.safetensors", "`--ood` must be NAME=PATH, such as"),
        (f"{_CACHED} --ood x=few.safetensors --ood x=y", "`--ood` names must differ, got 'x' twice"),
        ("cache TINY --out new --ood a/b=few.safetensors", "must be called train, test, validation_ood or ood_NAME"),
        ("cache TINY --out new --test absent", "absent does not exist: expected a folder of images"),
        (f"{_CACHED} --mean 0.5,x", "`--mean` must be numbers separated by commas"),
        (f"{_CACHED} --mean 127,127,127", "Divide values of pixels in 0 to 255 by 255"),
        (f"{_CACHED} --device abacus", "`--device` must be a device of this machine, got 'abacus'"),
        (f"{_CACHED} --batch-size 0", "`batch_size` must be at least 1"),
        (f"{_CACHED} --workers -1", "`workers` must be 0 or the number of processes"),
        (f"{_CACHED} --head-layer fc", "`head` = 'fc' is no layer of the model"),
        (f"{_CACHED} --weights train.safetensors", "does not fit the model"),
        (f"cache --model tinynets:broken OPTIONS {_SET}", "raised RuntimeError: out of order"),
        (f"cache --model timm:no_such_net {_SET}", "timm has no model 'no_such_net'"),
        (f"cache --model torchvision:no_such_net {_SET}", "torchvision has no classifier 'no_such_net'"),
        (f"{_JUDGED} --methods gram", "`methods` must be groups"),
        (f"{_JUDGED} --validation-samples 10", "`validation_samples` must lie in 1 to 9"),
        (f"{_JUDGED} --rho-w-min 30", "`w_min` must be a fraction in [0, 1)"),
        (f"{_JUDGED} --device abacus", "`--device` must be a device of this machine"),
        ("sweep --features absent --out new", "absent does not exist"),
        ("sweep --features w --out new --curves rho", "`curves` must be families (parts, paper, ratios, pairs, "),
        ("sweep --features w --out new --curves ,", "got none"),
        ("sweep --features w --out new --rho-w-min 30", "`w_min` must be a fraction in [0, 1), got 30.0"),
        ("sweep --features w --out new --rho-o-min 0.5 --rho-o-max 0.5", "`o_min` = 0.5 and `o_max` = 0.5 sum to 1"),
        ("bench --features w --out new --methods ,", "got none"),
        ("bench --features w --out new --validation-samples 240", "`validation_samples` must lie in 1 to 239"),
        # A model that leaves the process, or is of another dtype.
        *(
            (f"{command} train.safetensors --out new --model {model} OPTIONS", message)
            for command in ("fit --data", "cache --train")
            for model, message in {
                "exitnets:net": "importing 'exitnets' raised SystemExit",
                "oddnets:leaving": "oddnets:leaving() raised SystemExit: 0",
                "oddnets:Leaving": "The model failed on train.safetensors: SystemExit: 0. Do size",
                "oddnets:half": "The model has torch.float16 weights and refused inputs of torch.float32: ",
            }.items()
        ),
        # Cached features.
        ("FIT --features missing.st HEAD", "missing.st does not exist"),
        ("FIT --features unfinished HEAD", "is a folder without index.json"),
        ("FIT --features f/head.safetensors HEAD", "must hold the tensor `features`"),
        ("FIT --features f/nan.safetensors HEAD", "1 NaN"),
        ("FIT --features f/infinite.safetensors HEAD", "rows 37"),
        ("FIT --features f/wide.safetensors HEAD", "must have 32 columns"),
        ("FIT --features f/one.safetensors HEAD", "A fusion needs at least two training samples, got 1"),
        ("FIT FEATURES --rho-w-min 1.5", "`w_min` must be a fraction in [0, 1), got 1.5. Percentages are written"),
        ("FIT FEATURES --rho-w-min 0.6 --rho-w-max 0.4", "at least one entry must be left"),
        ("FIT FEATURES --temperature 0", "`temperature` must be a positive finite number"),
        ("FIT FEATURES --shaping ash:0.9", "`--shaping` must be none, react:Q"),
        ("FIT FEATURES --shaping react:9", "`ReAct.quantile` must be a fraction"),
        (
            "FIT FEATURES --members gen,vim --rho-w-min 0.1",
            "`members` choose scores to fuse, and `ratios` belongs to the pruned head alone",
        ),
        ("FIT FEATURES --device abacus", "`--device` must be a device of this machine, got 'abacus'"),
        ("FIT FEATURES --batch-size 0", "`batch_size` must be a positive number of rows, got 0"),
        ("FIT FEATURES --checkpoint c --checkpoint-every 0", "`Checkpoint.every` must be a positive number"),
        ("FIT FEATURES --rank-timeout -1", "`timeout` must be a positive number of seconds"),
        ("FIT FEATURES --rank-timeout 1e30", "at most 1000000000, got 1e+30"),
        ("SCORE --detector plain.st --features f/none.safetensors", "holds no rows: at least one sample is needed"),
        (f"{_TUNE} --validation f/test.safetensors --val-ood f/test.safetensors", "hold the same features"),
        (
            f"{_TUNE} --validation f/some.safetensors --val-ood f/test.safetensors",
            "at least 40 samples in `validation`",
        ),
        (
            f"{_TUNE} --validation f/test.safetensors --val-ood f/some.safetensors",
            "40 samples in `validation_ood` to be tuned on, got 39",
        ),
    ],
)
def test_it_is_one_message_and_nothing_is_written(opnp: Opnp, world: Path, given: str, message: str) -> None:
    before = sorted(world.rglob("*"))
    told = refused(opnp, *line(given))
    assert message in told
    assert len([each for each in told.splitlines() if "warning" not in each]) == 1
    assert sorted(path for path in world.rglob("*") if "__pycache__" not in path.parts) == [
        path for path in before if "__pycache__" not in path.parts
    ]


@pytest.mark.parametrize("members", ["gen,cim", "gen,gen", "", "gen,"])
def test_fit_names_the_members_that_there_are(opnp: Opnp, world: Path, members: str) -> None:
    message = refused(opnp, *line("fit FEATURES --out d.st --members"), members)
    assert "`members` must be one or more different names among gen, energy, react, scale, " in message
    assert all(name in message for name in MEMBERS)
    assert all(repr(name) in message for name in members.split(","))


def test_too_few_calibration_samples_are_told_before_the_pass(
    opnp: Opnp, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = "fit --model oddnets:Late OPTIONS --data train.safetensors --validation few.safetensors --out d.st"
    assert "19 calibration samples, got 8" in refused(opnp, *line(given))
    assert sys.modules["oddnets"].RUNS == []

    def passed(*_: object, **__: object) -> NoReturn:
        pytest.fail("the pass was begun")

    monkeypatch.setattr(OPNP, "fit_features", passed)
    given = "fit FEATURES --validation f/few.safetensors --out d.st"
    assert "at least 19 calibration samples, got 18" in refused(opnp, *line(given))


def test_truncated_and_foreign_files_are_refused(opnp: Opnp, world: Path, tmp_path: Path) -> None:
    whole, part = (world / "plain.st").read_bytes(), tmp_path / "part.st"
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        part.write_bytes(whole[:size])
        assert "no readable safetensors file" in refused(opnp, "inspect", part)
    save_file({"weight": torch.rand(2, 2)}, part)
    assert "holds no opnp metadata" in refused(opnp, "inspect", part)


@pytest.mark.parametrize(
    ("place", "given"),
    [
        ("opnp.data.tables", "score --detector plain.st --features f/test.safetensors --out s.parquet"),
        ("opnp.errors", "demo --out demo"),
        ("opnp.errors", _JUDGED),
        ("opnp.data.samples", "export --detector tiny.st TINY --out d.pt2"),
        ("opnp.errors", "demo --out demo --report r.html"),
    ],
)
def test_what_is_not_installed_names_the_extra_before_anything_is_computed(
    opnp: Opnp, world: Path, monkeypatch: pytest.MonkeyPatch, place: str, given: str
) -> None:
    extra = "vision" if place == "opnp.data.samples" else "report" if "--report" in given else "bench"
    monkeypatch.setattr(f"{place}.find_spec", lambda _name: None)
    assert f"pip install 'opnp[{extra}]'" in refused(opnp, *line(given))
    assert not {"new", "r.html", "d.pt2", "s.parquet"} & {path.name for path in world.iterdir()}


def test_a_full_disk_is_a_message(opnp: Opnp, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("opnp.files.os.fsync", full)
    assert "No space left on device" in refused(opnp, *line("fit FEATURES --rho-w-min 0.1 --out d.st"))
    assert not list(world.glob("*d.st*"))


def test_a_card_that_cannot_be_written_leaves_no_file(opnp: Opnp, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        if str(path).endswith(".card.md"):
            raise OSError(28, "No space left on device")
        write_atomically(path, content)

    monkeypatch.setattr("opnp.files.write_atomically", full)
    assert "No space left" in refused(opnp, *line("export --detector tiny.st TINY --out d.pt2"))
    assert not list(world.glob("d.*"))
    assert len(OPNP.load(world / "tiny.st").pruned_head.weight) == CLASSES


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_model_with_noise_is_told_to_be_one(opnp: Opnp, world: Path, tmp_path: Path, ending: str) -> None:
    from opnp.adapters import model_from_name

    model, _ = model_from_name("oddnets:Noisy")
    batches = [torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))]
    with pytest.warns(OpnpWarning, match="random numbers in eval mode"):
        OPNP(ratios=Ratios(w_min=0.3)).fit(model, batches).calibrate(batches).save(tmp_path / "d.st")
    given = line("export --model oddnets:Noisy OPTIONS")
    message = refused(opnp, *given, "--detector", tmp_path / "d.st", "--out", tmp_path / f"d.{ending}")
    assert "other numbers when it is run on the same batch again: random numbers" in message
    assert "tolerance" not in message
    assert not (tmp_path / f"d.{ending}").exists()


@pytest.mark.parametrize(
    "given", ["fit TINY --data train.safetensors --out", "cache TINY --train train.safetensors --out"]
)
def test_the_old_name_of_the_layer_works_with_a_warning(opnp: Opnp, world: Path, tmp_path: Path, given: str) -> None:
    outcome = done(opnp, *line(given), tmp_path / "out", "--head", "6")
    assert outcome.err.splitlines()[0] == (
        "opnp: warning: with `--model`, `--head` is now `--head-layer`, and will go: give `--head-layer 6`."
    )
