"""A trained DenseNet and real images, cached by name: the features are the stored ones, and detectors work on them."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import linear

from opnp import accuracy, auroc, energy_score
from opnp.adapters import chosen_preprocessing, model_from_name, odin_scores
from opnp.bench import CacheReport, cache_features
from opnp.bench.features import ModelData, read_feature_folder
from opnp.data import InputSet, Transform, channel_std, open_inputs
from opnp.detector import OPNP, Ratios
from tests.contract.snapshot import unchanged
from tests.real.locations import DATA, needs_data
from tests.unit.data.image_files import write_tensors

pytestmark = [pytest.mark.real, pytest.mark.slow, needs_data]

_MODULE = "from tests.real.densenet import DenseNet\n\n\ndef cifar10():\n    return DenseNet(10)\n"
_WEIGHTS = DATA / "models" / "densenet_cifar10.safetensors"
_SAMPLES = {"train": ("cifar10_train", 64), "test": ("cifar10_test", 200), "ood_mnist": ("ood_mnist", 100)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def network(folder: Path) -> tuple[nn.Module, Transform]:
    """Return model and inputs by name, as ``opnp cache`` does."""
    (folder / "realnets.py").write_text(_MODULE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        model, known = model_from_name("realnets:cifar10", weights=_WEIGHTS)
    sys.modules.pop("realnets")
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    return model, chosen_preprocessing(known, model="realnets:cifar10", image_size=32, mean=mean, std=std)


def images(folder: Path, file: str, samples: int, inputs: Transform) -> InputSet:
    """Return evenly spread samples of the stored images."""
    tensors = load_file(DATA / "images" / f"{file}.safetensors")
    rows = torch.linspace(0, len(tensors["images"]) - 1, samples).long()
    chosen = {name: tensor[rows].contiguous() for name, tensor in tensors.items()}
    path = write_tensors(folder / f"{file}_{samples}.safetensors", chosen["images"], chosen.get("labels"))
    return open_inputs(path, inputs)


@pytest.fixture(scope="module")
def report(folder: Path, network: tuple[nn.Module, Transform]) -> CacheReport:
    model, inputs = network
    sets = {name: images(folder, file, samples, inputs) for name, (file, samples) in _SAMPLES.items()}
    # ODIN takes several times as long; it has a test of its own, on fewer images.
    return cache_features(
        model, sets, folder / "features", name="realnets:cifar10", weights=_WEIGHTS, is_odin_wanted=False
    )


@pytest.fixture(scope="module")
def data(report: CacheReport, folder: Path) -> ModelData:
    return read_feature_folder(folder / "features")


def test_the_classifier_is_as_good_as_it_is_known_to_be(report: CacheReport, data: ModelData) -> None:
    assert report.source.head == "fc"
    assert data.test.labels is not None
    assert data.head.bias is not None
    stated = report.source.sets["test"].accuracy
    assert stated is not None
    assert stated > 0.9
    features, head, labels = data.test.features.float(), data.head, data.test.labels
    assert accuracy(linear(features, head.weight, head.bias), labels) == pytest.approx(stated, abs=0.01)
    detector = OPNP(ratios=Ratios(w_min=0.8), precision="float64")
    detector.fit_features(data.train.features, weight=data.head.weight, bias=data.head.bias)
    pruned = detector.pruned_head
    with torch.no_grad():
        assert accuracy(pruned(features), labels) > 0.9


@pytest.mark.parametrize("name", ["train", "test"])
def test_features_are_among_those_stored(data: ModelData, name: str) -> None:
    ours = (data.train if name == "train" else data.test).features.float()
    stored = load_file(DATA / "features" / "densenet_cifar10" / f"{name}.safetensors")["features"].float()
    nearest = torch.cdist(ours, stored).amin(1) / ours.norm(dim=1)
    # All test images were stored, and half of the training images.
    share = float((nearest < 0.01).float().mean())
    assert share == 1.0 if name == "test" else share > 0.3


def test_digits_are_told_from_pictures(data: ModelData) -> None:
    stored = load_file(DATA / "features" / "densenet_cifar10" / "ood_mnist.safetensors")["features"]
    inside, outside, expected = (
        energy_score(linear(features.float(), data.head.weight, data.head.bias))
        for features in (data.test.features, data.ood["mnist"], stored)
    )
    assert auroc(inside, outside) > 0.95
    assert auroc(inside, outside) == pytest.approx(auroc(inside, expected), abs=0.03)


def test_odin_tells_digits_from_pictures_and_the_model_is_left_alone(
    folder: Path, network: tuple[nn.Module, Transform]
) -> None:
    model, inputs = network
    import_module("pytorch_ood.detector")  # the first import sets variables and filters of warnings
    with unchanged(model, "ODIN"):
        inside, outside = (
            odin_scores(model, images(folder, file, 32, inputs).batches(32), std=channel_std(inputs))
            for file in ("cifar10_test", "ood_mnist")
        )
    assert auroc(inside, outside) > 0.9
