"""The page in a browser: no errors, no network, sorting, thresholds, gallery, narrow windows, dark, print, access."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from opnp.core import fpr_at_tpr
from opnp.report import read_results, write_report
from opnp.report.explorer import band_text
from tests.unit.report.report_world import EVIL, METHODS, MODEL, large_folder, page_folder

pytest.importorskip("playwright.sync_api", reason="needs playwright")
axe = pytest.importorskip("axe_core_python.sync_playwright", reason="needs axe-core-python")

LARGE = 100_000
PAPER = 182 / 25.4 * 96
"""Width of an A4 page between its margins, in pixels."""
READY = "html[data-ready]"

Opener = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of results."""
    return page_folder(tmp_path_factory.mktemp("report") / "results")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    """Return the page of the results."""
    return write_report(folder, folder.parent / "report.html")


def opened(browser: Any, path: Path, **options: Any) -> Any:
    """Return a page that has drawn its figures; it fails for a request, a message or an error of the page."""
    page = browser.new_page(**{"color_scheme": "light", "viewport": {"width": 1200, "height": 900}, **options})
    page.set_default_timeout(20_000)
    faults: list[str] = []
    page.on("request", lambda request: faults.extend([request.url[:200]] * (request.url != path.as_uri())))
    page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
    page.goto(path.as_uri())
    page.wait_for_selector(READY, state="attached")
    page.faults = faults
    return page


@pytest.fixture(scope="module")
def shared(browser: Any, path: Path) -> Iterator[Any]:
    """Yield a page that tests use one after another, each setting what it looks at."""
    page = opened(browser, path)
    yield page
    page.close()


def test_it_loads_without_error_or_network_and_draws_every_figure(shared: Any) -> None:
    assert shared.faults == []
    assert shared.locator("[data-figure]").count() > 0
    panels = shared.locator("[data-figure] .panel")
    assert panels.count() == shared.locator("[data-figure] .panel > svg").count()
    assert all(panels.evaluate_all("panels => panels.map(each => each.querySelectorAll('path, text').length > 3)"))
    assert shared.locator("h2").filter(has_text=EVIL).count() == 1
    assert shared.locator("main script").count() == 0


@pytest.mark.parametrize("way", ["click", "press"])
def test_the_table_sorts_both_ways_by_mouse_and_keyboard(shared: Any, way: str) -> None:
    table = shared.locator("#model2 table.sortable").first  # with failed rows
    act = partial(_pressed, shared) if way == "press" else _clicked
    for title in ("AUROC", "Method", "ID samples"):
        header = table.locator("thead th").filter(has_text=title).first
        column = header.evaluate("header => header.cellIndex")
        for order in ("ascending", "descending"):
            act(header.locator("button"))
            assert header.get_attribute("aria-sort") == order
            assert table.locator("[aria-sort]").count() == 1
            rows = table.locator("tbody tr").evaluate_all(
                f"rows => rows.map(row => row.cells.length > {column} ? (row.cells[{column}].dataset.value || '') : '')"
            )
            is_number = title != "Method"
            values = [float(value) if is_number else value.casefold() for value in rows if value]
            if is_number:
                assert values == sorted(values, reverse=order == "descending")
                assert rows[: len(values)] == [value for value in rows if value], "rows without a value come last"
            else:
                collated = shared.evaluate("values => [...values].sort((a, b) => a.localeCompare(b, 'en'))", rows)
                assert rows == (collated if order == "ascending" else collated[::-1])
            assert len(set(values)) > 1


def _clicked(button: Any) -> None:
    button.click()


def _pressed(page: Any, button: Any) -> None:
    button.focus()
    page.keyboard.press("Enter")


def test_the_explorer_shows_what_the_core_measures_at_five_positions(shared: Any, folder: Path) -> None:
    results = read_results(folder)
    nearness = next(model for model in results.models if model.model == MODEL).nearness
    explorer = shared.locator("#model1 .thresholds")
    assert explorer.locator("tr[data-set]").count() == len(nearness)
    for keep in ("50.0", "80.1", "95.0", "97.3", "99.9"):
        explorer.locator("input").fill(keep)
        assert explorer.locator("output").inner_text().startswith(keep)
        share = round(float(keep) / 100, 3)
        for column, method in enumerate(reversed(METHODS), 2):
            scores = results.scores(MODEL, method)
            assert scores is not None
            tensors = {name: torch.from_numpy(values) for name, values in scores.items()}
            inside = tensors["test"]
            kept = fpr_at_tpr(inside, inside, tpr=share)
            flagged, samples = _counts(explorer, "[data-row=flagged]", column)
            assert (samples, (samples - flagged) / samples) == (len(inside), kept)
            band = explorer.locator(f"[data-row=flagged] > :nth-child({column}) .band").inner_text()
            assert band == band_text(flagged, samples, min(500, samples))
            threshold = explorer.locator(f"[data-row=threshold] > :nth-child({column})").inner_text()
            smallest = float(inside.sort().values[round(kept * samples) - 1])
            assert float(threshold) == float(f"{smallest:.6g}")
            for name in nearness:
                outside = tensors[f"ood_{name}"]
                missed, samples = _counts(explorer, f"[data-set={name}]", column)
                assert (samples, missed / samples) == (len(outside), fpr_at_tpr(inside, outside, tpr=share))
                band = explorer.locator(f"[data-set={name}] > :nth-child({column}) .band").inner_text()
                assert band == band_text(missed, samples, min(500, len(inside)))


def _counts(explorer: Any, row: str, column: int) -> tuple[int, int]:
    """Return count and samples of a cell, whose share says the same."""
    cell = explorer.locator(f"{row} > :nth-child({column})")
    count, samples = (int(re.sub(r"\s", "", text)) for text in cell.locator(".count").inner_text().split(" of "))
    share = float(cell.locator(".share").inner_text().rstrip("%\N{NO-BREAK SPACE} "))
    assert abs(share - 100 * count / samples) <= 0.005 + 1e-9
    return count, samples


def test_the_threshold_moves_in_every_view_and_is_moved_in_them(shared: Any, folder: Path) -> None:
    """The slider moves lines and points; a line that is dragged, and a click on a curve, move slider and numbers."""
    results = read_results(folder)
    scores = results.scores(MODEL, "OPNP()")
    assert scores is not None
    explorer = shared.locator("#model1 .thresholds")
    panels = explorer.locator("[data-figure^=figure-5] .panel")
    panels.nth(3).scroll_into_view_if_needed()
    line = "line[stroke-dasharray]"
    places = {}
    for keep in ("60.0", "95.0"):
        explorer.locator("input").fill(keep)
        kept = _missed(explorer, "[data-set=cifar10]", 2)
        shared.wait_for_function(
            "([panel, text]) => panel.querySelector('.role-title-text text').textContent.includes(text)",
            arg=[panels.nth(1).element_handle(), f": {kept:.1f} % of OOD kept"],
        )
        places[keep] = panels.nth(1).locator(line).last.bounding_box()["x"]
    assert places["95.0"] > places["60.0"] + 5
    box = panels.nth(1).locator(line).last.bounding_box()
    shared.mouse.move(box["x"], box["y"] + 40)
    shared.mouse.down()
    shared.mouse.move(places["60.0"], box["y"] + 60, steps=4)
    shared.mouse.up()
    share = float(explorer.locator("input").input_value())
    assert share == pytest.approx(60, abs=2.5)
    flagged, samples = _counts(explorer, "[data-row=flagged]", 2)
    assert 100 - 100 * flagged / samples == pytest.approx(share, abs=0.5)
    roc = explorer.locator("[data-figure^=curves] .panel").first.locator("svg")
    roc.scroll_into_view_if_needed()
    box = roc.bounding_box()
    shared.mouse.click(box["x"] + box["width"] - 40, box["y"] + 60)  # where nearly all is kept
    assert float(explorer.locator("input").input_value()) > 97
    assert shared.faults == []


def _missed(explorer: Any, row: str, column: int) -> float:
    missed, samples = _counts(explorer, row, column)
    return 100 * missed / samples


def test_the_explorer_moves_by_keyboard_and_speaks(shared: Any) -> None:
    explorer = shared.locator("#model1 .thresholds")
    explorer.locator("input").fill("95.0")
    explorer.locator("input").press("ArrowRight")
    assert explorer.locator("output").inner_text().startswith("95.1")
    assert explorer.locator("input").get_attribute("aria-valuetext").startswith("95.1")
    shared.wait_for_function("() => document.querySelector('#model1 [role=status]').textContent.startsWith('95.1')")


def test_the_gallery_opens(shared: Any) -> None:
    galleries = shared.locator("#model1 details.gallery")
    assert galleries.count() == 2
    image = galleries.last.locator("img").first
    assert not image.is_visible()
    galleries.last.locator("summary").first.press("Enter")
    assert image.is_visible()
    assert image.evaluate("image => image.naturalWidth") == 96
    assert EVIL in image.get_attribute("alt")


@pytest.mark.slow
def test_it_is_accessible_light_and_dark(browser: Any, path: Path) -> None:
    page = opened(browser, path)
    page.evaluate("() => document.querySelectorAll('details').forEach(each => { each.open = true; })")
    # Each drawing is one image with a text to readers; axe looks into thousands of shapes for half a minute.
    page.evaluate("() => document.querySelectorAll('.panels').forEach(each => each.replaceChildren())")
    for scheme in ("light", "dark"):
        page.evaluate("scheme => { document.documentElement.dataset.theme = scheme; }", scheme)
        found = axe.Axe().run(page)
        assert "color-contrast" in {each["id"] for each in found["passes"]}
        assert [(each["id"], each["impact"], each["nodes"][0]["html"][:200]) for each in found["violations"]] == []
    page.close()


def test_it_fits_a_narrow_window(browser: Any, path: Path) -> None:
    page = opened(browser, path, viewport={"width": 400, "height": 800})
    table = page.locator("#model1 table.sortable").first
    assert table.locator("tbody th").first.inner_text().startswith("OPNP()")
    assert table.locator("thead tr:last-child th").nth(1).inner_text().endswith("AUROC")
    assert table.locator("tbody td").first.bounding_box()["x"] < 300
    page.evaluate("() => document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.evaluate("() => document.documentElement.scrollWidth") == 400
    for table in page.locator("#model1 table").all():
        font = table.evaluate("table => parseFloat(getComputedStyle(table).fontSize)")
        narrow = table.locator("td, th").evaluate_all(
            "cells => cells.filter(each => each.clientWidth > 0 && each.innerText.trim().length > 3)"
            ".map(each => each.clientWidth)"
        )
        assert min(narrow, default=3 * font) >= 3 * font, "words break letter by letter"
    box = page.locator("#model1 .scroll").first
    assert box.evaluate("box => box.scrollWidth > box.clientWidth && box.tabIndex === 0")
    assert page.locator("#model1 .hint").first.is_visible()
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("box => box.scrollLeft > 0", arg=box.element_handle())
    page.close()


def test_dark_and_light_follow_the_system_until_one_is_asked_for(shared: Any) -> None:
    ground = "() => getComputedStyle(document.body).backgroundColor"
    ink = "() => getComputedStyle(document.querySelector('[data-figure] .role-axis-label text')).fill"
    light = shared.evaluate(ground), shared.evaluate(ink)
    shared.emulate_media(color_scheme="dark")
    shared.wait_for_function(f"ink => ({ink})() !== ink", arg=light[1])
    dark = shared.evaluate(ground), shared.evaluate(ink)
    assert dark[0] != light[0]
    button = shared.locator("[data-theme-toggle]")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert (shared.evaluate(ground), shared.evaluate(ink)) == light
    assert button.get_attribute("aria-pressed") == "false"
    shared.emulate_media(color_scheme="light")
    assert shared.evaluate(ground) == light[0]


def test_it_prints_white_and_whole_without_controls(browser: Any, path: Path) -> None:
    page = opened(browser, path, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.wait_for_function("() => [...document.querySelectorAll('details')].every(each => each.open)")
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for control in ("input[type=range]", "[data-theme-toggle]", ".top nav"):
        assert not page.locator(control).first.is_visible()
    page.emulate_media(media="screen", color_scheme="dark")
    page.wait_for_function("() => ![...document.querySelectorAll('figcaption details')].some(each => each.open)")
    assert page.faults == []
    page.close()


@pytest.mark.slow
def test_figures_fit_the_paper_the_window_and_a_phone(browser: Any, path: Path) -> None:
    page = opened(browser, path, viewport={"width": 1280, "height": 900})
    right = "each => each.getBoundingClientRect().right"
    ends = f"() => Math.max(...[...document.querySelectorAll('.panel svg')].map({right}))"
    assert page.pdf(format="A4").startswith(b"%PDF")
    for width in (PAPER, 400, 1000):
        page.set_viewport_size({"width": int(width), "height": 900})
        page.wait_for_function(f"width => ({ends})() <= width", arg=width)
        columns = page.locator("[data-figure^=figure-5] .panels, [data-figure^=figure-5]").first.evaluate(
            "grid => getComputedStyle(grid).gridTemplateColumns.split(' ').length"
        )
        assert columns == (1 if width < 600 else 2)
    assert page.faults == []
    page.close()


def test_a_very_long_name_is_cut_in_the_contents_and_whole_on_its_title(shared: Any) -> None:
    link = shared.locator(".top a[href='#model1']")
    assert link.get_attribute("title") == MODEL
    assert link.evaluate("link => link.scrollWidth <= link.clientWidth")
    width = link.evaluate("link => { link.textContent = 'm'.repeat(300); return link.clientWidth; }")
    assert width <= 320
    assert link.evaluate("link => link.scrollWidth > link.clientWidth")
    link.evaluate("(link, name) => { link.textContent = name; }", MODEL)


def test_without_script_it_still_says_everything(browser: Any, path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("noscript p").is_visible()
    assert page.locator("#model1 .explorer [data-row=flagged] .share").first.inner_text().startswith("5.0")
    context.close()


@pytest.mark.slow
def test_many_samples_make_no_large_page(browser: Any, tmp_path: Path) -> None:
    results = large_folder(tmp_path / "results", samples=LARGE)
    path = write_report(results, tmp_path / "report.html")
    assert path.stat().st_size < 6_000_000
    page = opened(browser, path)
    page.locator(".thresholds input").fill("97.0")
    assert page.locator(".thresholds output").inner_text().startswith("97.0")
    assert _counts(page.locator(".thresholds"), "[data-row=flagged]", 2) == (LARGE * 3 // 100, LARGE)
    assert page.faults == []
    page.close()
