"""A trained DenseNet on real images: found, read and left alone; cached by name, its features are those stored."""

from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp import accuracy, auroc, energy_score
from opnp.adapters import chosen_preprocessing, model_from_name, odin_scores
from opnp.bench import CacheReport, cache_features
from opnp.bench.densenet import DenseNet
from opnp.bench.features import ModelData, read_feature_folder
from opnp.data import InputSet, Transform, channel_std, open_inputs
from opnp.detector import OPNP, Ratios
from tests.contract.snapshot import unchanged
from tests.real.locations import DATA, needs_data
from tests.unit.data.image_files import write_tensors

pytestmark = [pytest.mark.real, pytest.mark.slow, needs_data]

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_NAME = "opnp.bench.densenet:cifar10"
_WEIGHTS = DATA / "models" / "densenet_cifar10.safetensors"
_SAMPLES = {"train": ("cifar10_train", 64), "test": ("cifar10_test", 200), "ood_mnist": ("ood_mnist", 100)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Transform]:
    """Return model and inputs by name, as ``opnp cache`` does."""
    model, known = model_from_name(_NAME, weights=_WEIGHTS)
    return model, chosen_preprocessing(known, model=_NAME, image_size=32, mean=MEAN, std=STD)


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
    return cache_features(model, sets, folder / "features", name=_NAME, weights=_WEIGHTS, is_odin_wanted=False)


@pytest.fixture(scope="module")
def data(report: CacheReport, folder: Path) -> ModelData:
    return read_feature_folder(folder / "features")


@pytest.mark.slow
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


_RATIOS = Ratios(w_min=0.8)
_TRAINING = 256


@cache
def _images(name: str, samples: int) -> tuple[Tensor, Tensor]:
    """Return evenly spread samples, normalised, and their labels (zeros where there are none)."""
    tensors = load_file(DATA / "images" / f"{name}.safetensors")
    chosen = torch.linspace(0, len(tensors["images"]) - 1, samples).long()
    pixels = tensors["images"][chosen].permute(0, 3, 1, 2).float() / 255
    labels = tensors.get("labels", torch.zeros(len(tensors["images"]), dtype=torch.int64))[chosen].long()
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], labels


@cache
def _model() -> DenseNet:
    model = DenseNet(10)
    missing, unexpected = model.load_state_dict(
        load_file(DATA / "models" / "densenet_cifar10.safetensors"), strict=False
    )
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model.train()


@cache
def _streamed(name: str, samples: int) -> Tensor:
    model = DenseNet(10).eval()
    model.load_state_dict(_model().state_dict())
    with torch.no_grad():
        return torch.cat([model.features(batch) for batch in _images(name, samples)[0].split(64)])


@cache
def _fitted() -> OPNP:
    images, labels = _images("cifar10_train", _TRAINING)
    loader = list(zip(images.split(64), labels.split(64), strict=True))
    model = _model()
    with unchanged(model, "fit"):
        return OPNP(ratios=_RATIOS).fit(model, loader)


@pytest.mark.slow
def test_fit_on_the_model_is_fit_on_its_features() -> None:
    head = _model().fc
    other = OPNP(ratios=_RATIOS)
    other.fit_features(_streamed("cifar10_train", _TRAINING), weight=head.weight, bias=head.bias)
    one = _fitted()
    assert one.sensitivity.count == other.sensitivity.count == _TRAINING
    for left, right in zip(one.masks, other.masks, strict=True):
        assert torch.equal(left, right)
    assert torch.allclose(one.sensitivity.weight, other.sensitivity.weight, rtol=1e-6, atol=0)
    assert torch.allclose(one.sensitivity.neuron_gradient, other.sensitivity.neuron_gradient, rtol=1e-6, atol=0)


def test_classes_and_scores_of_test_images() -> None:
    images, labels = _images("cifar10_test", 192)
    model, detector = _model(), _fitted()
    with unchanged(model, "calibrate and verdict"):
        detector.calibrate(images[::3].split(64))
        verdicts = [detector.verdict(batch) for batch in (images[1::3], images[2::3])]
    classes = torch.cat([verdict.predicted_class for verdict in verdicts])
    assert float((classes == torch.cat([labels[1::3], labels[2::3]])).float().mean()) > 0.9
    assert float(torch.cat([verdict.is_ood for verdict in verdicts]).float().mean()) < 0.15
    inside = torch.cat([verdict.score for verdict in verdicts])
    outside = detector.score(_images("ood_tiny_imagenet_crop", 48)[0])
    assert auroc(inside, outside) > 0.9
