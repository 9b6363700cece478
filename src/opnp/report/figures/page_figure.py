"""From what is drawn to a figure of plotly, as JSON values; and the script that draws it."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from opnp.errors import MissingExtraError
from opnp.report.figures.page_calibration import calibration_page
from opnp.report.figures.page_head import pruning_page, sensitivity_page
from opnp.report.figures.page_layout import PageFigure
from opnp.report.figures.page_ranking import ranking_page
from opnp.report.figures.page_scores import curves_page, scores_page
from opnp.report.figures.page_sweeps import grid_page, ratios_page
from opnp.report.named_figures import Series
from opnp.report.series import (
    CalibrationSeries,
    CurveSeries,
    GridSeries,
    PruningSeries,
    RankingSeries,
    RatioSeries,
    ScoreSeries,
    SensitivitySeries,
)

__all__ = ["page_figure", "plotly_script"]

_DRAWERS: dict[type, Callable[[Any], PageFigure]] = {
    CalibrationSeries: calibration_page,
    CurveSeries: curves_page,
    GridSeries: grid_page,
    PruningSeries: pruning_page,
    RankingSeries: ranking_page,
    RatioSeries: ratios_page,
    ScoreSeries: scores_page,
    SensitivitySeries: sensitivity_page,
}


def page_figure(series: Series) -> PageFigure:
    """Return a figure of plotly as values that become JSON, ``data`` and ``layout``.

    It has no template: a page gives it one of `PAGE_TEMPLATES`, and another when the theme changes. Its title and its
    text for readers who do not see it are `series.title` and `series.alt`; they are no part of it.

    Args:
        series: What is drawn.

    Returns:
        The figure. ``layout.meta.min_width`` is the width in pixels from which on it can be read.

    """
    return _DRAWERS[type(series)](series)


def plotly_script() -> str:
    """Return plotly.js, to be put into a page: it draws without a network.

    Raises:
        MissingExtraError: If plotly is not installed.

    """
    try:
        script: str = import_module("plotly.offline").get_plotlyjs()
    except ImportError as error:
        raise MissingExtraError("Pages need plotly, which is not installed: `pip install 'opnp[report]'`.") from error
    return script
