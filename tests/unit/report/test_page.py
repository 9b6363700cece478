"""The page as a file: complete, safe, small, the same for the same results."""

import base64
import gzip
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from opnp.detector import Ratios
from opnp.errors import DataFileError, MissingExtraError, MissingFileError, OptionError
from opnp.report import write_figures, write_report
from opnp.report.page import script_json, vega_script
from opnp.values.bench import BenchRecord
from opnp.values.pictures import PictureRecord
from tests.unit.report.report_world import (
    EVIL,
    MODEL,
    RECORDS,
    bench_folder,
    demo_folder,
    first_version_record,
    fit_record,
    fusion_record,
    head_pictures,
    page_folder,
    picture_record,
)

MOST_BYTES = 6_000_000


class Outline(HTMLParser):
    """Headings, ids and scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open:
            self.data.setdefault(self.open[-1], []).append(data)

    @property
    def levels(self) -> list[int]:
        return [int(tag[1]) for tag, _ in self.tags if re.fullmatch(r"h[1-6]", tag)]


def figures_of(page: str) -> dict[str, Any]:
    """Return the panels of the figures of a page by name; no number in them is NaN or infinite."""
    packed = re.search(r'id="figures-packed">(.*?)</script>', page, re.DOTALL)
    assert packed is not None
    text = gzip.decompress(base64.b64decode(packed.group(1))).decode()
    assert not re.search(r"\b(NaN|Infinity)\b", text)
    figures: dict[str, Any] = json.loads(text)["figures"]
    return figures


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the page of a benchmark with everything."""
    folder = tmp_path_factory.mktemp("page")
    return write_report(page_folder(folder / "results"), folder / "report.html").read_text(encoding="utf-8")


def test_the_page_is_whole_small_and_in_its_order(page: str) -> None:
    outline = Outline(page)
    assert len(page.encode()) < MOST_BYTES
    assert "Failed: Mahalanobis inverts the covariance" in page
    first, *rest = outline.levels
    assert first == 1
    assert all(level <= before + 1 for before, level in zip(outline.levels, rest, strict=False))
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"] for tag, attributes in outline.tags if tag == "a"}
    assert targets <= {f"#{name}" for name in ids}
    parts = [name for name in ids if name and name.startswith("model1-") and name.count("-") == 1]
    order = ["verdict", "methods", "thresholds", "keep", "figures", "gallery", "data"]
    assert [name.removeprefix("model1-") for name in parts if name != "model1-heading"] == order
    addresses = [attributes[name] for _, attributes in outline.tags for name in ("src", "href") if name in attributes]
    assert all(address and address.startswith(("#", "data:image/")) for address in addresses)


def test_every_figure_table_and_image_says_what_it_is(page: str) -> None:
    outline = Outline(page)
    assert all(attributes.get("alt") for tag, attributes in outline.tags if tag == "img")
    assert all(attributes["aria-label"] for _, attributes in outline.tags if attributes.get("role") == "img")
    tags = [tag for tag, _ in outline.tags]
    assert tags.count("table") == tags.count("caption") > 0
    assert tags.count("figure") == tags.count("figcaption") > 0
    assert all("scope" in attributes for tag, attributes in outline.tags if tag == "th")


def test_names_from_data_stay_names(page: str) -> None:
    outline = Outline(page)
    scripts = [attributes.get("type") for tag, attributes in outline.tags if tag == "script"]
    assert scripts == ["application/json", "text/plain", "text/plain", None]
    assert EVIL not in page
    assert any(EVIL in text for text in outline.data["h2"])
    values = json.loads(re.search(r'id="report-data">(.*?)</script>', page, re.DOTALL).group(1))  # type: ignore[union-attr]  # it is there
    assert set(values) == {"explorers"}
    assert set(figures_of(page)) == {attributes.get("data-figure") for _, attributes in outline.tags} - {None}
    assert json.loads(script_json({EVIL: "&<!--\u2028"})) == {EVIL: "&<!--\u2028"}
    assert not set("<>&\u2028") & set(script_json({EVIL: "&<!--\u2028"}))


def test_a_page_of_a_fusion_shows_its_members_and_no_head_that_it_is_read_off(tmp_path: Path) -> None:
    pages = []
    for record in (first_version_record(), fusion_record()):
        folder = bench_folder(tmp_path / "results", record)
        pages.append(write_report(folder, tmp_path / "page.html").read_text(encoding="utf-8"))
    old, new = pages
    for words, is_old, is_new in (
        ("chosen without OOD data, by 2000 validation samples", True, False),
        ("Confidence and calibration before and after", True, False),
        ("OPNP(): a fusion of gen and vim", False, True),
        ("vim alone", False, True),
        ("one member", False, True),
    ):
        assert (words in old, words in new) == (is_old, is_new), words


@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_equal_results_give_equal_pages_whose_thresholds_start_at_either_end(tmp_path: Path, keep: float) -> None:
    folder = demo_folder(tmp_path / "one")
    shutil.copytree(folder, tmp_path / "other")
    first, second = (write_report(tmp_path / name, tmp_path / f"{name}.html", keep=keep) for name in ("one", "other"))
    assert first.read_bytes() == second.read_bytes()
    assert f'value="{100 * keep:.1f}"' in first.read_text(encoding="utf-8")


def test_a_folder_may_hold_a_sweep_pictures_or_a_fit_alone(tmp_path: Path) -> None:
    sweep, pictures, fit = (tmp_path / name for name in ("sweep", "pictures", "fit"))
    for folder in (sweep, pictures, fit):
        folder.mkdir()
    shutil.copy(RECORDS / "sweep.json", sweep)
    (pictures / "pictures.json").write_text(picture_record(MODEL).to_json(), encoding="utf-8")
    (fit / "fit.json").write_text(fit_record().to_json(), encoding="utf-8")
    texts = {folder.name: write_report(folder, tmp_path / "out.html").read_text() for folder in (sweep, pictures, fit)}
    assert "known with hindsight only" in texts["sweep"]
    assert "ID images that look most OOD" in texts["pictures"]
    assert "OPNP() removes" in texts["pictures"]
    assert "flags inputs that score above 3" in texts["fit"]
    assert "vim is left out: it has no room" in texts["fit"]
    assert "9.9" in texts["fit"]
    assert "each range by itself with a probability of" in texts["fit"]


def test_what_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    folder = demo_folder(tmp_path / "results")
    with pytest.raises(DataFileError, match="is a folder: name a file for the report"):
        write_report(folder, tmp_path)
    with pytest.raises(MissingFileError, match="is no folder"):
        write_report(folder, tmp_path / "none" / "report.html")
    (folder / "scores.csv").unlink()
    for keep in (0.3, 0.499, 0.9995, 1.0, 5, float("nan")):
        with pytest.raises(OptionError, match=r"`keep` must lie between 0\.5 and 0\.999 for a report"):
            write_report(folder, tmp_path / "report.html", keep=keep)
        assert not (tmp_path / "report.html").exists()
    with pytest.raises(OptionError, match="`keep` must lie between 0 and 1, got 5"):
        write_figures(folder, tmp_path / "figures", keep=5)
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit" / "fit.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataFileError, match=r"fit\.json: This is no record of a fit"):
        write_report(tmp_path / "fit", tmp_path / "report.html")


def test_a_record_without_models_says_so(tmp_path: Path) -> None:
    record = BenchRecord(seed=0, calibration_bins=15, versions={}, models=())
    (tmp_path / "results.json").write_text(record.to_json(), encoding="utf-8")
    assert "there is nothing to report" in write_report(tmp_path, tmp_path / "report.html").read_text()


def test_pictures_of_a_head_that_is_not_pruned_leave_open_what_was_chosen(tmp_path: Path) -> None:
    pictures = PictureRecord(models=(head_pictures("m", Ratios()),))
    (tmp_path / "pictures.json").write_text(pictures.to_json(), encoding="utf-8")
    text = write_report(tmp_path, tmp_path / "report.html").read_text()
    assert "Whether it shapes the features instead, the pictures do not say." in text


@pytest.mark.parametrize("package", ["jinja2", "vl_convert"])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    folder = demo_folder(tmp_path / "results")
    vega_script.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'opnp\[report\]'"):
        write_report(folder, tmp_path / "report.html")


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_infinite_scores_are_drawn_in_the_last_bin(tmp_path: Path, share: float) -> None:
    folder = demo_folder(tmp_path / "results")
    lines = (folder / "scores.csv").read_text(encoding="utf-8").splitlines()
    infinite = {int(place / share) + 1 for place in range(int(share * (len(lines) - 1)))}
    lines = [line.rsplit(",", 1)[0] + ",inf" if place in infinite else line for place, line in enumerate(lines)]
    (folder / "scores.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = write_report(folder, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Infinity" not in text.split('id="report-data">')[1].split("</script>")[0]
    assert any(name.startswith("figure-5") for name in figures_of(text))
    assert any(path.suffix == ".svg" for path in write_figures(folder, tmp_path / "figures", formats=("svg",)))
