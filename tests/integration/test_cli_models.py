"""``opnp fit --model`` and ``opnp score --model`` from end to end, on models of every kind with random weights."""

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import models

from opnp import OPNP, Ratios
from opnp.adapters import chosen_preprocessing, model_from_name
from opnp.data import open_inputs
from tests.in_process import Opnp, Outcome
from tests.unit.adapters.hub_folders import WORDS, write_bert, write_vit
from tests.unit.bench.image_world import CLASSES, OPTIONS, class_images, write_module
from tests.unit.data.image_files import save_image, write_tensors

_MORE = """
from torch import nn


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU())
        self.first, self.second = nn.Linear(24, 4), nn.Linear(24, 4)

    def forward(self, inputs):
        features = self.body(inputs)
        return self.second(features), self.first(features)


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, inputs):
        raise KeyError("lost")
"""


@dataclass(frozen=True)
class Case:
    """A model on the command line, with its data.

    Attributes:
        name: What ``--model`` takes.
        options: What else is said of the model.
        weights: File of weights, or None.
        suffix: Ending of the files of inputs.

    """

    name: str
    options: tuple[str, ...]
    weights: Path | None
    suffix: str = ".safetensors"

    @property
    def arguments(self) -> list[object]:
        weights = [] if self.weights is None else ["--weights", self.weights]
        return ["--model", self.name, *self.options, *weights]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with modules of models, and data as images and texts."""
    write_module(tmp_path)
    (tmp_path / "morenets.py").write_text(_MORE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for module in ("tinynets", "morenets"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    for seed, (name, rows) in enumerate({"train": 60, "validation": 24, "test": 10}.items()):
        write_tensors(tmp_path / f"{name}.safetensors", *class_images(rows, seed=seed))
        _write_texts(tmp_path / f"{name}.jsonl", rows, seed=seed)
    return tmp_path


def _write_texts(path: Path, rows: int, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 20, (rows,), generator=generator).tolist()
    texts = [
        " ".join(WORDS[5 + int(index)] for index in torch.randint(len(WORDS) - 5, (length,), generator=generator))
        for length in lengths
    ]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def _random(build: Callable[[], Any]) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state: dict[str, torch.Tensor] = build().state_dict()
    return state


def _timm(folder: Path) -> Case:
    state = _random(partial(timm.create_model, "test_resnet", num_classes=CLASSES))
    save_file(state, folder / "timm.safetensors")
    return Case("timm:test_resnet", ("--image-size", "32"), folder / "timm.safetensors")


def _torchvision(folder: Path) -> Case:
    build: Any = partial(models.resnet18, num_classes=CLASSES)
    torch.save({"state_dict": _random(build)}, folder / "torchvision.pt")
    return Case("torchvision:resnet18", ("--image-size", "32"), folder / "torchvision.pt")


def _hf_images(folder: Path) -> Case:
    return Case(f"hf:{write_vit(folder / 'vit')}", (), None)


def _hf_texts(folder: Path) -> Case:
    return Case(f"hf:{write_bert(folder / 'bert')}", (), None, ".jsonl")


def _hf_other_weights(folder: Path) -> Case:
    other = write_bert(folder / "other", seed=1) / "model.safetensors"
    return Case(f"hf:{write_bert(folder / 'bert')}", (), other, ".jsonl")


def _module(folder: Path) -> Case:
    return Case("tinynets:net", OPTIONS, None)


_CASES = (_timm, _torchvision, _hf_images, _hf_texts, _hf_other_weights, _module)


def fitted(opnp: Opnp, world: Path, case: Case, *options: object) -> Outcome:
    """Return what a fit with fixed ratios left; the detector is ``detector.safetensors``."""
    return fitted_as(opnp, world, case, "--rho-w-min", 0.25, *options)


def fitted_as(opnp: Opnp, world: Path, case: Case, *options: object) -> Outcome:
    """Return what a fit with these options left; the detector is ``detector.safetensors``."""
    data = ("--data", world / f"train{case.suffix}", "--validation", world / f"validation{case.suffix}")
    out = ("--out", world / "detector.safetensors", "--batch-size", 16)
    return opnp("fit", *case.arguments, *data, *out, *options)


def scored(opnp: Opnp, world: Path, case: Case, data: Path, *options: object) -> tuple[Outcome, list[dict[str, str]]]:
    """Return what scoring left, and the rows of the table."""
    out = world / "scores.csv"
    detector = ("--detector", world / "detector.safetensors", "--out", out)
    outcome = opnp("score", *detector, *case.arguments, "--data", data, *options)
    if not out.exists():
        return outcome, []
    with out.open(encoding="utf-8", newline="") as file:
        return outcome, list(csv.DictReader(file))


_PAPER = (("--rho-w-min", "0.25"), {"ratios": Ratios(w_min=0.25)})


@pytest.mark.parametrize(
    ("make", "options", "arguments"),
    [*((make, *_PAPER) for make in _CASES), *((make, (), {}) for make in (_timm, _module))],
)
def test_fit_and_score_are_those_of_the_library(
    opnp: Opnp, world: Path, make: Callable[[Path], Case], options: tuple[str, ...], arguments: dict[str, Any]
) -> None:
    case = make(world)
    outcome = fitted_as(opnp, world, case, *options, "--json")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert (facts["training_samples"], facts["calibration_samples"]) == (60, 24)
    assert facts["unreadable"] == {"data": 0, "validation": 0}
    outcome, rows = scored(opnp, world, case, world / f"test{case.suffix}", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["samples"] == len(rows) == 10
    assert json.loads(outcome.out)["unreadable"] == 0
    assert list(rows[0]) == ["index", "name", "predicted_class", "score", "p_value", "is_ood"]

    model, known = model_from_name(case.name, weights=case.weights)
    numbers: dict[str, Any] = {"image_size": 32} if "32" in case.options else {}
    if case.options == OPTIONS:
        numbers = {"image_size": 8, "mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.1)}
    transform = chosen_preprocessing(known, model=case.name, **numbers)
    sets = {name: open_inputs(world / f"{name}{case.suffix}", transform) for name in ("train", "validation", "test")}
    detector = OPNP(**arguments).fit(model, sets["train"].batches(16), validation=sets["validation"].batches(16))
    loaded = OPNP.load(world / "detector.safetensors")
    assert torch.equal(loaded.sensitivity.weight, detector.sensitivity.weight)
    assert torch.equal(loaded.calibration_scores, detector.calibration_scores)
    (batch,) = sets["test"].batches(10)
    verdict = detector.verdict(batch)
    assert [row["name"] for row in rows] == list(sets["test"].names)
    assert [int(row["index"]) for row in rows] == list(range(10))
    assert [int(row["predicted_class"]) for row in rows] == verdict.predicted_class.tolist()
    assert [row["is_ood"] for row in rows] == [str(value) for value in verdict.is_ood.tolist()]
    found = torch.tensor([float(row["score"]) for row in rows])
    torch.testing.assert_close(
        found, verdict.score.to(found), rtol=1e-4 if detector.settings.is_fusion else 1e-5, atol=1e-6
    )
    assert len(set(found.tolist())) > 5


def test_what_cannot_be_read_is_counted_and_left_out(opnp: Opnp, world: Path) -> None:
    case = Case("tinynets:net", OPTIONS, None, "")
    for name, count in {"train": 12, "validation": 24, "test": 5}.items():
        for index, image in enumerate(class_images(count, seed=count)[0]):
            save_image(world / name / f"{index:02d}.png", image)
    for name in ("train/03.png", "test/00.png", "test/03.png"):
        (world / name).write_text("no image", encoding="utf-8")
    outcome = fitted(opnp, world, case, "--json", "--workers", 1)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["unreadable"] == {"data": 1, "validation": 0}
    assert json.loads(outcome.out)["training_samples"] == 11
    assert "train: 1 of 12 inputs could not be read: 03.png (" in outcome.err
    outcome, rows = scored(opnp, world, case, world / "test", "--json")
    assert json.loads(outcome.out)["unreadable"] == 2
    assert "test: 2 of 5 inputs could not be read: 00.png (" in outcome.err
    assert [(row["index"], row["name"]) for row in rows] == [("1", "01.png"), ("2", "02.png"), ("4", "04.png")]
    _, alone = scored(opnp, world, case, world / "test", "--batch-size", 1)
    assert [row["predicted_class"] for row in alone] == [row["predicted_class"] for row in rows]
    for arguments in (
        ("fit", *case.arguments, "--data", world / "train", "--out", "other.safetensors"),
        ("score", *case.arguments, "--data", world / "test", "--out", "o.csv", "--detector", "detector.safetensors"),
    ):
        assert "cannot be read" in refused(opnp, *arguments, "--strict")


def test_nothing_that_can_be_read_is_an_error(opnp: Opnp, world: Path) -> None:
    case = _module(world)
    assert fitted(opnp, world, case).code == 0
    (world / "broken").mkdir()
    (world / "broken" / "a.png").write_text("no image", encoding="utf-8")
    for arguments in (
        ("fit", *case.arguments, "--data", "broken", "--out", "other.safetensors"),
        ("score", *case.arguments, "--data", "broken", "--out", "o.csv", "--detector", "detector.safetensors"),
    ):
        assert "broken holds nothing to work on: 1 of 1 inputs could not be read" in refused(opnp, *arguments)


def test_labels_change_no_detector(opnp: Opnp, world: Path) -> None:
    """Folders of another number than the model has classes, or of none: a fit takes the inputs alone."""
    written = set()
    for name, folders in {"three": 3, "four": 4, "five": 5, "loose": 0}.items():
        for index, image in enumerate(class_images(120, seed=4)[0]):
            place = world / name / "abcde"[index * folders // 120] if folders else world / name
            save_image(place / f"{index:03d}.png", image)
        files = ("--data", name, "--validation", "validation.safetensors")
        outcome = opnp("fit", *_module(world).arguments, *files, "--out", "d.safetensors", "--json")
        assert (outcome.code, outcome.err) == (0, "")
        assert json.loads(outcome.out)["unreadable"] == {"data": 0, "validation": 0}
        written.add((world / "d.safetensors").read_bytes())
    assert len(written) == 1


def test_without_validation_there_is_no_verdict(opnp: Opnp, world: Path) -> None:
    case = _module(world)
    outcome = opnp(
        "fit", *case.arguments, "--data", "train.safetensors", "--rho-w-min", 0.1, "--out", "detector.safetensors"
    )
    assert outcome.code == 0
    assert "No --validation" in outcome.err
    assert "unreadable           0 of data" in outcome.out
    outcome, rows = scored(opnp, world, case, world / "test.safetensors")
    assert "not calibrated" in outcome.err
    assert {(row["p_value"], row["is_ood"]) for row in rows} == {("", "")}
    assert len({row["score"] for row in rows}) > 5


def test_a_tuple_of_outputs_needs_to_be_told_apart(opnp: Opnp, world: Path) -> None:
    case = Case("morenets:Pair", OPTIONS, None)
    torch.save(_random(lambda: model_from_name("morenets:Pair")[0]), world / "pair.pt")
    case = Case("morenets:Pair", (*OPTIONS, "--weights", "pair.pt"), None)
    assert "logits" in refused(
        opnp, "fit", *case.arguments, "--data", "train.safetensors", "--out", "detector.safetensors"
    )
    for place, head in {"0": "second", "1": "first"}.items():
        assert fitted(opnp, world, case, "--logits", place).code == 0
        bias = torch.load(world / "pair.pt", weights_only=True)[f"{head}.bias"]
        assert torch.equal(OPNP.load("detector.safetensors").pruned_head.bias, bias)
        outcome, rows = scored(opnp, world, case, world / "test.safetensors")
        assert outcome.code == 0, outcome.err
        assert len(rows) == 10


def test_the_head_may_be_named(opnp: Opnp, world: Path) -> None:
    assert fitted(opnp, world, _module(world), "--head", "6").code == 0
    case = _module(world)
    arguments = ("fit", *case.arguments, "--data", "train.safetensors", "--out", "d.safetensors", "--head", "5")
    assert "5" in refused(opnp, *arguments)


def refused(opnp: Opnp, *arguments: object) -> str:
    """Return the message of a run that must fail with exit code 2 and nothing but a message."""
    outcome = opnp(*arguments)
    assert outcome.code == 2, (outcome.out, outcome.err)
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith("opnp: ")
    return outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Give exactly one of `--features FILE`, for features that are there, and `--model NAME`"),
        ("--features a --model b:c", "got both"),
        ("--features a", "`--features` need the head they belong to: give `--head FILE`"),
        ("--features a --head b --data c", "--data cannot go with `--features`: only `--model` has a use for it"),
        ("--features a --head b --image-size 8 --strict --workers 2", "--workers, --image-size, --strict cannot go"),
        ("--features a --head b --logits 0", "--logits cannot go"),
        ("--model tinynets:net", "`--model` needs the inputs that it was trained on: give `--data PATH`"),
        ("--model tinynets:net --data d --checkpoint c", "--checkpoint cannot go with `--model`"),
        ("--model tinynets:net --data train.safetensors", "No preprocessing is known for the model 'tinynets:net'"),
        ("--model tinynets --data train.safetensors", "`model` must be `timm:NAME`"),
        ("--model hf:nowhere --data train.safetensors", "nowhere is none. Nothing is downloaded"),
        ("--model hf:. --data train.safetensors", "holds no config.json"),
        ("--model timm:none --data train.safetensors", "timm has no model 'none'"),
        ("TINY --data nowhere", "nowhere does not exist"),
        ("TINY --data train.jsonl", "train.jsonl"),
        ("TINY --data train.safetensors --weights absent.pt", "absent.pt does not exist"),
        ("TINY --data train.safetensors --device nowhere", "`--device` must be a device of this machine"),
        ("TINY --data train.safetensors --batch-size 0", "`batch_size` must be at least 1"),
        ("TINY --data train.safetensors --workers -1", "`workers` must be 0 or the number of processes"),
        ("TINY --data train.safetensors --head absent", "absent"),
        ("TINY --data train.safetensors --logits 3", "logits"),
        ("TINY --data train.safetensors --validation few.safetensors", "at least 19 calibration samples, got 8"),
        ("FAILING --data train.safetensors", "The model failed on train.safetensors: KeyError: 'lost'"),
    ],
)
def test_fit_refuses(opnp: Opnp, world: Path, arguments: str, message: str) -> None:
    write_tensors(world / "few.safetensors", *class_images(8, seed=3))
    options = " ".join(OPTIONS)
    arguments = arguments.replace("TINY", f"--model tinynets:net --rho-w-min 0.1 {options}")
    arguments = arguments.replace("FAILING", f"--model morenets:Failing {options}")
    assert message in refused(opnp, "fit", "--out", "d.safetensors", *arguments.split())
    assert not (world / "d.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Give exactly one of `--features FILE`"),
        ("--features a --device cpu --batch-size 3", "--batch-size, --device cannot go with `--features`"),
        ("--model tinynets:net", "`--model` needs the inputs to score: give `--data PATH`"),
        ("--model tinynets:other --data test.safetensors OPTIONS", "fitted on a head with digest"),
        ("--model tinynets:net --data nowhere OPTIONS", "nowhere does not exist"),
        ("--model tinynets:net --data test.safetensors --image-size 9", "give --mean, --std"),
    ],
)
def test_score_refuses(opnp: Opnp, world: Path, arguments: str, message: str) -> None:
    assert fitted(opnp, world, _module(world)).code == 0
    arguments = arguments.replace("OPTIONS", " ".join(OPTIONS))
    given = ("score", "--detector", "detector.safetensors", "--out", "o.csv", *arguments.split())
    assert message in refused(opnp, *given)
    assert not (world / "o.csv").exists()


def test_texts_and_images_are_not_mixed_up(opnp: Opnp, world: Path) -> None:
    texts, images = _hf_texts(world), _hf_images(world)
    for case, data, message in (
        (texts, "train.safetensors", "texts"),
        (images, "train.jsonl", "images"),
        (Case(texts.name, ("--image-size", "8"), None), "train.jsonl", "takes texts: leave --image-size out"),
    ):
        assert message in refused(opnp, "fit", *case.arguments, "--data", data, "--out", "d.safetensors")
