"""The demo: the whole job on data that comes with scikit-learn, in seconds and without a download.

A small CNN learns the digits 0 to 6. Its detectors are then asked about held-out digits of these classes, about the
digits 7 to 9 (near OOD) and about patches of photographs (far OOD). `OPNP()` stands beside the energy and the paper's
OPP, ONP and OPNP, whose ratios are fixed beforehand, tuned to nothing.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from opnp.bench.digits import DigitsData, digit_picture, digits_data, trained_cnn
from opnp.bench.gallery import ImageVerdicts, gallery_set
from opnp.bench.picture_record import PICTURES_FILE, PictureRecord
from opnp.bench.pictures import detector_pictures
from opnp.bench.record import DEMO_MODEL, DetectionResult, MethodResult, Record
from opnp.bench.result_folder import own_result_folder
from opnp.bench.score_file import ScoreBlock, require_parquet, write_scores
from opnp.bench.seeds import require_seed
from opnp.core import accuracy, auroc, fpr_at_tpr
from opnp.data import write_features, write_head, write_score_table
from opnp.detector import OPNP, Ratios, Verdict
from opnp.files import write_atomically
from opnp.model import linear_layers

__all__ = ["DEMO_FILES", "DEMO_PRODUCT", "DEMO_RATIOS", "run_demo"]

DEMO_PRODUCT = "OPNP()"
"""The row of the detector as it is used: the fusion."""

DEMO_RATIOS = {
    "Energy": Ratios(),
    "OPP": Ratios(w_min=0.1),
    "ONP": Ratios(o_min=0.1),
    "OPNP": Ratios(w_min=0.1, o_min=0.1),
}
"""The other rows of the table. The paper's OPP prunes weights only, ONP neurons only, OPNP both."""

DEMO_FILES = (
    *("results.json", "detector.safetensors", "model.safetensors", "scores.csv", "scores.parquet", PICTURES_FILE),
    *(f"{name}.safetensors" for name in ("train", "validation", "test", "ood_near", "ood_far", "head")),
)
"""What `run_demo` writes."""

_KEEP = 0.95
_BATCH = 128


def run_demo(folder: str | os.PathLike[str], *, seed: int = 0) -> Record:
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


def _run(folder: Path, *, seed: int) -> Record:
    data = digits_data(seed=seed)
    model = trained_cnn(*data.train, seed=seed)
    training, held_out = _batches(data.train[0]), _batches(data.validation[0])
    energy = OPNP(ratios=DEMO_RATIOS["Energy"]).fit(model, training)
    detectors = {DEMO_PRODUCT: OPNP().fit(model, training)} | {
        name: energy.with_ratios(ratios) for name, ratios in DEMO_RATIOS.items()
    }
    for detector in detectors.values():
        detector.calibrate(held_out, keep=_KEEP)
    record = Record(
        title="digits 0 to 6 against digits 7 to 9 (near) and patches of photographs (far)",
        seed=seed,
        keep=_KEEP,
        counts=data.counts,
        versions={name: version(name) for name in ("opnp", "torch", "scikit-learn")},
        methods=tuple(_judged(name, detector, model, data) for name, detector in detectors.items()),
    )
    write_atomically(folder / "results.json", (record.to_json() + "\n").encode())  # first: it says whose folder it is
    detectors[DEMO_PRODUCT].save(folder / "detector.safetensors")
    write_atomically(folder / "model.safetensors", save(model.state_dict()))
    _write_scores(folder / "scores.csv", detectors[DEMO_PRODUCT], data)
    write_scores(folder / "scores.parquet", [block for name in detectors for block in _blocks(name, detectors, data)])
    pictures = _pictures(detectors[DEMO_PRODUCT], model, data)
    write_atomically(folder / PICTURES_FILE, (pictures.to_json() + "\n").encode())
    _write_features(folder, model, data)
    return record


def _judged(name: str, detector: OPNP, model: nn.Sequential, data: DigitsData) -> MethodResult:
    inside, labels = data.test
    verdict = detector.verdict(inside)
    outside = {place: detector.score(images) for place, images in data.ood.items()}
    head = detector.original_head if detector.settings.is_fusion else detector.pruned_head
    return MethodResult(
        method=name,
        settings=detector.settings.to_json(),
        detection={
            place: DetectionResult(
                fpr95=fpr_at_tpr(verdict.score, scores),
                fpr95_ood_positive=fpr_at_tpr(verdict.score, scores, positive="ood"),
                auroc=auroc(verdict.score, scores),
            )
            for place, scores in outside.items()
        },
        accuracy=int((verdict.predicted_class == labels).sum()) / len(labels),
        pruned_accuracy=accuracy(head(_features(model, inside)), labels),
        flagged_id=int(verdict.is_ood.sum()) / len(labels),
        threshold=detector.threshold,
    )


def _write_scores(path: Path, detector: OPNP, data: DigitsData) -> None:
    sets = {"id_test": data.test[0], **{f"ood_{name}": images for name, images in data.ood.items()}}
    verdicts = {name: detector.verdict(images) for name, images in sets.items()}
    columns: dict[str, list[object]] = {"set": [], "index": [], **{name: [] for name in Verdict._fields}}
    for name, verdict in verdicts.items():
        columns["set"] += [name] * len(verdict.score)
        columns["index"] += range(len(verdict.score))
        for field, values in zip(Verdict._fields, verdict, strict=True):
            columns[field] += values.tolist()
    write_score_table(path, columns)


def _blocks(name: str, detectors: Mapping[str, OPNP], data: DigitsData) -> list[ScoreBlock]:
    sets = {"test": data.test[0], **{f"ood_{place}": images for place, images in data.ood.items()}}
    return [
        ScoreBlock(DEMO_MODEL, place, name, torch.arange(len(images)), detectors[name].score(images).double())
        for place, images in sets.items()
    ]


def _pictures(detector: OPNP, model: nn.Sequential, data: DigitsData) -> PictureRecord:
    pictures = detector_pictures(detector, _head(model).weight, model=DEMO_MODEL, method=DEMO_PRODUCT)
    sets = {"test": data.test[0], **{f"ood_{place}": images for place, images in data.ood.items()}}
    gallery = []
    for place, images in sets.items():
        verdict = detector.verdict(images)
        verdicts = ImageVerdicts(
            index=torch.arange(len(images)),
            score=verdict.score,
            predicted_class=verdict.predicted_class,
            p_value=verdict.p_value,
            is_ood=verdict.is_ood,
            label=data.test[1] if place == "test" else None,
        )
        gallery.append(
            gallery_set(place, verdicts, image_of=partial(digit_picture, images), name_of=f"{place} {{}}".format)
        )
    return PictureRecord(models=(replace(pictures, gallery=tuple(gallery)),))


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
