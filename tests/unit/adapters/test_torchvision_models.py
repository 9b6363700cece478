"""torchvision's classifiers by name: built without a download, preprocessed by the preset of their weights."""

from importlib.util import find_spec

import pytest
import torch
from PIL import Image
from torchvision import models

from opnp.adapters import torchvision_model, torchvision_models
from opnp.errors import MissingExtraError, OptionError
from opnp.model import linear_layers
from tests.unit.data.image_files import pixels


@pytest.mark.parametrize("name", models.list_models(module=models))
def test_inputs_are_those_of_the_preset(name: str) -> None:
    preset = models.get_model_weights(name).DEFAULT.transforms()
    preprocessing = torchvision_models._preprocessing(preset)
    picture = Image.fromarray(pixels(1, height=75, width=110)[0].numpy())
    assert torch.equal(preprocessing(picture), preset(picture))


def test_a_model_its_classes_and_the_random_state() -> None:
    before = torch.random.get_rng_state()
    model, preprocessing = torchvision_model("mobilenet_v3_small", is_pretrained=False, classes=7)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert linear_layers(model)["classifier.3"].out_features == 7
    assert (preprocessing.size, preprocessing.resize) == (224, 256)


def test_models_with_an_initialisation_of_their_own_do_not_warn() -> None:
    model, _ = torchvision_model("googlenet", is_pretrained=False)
    assert linear_layers(model)["fc"].out_features == 1000


def test_only_classifiers_are_known() -> None:
    with pytest.raises(OptionError, match=r"torchvision has no classifier 'resnet19'\. It has resnet101, .*resnet18"):
        torchvision_model("resnet19", is_pretrained=False)
    with pytest.raises(OptionError, match="no classifier 'fasterrcnn_resnet50_fpn'"):
        torchvision_model("fasterrcnn_resnet50_fpn", is_pretrained=False)


def test_weights_that_cannot_be_had_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **options: object) -> object:
        assert options["weights"] is not None
        message = "cannot reach the server"
        raise OSError(message)

    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(OptionError, match=r"of 'resnet18' \(OSError: cannot reach the server\).*--weights FILE"):
        torchvision_model("resnet18", is_pretrained=True)


def test_what_torchvision_cannot_make_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> object:
        message = "out of memory"
        raise RuntimeError(message)

    monkeypatch.setattr(models, "get_model", failing)
    with pytest.raises(OptionError, match="torchvision could not make 'resnet18': RuntimeError: out of memory"):
        torchvision_model("resnet18", is_pretrained=False)


def test_without_torchvision_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torchvision_models, "find_spec", lambda name: None if name == "torchvision" else find_spec(name)
    )
    with pytest.raises(MissingExtraError, match=r"need torchvision.*pip install 'opnp\[vision\]'"):
        torchvision_model("resnet18", is_pretrained=False)
