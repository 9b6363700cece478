"""Draw the pictures of documents: the demo's scores with the threshold of its verdicts, and pages of reports.

python tools/draw.py demo DEMO_FOLDER PICTURE.svg
python tools/draw.py report RESULTS_FOLDER PICTURE.png [--theme light|dark] [--width 1200] [--height 1700]
"""

import csv
import io
import json
import shutil
import tempfile
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import matplotlib as mpl
import numpy as np
import typer
from PIL import Image

from opnp.report import write_report

mpl.use("svg")
from matplotlib import pyplot as plt  # the backend must be chosen first

LOOKS = {
    "id_test": ("held-out digits 0 to 6 (ID)", "#0072B2", "solid"),
    "ood_near": ("digits 7 to 9 (near OOD)", "#E69F00", "dashed"),
    "ood_far": ("patches of photographs (far OOD)", "#000000", "dotted"),
}
"""Label, colour (of Okabe and Ito's colour-blind palette) and line of each set; the lines tell them in grey."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

app = typer.Typer(add_completion=False)


@app.command()
def demo(folder: Path, picture: Path) -> None:
    """Draw the scores in ``folder/scores.csv`` as histograms, with the threshold of ``folder/results.json``."""
    scores: dict[str, list[float]] = defaultdict(list)
    flagged: dict[str, list[bool]] = defaultdict(list)
    with (folder / "scores.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            scores[row["set"]].append(float(row["score"]))
            flagged[row["set"]].append(row["is_ood"] == "True")
    methods = json.loads((folder / "results.json").read_text(encoding="utf-8"))["methods"]
    threshold = next(method["threshold"] for method in methods if method["method"] == "OPNP()")
    everything = np.concatenate([np.asarray(values) for values in scores.values()])
    edges = np.linspace(everything.min(), everything.max(), 45).tolist()
    mpl.rcParams.update({"svg.hashsalt": "opnp", "svg.fonttype": "path", "font.size": 10})
    figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
    for name, (label, colour, line) in LOOKS.items():
        values = np.asarray(scores[name])
        shares = np.full(len(values), 100 / len(values))
        axes.hist(values, edges, weights=shares, color=colour, alpha=0.22)
        text = f"{label}: {100 * np.mean(flagged[name]):.0f} % flagged"
        axes.hist(
            values, edges, weights=shares, histtype="step", color=colour, linestyle=line, linewidth=1.6, label=text
        )
    axes.axvline(threshold, color="#D55E00", linewidth=1.4)
    axes.set_ylim(top=1.3 * axes.get_ylim()[1])
    axes.annotate(
        "threshold: keeps 95 % of ID",
        (threshold, 0.97 * axes.get_ylim()[1]),
        xytext=(6, 0),
        textcoords="offset points",
        color="#A84800",
        va="top",
    )
    axes.set_xlabel("score (larger = more OOD)")
    axes.set_ylabel("share of the set (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None})


@app.command()
def report(folder: Path, picture: Path, theme: str = "light", width: int = 1200, height: int = 1700) -> None:
    """Write the page of a results folder, and a picture with 256 colours of its upper part."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with (
        tempfile.TemporaryDirectory() as place,
        import_module("playwright.sync_api").sync_playwright() as driver,
    ):
        page = write_report(folder, Path(place) / "report.html")
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
        window.goto(page.as_uri())
        window.wait_for_selector("html[data-ready]", state="attached")
        content: bytes = window.screenshot()
        browser.close()
    shown = Image.open(io.BytesIO(content)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.parent.mkdir(parents=True, exist_ok=True)
    shown.save(picture, optimize=True)


if __name__ == "__main__":
    app()
