"""Results folders for pages: a benchmark with pictures and a gallery, and one with as many samples as one likes."""

import base64
import io
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from PIL import Image

from opnp.data import write_score_table
from opnp.values.bench import BenchRecord, ModelResult
from opnp.values.pictures import GalleryItem, GallerySet, PictureRecord
from tests.unit.report.report_world import (
    MODEL,
    bench_folder,
    bench_record,
    pictures_of_head,
    small_head,
)

EVIL = "<script>alert(1)</script>"
"""A name that must stay a name."""
METHODS = ("Energy, rest of test", "OPNP()")
ITEMS = 5


def image_uri(shade: int) -> str:
    content = io.BytesIO()
    Image.new("RGB", (96, 96), (shade, 80, 160)).save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")


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
                image=image_uri(40 * place % 256),
            )
            for place in range(items)
        ),
    )


def picture_record(model: str, *, items: int = ITEMS) -> PictureRecord:
    pictures = replace(
        pictures_of_head(model, *small_head()), gallery=(gallery("ood_dtd", items), gallery("test", items))
    )
    return PictureRecord(models=(pictures,))


def page_record() -> BenchRecord:
    """Return a record of two models, with few methods: one with scores, and one with an evil name and failed rows."""
    record = bench_record()
    by_name = {model.model: _with_few_methods(model) for model in record.models}
    evil = replace(by_name["mobilenet_v2_imagenet"], model=EVIL)
    return replace(record, models=(by_name[MODEL], evil))


def _with_few_methods(model: ModelResult) -> ModelResult:
    few = [row for row in model.methods if row.group == "product" or row.status == "failed"]
    return replace(model, methods=(*model.methods[:3], *few))


def page_folder(folder: Path) -> Path:
    """Return a folder of a benchmark with scores and pictures."""
    bench_folder(folder)
    (folder / "sweep.json").unlink()
    (folder / "results.json").write_text(page_record().to_json(), encoding="utf-8")
    (folder / "pictures.json").write_text(picture_record(MODEL).to_json(), encoding="utf-8")
    return folder


def large_folder(folder: Path, *, samples: int) -> Path:
    """Return a folder of one model with so many samples in each of its sets."""
    folder.mkdir()
    record = bench_record()
    model = next(each for each in record.models if each.model == MODEL)
    (folder / "results.json").write_text(replace(record, models=(model,)).to_json(), encoding="utf-8")
    draw = np.random.default_rng(0)
    columns: dict[str, list[object]] = {"model": [], "set": [], "method": [], "index": [], "score": []}
    sets = {"test": -8.0, **{f"ood_{name}": -5.0 for name in model.nearness}}
    for method in METHODS:
        for name, middle in sets.items():
            columns["model"] += [MODEL] * samples
            columns["set"] += [name] * samples
            columns["method"] += [method] * samples
            columns["index"] += range(samples)
            columns["score"] += draw.normal(middle, 2, samples).tolist()
    write_score_table(folder / "scores.parquet", columns)
    return folder
