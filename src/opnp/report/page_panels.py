"""Panels, axes and templates of figures for pages: plain values that become JSON, no import of plotly.

A figure holds colours only where they stand out against light and dark ground alike. Everything neutral comes from a
template, so that a page switches by ``Plotly.relayout(element, {template: templates.dark})``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opnp.report.palette import GREY, ROLES, Role

__all__ = ["PAGE_TEMPLATES", "REFERENCE_LINE", "PageFigure", "Panels", "line_trace", "rounded"]

PageFigure = dict[str, Any]
"""A figure of plotly as JSON values: ``data`` and ``layout``."""

_DIGITS = 5
_MARKS = {"circle": "circle", "square": "square", "diamond": "diamond"}
_ROW_SPACE = 72
_TOP, _BOTTOM = 28, 96


def _template(*, text: str, line: str, grid: str, ground: str) -> dict[str, Any]:
    axis = {
        "color": text,
        "gridcolor": grid,
        "linecolor": line,
        "zerolinecolor": grid,
        "showline": True,
        "showgrid": False,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": line,
        "title": {"font": {"size": 12}, "standoff": 8},
    }
    return {
        "layout": {
            "font": {"color": text, "size": 12, "family": "system-ui, sans-serif"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "annotationdefaults": {"font": {"color": text}},
            "shapedefaults": {"line": {"color": text}},
            "hoverlabel": {"bgcolor": ground, "bordercolor": line, "font": {"color": text}},
        }
    }


PAGE_TEMPLATES: Mapping[str, Mapping[str, Any]] = {
    "light": _template(text="#1f2328", line="#59636e", grid="#d8dee4", ground="#ffffff"),
    "dark": _template(text="#e6edf3", line="#9198a1", grid="#30363d", ground="#161b22"),
}
"""Templates of plotly by theme: text, axes, grid; the ground is the page's own."""


@dataclass(eq=False, slots=True)
class Panels:
    """A figure in the making: panels in rows and columns, filled one by one.

    Attributes:
        rows: Rows of panels.
        columns: Columns of panels.
        height: Height of a panel in pixels, or those of the rows.
        gap: Space between columns, as a share of the width.
        data: Traces.
        layout: The layout so far.

    """

    rows: int
    columns: int
    height: int | Sequence[int]
    gap: float = 0.12
    data: list[dict[str, Any]] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)

    def trace(self, row: int, column: int, values: Mapping[str, Any]) -> None:
        """Add a trace to a panel."""
        number = self._number(row, column)
        self.data.append({**values, "xaxis": f"x{number}", "yaxis": f"y{number}"})

    def axes(
        self,
        row: int,
        column: int,
        *,
        x: Mapping[str, Any],
        y: Mapping[str, Any],
        title: str = "",
        is_bold: bool = False,
    ) -> None:
        """Set the axes of a panel and the title above it."""
        number = self._number(row, column)
        width = (1 - self.gap * (self.columns - 1)) / self.columns
        left = column * (width + self.gap)
        heights = self._heights()
        total = sum(heights) + _ROW_SPACE * (self.rows - 1)
        top = 1 - (sum(heights[:row]) + _ROW_SPACE * row) / total
        self.layout[f"xaxis{number}"] = {"domain": _pair(left, left + width), "anchor": f"y{number}", **x}
        self.layout[f"yaxis{number}"] = {
            "domain": _pair(top - heights[row] / total, top),
            "anchor": f"x{number}",
            **y,
        }
        if title:
            self.note(
                title=f"<b>{title}</b>" if is_bold else title, x=left, y=top, xanchor="left", yanchor="bottom", yshift=4
            )

    def note(self, *, title: str, **places: Any) -> None:  # noqa: ANN401  # where, in plotly's own words
        """Add a text in shares of the figure, or in units of a panel where `places` say so."""
        values = {"text": title, "showarrow": False, "xref": "paper", "yref": "paper", "align": "left", **places}
        self.layout.setdefault("annotations", []).append(values)

    def line(self, row: int, column: int, *, x: float | None = None, y: float | None = None, **look: Any) -> None:  # noqa: ANN401  # its look, in plotly's own words
        """Draw a line across a panel: upright at `x`, level at `y`, the diagonal if neither is given."""
        number = self._number(row, column)
        xref, yref = f"x{number}", f"y{number}"
        if x is not None:
            place = {"x0": x, "x1": x, "y0": 0, "y1": 1, "xref": xref, "yref": f"{yref} domain"}
        elif y is not None:
            place = {"x0": 0, "x1": 1, "y0": y, "y1": y, "xref": f"{xref} domain", "yref": yref}
        else:
            place = {"x0": 0, "x1": 1, "y0": 0, "y1": 1, "xref": f"{xref} domain", "yref": f"{yref} domain"}
        self.layout.setdefault("shapes", []).append({"type": "line", "line": {"width": 1.2, **look}, **place})

    def box(self, row: int, column: int, corners: tuple[float, float, float, float], **look: Any) -> None:  # noqa: ANN401  # its look, in plotly's own words
        """Draw a box: x0, x1, y0, y1 in units of the axes; y0 and y1 equal for the whole height."""
        number = self._number(row, column)
        x0, x1, y0, y1 = corners
        values = {"type": "rect", "xref": f"x{number}", "x0": x0, "x1": x1, **look}
        if y0 == y1:
            values |= {"yref": f"y{number} domain", "y0": 0, "y1": 1}
        else:
            values |= {"yref": f"y{number}", "y0": y0, "y1": y1}
        self.layout.setdefault("shapes", []).append(values)

    def figure(self, *, min_width: int = 0, margin_left: int = 60, **layout: Any) -> PageFigure:  # noqa: ANN401  # plotly's own words
        """Return the figure; `layout.meta.min_width` says from which width in pixels on it can be read."""
        heights = self._heights()
        inner = sum(heights) + _ROW_SPACE * (self.rows - 1)
        return {
            "data": self.data,
            "layout": {
                **self.layout,
                "autosize": True,
                "height": inner + _TOP + _BOTTOM,
                "margin": {"l": margin_left, "r": 12, "t": _TOP, "b": _BOTTOM},
                "legend": {"orientation": "h", "x": 0, "y": -58 / inner, "yanchor": "top"},
                "meta": {"min_width": min_width},
                **layout,
            },
        }

    def _heights(self) -> list[int]:
        return [self.height] * self.rows if isinstance(self.height, int) else list(self.height)

    def _number(self, row: int, column: int) -> str:
        number = row * self.columns + column + 1
        return "" if number == 1 else str(number)


def line_trace(role: Role, *, has_marks: bool = True, width: float = 2) -> dict[str, Any]:
    """Return the look of a line of a role, as part of a trace.

    Example:
        >>> line_trace("far")["line"]
        {'color': '#0072B2', 'dash': 'solid', 'width': 2}

    """
    look = ROLES[role]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers" if has_marks else "lines",
        "line": {"color": look.color, "dash": look.dash, "width": width},
    }
    if has_marks:
        symbol = _MARKS[look.mark] if look.is_filled else f"{_MARKS[look.mark]}-open"
        trace["marker"] = {"color": look.color, "symbol": symbol, "size": 7}
    return trace


def rounded(values: Iterable[float | None], scale: float = 1.0) -> list[float | None]:
    """Return values times `scale`, in five significant digits: as many as a screen can show.

    Example:
        >>> rounded([0.123456789, None, 2], 100)
        [12.346, None, 200.0]

    """
    return [None if value is None else float(f"{scale * value:.{_DIGITS}g}") for value in values]


def _pair(low: float, high: float) -> list[float]:
    return [round(max(low, 0.0), 6), round(min(high, 1.0), 6)]


REFERENCE_LINE: Mapping[str, Any] = {"color": GREY, "dash": "dot"}
"""Look of a line that data are compared with."""
