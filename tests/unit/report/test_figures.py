"""Figures for pages and for print: they show what they are drawn from, can be read, and are the same every time."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from opnp.errors import DataFileError, MissingExtraError, OptionError
from opnp.report import NamedFigure, named_figures, read_results, write_figures
from opnp.report.figures_page import page_figure
from opnp.report.figures_print import print_figure, write_figure
from opnp.report.page_panels import PAGE_TEMPLATES
from opnp.report.palette import ROLES
from opnp.report.record_series import CalibrationSeries, RankingSeries, Series
from opnp.report.score_series import CurveSeries, ScoreSeries
from opnp.report.sweep_series import METRICS, RatioSeries
from tests.unit.report.report_world import (
    MODEL,
    bench_folder,
    demo_folder,
    first_version_record,
    fusion_record,
)

go: Any = import_module("plotly.graph_objects")  # the package ships no types

Kind = TypeVar("Kind", bound=Series)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> tuple[NamedFigure, ...]:
    folder = tmp_path_factory.mktemp("results")
    found = (
        *named_figures(read_results(demo_folder(folder / "demo"))),
        *named_figures(read_results(bench_folder(folder / "bench", first_version_record()))),
    )
    return tuple(named for named in found if named.model in ("demo", MODEL))


def of_kind(figures: tuple[NamedFigure, ...], kind: type[Kind]) -> list[Kind]:
    return [named.series for named in figures if isinstance(named.series, kind)]


def traces(figure: dict[str, Any], panel: int, kind: str) -> list[dict[str, Any]]:
    axis = "x" if panel == 0 else f"x{panel + 1}"
    return [trace for trace in figure["data"] if trace.get("xaxis") == axis and trace["type"] == kind]


def test_every_figure_that_there_are_data_for_has_a_stable_name(figures: tuple[NamedFigure, ...]) -> None:
    assert [named.name for named in figures] == [
        "figure-1-sensitivity-demo",
        "figure-2-pruning-demo",
        "figure-5-scores-demo",
        "curves-demo",
        "ranking-demo",
        f"figure-3-ratios-{MODEL}",
        f"figure-4-calibration-{MODEL}",
        f"figure-5-scores-{MODEL}",
        f"curves-{MODEL}",
        f"heat-map-w_min-o_min-{MODEL}",
        f"ranking-{MODEL}",
    ]
    assert all(named.series.title and len(named.series.alt) > len(named.series.title) for named in figures)


def test_a_fusion_has_every_figure_but_that_of_the_head_it_is_read_off(
    figures: tuple[NamedFigure, ...], tmp_path: Path
) -> None:
    found = named_figures(read_results(bench_folder(tmp_path, fusion_record())))
    names = [named.name for named in found if named.model == MODEL]
    others = [named.name for named in figures if named.model == MODEL]
    assert names == [name for name in others if not name.startswith("figure-4")]
    for named in found:
        assert page_figure(named.series)["layout"]
        assert print_figure(named.series).axes


def test_every_figure_is_one_for_plotly(figures: tuple[NamedFigure, ...]) -> None:
    for named in figures:
        figure = page_figure(named.series)
        go.Figure(figure)  # refuses names and values that plotly does not know
        assert json.loads(json.dumps(figure, allow_nan=False)) == figure, named.name
        assert "template" not in figure["layout"]
        panels = {trace["xaxis"] for trace in figure["data"] if "xaxis" in trace}
        for axis in panels:
            low, high = figure["layout"][f"xaxis{axis[1:]}"]["domain"]
            assert 0 <= low < high <= 1


def test_texts_and_marks_stand_out_against_light_and_dark() -> None:
    for template in PAGE_TEMPLATES.values():
        go.layout.Template(template)  # refuses names and values that plotly does not know
        layout = template["layout"]
        assert contrast(layout["font"]["color"], layout["hoverlabel"]["bgcolor"]) >= 7
    for look in ROLES.values():
        assert min(contrast(look.color, ground) for ground in ("#ffffff", "#0d1117")) >= 3


def test_roles_that_meet_differ_by_more_than_colour() -> None:
    def shape(role: Any) -> tuple[object, ...]:
        look = ROLES[role]
        return look.dash, look.mark, look.hatch, look.is_filled

    for first, second in [("id", "ood"), ("near", "far"), ("before", "after"), ("baseline", "chosen")]:
        assert shape(first) != shape(second)
    assert len({shape(role) for role in ("kept", "lowest", "highest")}) == 3


def contrast(first: str, second: str) -> float:
    def luminance(color: str) -> float:
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_histograms_show_the_series(figures: tuple[NamedFigure, ...]) -> None:
    for series in of_kind(figures, ScoreSeries):
        page, printed = page_figure(series), print_figure(series)
        shapes = page["layout"]["shapes"]
        for place, panel in enumerate(series.panels):
            bars = traces(page, place, "bar")
            np.testing.assert_allclose(bars[0]["y"], 100 * np.array(panel.id_shares), rtol=1e-4)
            np.testing.assert_allclose(bars[1]["y"], 100 * np.array(panel.ood_shares), rtol=1e-4)
            assert shapes[place]["x0"] == shapes[place]["x1"] == panel.threshold
            axes = printed.axes[place]
            steps = [patch.get_data() for patch in axes.patches]  # type: ignore[attr-defined]  # StepPatch has it
            np.testing.assert_allclose(steps[0].values, 100 * np.array(panel.id_shares))
            np.testing.assert_allclose(steps[1].values, 100 * np.array(panel.ood_shares))
            assert axes.lines[0].get_xdata() == [panel.threshold, panel.threshold]


def test_reliability_diagrams_show_the_series(figures: tuple[NamedFigure, ...]) -> None:
    [series] = of_kind(figures, CalibrationSeries)
    page, printed = page_figure(series), print_figure(series)
    for column, panel in enumerate(series.panels):
        right = [None if value is None else 100 * value for value in panel.right]
        bars = traces(page, 2 + column, "bar")[0]
        assert bars["y"] == [None if value is None else pytest.approx(value, rel=1e-4) for value in right]
        heights = [patch.get_height() for patch in printed.axes[2 + column].patches[: len(right)]]  # type: ignore[attr-defined]  # bars are rectangles
        np.testing.assert_allclose(heights, [np.nan if value is None else value for value in right])
        title = printed.axes[column].get_title(loc="left")
        assert title == f"{panel.name} shaping: ECE {100 * panel.figures.ece:.1f} %"


def test_lines_of_ratios_show_the_series(figures: tuple[NamedFigure, ...]) -> None:
    [series] = of_kind(figures, RatioSeries)
    page, printed = page_figure(series), print_figure(series)
    count = len(series.panels)
    for row, panel in enumerate(series.panels):
        for column, metric in enumerate(METRICS):
            values = [100 * np.array(line.values(metric)) for line in panel.lines]
            drawn = traces(page, 2 * row + column, "scatter")[::2]
            for trace, wanted in zip(drawn, values, strict=True):
                np.testing.assert_allclose(trace["y"], wanted, rtol=1e-4)
                assert trace["customdata"] == list(panel.values)
            lines = printed.axes[column * count + row].lines
            for line, wanted in zip(lines[:-1:2], values, strict=True):
                np.testing.assert_allclose(np.asarray(line.get_ydata(), dtype=np.float64), wanted)
            assert panel.chosen is not None
            assert lines[-1].get_xdata() == [panel.position(panel.chosen)] * 2


def test_curves_show_the_series(figures: tuple[NamedFigure, ...]) -> None:
    for series in of_kind(figures, CurveSeries):
        page, printed = page_figure(series), print_figure(series)
        for row, panel in enumerate(series.panels):
            for place, curve in enumerate(panel.curves):
                trace = traces(page, 2 * row, "scatter")[place]
                np.testing.assert_allclose(trace["y"], 100 * np.array(curve.kept_id), rtol=1e-4)
                line = printed.axes[2 * row].lines[place + 1]
                np.testing.assert_allclose(
                    np.asarray(line.get_xdata(), dtype=np.float64), 100 * np.array(curve.kept_ood)
                )
                assert f"AUROC {100 * curve.auroc:.1f} %" in str(line.get_label())


def test_the_best_method_stands_at_the_top(figures: tuple[NamedFigure, ...]) -> None:
    for series in of_kind(figures, RankingSeries):
        printed = print_figure(series)
        low, high = printed.axes[0].get_ylim()
        assert low > high
        labels = [text.get_text() for text in printed.axes[0].get_yticklabels()]
        assert labels == [each.method for each in series.methods]


def small_texts(figure: Figure) -> list[str]:
    """Return the texts of a figure that are too small to read."""
    texts: list[Any] = figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))
    return [text.get_text() for text in texts if text.get_visible() and text.get_text() and text.get_fontsize() < 7]


def test_no_text_is_cut_off_or_small(figures: tuple[NamedFigure, ...]) -> None:
    for named in figures:
        figure = print_figure(named.series)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure.get_tightbbox(canvas.get_renderer())  # of what is drawn, in inches
        width, height = figure.get_size_inches()
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.01, named.name
        assert small_texts(figure) == [], named.name


def test_files_bear_the_names_of_the_figures(tmp_path: Path) -> None:
    folder = demo_folder(tmp_path / "results")
    (folder / "pictures.json").unlink()
    paths = write_figures(folder, tmp_path / "a", formats=("svg",))
    assert [path.name for path in paths] == ["figure-5-scores-demo.svg", "curves-demo.svg", "ranking-demo.svg"]
    for path in paths:
        svg = path.read_text(encoding="utf-8")
        assert path.parent == tmp_path / "a"
        assert len(svg) < 400_000
        assert "<text" not in svg  # letters are paths, so that no font is needed


@pytest.mark.parametrize("ending", ["svg", "pdf", "png"])
def test_equal_figures_are_equal_files(tmp_path: Path, figures: tuple[NamedFigure, ...], ending: str) -> None:
    [ranking, *_] = of_kind(figures, RankingSeries)
    paths = [tmp_path / f"{name}.{ending}" for name in ("a", "b")]
    for path in paths:
        write_figure(print_figure(ranking), path)
    content = paths[0].read_bytes()
    assert content == paths[1].read_bytes()
    if ending == "png":
        assert int.from_bytes(content[16:20]) == 200 * 6.75  # dots an inch, and inches


def test_a_model_with_slashes_is_a_file_in_the_folder(tmp_path: Path) -> None:
    folder = bench_folder(tmp_path / "results")
    path = folder / "results.json"
    (folder / "sweep.json").unlink()
    (folder / "scores.parquet").unlink()
    text = path.read_text(encoding="utf-8")
    renamed = text.replace('"densenet_cifar100"', '"hf/a b"').replace('"densenet_cifar10"', '"hf_a_b"')
    path.write_text(renamed, encoding="utf-8")
    names = [named.name for named in named_figures(read_results(folder))]
    assert "ranking-hf_a_b" in names
    assert "ranking-hf_a_b-2" in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("formats", [("gif",), (), "svg"])
def test_unknown_formats_are_refused(tmp_path: Path, formats: Any) -> None:
    with pytest.raises(OptionError, match="`formats` must be some of 'svg', 'png', 'pdf', got"):
        write_figures(tmp_path, tmp_path / "out", formats=formats)
    with pytest.raises(OptionError, match=r"`path` must end in \.svg, \.png, \.pdf"):
        write_figure(Figure(), tmp_path / "a.gif")


def test_a_file_is_no_folder_for_figures(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(DataFileError, match="is a file: name a folder for the figures"):
        write_figures(demo_folder(tmp_path / "results"), tmp_path / "out")


def test_without_matplotlib_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: tuple[NamedFigure, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"need matplotlib.*pip install 'opnp\[report\]'"):
        write_figures(tmp_path, tmp_path / "out")
    with pytest.raises(MissingExtraError, match=r"pip install 'opnp\[report\]'"):
        print_figure(figures[0].series)
    assert page_figure(figures[0].series)["data"]


def test_matplotlib_is_loaded_for_print_alone_and_plotly_for_its_script_alone(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from opnp.report import named_figures, read_results, write_figures\n"
        "from opnp.report.figures_page import page_figure\n"
        "figures = named_figures(read_results(sys.argv[1]))\n"
        "[page_figure(named.series) for named in figures]\n"
        "assert not {'matplotlib', 'plotly'} & set(sys.modules)\n"
        "write_figures(sys.argv[1], sys.argv[2], formats=['svg'])\n"
        "assert 'plotly' not in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    folder = demo_folder(tmp_path / "results")
    (folder / "pictures.json").unlink()
    subprocess.run([sys.executable, "-c", program, str(folder), str(tmp_path / "out")], check=True)
