"""``opnp fit --model`` and ``opnp score --model`` from end to end, on models of every kind with random weights."""

import csv
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torchvision import models

from opnp import OPNP, Ratios
from opnp.adapters import TokenizerTransform, chosen_preprocessing, model_from_name, transformers_model
from opnp.data import open_inputs
from tests.in_process import Opnp, Outcome, done, refused
from tests.integration.cli_world import MODULES, write_world
from tests.unit.adapters.hub_folders import change_json, write_bert, write_vit
from tests.unit.bench.image_world import CLASSES, OPTIONS, class_images
from tests.unit.data.image_files import save_image


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


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with modules of models, and data as images and texts."""
    monkeypatch.chdir(write_world(tmp_path))
    for module in MODULES:
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


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


def _module(folder: Path) -> Case:
    return Case("tinynets:net", OPTIONS, None)


_CASES = (_timm, _torchvision, _hf_images, _hf_texts, _module)


def fitted(opnp: Opnp, case: Case, *options: object, data: str = "train") -> Outcome:
    """Fit the model of a case, calibrated, into ``d.safetensors``."""
    known = f"validation{case.suffix or '.safetensors'}"
    given = ("--data", f"{data}{case.suffix}", "--validation", known, "--batch-size", 16, "--out", "d.safetensors")
    return done(opnp, "fit", *case.arguments, *given, *options)


def scored(opnp: Opnp, case: Case, data: str, *options: object) -> tuple[Outcome, list[dict[str, str]]]:
    """Return what scoring left, and the rows of the table."""
    given = ("--detector", "d.safetensors", "--data", data, "--out", "scores.csv")
    outcome = done(opnp, "score", *case.arguments, *given, *options)
    with Path("scores.csv").open(encoding="utf-8", newline="") as file:
        return outcome, list(csv.DictReader(file))


def refused_by_both(opnp: Opnp, case: Case, data: str, *options: object) -> list[str]:
    """Return the messages of a fit and of scores that must both be refused."""
    given = (*case.arguments, "--data", data, *options)
    score = ("score", *given, "--detector", "d.safetensors", "--out", "other.csv")
    return [refused(opnp, "fit", *given, "--out", "other.safetensors"), refused(opnp, *score)]


@pytest.mark.parametrize(
    ("make", "options", "arguments"),
    [
        *((make, ("--rho-w-min", "0.25"), {"ratios": Ratios(w_min=0.25)}) for make in _CASES),
        *((make, (), {}) for make in (_timm, _module)),
    ],
)
def test_fit_and_score_are_those_of_the_library(
    opnp: Opnp, world: Path, make: Callable[[Path], Case], options: tuple[str, ...], arguments: dict[str, Any]
) -> None:
    case = make(world)
    facts = json.loads(fitted(opnp, case, *options, "--json").out)
    assert (facts["training_samples"], facts["calibration_samples"]) == (60, 24)
    assert facts["unreadable"] == {"data": 0, "validation": 0}
    outcome, rows = scored(opnp, case, f"test{case.suffix}", "--json")
    facts = json.loads(outcome.out)
    assert (facts["samples"], facts["unreadable"], len(rows)) == (10, 0, 10)
    given = ["index", "name", "predicted_class", "score", "p_value", "is_ood", "calibration_samples"]
    assert list(rows[0]) == given

    model, known = model_from_name(case.name, weights=case.weights)
    numbers: dict[str, Any] = {"image_size": 32} if "32" in case.options else {}
    if case.options == OPTIONS:
        numbers = {"image_size": 8, "mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.1)}
    transform = chosen_preprocessing(known, model=case.name, **numbers)
    sets = {name: open_inputs(world / f"{name}{case.suffix}", transform) for name in ("train", "validation", "test")}
    detector = OPNP(**arguments).fit(model, sets["train"].batches(16), validation=sets["validation"].batches(16))
    loaded = OPNP.load("d.safetensors")
    assert torch.equal(loaded.sensitivity.weight, detector.sensitivity.weight)
    assert torch.equal(loaded.calibration_scores, detector.calibration_scores)
    (batch,) = sets["test"].batches(10)
    verdict = detector.verdict(batch)
    assert [(row["index"], row["name"]) for row in rows] == [(str(row), sets["test"].names[row]) for row in range(10)]
    assert [int(row["predicted_class"]) for row in rows] == verdict.predicted_class.tolist()
    assert [row["is_ood"] for row in rows] == [str(value) for value in verdict.is_ood.tolist()]
    found = torch.tensor([float(row["score"]) for row in rows])
    rtol = 1e-4 if detector.settings.is_fusion else 1e-5
    torch.testing.assert_close(found, verdict.score.to(found), rtol=rtol, atol=1e-6)
    assert len(set(found.tolist())) > 5


def test_what_cannot_be_read_is_counted_and_left_out_or_an_error(opnp: Opnp, world: Path) -> None:
    case = Case("tinynets:net", OPTIONS, None, "")
    for name, count in {"train": 12, "test": 5}.items():
        for index, image in enumerate(class_images(count, seed=count)[0]):
            save_image(world / name / f"{index:02d}.png", image)
    for name in ("train/03.png", "test/00.png", "test/03.png", "broken/a.png"):
        (world / name).parent.mkdir(exist_ok=True)
        (world / name).write_text("no image", encoding="utf-8")
    outcome = fitted(opnp, case, "--json", "--workers", 1)
    facts = json.loads(outcome.out)
    assert (facts["unreadable"], facts["training_samples"]) == ({"data": 1, "validation": 0}, 11)
    assert "train: 1 of 12 inputs could not be read: 03.png (" in outcome.err
    outcome, rows = scored(opnp, case, "test", "--json")
    assert json.loads(outcome.out)["unreadable"] == 2
    assert "test: 2 of 5 inputs could not be read: 00.png (" in outcome.err
    assert [(row["index"], row["name"]) for row in rows] == [("1", "01.png"), ("2", "02.png"), ("4", "04.png")]
    _, alone = scored(opnp, case, "test", "--batch-size", 1)
    assert [row["predicted_class"] for row in alone] == [row["predicted_class"] for row in rows]
    assert all("cannot be read" in message for message in refused_by_both(opnp, case, "test", "--strict"))
    for message in refused_by_both(opnp, case, "broken"):
        assert "broken holds nothing to work on: 1 of 1 inputs could not be read" in message


def test_labels_change_no_detector(opnp: Opnp, world: Path) -> None:
    """Folders of another number than the model has classes, or of none: a fit takes the inputs alone."""
    written = set()
    for name, folders in {"three": 3, "four": 4, "five": 5, "loose": 0}.items():
        for index, image in enumerate(class_images(120, seed=4)[0]):
            place = world / name / "abcde"[index * folders // 120] if folders else world / name
            save_image(place / f"{index:03d}.png", image)
        outcome = fitted(opnp, Case("tinynets:net", OPTIONS, None, ""), data=name)
        assert outcome.err == "" or "above chance" in outcome.err or "its labels are left out" in outcome.err
        tensors = load_file(world / "d.safetensors")
        written.add(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors)))
    assert len(written) == 1


@pytest.mark.parametrize(
    ("options", "head"),
    [("--logits 0", "second"), ("--logits 1", "first"), ("--logits 1 --head-layer first", "first")],
)
def test_one_of_two_heads_may_be_chosen(opnp: Opnp, world: Path, options: str, head: str) -> None:
    torch.save(_random(lambda: model_from_name("oddnets:Pair")[0]), world / "pair.pt")
    case = Case("oddnets:Pair", OPTIONS, Path("pair.pt"))
    fitted(opnp, case, *options.split())
    bias = torch.load(world / "pair.pt", weights_only=True)[f"{head}.bias"]
    assert torch.equal(OPNP.load("d.safetensors").pruned_head.bias, bias)
    assert len(scored(opnp, case, "test.safetensors")[1]) == 10


def test_a_tree_of_any_form_is_scored_and_cached_as_ood(opnp: Opnp, world: Path) -> None:
    """What has no labels to give needs no order of classes; names that are no UTF-8 are written with escapes."""
    names = ("loose.png", "ant/a.png", "0/b.png", "00/c.png", os.fsdecode(b"ant/\xff\xfe.png"))
    for name, image in zip(names, class_images(5, seed=3)[0], strict=True):
        save_image(world / "tree" / name, image)
    (world / "tree" / "empty").mkdir()
    case = _module(world)
    fitted(opnp, case)
    _, rows = scored(opnp, case, "tree")
    assert [row["name"] for row in rows] == ["loose.png", "0/b.png", "00/c.png", "ant/a.png", "ant/\\xff\\xfe.png"]
    given = ("cache", *case.arguments, "--no-odin", "--out")
    for is_new in (True, False):
        facts = json.loads(done(opnp, *given, "out", "--ood", "tree=tree", "--json").out)["sets"]["ood_tree"]
        assert (facts["samples"], facts["is_new"]) == (5, is_new)
    message = refused(opnp, *given, "other", "--train", "tree")
    assert "holds images (loose.png, ...) beside folders with images" in message


@pytest.mark.parametrize("make", _CASES)
def test_a_detector_remembers_its_model(opnp: Opnp, world: Path, make: Callable[[Path], Case]) -> None:
    """Without a word of the model, and from another folder beside its weights, the table is the same to the byte."""
    case = make(world)
    fitted(opnp, case)
    scored(opnp, case, f"test{case.suffix}")
    short = ("score", "--data", world / f"test{case.suffix}", "--out", "short.csv")
    done(opnp, *short, "d.safetensors")
    expected = Path("scores.csv").read_bytes()
    assert Path("short.csv").read_bytes() == expected
    content = Path("d.safetensors").read_bytes()
    assert str(world).encode() not in content
    inspected = json.loads(done(opnp, "inspect", "d.safetensors", "--json").out)
    assert inspected["model"].partition(":")[0] == case.name.partition(":")[0]
    source = case.weights if case.weights is not None else Path(case.name.removeprefix("hf:"))
    if not source.exists():  # a module, which is imported by its name
        return
    (world / "new").mkdir()
    moved = source.rename(world / "new" / source.name)
    assert f"a model with {source.name}, which is neither there" in refused(opnp, *short, "d.safetensors")
    Path("d.safetensors").rename("new/d.safetensors")
    done(opnp, *short, "new/d.safetensors")
    assert Path("short.csv").read_bytes() == expected
    moved.rename(source)


def test_without_a_file_the_most_ood_inputs_are_printed(opnp: Opnp, world: Path) -> None:
    """Largest scores first, with four digits and a verdict in words."""
    case = _module(world)
    fitted(opnp, case)
    _, rows = scored(opnp, case, "test.safetensors")
    printed = done(opnp, "score", "d.safetensors", "test.safetensors").out
    ordered = sorted(rows, key=lambda row: -float(row["score"]))
    cells = [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in printed.splitlines() if "\u2502" in line]
    assert cells == [
        [
            *(row["name"], row["predicted_class"]),
            *(f"{float(row[name]):.4g}" for name in ("score", "p_value")),
            "OOD" if row["is_ood"] == "True" else "known",
        ]
        for row in ordered
    ]
    for wrong in (("d.safetensors", "--detector", "d.safetensors"), ()):
        assert "Give DETECTOR once" in refused(opnp, "score", *wrong, "--data", "test.safetensors")


def test_what_contradicts_the_fit_is_refused_unless_it_is_forced(opnp: Opnp, world: Path) -> None:
    """Inputs made otherwise, and other weights before the same head."""
    case = _torchvision(world)
    fitted(opnp, case)
    score = ("score", "--detector", "d.safetensors", "--data", "test.safetensors", "--out", "s.csv")
    message = refused(opnp, *score, "--image-size", 40)
    assert "made otherwise than at the detector's fit: resize 45 for 36, size 40 for 32." in message
    assert "Forced: These inputs are made otherwise" in done(opnp, *score, "--image-size", 40, "--force").err
    assert case.weights is not None
    state = torch.load(case.weights, weights_only=True)["state_dict"]
    torch.save({"state_dict": state | {"conv1.weight": 2 * state["conv1.weight"]}}, "other.pt")
    assert "the head of the detector's fit, and other weights elsewhere" in refused(
        opnp, *score, "--weights", "other.pt"
    )
    assert "Verdicts may mean nothing" in done(opnp, *score, "--weights", "other.pt", "--force").err
    torch.save({name: each.half() if each.is_floating_point() else each for name, each in state.items()}, "half.pt")
    assert "rounded to half precision" in done(opnp, *score, "--weights", "half.pt").err
    torch.save(state | {"fc.weight": 2 * state["fc.weight"]}, "head.pt")
    assert "has other weights" in refused(opnp, *score, "--weights", "head.pt")


def test_names_of_classes_come_from_the_model(opnp: Opnp, world: Path) -> None:
    """Labels by name are counted in the order of ``config.json``, which is not that of the alphabet."""
    folder = write_bert(world / "bert")
    names = ["zebra", "yak", "wolf"]
    change_json(folder / "config.json", id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    texts = [json.loads(line)["text"] for line in Path("train.jsonl").read_text().splitlines()]
    model, transform = transformers_model(folder)
    assert isinstance(transform, TokenizerTransform)
    with torch.no_grad():
        found = model.eval()(**transform.batch([transform(text) for text in texts])).logits.argmax(1).tolist()
    rows = [json.dumps({"text": text, "label": names[label]}) for text, label in zip(texts, found, strict=True)]
    Path("named.jsonl").write_text("\n".join(rows), encoding="utf-8")
    facts = json.loads(
        done(opnp, "fit", "--model", f"hf:{folder}", "--data", "named.jsonl", "--out", "d.st", "--json").out
    )
    assert facts["id_accuracy"]["training"] == 1.0
    done(opnp, "score", "--detector", "d.st", "--data", "named.jsonl", "--out", "s.csv")
    with Path("s.csv").open(encoding="utf-8", newline="") as file:
        assert [row["class_name"] for row in csv.DictReader(file)] == [names[label] for label in found]


def test_names_of_a_part_of_the_classes_are_left_out(opnp: Opnp, world: Path) -> None:
    """A layer somewhere with as many rows says nothing; names of classes that are not the model's stand nowhere."""
    state = _random(partial(timm.create_model, "test_efficientnet", num_classes=50))
    save_file(state, world / "wide.safetensors")
    for index, image in enumerate(class_images(80, seed=4)[0]):
        save_image(world / "eight" / f"name{index % 8}" / f"{index}.png", image)
    given = ("fit", "--model", "timm:test_efficientnet", "--weights", "wide.safetensors", "--image-size", "32")
    outcome = done(opnp, *given, "--data", "eight", "--out", "d.safetensors", "--json")
    assert "eight names 8 classes, and the model has 50" in outcome.err
    assert "id_accuracy" not in json.loads(outcome.out)
    done(opnp, "score", "d.safetensors", "eight", "--out", "s.csv")
    assert "class_name" not in Path("s.csv").read_text(encoding="utf-8").splitlines()[0]
