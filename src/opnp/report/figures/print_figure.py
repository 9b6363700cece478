"""From what is drawn to a figure of matplotlib."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opnp.report.figures.print_calibration import calibration_figure
from opnp.report.figures.print_head import pruning_figure, sensitivity_figure
from opnp.report.figures.print_ranking import ranking_figure
from opnp.report.figures.print_scores import curves_figure, scores_figure
from opnp.report.figures.print_sweeps import grid_figure, ratios_figure
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["print_figure"]

_DRAWERS: dict[type, Callable[[Any], "Figure"]] = {
    CalibrationSeries: calibration_figure,
    CurveSeries: curves_figure,
    GridSeries: grid_figure,
    PruningSeries: pruning_figure,
    RankingSeries: ranking_figure,
    RatioSeries: ratios_figure,
    ScoreSeries: scores_figure,
    SensitivitySeries: sensitivity_figure,
}


def print_figure(series: Series) -> "Figure":
    """Return a figure of matplotlib for print, white ground.

    Args:
        series: What is drawn.

    Returns:
        The figure; no global state of matplotlib is touched.

    Raises:
        MissingExtraError: If matplotlib is not installed.

    """
    return _DRAWERS[type(series)](series)
