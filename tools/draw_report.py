"""Take the pictures of report pages that documents show.

Usage: draw_report.py RESULTS_FOLDER PICTURE.png [--model NAME] [--theme light|dark] [--width 1200] [--height 1700]
"""

import argparse
import io
import shutil
import tempfile
from importlib import import_module
from pathlib import Path

from msgspec.structs import replace
from PIL import Image

from opnp.report import write_report
from opnp.values.bench import BenchRecord
from opnp.values.files import PICTURES_FILE
from opnp.values.pictures import PictureRecord

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def of_one_model(folder: Path, name: str, out: Path) -> Path:
    """Return a folder with what a folder of a benchmark holds of one model."""
    record = BenchRecord.from_json((folder / "results.json").read_text(encoding="utf-8"))
    models = tuple(model for model in record.models if model.model == name)
    if not models:
        message = f"{folder} has no model {name!r}, but {', '.join(model.model for model in record.models)}"
        raise SystemExit(message)
    (out / "results.json").write_text(replace(record, models=models).to_json(), encoding="utf-8")
    shutil.copy(folder / "scores.parquet", out)
    if (folder / PICTURES_FILE).is_file():
        pictures = PictureRecord.from_json((folder / PICTURES_FILE).read_text(encoding="utf-8"))
        own = PictureRecord(tuple(each for each in pictures.models if each.model == name))
        (out / PICTURES_FILE).write_text(own.to_json(), encoding="utf-8")
    return out


def picture(page: Path, *, theme: str, width: int, height: int) -> bytes:
    """Return the upper part of a page as PNG."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with import_module("playwright.sync_api").sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
        window.goto(page.as_uri())
        window.wait_for_selector("html[data-ready]", state="attached")
        content: bytes = window.screenshot()
        browser.close()
    return content


def main() -> None:
    """Write the page of a results folder, and a picture of it with 256 colours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=1700)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        folder = options.folder if options.model is None else of_one_model(options.folder, options.model, place)
        page = write_report(folder, place / "report.html")
        content = picture(page, theme=options.theme, width=options.width, height=options.height)
    shown = Image.open(io.BytesIO(content)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    shown.save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
