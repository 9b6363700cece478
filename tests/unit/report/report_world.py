"""Results folders to draw: real records, pictures of a small head, a gallery, and scores that are made up."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image

from opnp.bench.gallery import detector_pictures
from opnp.data import write_score_table
from opnp.detector import OPNP, Ratios
from opnp.values.bench import BenchRecord, DemoRecord, DemoRow, ModelResult
from opnp.values.figures import DetectionFigures
from opnp.values.fit import FitRecord
from opnp.values.pictures import GalleryItem, GallerySet, MemberAnswer, ModelPictures, PictureRecord
from opnp.values.sweep import SweepRecord

Array = NDArray[np.float64]

RECORDS = Path(__file__).parents[3] / "docs" / "records"
"""Records of real runs."""
MODEL = "densenet_cifar100"
METHODS = ("Energy, rest of test", "OPNP()")
"""Rows that the scores of a benchmark are made up for."""
FUSED = ("gen", "vim")
"""Members of the fusion in `fusion_record`."""
EVIL = "<script>alert(1)</script>"
"""A name that must stay a name."""
ITEMS = 5


def bench_record() -> BenchRecord:
    """Return the real benchmark's record."""
    return BenchRecord.from_json((RECORDS / "bench.json").read_text(encoding="utf-8"))


def sweep_record() -> SweepRecord:
    """Return the real sweep's record."""
    return SweepRecord.from_json((RECORDS / "sweep.json").read_text(encoding="utf-8"))


def first_version_record() -> BenchRecord:
    """Return some rows of one model as version 0.1 recorded them: it chose ratios and shaping without OOD data."""
    path = Path(__file__).with_name("first_version.json")
    return BenchRecord.from_json(path.read_text(encoding="utf-8"))


def fusion_record() -> BenchRecord:
    """Return the record of version 0.1 with rows of this one for its own: a fusion, and its members."""
    record = first_version_record()
    settings = {
        "ratios": {"w_min": 0.5, "w_max": 0.0, "o_min": 0.0, "o_max": 0.0},
        "neuron": "gradient",
        "scope": "layer",
        "temperature": 1.0,
        "score": "energy",
        "shaping": {"name": "scale", "quantile": 0.85},
        "precision": "float32",
    }
    models = []
    for model in record.models:
        old = model.row("OPNP()")
        rows = tuple(row for row in model.methods if not row.method.startswith("OPNP("))
        names = {"OPNP()": FUSED} | {f"{name} alone": (name,) for name in FUSED}
        fused = tuple(
            replace(old, method=name, settings={"members": list(members), **settings}, after=None)
            for name, members in names.items()
        )
        models.append(replace(model, methods=(*rows, *fused)))
    return replace(record, models=tuple(models))


def fit_record() -> FitRecord:
    """Return the record of a calibrated fusion that one member was left out of."""
    return FitRecord(
        model="mine",
        classes=3,
        features=4,
        training_samples=1234,
        settings={"members": list(FUSED), "ratios": {"w_min": 0.5}, "shaping": {"name": "scale", "quantile": 0.85}},
        settings_text="--members gen,vim",
        left_out={"vim": "it has no room"},
        tuning=None,
        keep=0.75,
        threshold=3.0,
        expected_flagged=0.2,
        calibration_scores=(1.0, 2.0, 3.0, 9.0),
        head_sha256="0",
        versions={"opnp": "9.9"},
    )


def head_pictures(model: str, ratios: Ratios) -> ModelPictures:
    """Return the pictures of a head of 12 classes and 40 neurons."""
    draw = np.random.default_rng(0)
    features = torch.from_numpy(draw.gamma(0.5, 1.0, (200, 40)))
    weight = torch.from_numpy(draw.normal(0, 0.5, (12, 40)))
    detector = OPNP(ratios=ratios).fit_features(features, weight=weight, bias=None)
    return detector_pictures(detector, weight, model=model, method="OPNP()")


def picture_record(model: str, *, items: int = ITEMS) -> PictureRecord:
    pictures = head_pictures(model, Ratios(w_min=0.3, w_max=0.002, o_min=0.1, o_max=0.02))
    sets = (gallery("ood_dtd", items), gallery("test", items)) if items else ()
    return PictureRecord(models=(replace(pictures, gallery=sets),))


def gallery(name: str, items: int = ITEMS) -> GallerySet:
    return GallerySet(
        set=name,
        items=tuple(
            GalleryItem(
                name=f"{EVIL} {place}.png",
                index=place,
                score=-3.0 - place,
                p_value=0.01 * (place + 1),
                is_ood=place % 2 == 0,
                predicted_class=place,
                predicted_name=None if place else EVIL,
                true_class=place if name == "test" else None,
                image=_image_uri(40 * place % 256),
                members=(MemberAnswer("gen", 0.02 * (place + 1), 0.25), MemberAnswer("vim", 0.01 * (place + 1), 0.75)),
            )
            for place in range(items)
        ),
    )


def _image_uri(shade: int) -> str:
    content = io.BytesIO()
    Image.new("RGB", (96, 96), (shade, 80, 160)).save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def scores_by_set(seed: int = 0, *, samples: int = 300) -> dict[str, Array]:
    """Return scores of a test set, and of a near and a far OOD set."""
    draw = np.random.default_rng(seed)
    return {
        "test": draw.normal(-8, 2, samples),
        "ood_far": draw.normal(-3, 2, samples - 40),
        "ood_near": draw.normal(-6, 2, samples - 20),
    }


def write_scores(path: Path, scores: Mapping[tuple[str, str], Mapping[str, Array]]) -> None:
    """Write scores by model and method, and by set."""
    rows = [
        (model, name, method, place, value)
        for (model, method), by_set in scores.items()
        for name, values in by_set.items()
        for place, value in enumerate(values.tolist())
    ]
    columns = zip(*rows, strict=True)
    write_score_table(path, dict(zip(("model", "set", "method", "index", "score"), map(list, columns), strict=True)))


def demo_record(scores: dict[str, Array]) -> DemoRecord:
    """Return a record of the demo with the rows Energy and OPNP; its figures are made up."""
    figures = {"near": DetectionFigures(0.3, 0.4, 0.9), "far": DetectionFigures(0.1, 0.2, 0.95)}
    rows = [
        DemoRow(
            method=method,
            settings={"ratios": {"w_min": 0.1, "w_max": 0.0, "o_min": 0.1, "o_max": 0.0}, "shaping": None},
            detection=figures,
            accuracy=0.99,
            pruned_accuracy=0.98,
            flagged_id=0.06,
            threshold=-5.0,
        )
        for method in ("Energy", "OPNP")
    ]
    counts = {name: len(values) for name, values in scores.items()}
    return DemoRecord("digits", seed=0, keep=0.95, counts=counts, versions={"opnp": "0"}, methods=tuple(rows))


def demo_folder(folder: Path) -> Path:
    """Return a folder as the demo leaves it, with pictures: scores of the row OPNP alone."""
    scores = scores_by_set()
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(demo_record(scores).to_json(), encoding="utf-8")
    (folder / "pictures.json").write_text(picture_record("digits", items=0).to_json(), encoding="utf-8")
    rows = [
        ("id_test" if name == "test" else name, place, value)
        for name, values in scores.items()
        for place, value in enumerate(values)
    ]
    columns = zip(*rows, strict=True)
    write_score_table(folder / "scores.csv", dict(zip(("set", "index", "score"), map(list, columns), strict=True)))
    return folder


def bench_folder(folder: Path, record: BenchRecord | None = None) -> Path:
    """Return a folder as a benchmark leaves it: the real record or another, the real sweep, and made-up scores."""
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text((record or bench_record()).to_json(), encoding="utf-8")
    (folder / "sweep.json").write_bytes((RECORDS / "sweep.json").read_bytes())
    scores = {}
    for seed, method in enumerate(METHODS):
        given = scores_by_set(seed)
        scores[MODEL, method] = {
            "test": given["test"],
            "ood_cifar10": given["ood_near"],
            "ood_dtd": given["ood_far"],
            "ood_mnist": given["ood_far"] + 1,
            "ood_tiny_imagenet_crop": given["ood_far"] - 1,
        }
    write_scores(folder / "scores.parquet", scores)
    return folder


def page_folder(folder: Path) -> Path:
    """Return a folder of a benchmark with scores and pictures: a model, and one with an evil name and failed rows."""
    record = bench_record()
    by_name = {model.model: _with_few_methods(model) for model in record.models}
    evil = replace(by_name["mobilenet_v2_imagenet"], model=EVIL)
    bench_folder(folder, replace(record, models=(by_name[MODEL], evil)))
    (folder / "sweep.json").unlink()
    (folder / "pictures.json").write_text(picture_record(MODEL).to_json(), encoding="utf-8")
    return folder


def _with_few_methods(model: ModelResult) -> ModelResult:
    few = [row for row in model.methods if row.group == "product" or row.status == "failed"]
    return replace(model, methods=(*model.methods[:3], *few))


def large_folder(folder: Path, *, samples: int) -> Path:
    """Return a folder of one model with so many samples in each of its sets."""
    folder.mkdir()
    record = bench_record()
    model = next(each for each in record.models if each.model == MODEL)
    (folder / "results.json").write_text(replace(record, models=(model,)).to_json(), encoding="utf-8")
    draw = np.random.default_rng(0)
    middles = {"test": -8.0, **{f"ood_{name}": -5.0 for name in model.nearness}}
    scores = {
        (MODEL, method): {name: draw.normal(middle, 2, samples) for name, middle in middles.items()}
        for method in METHODS
    }
    write_scores(folder / "scores.parquet", scores)
    return folder
