"""timm's models by name: built without a download, preprocessed as timm itself does it."""

import json
from importlib.util import find_spec
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from opnp.adapters import TimmTransform, timm_model, timm_models
from opnp.data import Preprocessing, Transform, channel_std
from opnp.errors import MissingExtraError, OptionError
from opnp.model import linear_layers
from tests.unit.data.image_files import pixels

_DATA: Any = timm.data  # typed in parts only


@pytest.mark.parametrize("name", ["resnet10t", "test_vit.r160_in1k", "test_efficientnet"])
def test_inputs_are_those_of_timms_own_transform(name: str) -> None:
    model, preprocessing = timm_model(name, is_pretrained=False)
    transform = _DATA.create_transform(**_DATA.resolve_data_config(model=model), is_training=False)
    for width, height in ((260, 190), (64, 300)):
        picture = Image.fromarray(pixels(1, height=height, width=width)[0].numpy())
        assert torch.equal(preprocessing(picture), transform(picture))


@pytest.mark.parametrize("changes", [{"crop_mode": "squash", "crop_pct": 0.9}, {"crop_pct": 1.15}, {"crop_pct": 1.0}])
def test_other_ways_of_cropping_are_timms_too(changes: dict[str, Any]) -> None:
    config = _DATA.resolve_data_config(
        pretrained_cfg={"input_size": (3, 48, 48), "interpolation": "bicubic", **changes}
    )
    preprocessing = timm_models._preprocessing(config)
    transform = _DATA.create_transform(**config, is_training=False)
    for width, height in ((60, 90), (30, 31)):
        picture = Image.fromarray(pixels(1, height=height, width=width)[0].numpy())
        assert torch.equal(preprocessing(picture), transform(picture))


def test_every_pretrained_classifier_has_a_preprocessing() -> None:
    models: Any = timm.models
    configs = {name: models.get_pretrained_cfg(name) for name in timm.list_pretrained()}
    classifiers = {name: config.to_dict() for name, config in configs.items() if config.num_classes}
    assert len(classifiers) > 1000
    for name, config in classifiers.items():
        preprocessing = timm_models._preprocessing(_DATA.resolve_data_config(pretrained_cfg=config))
        assert isinstance(preprocessing, Preprocessing), name
        assert preprocessing.size == config["input_size"][1]


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"crop_mode": "border"}, (3, 48, 48)),
        ({"input_size": (3, 32, 64)}, (3, 32, 64)),
        ({"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.25,), "crop_mode": "border"}, (1, 32, 32)),
    ],
)
def test_what_has_no_words_here_is_left_to_timms_transform(changes: dict[str, Any], shape: tuple[int, ...]) -> None:
    config = _DATA.resolve_data_config(pretrained_cfg={"input_size": (3, 48, 48), **changes})
    made = timm_models._preprocessing(config)
    assert isinstance(made, TimmTransform)
    assert isinstance(made, Transform)
    transform = _DATA.create_transform(**config, is_training=False)
    pictures = [Image.fromarray(pixels(1, height=40, width=width)[0].numpy()) for width in (30, 90)]
    inputs = made.batch([made(picture) for picture in pictures])
    assert inputs.shape == (2, *shape)
    mode = "L" if shape[0] == 1 else "RGB"
    assert torch.equal(inputs, torch.stack([transform(picture.convert(mode)) for picture in pictures]))
    assert channel_std(made) == tuple(config["std"])
    assert json.loads(json.dumps(made.facts())) == made.facts()


def test_the_number_of_classes_and_the_random_state() -> None:
    before = torch.random.get_rng_state()
    model, _ = timm_model("resnet10t", is_pretrained=False, classes=7)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert linear_layers(model)["fc"].out_features == 7


def test_an_unknown_name_lists_similar_ones() -> None:
    with pytest.raises(OptionError, match=r"timm has no model 'resnet18d_x'\."):
        timm_model("resnet18d_x", is_pretrained=False)
    with pytest.raises(OptionError, match=r"timm has no model 'resnet10'\. It has .*resnet10t"):
        timm_model("resnet10", is_pretrained=False)
    with pytest.raises(OptionError, match=r"timm could not make 'resnet10t\.no_tag'"):
        timm_model("resnet10t.no_tag", is_pretrained=False)


def test_weights_that_cannot_be_had_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **options: object) -> object:
        assert options["pretrained"] is True
        message = "cannot reach the hub"
        raise OSError(message)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(OptionError, match=r"weights of 'resnet10t' \(OSError: cannot reach the hub\).*--weights FILE"):
        timm_model("resnet10t", is_pretrained=True)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_models, "find_spec", lambda name: None if name == "timm" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"need timm.*pip install 'opnp\[vision\]'"):
        timm_model("resnet10t", is_pretrained=False)
