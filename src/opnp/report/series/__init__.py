"""What is drawn: small values made from records and arrays of scores, before any drawing."""

from opnp.report.series.calibration_series import CalibrationSeries, calibration_series
from opnp.report.series.curve_series import CurveSeries, curve_series
from opnp.report.series.grid_series import GridSeries, grid_series
from opnp.report.series.pruning_series import PruningSeries, pruning_series
from opnp.report.series.ranking_series import RankingSeries, ranking_series
from opnp.report.series.ratio_series import RatioSeries, ratio_series
from opnp.report.series.score_series import ScoreSeries, score_series
from opnp.report.series.sensitivity_series import SensitivitySeries, sensitivity_series

__all__ = [
    "CalibrationSeries",
    "CurveSeries",
    "GridSeries",
    "PruningSeries",
    "RankingSeries",
    "RatioSeries",
    "ScoreSeries",
    "SensitivitySeries",
    "calibration_series",
    "curve_series",
    "grid_series",
    "pruning_series",
    "ranking_series",
    "ratio_series",
    "score_series",
    "sensitivity_series",
]
