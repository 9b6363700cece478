"""``opnp bench`` over several models and over protocols: stopped and resumed, looked over, refused, and as one page."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from msgspec.structs import replace
from safetensors.torch import save_file

from opnp.bench import read_protocol
from opnp.bench.cache import FeaturePass
from opnp.bench.run import ModelRun
from opnp.values.bench import PRODUCT, TUNED, BenchRecord, PublishedFigures
from opnp.values.protocols import Protocol, ProtocolModel
from opnp.values.sweep import SweepRecord
from tests.in_process import Opnp, done, refused
from tests.unit.bench.image_world import CLASSES, write_images, write_module

NETS = ("test_resnet", "test_convnext", "test_efficientnet")
DATA = ("--id", "test.safetensors", "--train", "train.safetensors", "--ood", "noise=noise.safetensors")
NEAR = ("--ood", "grey=grey.safetensors", "--near", "grey")
METHODS = ("--image-size", "32", "--methods", "msp,energy,fdbd,OPNP")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with images, random weights of small models of timm, and a file that lists these."""
    monkeypatch.chdir(write_module(write_images(tmp_path, rows=80)))
    lines = []
    with torch.random.fork_rng(devices=[]):
        for seed, name in enumerate(NETS):
            torch.manual_seed(seed)
            save_file(timm.create_model(name, num_classes=CLASSES).state_dict(), tmp_path / f"{name}.safetensors")
            lines.append(f"timm:{name} {name}.safetensors  # random weights")
    (tmp_path / "models.txt").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def written(folder: Path) -> dict[str, bytes]:
    """Return all that a run left, without times and what features were made of."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "timings.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def stopping(call: Callable[..., Any], *, at: int, calls: list[int]) -> Callable[..., Any]:
    """Return a function that is interrupted the n-th time that it is called."""

    def stopped(*arguments: Any, **options: Any) -> Any:
        calls.append(len(calls) + 1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return call(*arguments, **options)

    return stopped


def test_three_models_stopped_twice_and_resumed_leave_the_same_bytes(
    opnp: Opnp, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("bench", "--models", "models.txt", *DATA, *NEAR, *METHODS)
    told = done(opnp, *command, "--out", "whole")
    assert "Regret over 3 models" in told.out
    for owner, name, at in ((FeaturePass, "result", 6), (ModelRun, "_row", 2)):  # in model 2: features, then rows
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, stopping(getattr(owner, name), at=at, calls=[]))
            assert opnp(*command, "--out", "parts").code == 130
        assert [path.parent.name for path in here.glob("parts/*/results.json")] == ["timm-test_resnet"]
    with monkeypatch.context() as patched:
        calls: list[int] = []
        patched.setattr(ModelRun, "_row", stopping(ModelRun._row, at=0, calls=calls))  # as it is
        again = done(opnp, *command, "--out", "parts")
    assert len(calls) == 2 * 5  # the first model's five rows are kept
    assert "train, test, ood_noise, ood_grey kept" in again.err
    assert written(here / "parts") == written(here / "whole")
    with (here / "whole" / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    record = BenchRecord.from_json((here / "whole" / "timm-test_convnext" / "results.json").read_text(encoding="utf-8"))
    ours = record.models[0].row(PRODUCT)
    [found] = [row for row in rows if row["Arch"] == "timm-test_convnext" and row["Postprocessor"] == PRODUCT]
    assert ours.near is not None
    assert ours.far is not None
    assert found["Near-OOD_AUROC"] == f"{100 * ours.near.auroc:.2f}"
    assert found["Far-OOD_AUROC"] == f"{100 * ours.far.auroc:.2f}"
    assert len(rows) == 3 * 5


def protocol() -> Protocol:
    """Return a protocol of two models of the module, with published figures of the first."""
    first = ProtocolModel(
        name="first",
        model="tinynets:net",
        train="train.safetensors",
        test="test.safetensors",
        ood={"noise": "noise.safetensors"},
        validation_ood="grey.safetensors",
        image_size=8,
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.2, 0.1),
        published=(PublishedFigures(method="Plain energy", source="Somebody, 2020", auroc=0.8765, row="Energy"),),
    )
    return Protocol(
        title="Two",
        remark="Stand-ins: not the real thing.",
        models=(first, replace(first, name="second", model="tinynets:other", published=())),
        methods=("msp", "energy", "odin", "tuned"),
        curves=("parts", "w_min"),
        validation_samples=40,
    )


@pytest.fixture
def file(here: Path) -> Path:
    """Return the protocol's file, in another folder than its data."""
    path = here / "protocols" / "two.json"
    path.parent.mkdir()
    path.write_text(protocol().to_json(), encoding="utf-8")
    return path


def test_a_protocol_runs_from_images_to_the_page(opnp: Opnp, here: Path, file: Path) -> None:
    command = ("bench", "--protocol", file, "--data-root", ".", "--out", "out", "--report", "page.html")
    told = done(opnp, *command)
    assert "Stand-ins: not the real thing." in told.out
    for name in ("first", "second"):
        folder = here / "out" / name
        [model] = BenchRecord.from_json((folder / "results.json").read_text(encoding="utf-8")).models
        assert {row.method: row.reason for row in model.methods if row.status != "ok"} == {}
        assert {*TUNED} < {row.method for row in model.methods}
        assert set(model.nearness) == {"noise"}  # what ratios are tuned by judges nothing
        assert SweepRecord.from_json((folder / "sweep.json").read_text(encoding="utf-8")).models[0].model == name
    text = (here / "out" / "results.md").read_text(encoding="utf-8")
    assert "**Stand-ins: not the real thing.**" in text
    assert "| Plain energy | - / 87.65 | Energy |" in text
    page = (here / "page.html").read_text(encoding="utf-8")
    for words in ("Stand-ins: not the real thing.", "Regret over the models", "Plain energy", "Somebody, 2020"):
        assert words in page
    for stem in (
        "figure-1-sensitivity",
        "figure-2-pruning",
        "figure-3-ratios",
        "figure-4-calibration",
        "figure-5-scores",
    ):
        assert f"{stem}-first" in page
    before = written(here / "out")
    again = json.loads(done(opnp, *command[:-2], "--json").out)
    assert written(here / "out") == before
    assert [model["model"] for model in again["models"]] == ["first", "second"]


def test_a_dry_run_tells_everything_and_runs_nothing(opnp: Opnp, here: Path, file: Path) -> None:
    (here / "grey.safetensors").unlink()
    command = ("bench", "--protocol", file, "--out", "out")
    told = done(opnp, *command, "--dry-run").out
    for words in (
        "tinynets:net",
        "ood_noise",
        "validation_ood",
        "parts, w_min",
        "Missing: 1 of 4.",
        "grey.safetensors",
    ):
        assert words in told
    found = json.loads(done(opnp, *command, "--dry-run", "--json").out)
    assert list(found["missing"]) == ["grey.safetensors"]
    assert "1 of what it needs are not there" in refused(opnp, *command)
    assert not (here / "out").exists()
    several = done(opnp, "bench", "--models", "models.txt", *DATA, "--out", "out", "--dry-run").out
    assert all(f"timm:{name}" in several for name in NETS)
    assert "Missing: 0 of 6." in several
    one = (*DATA, "--model", f"timm:{NETS[0]}", "--weights", "none.pt", "--out", "out", "--dry-run")
    assert "Missing: 1 of 4." in done(opnp, "bench", *one).out
    assert "got 'enrgy'" in refused(opnp, "bench", *one, "--methods", "enrgy")
    assert "`validation_samples` must be at least 1" in refused(opnp, "bench", *one, "--validation-samples", "0")


def test_the_paper_says_what_it_needs(opnp: Opnp, tmp_path: Path) -> None:
    command = ("bench", "--protocol", "paper", "--data-root", tmp_path, "--out", tmp_path / "out")
    found = json.loads(done(opnp, *command, "--dry-run", "--json").out)
    paper = read_protocol("paper")
    assert {Path(path).relative_to(tmp_path).as_posix() for path in found["missing"]} == paper.sources.keys()
    assert all(content == paper.sources[path] for path, content in paper.places())
    message = refused(opnp, *command)
    assert "imagenet/train: ImageNet-1k" in message


def test_the_page_is_of_the_models_that_this_run_judged(opnp: Opnp, here: Path) -> None:
    options = ("--image-size", "8", "--mean", "0.5,0.4,0.3", "--std", "0.25,0.2,0.1", "--methods", "energy")
    several = (*DATA, *options, "--out", "out", "--model", "tinynets:other")
    done(opnp, "bench", *several, "--model", "tinynets:net")
    page = ("--seed", "1", "--report", "page.html")  # beside the record of another seed, which does not go with it
    outcome = opnp("bench", *several, "--model", "tinynets:broken", *page)
    assert "1 of 2 models did not run" in outcome.err
    text = (here / "page.html").read_text(encoding="utf-8")
    assert "tinynets-other" in text
    assert "tinynets-net" not in text


def test_a_near_set_of_one_model_is_named_by_the_model_as_it_is_given(opnp: Opnp, here: Path) -> None:
    options = ("--image-size", "8", "--mean", "0.5,0.4,0.3", "--std", "0.25,0.2,0.1", "--methods", "energy")
    command = ("bench", "--model", "tinynets:net", *DATA, *options, "--out", "out", "--json")
    [model] = json.loads(done(opnp, *command, "--near", "tinynets:net:noise").out)["models"]
    assert model["nearness"] == {"noise": "near"}
    assert "models: tinynets:net." in refused(opnp, *command, "--near", "tinynets:other:noise")


def test_a_model_that_fails_keeps_no_other_from_its_results(opnp: Opnp, here: Path) -> None:
    names = ("--model", "tinynets:broken", "--model", "tinynets:net", "--model", "tinynets:other")
    options = ("--image-size", "8", "--mean", "0.5,0.4,0.3", "--std", "0.25,0.2,0.1", "--methods", "energy")
    outcome = opnp("bench", *names, *DATA, *options, "--out", "out")
    assert outcome.code == 2
    assert "1 of 3 models did not run: tinynets-broken: `model`: tinynets:broken() raised RuntimeError" in outcome.err
    assert {path.parent.name for path in here.glob("out/*/results.json")} == {"tinynets-net", "tinynets-other"}
    done(opnp, "report", "out", "--out", "page.html")
    page = (here / "page.html").read_text(encoding="utf-8")
    assert ">tinynets-net<" in page
    assert ">tinynets-other<" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--protocol", "papers"), "`protocol` must be paper or a file that ends in .json, got 'papers'"),
        (("--protocol", "none.json"), "none.json"),
        (("--protocol", "paper", "--model", "timm:resnet18"), "--model cannot go with `--protocol`"),
        (("--protocol", "paper", "--image-size", "8"), "--image-size cannot go with `--protocol`"),
        (("--features", "features", "--data-root", "data"), "--data-root cannot go with `--features`"),
        (("--features", "features", "--dry-run"), "--dry-run cannot go with `--features`"),
        (("--model", "a:b", "--model", "a:b", *DATA), "different names, got 'a-b' twice"),
        (("--model", "a:b", "--model", "a:c", *DATA, "--weights", "w"), "`--weights` is for one model"),
        (("--models", "empty.txt", *DATA), "empty.txt names no model"),
    ],
)
def test_what_cannot_go_together_is_refused(
    opnp: Opnp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("# none\n", encoding="utf-8")
    assert message in refused(opnp, "bench", *arguments, "--out", "out")


def test_results_of_one_model_are_not_mixed_with_those_of_several(opnp: Opnp, here: Path, file: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "results.json").write_text("{}", encoding="utf-8")
    message = refused(opnp, "bench", "--protocol", file, "--out", "out")
    assert "out holds results.json, results of a run of its own" in message
