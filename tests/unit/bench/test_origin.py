"""Features that are there already: kept where nothing changed, computed again or refused where something did."""

import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from opnp.bench.origin import FeatureSource
from opnp.data import InputSet, Preprocessing, file_digest, read_head, write_head
from opnp.errors import DataFileError, EmptyDataError, OptionError
from tests.unit.bench.image_world import CLASSES, INPUTS, cached, class_images, image_sets, tiny_model, write_images
from tests.unit.data.image_files import write_tensors


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, InputSet]:
    return image_sets(write_images(tmp_path / "images"))


def test_a_second_run_computes_nothing(
    tmp_path: Path, sets: dict[str, InputSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tiny_model(), sets, tmp_path)
    before = {file.name: file_digest(file) for file in tmp_path.glob("*.*")}
    assert set(before) == {
        *("head.safetensors", "train.safetensors", "test.safetensors", "ood_noise.safetensors"),
        *("ood_grey.safetensors", "odin.safetensors", "source.json"),
    }
    monkeypatch.delattr(InputSet, "read")  # no image is decoded again
    report = cached(tiny_model(), sets, tmp_path)
    assert (report.computed, report.kept) == ((), ("train", "test", "ood_noise", "ood_grey"))
    assert {file.name: file_digest(file) for file in tmp_path.glob("*.*")} == before


def test_sets_are_added_one_by_one(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    for name, images in sets.items():
        report = cached(tiny_model(), {name: images}, tmp_path / "parts")
        assert report.computed == (name,)
    cached(tiny_model(), sets, tmp_path / "whole")
    for file in (tmp_path / "whole").glob("*.*"):
        assert file.read_bytes() == (tmp_path / "parts" / file.name).read_bytes(), file.name


def changed_pixel(folder: Path, sets: dict[str, InputSet]) -> dict[str, InputSet]:
    images, labels = class_images(120, seed=1)
    images[7, 0, 0, 0] ^= 1
    write_tensors(folder / "images" / "test.safetensors", images, labels)
    return image_sets(folder / "images")


def other_labels(folder: Path, sets: dict[str, InputSet]) -> dict[str, InputSet]:
    images, labels = class_images(120, seed=1)
    write_tensors(folder / "images" / "test.safetensors", images, labels.flip(0))
    return image_sets(folder / "images")


def edited_features(folder: Path, sets: dict[str, InputSet]) -> dict[str, InputSet]:
    file = folder / "out" / "test.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    return sets


def removed_features(folder: Path, sets: dict[str, InputSet]) -> dict[str, InputSet]:
    (folder / "out" / "test.safetensors").unlink()
    return sets


@pytest.mark.parametrize("change", [changed_pixel, other_labels, edited_features, removed_features])
def test_a_set_that_changed_is_computed_again_and_the_others_are_kept(
    tmp_path: Path, sets: dict[str, InputSet], change: Callable[..., dict[str, InputSet]]
) -> None:
    cached(tiny_model(), sets, tmp_path / "out")
    now = change(tmp_path, sets)
    report = cached(tiny_model(), now, tmp_path / "out")
    assert (report.computed, report.kept) == (("test",), ("train", "ood_noise", "ood_grey"))
    cached(tiny_model(), now, tmp_path / "fresh")
    for file in (tmp_path / "fresh").glob("*.*"):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"model": tiny_model(seed=1)}, "the model itself"),
    "name": ({"name": "other:net"}, "name of the model"),
    "dtype": ({"dtype": torch.float32}, "type of the features"),
    "head": ({"head": "6"}, "head asked for"),
    "inputs": ({"inputs": Preprocessing(size=8, resize=8, mean=(0.5,) * 3, std=(0.25,) * 3)}, "preprocessing"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_features_of_another_origin_are_refused_or_replaced_but_never_kept(
    tmp_path: Path, sets: dict[str, InputSet], other: str
) -> None:
    cached(tiny_model(), sets, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    changes, difference = dict(OTHERS[other][0]), OTHERS[other][1]
    model, inputs = changes.pop("model", tiny_model()), changes.pop("inputs", INPUTS)
    test = {"test": InputSet(sets["test"].source, inputs)}
    with pytest.raises(DataFileError, match=rf"out holds features of another origin \({difference}\): remove it, or"):
        cached(model, test, tmp_path / "out", **changes)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    report = cached(model, test, tmp_path / "out", is_replacing=True, **changes)
    assert report.computed == ("test",)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("head.safetensors", "test.safetensors", "odin.safetensors", "source.json"),
    }


def test_a_head_that_was_changed_is_not_taken_for_the_models(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    cached(tiny_model(), sets, tmp_path)
    write_head(tmp_path / "head.safetensors", torch.zeros(CLASSES, 48))
    with pytest.raises(DataFileError, match=r"of another origin \(content of head\.safetensors\)"):
        cached(tiny_model(), sets, tmp_path)
    assert len(cached(tiny_model(), sets, tmp_path, is_replacing=True).computed) == 4
    assert torch.equal(read_head(tmp_path / "head.safetensors").weight, list(tiny_model().parameters())[-2])


def test_a_model_that_is_written_in_no_file_is_cached(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    model = nn.Sequential(type("Nowhere", (nn.Identity,), {"__module__": "nowhere"})(), *tiny_model())
    assert cached(model, {"test": sets["test"]}, tmp_path).computed == ("test",)


def test_a_model_whose_code_changed_is_another(
    tmp_path: Path, sets: dict[str, InputSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "from torch import nn\n\nclass Scaled(nn.Module):\n    def forward(self, inputs):\n        return inputs * {}\n"
    )
    digests = []
    for factor in (1, 2):
        (tmp_path / "code" / str(factor)).mkdir(parents=True)
        (tmp_path / "code" / str(factor) / "scaled.py").write_text(code.format(factor), encoding="utf-8")
        with monkeypatch.context() as patched:
            patched.syspath_prepend(tmp_path / "code" / str(factor))
            model = nn.Sequential(import_module("scaled").Scaled(), *tiny_model())
            digests.append(cached(model, {"test": sets["test"]}, tmp_path / str(factor)).source.model.model_sha256)
            sys.modules.pop("scaled")
    assert digests[0] != digests[1]


def test_a_folder_of_unknown_origin_is_left_alone(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    cached(tiny_model(), sets, tmp_path / "out")
    (tmp_path / "out" / "source.json").unlink()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.safetensors").write_bytes(b"mine")
    for folder, first in (("out", "head"), ("mine", "train")):
        for is_replacing in (False, True):
            with pytest.raises(DataFileError, match=rf"{folder} holds {first}\.safetensors without source\.json"):
                cached(tiny_model(), sets, tmp_path / folder, is_replacing=is_replacing)
    assert [(each.name, each.read_bytes()) for each in (tmp_path / "mine").iterdir()] == [
        ("train.safetensors", b"mine")
    ]
    (tmp_path / "file").touch()
    with pytest.raises(DataFileError, match="file is a file: name a folder"):
        cached(tiny_model(), sets, tmp_path / "file")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 9}', '{"format": 1, "model": {"a": 1}}'])
def test_a_record_that_cannot_be_read_is_told(tmp_path: Path, sets: dict[str, InputSet], content: str) -> None:
    cached(tiny_model(), sets, tmp_path)
    (tmp_path / "source.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataFileError, match=r"source\.json (cannot be read|has format 9).*remove the folder"):
        cached(tiny_model(), sets, tmp_path)


def test_what_was_cut_short_is_not_taken_for_whole(
    tmp_path: Path, sets: dict[str, InputSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tiny_model(), sets, tmp_path / "out")
    now = changed_pixel(tmp_path, sets)

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("opnp.bench.origin.write_features", cut)
    with pytest.raises(KeyboardInterrupt):
        cached(tiny_model(), now, tmp_path / "out")
    monkeypatch.undo()
    assert not (tmp_path / "out" / "test.safetensors").exists()
    assert "test" not in FeatureSource.read(tmp_path / "out").sets
    assert cached(tiny_model(), now, tmp_path / "out").computed == ("test",)


@pytest.mark.parametrize("at", range(10))
def test_a_first_set_that_was_cut_short_at_any_step_is_computed_again(
    tmp_path: Path, sets: dict[str, InputSet], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    test = {"test": sets["test"]}
    cached(tiny_model(seed=1), test, tmp_path / "replaced")
    expected = cached(tiny_model(), test, tmp_path / "whole", is_odin_wanted=False)

    def cut(step: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **options: Any) -> Any:
            if next(is_cut, False):
                raise KeyboardInterrupt
            return step(*arguments, **options)

        return stepped

    for out in ("new", "replaced"):
        is_cut = iter([*[False] * at, True])
        with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
            patched.setattr(Path, "replace", cut(Path.replace))
            patched.setattr(Path, "unlink", cut(Path.unlink))
            cached(tiny_model(), test, tmp_path / out, is_odin_wanted=False, is_replacing=True)
        report = cached(tiny_model(), test, tmp_path / out, is_odin_wanted=False, is_replacing=out == "replaced")
        assert report.source == expected.source
        for file in (tmp_path / "whole").iterdir():
            assert file.read_bytes() == (tmp_path / out / file.name).read_bytes(), file.name


def test_options_are_checked_before_anything_is_removed(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    cached(tiny_model(), sets, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    now = changed_pixel(tmp_path, sets)
    with pytest.raises(OptionError, match="`batch_size` must be at least 1"):
        cached(tiny_model(), now, tmp_path / "out", batch_size=0)
    with pytest.raises(OptionError, match=r"`dtype` must be torch\.float16 or torch.float32, got torch.int8"):
        cached(tiny_model(), now, tmp_path / "out", dtype=torch.int8)
    with pytest.raises(EmptyDataError, match="at least one set of inputs, got none"):
        cached(tiny_model(), {}, tmp_path / "out")
    mixed = now | {"train": InputSet(now["train"].source, Preprocessing(8, 8, (0.5,) * 3, (0.5,) * 3))}
    with pytest.raises(OptionError, match="must all have the same transform"):
        cached(tiny_model(), mixed, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
