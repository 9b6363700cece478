"""Methods in the order of how well they do, for pages."""

from opnp.report.figures.page_layout import PageFigure, Panels, line_trace, rounded
from opnp.report.palette import GREEN, GREY, Role
from opnp.report.series.ranking_series import RankingSeries

__all__ = ["ranking_page"]

_ROW = 18


def ranking_page(series: RankingSeries) -> PageFigure:
    """Return a dot plot: AUROC left, FPR95 right, the best method at the top."""
    methods = series.methods
    panels = Panels(1, 2, _ROW * len(methods) + 20, gap=0.04)
    columns = (
        ("AUROC (%), higher is better", [each.near_auroc for each in methods], [each.far_auroc for each in methods]),
        ("FPR95 (%), lower is better", [each.near_fpr95 for each in methods], [each.far_fpr95 for each in methods]),
    )
    names = [f"<b>{each.method}</b>" if each.role != "other" else each.method for each in methods]
    places = list(range(len(methods)))
    for column, (title, near, far) in enumerate(columns):
        sides: tuple[tuple[Role, list[float | None]], ...] = (("near", near), ("far", far))
        for role, values in sides:
            if all(value is None for value in values):
                continue
            trace = {**line_trace(role), "mode": "markers", "x": rounded(values, 100), "y": places}
            trace |= {
                "name": f"mean of the {role} OOD sets",
                "legendgroup": role,
                "showlegend": column == 0,
                "customdata": [each.method for each in methods],
                "hovertemplate": f"%{{customdata}}: {role} %{{x:.2f}} %<extra></extra>",
            }
            panels.trace(0, column, trace)
        y = {
            "range": [len(methods) - 0.4, -0.6],
            "tickvals": places,
            "ticktext": names,
            "ticks": "",
            "automargin": True,
        }
        y |= {"showticklabels": column == 0, "tickfont": {"size": 11}}
        panels.axes(0, column, x={"title": {"text": title}, "showgrid": True}, y=y)
        for place, each in enumerate(methods):
            if each.role != "other":
                color = GREEN if each.role == "chosen" else GREY
                look = {"fillcolor": color, "opacity": 0.2, "line": {"width": 0}, "layer": "below"}
                panels.box(
                    0, column, (0, 1, place - 0.5, place + 0.5), **look, xref=f"x{'' if column == 0 else 2} domain"
                )
    return panels.figure(min_width=640, margin_left=20)
