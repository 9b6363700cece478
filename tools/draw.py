"""Draw the pictures of documents: the demo's scores with the threshold of its verdicts, and pages of reports.

python tools/draw.py demo DEMO_FOLDER PICTURE.svg
python tools/draw.py report RESULTS_FOLDER PICTURE.png [--theme light|dark] [--width 1280] [--height 1960]
python tools/draw.py figure RESULTS_FOLDER NAME PICTURE.png
"""

import csv
import io
import json
import shutil
import tempfile
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import altair as alt
import numpy as np
import typer
import vl_convert
from PIL import Image

from opnp.report import named_figures, read_results, write_report
from opnp.report.panels import BLUE, CONFIG, GREY, INK, VERMILLION, data, legend_of, steps

LOOKS = {
    "id_test": ("held-out digits 0 to 6 (ID)", BLUE, [1, 0]),
    "ood_near": ("digits 7 to 9 (near OOD)", VERMILLION, [6, 3]),
    "ood_far": ("patches of photographs (far OOD)", GREY, [2, 2]),
}
"""Label, colour and dash of each set; the dashes tell them in grey."""

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
    edges = np.linspace(everything.min(), everything.max(), 45)
    rows, colors, dashes = [], {}, []
    for name, (label, look, pattern) in LOOKS.items():
        shares = 100 * np.histogram(scores[name], edges)[0] / len(scores[name])
        text = f"{label}: {100 * np.mean(flagged[name]):.0f} % flagged"
        rows += [{**row, "set": text} for row in steps(edges.tolist(), y=shares.tolist())]
        colors[text] = look
        dashes.append(pattern)
    x = alt.X("x:Q", title="score (larger = more OOD)").scale(domain=[edges[0], edges[-1]], nice=False)
    y = alt.Y("y:Q", title="share of the set (%)", stack=None)
    color = legend_of("set", colors)
    dash = alt.StrokeDash("set:N", title=None).scale(domain=list(colors), range=dashes)
    shown = alt.Chart(data(rows))
    rule = alt.Chart(data([{"x": threshold, "words": "threshold: keeps 95 % of ID"}])).encode(x="x:Q")
    chart = alt.layer(
        shown.mark_bar(opacity=0.25, binSpacing=0).encode(x=x, x2="x2:Q", y=y, y2=alt.Y2Datum(0), color=color),
        shown.mark_line(interpolate="step-after", strokeWidth=1.6).encode(x=x, y=y, color=color, strokeDash=dash),
        rule.mark_rule(strokeWidth=1.6),
        rule.mark_text(align="left", dx=6, y=8).encode(text="words:N"),
    ).properties(width=640, height=220)
    specification = {**chart.to_dict(), "config": {**CONFIG, "background": "white", "padding": 8}}
    picture.parent.mkdir(parents=True, exist_ok=True)
    svg = vl_convert.vegalite_to_svg(json.dumps(specification).replace(INK, "black"))
    picture.write_text(svg, encoding="utf-8")


@app.command()
def figure(folder: Path, name: str, picture: Path) -> None:
    """Draw one figure of a results folder, as `opnp report --figures` does."""
    [found] = [each for each in named_figures(read_results(folder)) if each.name == name]
    _save(vl_convert.vegalite_to_png(found.paper, scale=1.5), picture)


@app.command()
def report(folder: Path, picture: Path, theme: str = "light", width: int = 1280, height: int = 1960) -> None:
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
    _save(content, picture)


def _save(content: bytes, picture: Path) -> None:
    """Write a picture with 256 colours."""
    shown = Image.open(io.BytesIO(content)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.parent.mkdir(parents=True, exist_ok=True)
    shown.save(picture, optimize=True)


if __name__ == "__main__":
    app()
