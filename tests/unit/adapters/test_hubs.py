"""Models by name: from timm, from torchvision, from a module of the user's."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from opnp.adapters import chosen_preprocessing, folder_name, hubs, model_from_name, transformers_model
from opnp.data import Preprocessing
from opnp.errors import DataFileError, MissingFileError, OptionError
from opnp.model import head_layers
from tests.unit.adapters.hub_folders import write_bert, write_vit
from tests.unit.bench.image_world import tiny_model, write_module


@pytest.fixture(autouse=True)
def module_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a folder that holds `tinynets.py`, which is forgotten afterwards."""
    monkeypatch.chdir(write_module(tmp_path))
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def saved(model: nn.Module, path: Path) -> Path:
    """Write random weights for a model, and return the path."""
    floats = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    save_file(model.state_dict() | {name: torch.rand_like(value) for name, value in floats.items()}, path)
    return path


def test_a_callable_of_the_current_folder() -> None:
    paths, state = list(sys.path), torch.random.get_rng_state()
    model, preprocessing = model_from_name("tinynets:net")
    assert same(model, tiny_model())
    assert preprocessing is None
    assert sys.path == paths
    assert torch.equal(torch.random.get_rng_state(), state)


def test_weights_replace_those_of_the_callable(tmp_path: Path) -> None:
    torch.save(tiny_model(seed=1).state_dict(), tmp_path / "other.pt")
    assert same(model_from_name("tinynets:net", weights=tmp_path / "other.pt")[0], tiny_model(seed=1))


@pytest.mark.parametrize("classes", [1000, 7])
@pytest.mark.parametrize("text", ["timm:resnet10t", "torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1"])
def test_weights_say_how_many_classes_there_are(tmp_path: Path, text: str, classes: int) -> None:
    kind, _, name = text.partition(":")
    builders: dict[str, Any] = {"timm": timm.create_model, "torchvision": models.get_model}
    weights = saved(builders[kind](name, num_classes=classes), tmp_path / "weights.safetensors")
    model, preprocessing = model_from_name(text, weights=weights)
    stored = load_file(weights)
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert len(list(head_layers(model).values())[-1].weight) == classes
    assert preprocessing is not None


def test_folders_of_transformers_with_their_weights_or_others(tmp_path: Path) -> None:
    folder, other = write_vit(tmp_path / "vit"), write_vit(tmp_path / "other", seed=1)
    own, transform = model_from_name(f"hf:{folder}")
    assert transform is not None
    assert transform.kind == "image"
    assert same(own, transformers_model(folder)[0])
    replaced, _ = model_from_name(f"hf:{folder}", weights=other / "model.safetensors")
    assert same(replaced, transformers_model(other)[0])
    narrow = own.state_dict()
    narrow |= {"classifier.weight": torch.ones(2, 16), "classifier.bias": torch.ones(2)}
    torch.save(narrow, tmp_path / "narrow.pt")
    assert same(model_from_name(f"hf:{folder}", weights=tmp_path / "narrow.pt")[0], _with(own, narrow, rows=2))
    with pytest.raises(DataFileError, match=r"tiny\.safetensors does not fit the model.*missing "):
        model_from_name(f"hf:{folder}", weights=saved(tiny_model(), tmp_path / "tiny.safetensors"))


def _with(model: nn.Module, state: dict[str, Any], *, rows: int) -> nn.Module:
    """Return the model with a state that has so many rows of the head."""
    model.classifier = nn.Linear(16, rows)
    model.load_state_dict(state)
    return model


def test_own_code_of_a_hub_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    _, known = model_from_name(f"hf:{write_vit(tmp_path / 'vit')}")
    assert chosen_preprocessing(known, model="hf:vit") is known
    with pytest.raises(
        OptionError, match=r"own TransformersImageTransform.*leave --mean out, or give --image-size, --std"
    ):
        chosen_preprocessing(known, model="hf:vit", mean=[0.5])
    whole = chosen_preprocessing(known, model="hf:vit", image_size=16, mean=[0.5], std=[0.5])
    assert whole == Preprocessing(size=16, resize=16, mean=(0.5,), std=(0.5,))
    _, texts = model_from_name(f"hf:{write_bert(tmp_path / 'bert')}")
    assert chosen_preprocessing(texts, model="hf:bert") is texts
    with pytest.raises(OptionError, match=r"'hf:bert' takes texts: leave --image-size, --std out"):
        chosen_preprocessing(texts, model="hf:bert", image_size=16, std=[0.5])


def test_without_weights_the_hub_is_asked_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def timm_model(name: str, *, is_pretrained: bool) -> tuple[nn.Module, Preprocessing]:
        asked.append((name, is_pretrained))
        return nn.Identity(), KNOWN

    monkeypatch.setitem(hubs._HUBS, "timm", timm_model)
    assert model_from_name("timm:resnet10t")[1] == KNOWN
    assert asked == [("resnet10t", True)]


def test_weights_of_another_model_are_told(tmp_path: Path) -> None:
    weights = saved(tiny_model(), tmp_path / "tiny.safetensors")
    with pytest.raises(DataFileError, match=r"tiny\.safetensors does not fit the model.*missing .*conv1"):
        model_from_name("timm:resnet10t", weights=weights)
    with pytest.raises(MissingFileError, match=r"absent\.pt does not exist: expected a file with the model's weights"):
        model_from_name("tinynets:net", weights=tmp_path / "absent.pt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "resnet18",
            "`model` must be `timm:NAME`, `torchvision:NAME`, `hf:FOLDER`, or `module:callable` .*, got 'resnet18'",
        ),
        ("timm:", "got 'timm:'"),
        (":net", "got ':net'"),
        ("nowhere:net", "importing 'nowhere' raised ModuleNotFoundError: No module named 'nowhere'"),
        ("badcode:net", "importing 'badcode' raised SyntaxError"),
        ("tinynets:absent", "the module 'tinynets' has no 'absent'"),
        ("tinynets:__name__", "must be callable, got str"),
        ("tinynets:number", r"tinynets:number\(\) must return a torch.nn.Module, got int"),
        ("tinynets:broken", r"tinynets:broken\(\) raised RuntimeError: out of order.*without arguments"),
        ("torch.nn:Linear", r"torch.nn:Linear\(\) raised TypeError: .*without arguments"),
    ],
)
def test_names_of_no_model_say_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "badcode.py").write_text("def net(:", encoding="utf-8")
    with pytest.raises(OptionError, match=message):
        model_from_name(text)


def test_attributes_of_attributes_are_found() -> None:
    assert isinstance(model_from_name("torch:nn.Identity")[0], nn.Identity)


KNOWN = Preprocessing(size=224, resize=256, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bicubic")


def test_without_options_the_known_preprocessing_stays() -> None:
    assert chosen_preprocessing(KNOWN, model="timm:some") == KNOWN


def test_options_replace_what_is_known() -> None:
    changed = chosen_preprocessing(KNOWN, model="timm:some", image_size=112, mean=[0.1] * 3)
    assert changed == Preprocessing(size=112, resize=128, mean=(0.1,) * 3, std=(0.25,) * 3, interpolation="bicubic")
    assert chosen_preprocessing(KNOWN, model="timm:some", resize=232) == replace(KNOWN, resize=232)


def test_options_alone_will_do() -> None:
    given = chosen_preprocessing(None, model="a:b", image_size=32, mean=[0.5], std=[0.5])
    assert given == Preprocessing(size=32, resize=32, mean=(0.5,), std=(0.5,))
    larger = chosen_preprocessing(None, model="a:b", image_size=32, resize=36, mean=[0.5], std=[0.5])
    assert larger == replace(given, resize=36)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "--image-size, --mean, --std"),
        ({"image_size": 32}, "--mean, --std"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, "--image-size"),
    ],
)
def test_nothing_known_and_something_missing(given: dict[str, Any], missing: str) -> None:
    with pytest.raises(OptionError, match=rf"for the model 'a:b': give {missing} as in.*`--image-size 32 --mean 0\.49"):
        chosen_preprocessing(None, model="a:b", **given)


@pytest.mark.parametrize("text", ["timm:resnet18.a1_in1k", "a.b:c.d", "torchvision:vit_b_16", ":", "../x:y"])
def test_names_of_folders_are_plain(text: str) -> None:
    name = folder_name(text)
    assert name == Path(name).name
    assert not name.startswith(".")
    assert ":" not in name
