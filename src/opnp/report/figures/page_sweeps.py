"""Figures of a sweep for pages: a metric against each ratio, and a heat map over two."""

from opnp.report.figures.page_layout import PageFigure, Panels, line_trace, rounded
from opnp.report.palette import GREEN, HEAT, VERMILLION, Role, style
from opnp.report.series.grid_series import GridPanel, GridSeries
from opnp.report.series.ratio_series import Metric, RatioPanel, RatioSeries
from opnp.report.series.wording import ratio_text

__all__ = ["grid_page", "ratios_page"]

_METRICS: tuple[Metric, ...] = ("fpr95", "auroc")


def ratios_page(series: RatioSeries) -> PageFigure:
    """Return FPR95 (left) and AUROC (right) against each ratio, one ratio a row."""
    panels = Panels(len(series.panels), 2, 170)
    for row, panel in enumerate(series.panels):
        for column, metric in enumerate(_METRICS):
            _ratio(panels, row, column, panel, metric)
            places, texts = zip(*panel.ticks, strict=True)
            kind = "weights" if panel.ratio.startswith("w") else "neurons"
            which = "lowest" if panel.ratio.endswith("min") else "highest"
            chosen = f", {panel.chosen_text}" if panel.chosen_text else ""
            panels.axes(
                row,
                column,
                x={
                    "tickvals": list(places),
                    "ticktext": list(texts),
                    "title": {"text": f"share of {kind}, {which}{chosen}"},
                },
                y={"title": {"text": f"{metric.upper()} (%)"}},
                title=f"rho_{panel.ratio}",
            )
    return panels.figure(min_width=600)


def _ratio(panels: Panels, row: int, column: int, panel: RatioPanel, metric: Metric) -> None:
    places = rounded(panel.position(value) for value in panel.values)
    is_first = (row, column) == (0, 0)
    for line in panel.lines:
        role: Role = "near" if line.nearness == "near" else "far"
        words = f"rho_{panel.ratio} = %{{customdata}}: {role} {metric.upper()} %{{y:.2f}} %<extra></extra>"
        trace = {**line_trace(role), "x": places, "y": rounded(line.metric(metric), 100), "name": f"{role} OOD"}
        trace |= {
            "legendgroup": role,
            "showlegend": is_first,
            "customdata": list(panel.values),
            "hovertemplate": words,
        }
        panels.trace(row, column, trace)
        energy = 100 * line.energy(metric)
        reference = {
            "type": "scatter",
            "mode": "lines",
            "x": rounded([panel.position(panel.values[0]), panel.position(panel.values[-1])]),
            "y": rounded([energy, energy]),
            "name": f"Energy, {role}",
            "legendgroup": f"energy-{role}",
            "showlegend": is_first,
            "line": {"color": style(role).color, "dash": "dash" if role == "far" else "dot", "width": 1.3},
            "hovertemplate": f"Energy, {role}: %{{y:.2f}} %<extra></extra>",
        }
        panels.trace(row, column, reference)
    if panel.chosen is not None:
        panels.line(row, column, x=panel.position(panel.chosen), color=GREEN, width=3)


def grid_page(series: GridSeries) -> PageFigure:
    """Return heat maps over two ratios: AUROC above, FPR95 below, near left, far right."""
    columns = len({panel.nearness for panel in series.panels})
    panels = Panels(len(series.panels) // columns, columns, 30 * len(series.y_values) + 20)
    for place, panel in enumerate(series.panels):
        row, column = divmod(place, columns)
        _heat(panels, row, column, panel, series)
        panels.axes(
            row,
            column,
            x={"title": {"text": f"rho_{series.x}"}, "type": "category", "showline": False, "ticks": ""},
            y={"title": {"text": f"rho_{series.y}"}, "type": "category", "showline": False, "ticks": ""},
            title=f"{panel.nearness} {panel.metric.upper()} (%); Energy {100 * panel.energy:.1f}",
        )
    words = series.frames.replace("framed", "orange frame").replace("dashed", "dashed frame")
    panels.note(title=words, x=0, y=0, xanchor="left", yanchor="top", yshift=-54)
    return panels.figure(min_width=320 * columns)


def _heat(panels: Panels, row: int, column: int, panel: GridPanel, series: GridSeries) -> None:
    values = [rounded(line, 100) for line in panel.values]
    trace = {
        "type": "heatmap",
        "x": [ratio_text(value) for value in series.x_values],
        "y": [ratio_text(value) for value in series.y_values],
        "z": values,
        "colorscale": [[0, HEAT[0]], [1, HEAT[1]]],
        "reversescale": panel.metric == "fpr95",
        "showscale": False,
        "texttemplate": "%{z:.1f}",
        "textfont": {"color": "#000000"},
        "hoverongaps": False,
        "hovertemplate": f"rho_{series.x} = %{{x}}, rho_{series.y} = %{{y}}: %{{z:.2f}} %<extra></extra>",
    }
    panels.trace(row, column, trace)
    up, across = panel.best
    frame = across - 0.47, across + 0.47, up - 0.46, up + 0.46
    panels.box(row, column, frame, line={"color": VERMILLION, "width": 3})
    if series.chosen is not None:
        x, y = series.chosen
        for color, dash, width in (("#ffffff", "solid", 4), ("#000000", "dash", 2)):
            look = {"color": color, "dash": dash, "width": width}
            panels.box(row, column, (x - 0.42, x + 0.42, y - 0.4, y + 0.4), line=look)
