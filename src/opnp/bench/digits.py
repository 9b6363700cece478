"""The demo's data and model: scikit-learn's handwritten digits and a small CNN trained on seven of them.

Nothing is downloaded: the digits and the two photographs come inside scikit-learn.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from opnp.errors import MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DigitsData", "digit_picture", "digits_data", "small_cnn", "trained_cnn"]

_ID_CLASSES = 7
_PATCHES = 500
_EPOCHS = 25


@dataclass(frozen=True, eq=False, slots=True)
class DigitsData:
    """Grey 8x8 images in [0, 1], shape ``(samples, 1, 8, 8)``, float32.

    Attributes:
        train: ID images and labels to train on: digits 0 to 6.
        validation: Held-out ID images and labels to calibrate on.
        test: Held-out ID images and labels to judge by.
        ood: OOD images by name: ``near`` (digits 7 to 9) and ``far`` (patches of photographs).

    """

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    ood: dict[str, Tensor]

    @property
    def counts(self) -> dict[str, int]:
        """Samples by name of the set."""
        inside = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: len(labels) for name, (_, labels) in inside.items()} | {
            f"ood_{name}": len(images) for name, images in self.ood.items()
        }


def digits_data(*, seed: int = 0) -> DigitsData:
    """Return the digits, split at random into 60 % training, 20 % validation and 20 % test, and the two OOD sets.

    Raises:
        MissingExtraError: If scikit-learn or Pillow is not installed.

    """
    if find_spec("sklearn") is None or find_spec("PIL") is None:
        raise MissingExtraError(
            "The demo's data come with scikit-learn and Pillow, and one is not installed: `pip install 'opnp[bench]'`.",
        )
    from sklearn.datasets import load_digits, load_sample_images

    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.as_tensor(digits.target, dtype=torch.int64)
    inside = (labels < _ID_CLASSES).nonzero().flatten()
    inside = inside[torch.randperm(len(inside), generator=generator)]
    train, validation, test = inside.tensor_split([len(inside) * 6 // 10, len(inside) * 8 // 10])
    photographs = [torch.tensor(image, dtype=torch.float32).mean(2) / 255 for image in load_sample_images().images]
    patches = [_patches(photograph, _PATCHES // len(photographs), generator) for photograph in photographs]
    return DigitsData(
        train=(images[train], labels[train]),
        validation=(images[validation], labels[validation]),
        test=(images[test], labels[test]),
        ood={"near": images[labels >= _ID_CLASSES], "far": torch.cat(patches)},
    )


def digit_picture(images: Tensor, row: int) -> "Image":
    """Return one image of shape ``(samples, 1, 8, 8)`` as a picture of Pillow."""
    from PIL import Image

    return Image.fromarray((255 * images[row, 0]).round().clamp(0, 255).to(torch.uint8).numpy())


def small_cnn() -> nn.Sequential:
    """Return an untrained CNN for 8x8 grey images: three convolutions, global pooling, a linear head of 7 classes."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers = [*block(1, 32), *block(32, 64), nn.MaxPool2d(2), *block(64, 128), *pool, nn.Linear(128, _ID_CLASSES)]
    return nn.Sequential(*layers)


def trained_cnn(images: Tensor, labels: Tensor, *, seed: int = 0) -> nn.Sequential:
    """Return `small_cnn` trained on images and labels with a fixed seed; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = small_cnn()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
        loader = DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=_EPOCHS * len(loader))
        for _ in range(_EPOCHS):
            for inputs, targets in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def _patches(photograph: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` patches of 8x8 pixels at random places of a grey photograph, shape ``(count, 1, 8, 8)``."""
    windows = photograph.unfold(0, 8, 1).unfold(1, 8, 1)
    rows = torch.randint(windows.shape[0], (count,), generator=generator)
    columns = torch.randint(windows.shape[1], (count,), generator=generator)
    return windows[rows, columns][:, None].contiguous()
