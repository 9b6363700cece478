"""The demo: the whole job on data that comes with scikit-learn, in seconds and without a download.

A small CNN learns the digits 0 to 6. Its detectors are then asked about held-out digits of these classes, about the
digits 7 to 9 (near OOD) and about patches of photographs (far OOD). `OPNP()` stands beside the energy and the paper's
OPP, ONP and OPNP, whose ratios are fixed beforehand, tuned to nothing. Digits and photographs come inside scikit-learn.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from msgspec.structs import replace
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from opnp.bench.features import require_seed
from opnp.bench.figures import detection_figures
from opnp.bench.gallery import detector_pictures, gallery_set
from opnp.bench.records import (
    ScoreBlock,
    own_result_folder,
    require_parquet,
    write_pictures,
    write_record,
    write_scores,
)
from opnp.core import accuracy
from opnp.data import write_features, write_head, write_score_table
from opnp.detector import OPNP, Explanation, Ratios, Verdict
from opnp.errors import require_installed
from opnp.files import write_atomically
from opnp.model import linear_layers
from opnp.values.bench import DEMO_MODEL, PRODUCT, DemoInput, DemoRecord, DemoRow
from opnp.values.files import PICTURES_FILE, RESULTS_FILE
from opnp.values.pictures import ModelPictures

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "DEMO_FILES",
    "DEMO_RATIOS",
    "DigitsData",
    "digit_picture",
    "digits_data",
    "run_demo",
    "small_cnn",
    "trained_cnn",
]

DEMO_RATIOS = {
    "Energy": Ratios(),
    "OPP": Ratios(w_min=0.1),
    "ONP": Ratios(o_min=0.1),
    "OPNP": Ratios(w_min=0.1, o_min=0.1),
}
"""The other rows of the table. The paper's OPP prunes weights only, ONP neurons only, OPNP both."""

DEMO_FILES = (
    *(RESULTS_FILE, "detector.safetensors", "model.safetensors", "scores.csv", "scores.parquet", PICTURES_FILE),
    *(f"{name}.safetensors" for name in ("train", "validation", "test", "ood_near", "ood_far", "head")),
)
"""What `run_demo` writes."""

_KEEP = 0.95
_BATCH = 128
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
    def judged(self) -> dict[str, Tensor]:
        """Images to judge by, by set: ``test`` and ``ood_*``."""
        return {"test": self.test[0], **{f"ood_{name}": images for name, images in self.ood.items()}}

    @property
    def counts(self) -> dict[str, int]:
        """Samples by name of the set."""
        inside = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: len(labels) for name, (_, labels) in inside.items()} | {
            f"ood_{name}": len(images) for name, images in self.ood.items()
        }


def run_demo(folder: str | os.PathLike[str], *, seed: int = 0) -> DemoRecord:
    """Train, fit, calibrate and judge; leave everything in `folder`, and return the table.

    The folder then holds ``detector.safetensors`` (the row `OPNP()`), ``scores.csv`` (its verdict on each test input),
    ``results.json`` (the table), ``scores.parquet`` (every score) and ``pictures.json`` (what figures are drawn from),
    ``model.safetensors`` (the CNN's weights), and features and head in the layout that ``opnp fit`` and ``opnp score``
    read.

    Args:
        folder: Where to write; made if it does not exist.
        seed: Seed of split, training and patches.

    Returns:
        The table.

    Raises:
        MissingExtraError: If scikit-learn, Pillow or pyarrow is not installed.
        DataFileError: If `folder` is a file, or holds one of these names and no record of opnp.
        OptionError: If `seed` does not lie in 0 to 2^63 - 1.

    """
    require_seed(seed)
    require_parquet()
    folder = own_result_folder(folder, files=DEMO_FILES)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is so small that threads only wait for one another
    try:
        return _run(folder, seed=seed)
    finally:
        torch.set_num_threads(threads)


def _run(folder: Path, *, seed: int) -> DemoRecord:
    data = digits_data(seed=seed)
    model = trained_cnn(*data.train, seed=seed)
    training, held_out = _batches(data.train[0]), _batches(data.validation[0])
    energy = OPNP(ratios=DEMO_RATIOS["Energy"]).fit(model, training)
    detectors = {PRODUCT: OPNP().fit(model, training)} | {
        name: energy.with_ratios(ratios) for name, ratios in DEMO_RATIOS.items()
    }
    for detector in detectors.values():
        detector.calibrate(held_out, keep=_KEEP)
    record = DemoRecord(
        title="digits 0 to 6 against digits 7 to 9 (near) and patches of photographs (far)",
        seed=seed,
        keep=_KEEP,
        counts=data.counts,
        versions={name: version(name) for name in ("opnp", "torch", "scikit-learn")},
        methods=tuple(_judged(name, detector, model, data) for name, detector in detectors.items()),
        inputs=tuple(_typical(place, detectors[PRODUCT], images) for place, images in data.judged.items()),
    )
    write_record(folder / RESULTS_FILE, record)  # first: it says whose folder it is
    detectors[PRODUCT].save(folder / "detector.safetensors")
    write_atomically(folder / "model.safetensors", save(model.state_dict()))
    _write_scores(folder / "scores.csv", detectors[PRODUCT], data)
    blocks = [
        ScoreBlock(DEMO_MODEL, place, name, torch.arange(len(images)), detector.score(images).double())
        for name, detector in detectors.items()
        for place, images in data.judged.items()
    ]
    write_scores(folder / "scores.parquet", blocks)
    write_pictures(folder, [_pictures(detectors[PRODUCT], model, data)])
    _write_features(folder, model, data)
    return record


def _judged(name: str, detector: OPNP, model: nn.Sequential, data: DigitsData) -> DemoRow:
    inside, labels = data.test
    verdict = detector.verdict(inside)
    outside = {place: detector.score(images) for place, images in data.ood.items()}
    head = detector.original_head if detector.settings.is_fusion else detector.pruned_head
    return DemoRow(
        method=name,
        settings=detector.settings.to_json(),
        detection={place: detection_figures(verdict.score, scores) for place, scores in outside.items()},
        accuracy=int((verdict.predicted_class == labels).sum()) / len(labels),
        pruned_accuracy=accuracy(head(_features(model, inside)), labels),
        flagged_id=int(verdict.is_ood.sum()) / len(labels),
        threshold=detector.threshold,
    )


def _typical(place: str, detector: OPNP, images: Tensor) -> DemoInput:
    """Return the image with the median score of a set, its verdict, and the score that weighs most in it."""
    index = int(detector.score(images).median(0).indices)
    verdict, why = detector.verdict(images[index]), detector.explain(images[index])
    return DemoInput(
        set=place,
        index=index,
        predicted_class=int(verdict.predicted_class),
        p_value=float(verdict.p_value),
        is_ood=bool(verdict.is_ood),
        member=why.members[int(why.share.argmax())],
        share=float(why.share.max()),
    )


def _write_scores(path: Path, detector: OPNP, data: DigitsData) -> None:
    columns: dict[str, list[object]] = {"set": [], "index": [], **{name: [] for name in Verdict._fields}}
    for place, images in data.judged.items():
        columns["set"] += ["id_test" if place == "test" else place] * len(images)
        columns["index"] += range(len(images))
        for field, values in zip(Verdict._fields, detector.verdict(images), strict=True):
            columns[field] += values.tolist()
    write_score_table(path, columns)


def _pictures(detector: OPNP, model: nn.Sequential, data: DigitsData) -> ModelPictures:
    pictures = detector_pictures(detector, _head(model).weight, model=DEMO_MODEL, method=PRODUCT)
    gallery = [
        gallery_set(
            place,
            detector.verdict(images),
            index=torch.arange(len(images)),
            explain=partial(_explanation, detector, images),
            labels=data.test[1] if place == "test" else None,
            image_of=partial(digit_picture, images),
            name_of=f"{place} {{}}".format,
        )
        for place, images in data.judged.items()
    ]
    return replace(pictures, gallery=tuple(gallery))


def _explanation(detector: OPNP, images: Tensor, places: Tensor) -> Explanation:
    return detector.explain(images[places])


def _write_features(folder: Path, model: nn.Sequential, data: DigitsData) -> None:
    for name, (images, labels) in {"train": data.train, "validation": data.validation, "test": data.test}.items():
        write_features(folder / f"{name}.safetensors", _features(model, images), labels=labels)
    for name, images in data.ood.items():
        write_features(folder / f"ood_{name}.safetensors", _features(model, images))
    head = _head(model)
    write_head(folder / "head.safetensors", head.weight, bias=head.bias)


def _head(model: nn.Sequential) -> nn.Linear:
    return linear_layers(model)[str(len(model) - 1)]


def _features(model: nn.Sequential, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model[:-1](batch) for batch in _batches(images)])


def _batches(images: Tensor) -> Sequence[Tensor]:
    return torch.split(images, _BATCH)


def digits_data(*, seed: int = 0) -> DigitsData:
    """Return the digits, split at random into 60 % training, 20 % validation and 20 % test, and the two OOD sets.

    Raises:
        MissingExtraError: If scikit-learn or Pillow is not installed.

    """
    require_installed("The demo's data come with", "sklearn", "PIL", extra="bench")
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
