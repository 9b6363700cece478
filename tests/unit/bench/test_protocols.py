"""Protocols as they are read, and what is missing of one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from opnp.bench import (
    listed_models,
    missing_places,
    protocol_of_models,
    read_protocol,
    require_places,
    require_protocol,
    require_protocol_folder,
    spread_inputs,
)
from opnp.bench.methods import available_methods, chosen_methods
from opnp.bench.sweep import chosen_curves
from opnp.errors import DataFileError, EmptyDataError, MissingFileError, OptionError
from opnp.values.protocols import Protocol, ProtocolModel
from tests.unit.bench.image_world import image_sets, write_images

STAND_INS = Path(__file__).parents[2] / "real" / "paper_stand_ins.json"
NET = ProtocolModel(name="net", model="timm:resnet18", train="train", test="val", ood={"dtd": "dtd"})


def test_the_paper_and_its_stand_ins_do_the_same() -> None:
    paper, stand_ins = read_protocol("paper"), read_protocol(STAND_INS)
    assert (paper.methods, paper.curves, paper.notes) == (stand_ins.methods, stand_ins.curves, stand_ins.notes)
    assert "not of the paper's models and data" in stand_ins.remark
    assert not paper.remark
    published = {each.name: each.published for each in paper.models}
    assert all(each.published == published.get(each.name, ()) for each in stand_ins.models)


@pytest.mark.parametrize(("model", "classes", "features"), [("resnet50", 1000, 2048), ("densenet_cifar100", 100, 342)])
def test_rows_that_stand_beside_published_figures_are_run(model: str, classes: int, features: int) -> None:
    paper = read_protocol("paper")
    chosen_curves(paper.curves)
    there = available_methods(classes=classes, features=features, samples=50_000, is_tunable=True)
    names = {each.name for each in chosen_methods(there, paper.methods)}
    [published] = [each.published for each in paper.models if each.name == model]
    assert {each.row for each in published if each.row} <= names
    assert len(published) >= 4
    assert all(each.source for each in published)


def test_everything_that_the_paper_needs_says_what_it_is() -> None:
    paper = read_protocol("paper")
    assert {path for path, _ in paper.places()} == paper.sources.keys()


def test_places_are_looked_for_below_the_root(tmp_path: Path) -> None:
    other = replace(NET, name="other", weights="other.pt")
    protocol = Protocol(title="Two", models=(NET, other), sources={"val": "The validation set"})
    (tmp_path / "train").mkdir()
    missing = {each.path.name: each.content for each in missing_places(protocol, tmp_path)}
    assert missing == {"val": "The validation set", "dtd": "ood_dtd of net", "other.pt": "weights of other"}
    with pytest.raises(MissingFileError, match=r"3 of what it needs are not there:\n  .*val: The validation set\n"):
        require_places(protocol, tmp_path)
    for name in missing:
        (tmp_path / name).touch()
    require_places(protocol, tmp_path)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((), "at least one model"),
        ((NET, NET), "different names, got 'net' twice"),
        ((replace(NET, name="a/b"),), "got 'a/b'"),
        ((replace(NET, name="features"),), "not 'features'"),
        ((replace(NET, ood={}),), "`ood` of net must name at least one"),
        ((replace(NET, most={"ood_dtx": 3}),), "`most` of net must name sets of it, got ood_dtx"),
        ((replace(NET, near=("dtx",)),), "`near` of net must name OOD sets of it, got dtx"),
        ((replace(NET, mean=(0.5,)),), "as many values as each other, got 1 and 0"),
    ],
)
def test_models_that_cannot_be_told_apart_or_judged_are_refused(
    models: tuple[ProtocolModel, ...], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        Protocol(title="wrong", models=models)


@pytest.mark.parametrize(
    "change", [{"models": 3}, {"title": None}, {"more": 1}, {"record_version": 2}, {"validation_samples": 0}]
)
def test_a_file_that_is_no_protocol_is_refused_by_name(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(json.loads(Protocol(title="One", models=(NET,)).to_json()) | change), encoding="utf-8")
    with pytest.raises(DataFileError, match=r"mine\.json: This "):
        read_protocol(path)


def test_models_on_the_same_data_have_their_own_near_sets() -> None:
    sets = {"train": Path("a"), "test": Path("b"), "ood_x": Path("c"), "ood_y": Path("d"), "validation_ood": Path("e")}
    names = [("timm:one", ""), ("timm:two", "two.pt")]
    for near in (["x", "timm-two:y"], ["x", "timm:two:y"]):
        one, two = protocol_of_models(names, sets=sets, near=near).models
        assert (one.near, two.near) == (("x",), ("x", "y"))
    assert (one.sets, one.weights, two.weights) == ({name: str(path) for name, path in sets.items()}, "", "two.pt")


@pytest.mark.parametrize("near", ["three:x", "timm:x", "timm:one:z", "z"])
def test_a_near_set_of_no_model_is_refused(near: str) -> None:
    sets = {"train": Path("a"), "test": Path("b"), "ood_x": Path("c"), "ood_y": Path("d")}
    with pytest.raises(OptionError, match=rf"got {near}\. There are: x, y; models: timm:one, timm:two\."):
        protocol_of_models([("timm:one", ""), ("timm:two", "")], sets=sets, near=["x", near])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("enrgy",)}, "`methods` must be .*, got 'enrgy'"),
        ({"curves": ("nope",)}, "`curves` must be .*, got 'nope'"),
        ({"models": (replace(NET, ood={"my set": "dtd"}),)}, "got 'ood_my set'"),
    ],
)
def test_names_that_are_none_are_refused_before_anything_runs(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        require_protocol(replace(Protocol(title="One", models=(NET,)), **change), tmp_path)


def test_results_that_others_wrote_for_the_second_model_are_seen_before_the_first_runs(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text("[0.9]", encoding="utf-8")
    with pytest.raises(DataFileError, match=r"other holds results\.json, which opnp did not write"):
        require_protocol(Protocol(title="Two", models=(NET, replace(NET, name="other"))), tmp_path)


def test_a_part_of_a_set_is_spread_over_it_and_is_another_set(tmp_path: Path) -> None:
    inputs = image_sets(write_images(tmp_path, rows=10))["train"]
    assert spread_inputs(inputs, None) is spread_inputs(inputs, 10) is inputs
    part = spread_inputs(inputs, 4)
    rows = [0, 2, 5, 7]
    assert inputs.labels is not None
    assert part.labels is not None
    assert part.labels.tolist() == inputs.labels[rows].tolist()
    assert list(part.names) == [inputs.names[row] for row in rows]
    [(batch, labels)] = part.batches(8)
    expected: Any = inputs.transform.batch([inputs.read(row) for row in rows])
    assert torch.equal(batch, expected)
    assert torch.equal(labels, part.labels)
    digests = {each.source.digest() for each in (inputs, part, spread_inputs(inputs, 5), spread_inputs(inputs, 4))}
    assert len(digests) == 3


@pytest.mark.parametrize(("text", "error"), [("", EmptyDataError), ("a b c", DataFileError), ("a 'b", DataFileError)])
def test_a_list_that_names_no_models_is_refused(tmp_path: Path, text: str, error: type[Exception]) -> None:
    path = tmp_path / "models.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=r"models\.txt"):
        listed_models(path)


def test_tables_that_others_wrote_are_not_replaced(tmp_path: Path) -> None:
    require_protocol_folder(tmp_path / "new")
    (tmp_path / "results.md").write_text("mine", encoding="utf-8")
    with pytest.raises(DataFileError, match=r"results\.md, which opnp did not write"):
        require_protocol_folder(tmp_path)
