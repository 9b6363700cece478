"""A trained DenseNet on real images: found, read and left alone."""

from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from opnp import OPNP, Ratios, auroc
from tests.contract.snapshot import unchanged
from tests.real.densenet import DenseNet
from tests.real.locations import DATA, needs_data

pytestmark = [pytest.mark.real, pytest.mark.slow, needs_data]

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_RATIOS = Ratios(w_min=0.8)
_TRAINING = 256


@cache
def _images(name: str, samples: int) -> tuple[Tensor, Tensor]:
    """Return evenly spread samples, normalised, and their labels (zeros where there are none)."""
    tensors = load_file(DATA / "images" / f"{name}.safetensors")
    chosen = torch.linspace(0, len(tensors["images"]) - 1, samples).long()
    pixels = tensors["images"][chosen].permute(0, 3, 1, 2).float() / 255
    labels = tensors.get("labels", torch.zeros(len(tensors["images"]), dtype=torch.int64))[chosen].long()
    return (pixels - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None], labels


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


def test_features_are_those_stored() -> None:
    streamed = _streamed("cifar10_test", 48)
    stored = load_file(DATA / "features" / "densenet_cifar10" / "test.safetensors")["features"].float()
    distance = torch.cdist(streamed, stored).amin(1)
    assert float((distance / streamed.norm(dim=1)).max()) < 0.01
