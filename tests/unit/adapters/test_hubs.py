"""Models by name: from timm, from torchvision, from a module of the user's."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from opnp.adapters import (
    TimmTransform,
    chosen_preprocessing,
    hubs,
    model_from_name,
    timm_model,
    torchvision_model,
    transformers_model,
)
from opnp.data import Preprocessing, Transform, channel_std
from opnp.errors import DataFileError, MissingExtraError, MissingFileError, OptionError
from opnp.model import head_layers, linear_layers
from tests.unit.adapters.hub_folders import write_bert, write_vit
from tests.unit.bench.image_world import tiny_model, write_module
from tests.unit.data.image_files import pixels

KNOWN = Preprocessing(size=224, resize=256, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bicubic")
GIVEN: dict[str, Any] = {"image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
_DATA: Any = timm.data  # typed in parts only


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


def test_a_callable_of_the_current_folder_and_weights_for_it(tmp_path: Path) -> None:
    paths, state = list(sys.path), torch.random.get_rng_state()
    model, preprocessing = model_from_name("tinynets:net")
    assert same(model, tiny_model())
    assert preprocessing is None
    assert sys.path == paths
    assert torch.equal(torch.random.get_rng_state(), state)
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

    def asked_for(name: str, *, is_pretrained: bool) -> tuple[nn.Module, Preprocessing]:
        asked.append((name, is_pretrained))
        return nn.Identity(), KNOWN

    monkeypatch.setitem(hubs._HUBS, "timm", asked_for)
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
            "must be `timm:NAME`, `torchvision:NAME`, `hf:NAME`, `sentence-transformers:NAME`, .*got 'resnet18'",
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


@pytest.mark.parametrize(
    ("known", "given", "expected"),
    [
        (KNOWN, {}, {}),
        (KNOWN, {"resize": 232}, {"resize": 232}),
        (KNOWN, {"image_size": 112, "mean": [0.1] * 3}, {"size": 112, "resize": 128, "mean": (0.1,) * 3}),
        (None, GIVEN, {"size": 32, "resize": 32, "interpolation": "bilinear"}),
        (
            None,
            {**GIVEN, "resize": 36},
            {"size": 32, "resize": 36, "interpolation": "bilinear"},
        ),
    ],
)
def test_options_replace_what_is_known(
    known: Preprocessing | None, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert chosen_preprocessing(known, model="a:b", **given) == replace(KNOWN, **expected)


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


@pytest.mark.parametrize("name", ["resnet10t", "test_vit.r160_in1k", "test_efficientnet"])
def test_inputs_are_those_of_timms_own_transform(name: str) -> None:
    model, preprocessing = timm_model(name, is_pretrained=False)
    assert isinstance(preprocessing, Preprocessing)
    transform = _DATA.create_transform(**_DATA.resolve_data_config(model=model), is_training=False)
    for width, height in ((260, 190), (64, 300)):
        picture = Image.fromarray(pixels(1, height=height, width=width)[0].numpy())
        assert torch.equal(preprocessing(picture), transform(picture))


@pytest.mark.parametrize(
    ("changes", "is_own"),
    [
        ({"crop_mode": "squash", "crop_pct": 0.9, "interpolation": "bicubic"}, False),
        ({"crop_pct": 1.15, "interpolation": "bicubic"}, False),
        ({"crop_pct": 1.0, "interpolation": "bicubic"}, False),
        ({"crop_mode": "border"}, True),
        ({"input_size": (3, 32, 64)}, True),
        ({"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.25,), "crop_mode": "border"}, True),
    ],
)
def test_other_ways_of_cropping_are_timms_too(changes: dict[str, Any], is_own: bool) -> None:
    config = _DATA.resolve_data_config(pretrained_cfg={"input_size": (3, 48, 48), **changes})
    made = hubs._timm_preprocessing(config)
    assert isinstance(made, TimmTransform if is_own else Preprocessing)
    assert isinstance(made, Transform)
    transform = _DATA.create_transform(**config, is_training=False)
    pictures = [Image.fromarray(pixels(1, height=40, width=width)[0].numpy()) for width in (30, 90)]
    inputs = made.batch([made(picture) for picture in pictures])
    mode = "L" if config["input_size"][0] == 1 else "RGB"
    assert torch.equal(inputs, torch.stack([transform(picture.convert(mode)) for picture in pictures]))
    assert channel_std(made) == tuple(config["std"])
    assert json.loads(json.dumps(made.facts())) == made.facts()


def test_every_pretrained_classifier_of_timm_has_a_preprocessing() -> None:
    timm_models: Any = timm.models
    configs = {name: timm_models.get_pretrained_cfg(name) for name in timm.list_pretrained()}
    classifiers = {name: config.to_dict() for name, config in configs.items() if config.num_classes}
    assert len(classifiers) > 1000
    for name, config in classifiers.items():
        preprocessing = hubs._timm_preprocessing(_DATA.resolve_data_config(pretrained_cfg=config))
        assert isinstance(preprocessing, Preprocessing), name
        assert preprocessing.size == config["input_size"][1]


@pytest.mark.parametrize("name", models.list_models(module=models))
def test_inputs_are_those_of_the_preset_of_torchvision(name: str) -> None:
    preset = models.get_model_weights(name).DEFAULT.transforms()
    picture = Image.fromarray(pixels(1, height=75, width=110)[0].numpy())
    assert torch.equal(hubs._torchvision_preprocessing(preset)(picture), preset(picture))


@pytest.mark.parametrize(
    ("build", "name", "head", "classes"),
    [
        (timm_model, "resnet10t", "fc", 7),
        (torchvision_model, "mobilenet_v3_small", "classifier.3", 7),
        (torchvision_model, "googlenet", "fc", 1000),  # its warning of another initialisation is not seen
    ],
)
def test_models_have_the_classes_and_leave_the_random_state(build: Any, name: str, head: str, classes: int) -> None:
    before = torch.random.get_rng_state()
    model, preprocessing = build(name, is_pretrained=False, classes=None if classes == 1000 else classes)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert linear_layers(model)[head].out_features == classes
    assert preprocessing.size == 224 or build is timm_model


@pytest.mark.parametrize(
    ("build", "name", "message"),
    [
        (timm_model, "resnet18d_x", r"timm has no model 'resnet18d_x'\."),
        (timm_model, "resnet10", r"timm has no model 'resnet10'\. Did you mean .*`timm:resnet10t`"),
        (
            timm_model,
            "resnet10t.c4_in1k",
            r"not make 'resnet10t\.c4_in1k': .*\. Did you mean `timm:resnet10t\.c3_in1k`",
        ),
        (torchvision_model, "resnet19", r"'resnet19'\. Did you mean `torchvision:resnet18` or "),
        (torchvision_model, "zzz", r"torchvision has no classifier 'zzz'\. It has alexnet, "),
        (torchvision_model, "resnet18@V2", r"no weights 'V2' of resnet18\. It has IMAGENET1K_V1, DEFAULT: `torchv"),
        (torchvision_model, "fasterrcnn_resnet50_fpn", "no classifier 'fasterrcnn_resnet50_fpn'"),
    ],
)
def test_an_unknown_name_lists_similar_ones(build: Any, name: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build(name, is_pretrained=False)


@pytest.mark.parametrize("is_pretrained", [True, False])
@pytest.mark.parametrize(("build", "name"), [(timm_model, "resnet10t"), (torchvision_model, "resnet18")])
def test_weights_that_cannot_be_had_name_the_remedy(
    monkeypatch: pytest.MonkeyPatch, build: Any, name: str, is_pretrained: bool
) -> None:
    def offline(*_: object, pretrained: bool = False, weights: object = None, **__: object) -> object:
        assert is_pretrained == bool(pretrained or weights)
        message = "cannot reach the hub"
        raise OSError(message)

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(models, "get_model", offline)
    remedy = rf"weights of '{name}' \(OSError: cannot reach the hub\).*--weights FILE"
    with pytest.raises(OptionError, match=remedy if is_pretrained else f"not make '{name}': OSError: cannot reach"):
        build(name, is_pretrained=is_pretrained)


@pytest.mark.parametrize("build", [timm_model, torchvision_model])
def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, build: Any) -> None:
    monkeypatch.setattr("opnp.errors.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"need t.*pip install 'opnp\[vision\]'"):
        build("resnet18", is_pretrained=False)
