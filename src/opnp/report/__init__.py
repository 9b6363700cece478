"""Records and scores in, figures and pages out. Nothing here touches a tensor or a model."""

from opnp.report.figures import named_figures, write_figures
from opnp.report.page import write_report
from opnp.report.panels import Figure
from opnp.report.results import ReportedModel, ReportedRow, Results, read_results
from opnp.values.figures import DetectionFigures

__all__ = [
    "DetectionFigures",
    "Figure",
    "ReportedModel",
    "ReportedRow",
    "Results",
    "named_figures",
    "read_results",
    "write_figures",
    "write_report",
]
