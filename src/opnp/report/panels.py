"""What a figure is: panels, each one specification of Altair, that a page lays out for its width, and paper in columns.

Colours are those of Okabe and Ito that stand out by 3:1 or more against white and against near-black, and a grey that
does so as well. Nothing is told by colour alone: a dash, a mark or a place says the same. What is neutral has the
colour of the text around it, ``currentColor``, so that a page in the dark needs no other figure.

References:
    Okabe and Ito, "Color Universal Design", 2008.

"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from opnp.errors import MissingExtraError
from opnp.values.figures import Nearness

try:
    import altair as alt
except ImportError as error:
    raise MissingExtraError("A report needs altair, which is not installed: `pip install 'opnp[report]'`.") from error

__all__ = [
    "BLUE",
    "COLORS",
    "DASHES",
    "GREEN",
    "GREY",
    "INK",
    "SIDES",
    "VERMILLION",
    "Drag",
    "Figure",
    "Follow",
    "Panel",
    "Quantity",
    "Role",
    "data",
    "diagonal",
    "legend_of",
    "number",
    "parameter",
    "parameter_name",
    "percentages",
    "steps",
    "tips",
]

BLUE, GREEN, GREY, VERMILLION = "#0072B2", "#009E73", "#767676", "#D55E00"
INK = "currentColor"
"""The colour of the text around a figure."""
SIDES: tuple[Nearness, ...] = ("near", "far")

Role = Literal["id", "ood", "near", "far", "baseline", "chosen", "before", "after", "kept", "lowest", "highest"]
COLORS: Mapping[str, str] = {
    "id": BLUE,
    "ood": VERMILLION,
    "near": VERMILLION,
    "far": BLUE,
    "baseline": GREY,
    "chosen": GREEN,
    "before": GREY,
    "after": GREEN,
    "kept": GREY,
    "lowest": BLUE,
    "highest": VERMILLION,
}
"""Colour by role."""
DASHES: Mapping[str, list[int]] = {"ood": [4, 2], "near": [4, 2], "baseline": [5, 3], "before": [5, 3]}
"""Dash of the lines of roles that are not drawn through."""

_DIGITS = 5
_PAPER_WIDTH, _GAP = 680, 16
"""Width of a figure for paper in pixels, and what axis and gap take of each column."""
_TITLE_LETTERS = 92
CONFIG: Mapping[str, Any] = {
    "font": "system-ui, 'Liberation Sans', 'DejaVu Sans', Arial, sans-serif",
    "background": None,
    "aria": False,
    "view": {"stroke": None},
    "axis": {
        "domainColor": INK,
        "domainOpacity": 0.6,
        "gridColor": INK,
        "gridOpacity": 0.12,
        "labelColor": INK,
        "labelFontSize": 11,
        "labelLimit": 190,
        "labelOverlap": True,
        "tickColor": INK,
        "tickOpacity": 0.6,
        "titleColor": INK,
        "titleFontSize": 11.5,
        "titleFontWeight": "normal",
    },
    "legend": {
        "columns": 2,
        "labelColor": INK,
        "labelFontSize": 11.5,
        "labelLimit": 320,
        "orient": "bottom",
        "symbolSize": 90,
        "symbolStrokeWidth": 2,
        "titleColor": INK,
    },
    "title": {"anchor": "start", "color": INK, "fontSize": 12.5, "offset": 8, "limit": 420},
    "text": {"color": INK},
    "rule": {"color": INK},
}
"""Settings of every figure, as Vega-Lite takes them."""

Quantity = Literal["threshold", "kept_id", "kept_ood", "precision"]


@dataclass(frozen=True, slots=True)
class Follow:
    """A parameter of a panel that moves with the share of ID that the reader keeps.

    Attributes:
        parameter: Its name, unique within a figure.
        quantity: What it is: the threshold, or a share in per cent there.
        method: Name of the row.
        set: Name of the OOD set, without ``ood_``; empty for a quantity of the ID samples.

    """

    parameter: str
    quantity: Quantity
    method: str
    set: str = ""


@dataclass(frozen=True, slots=True)
class Drag:
    """Where a reader takes hold of a panel to move the threshold: at what its axes show of a method and a set.

    Attributes:
        method: Name of the row.
        set: Name of the OOD set, without ``ood_``.
        x: What the x axis shows.
        y: What the y axis shows, or None where that does not matter.

    """

    method: str
    set: str
    x: Quantity
    y: Quantity | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """A part of a figure, with axes of its own.

    Attributes:
        chart: Its specification, without width.
        height: Height in pixels.
        follows: What moves with the threshold.
        drag: Where the threshold can be moved, or None.

    """

    chart: alt.LayerChart | alt.FacetChart
    height: int
    follows: tuple[Follow, ...] = ()
    drag: Drag | None = None

    @property
    def specification(self) -> dict[str, Any]:
        """The specification as JSON values, as wide as what holds it, and without settings."""
        return {**_values(self.chart), "width": "container", "height": self.height}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure.

    Attributes:
        stem: What it is, as the first part of a file's name, such as ``figure-5-scores``.
        heading: What it shows, in words.
        title: The finding.
        alt: The finding with its numbers, for readers who do not see the figure.
        panels: Its parts, row by row.
        columns: Columns on paper, and on a wide page.
        model: Name of the model; empty for a figure of all of them.
        name: Its name, unique in a folder of results and fit for a file, such as ``figure-5-scores-densenet``.

    """

    stem: str
    heading: str
    title: str
    alt: str
    panels: tuple[Panel, ...]
    columns: int = 2
    model: str = field(default="", kw_only=True)
    name: str = field(default="", kw_only=True)

    @property
    def is_linked(self) -> bool:
        """Whether any of its panels moves with the threshold."""
        return any(panel.follows for panel in self.panels)

    @property
    def paper(self) -> dict[str, Any]:
        """The specification for paper as JSON values: the panels side by side under the title, black on white."""
        columns = min(self.columns, len(self.panels))
        width = _PAPER_WIDTH // columns - 4 * _GAP
        charts = [panel.chart.properties(width=width, height=panel.height) for panel in self.panels]
        title = alt.Title(_lines(self.title), fontSize=14, offset=14, limit=_PAPER_WIDTH)
        values = _values(alt.concat(*charts, columns=columns, spacing=_GAP).properties(title=title))
        values["config"] = {**CONFIG, "background": "white", "padding": 8}
        black: dict[str, Any] = json.loads(json.dumps(values).replace(INK, "black"))
        return black


def _values(chart: alt.TopLevelMixin) -> dict[str, Any]:
    values = chart.to_dict(validate=False)
    return {key: value for key, value in values.items() if key not in ("$schema", "config")}


def _lines(title: str) -> list[str]:
    lines = [""]
    for word in title.replace(" %", "\N{NO-BREAK SPACE}%").split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= _TITLE_LETTERS:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def data(rows: Iterable[Mapping[str, object]]) -> alt.InlineData:
    """Return rows as the data of a chart."""
    return alt.InlineData(values=[dict(row) for row in rows])


def number(value: float | None, scale: float = 1.0) -> float | None:
    """Return a number times `scale`, in five significant digits: as many as a screen can show.

    Example:
        >>> number(0.123456789, 100), number(None)
        (12.346, None)

    """
    return None if value is None else float(f"{scale * value:.{_DIGITS}g}")


def percentages(values: Iterable[float | None]) -> list[float | None]:
    """Return fractions in per cent, in five significant digits."""
    return [number(value, 100) for value in values]


def steps(edges: Sequence[float], **columns: Sequence[object]) -> list[dict[str, Any]]:
    """Return a row for each bin: its ends as ``x`` and ``x2``, and a value of each column.

    Example:
        >>> steps([0, 1, 2], y=[5, 7])
        [{'x': 0.0, 'x2': 1.0, 'y': 5}, {'x': 1.0, 'x2': 2.0, 'y': 7}]

    """
    ends = [{"x": number(low), "x2": number(high)} for low, high in pairwise(edges)]
    return [
        {**end, **dict(zip(columns, row, strict=True))}
        for end, row in zip(ends, zip(*columns.values(), strict=True), strict=True)
    ]


def legend_of(title: str, entries: Mapping[str, str], **options: Any) -> alt.Color:  # noqa: ANN401  # options of Altair
    """Return the colours of the values of a field, by role or as ``#rrggbb``, with a legend of them in this order."""
    colors = [COLORS.get(look, look) for look in entries.values()]
    return alt.Color(f"{title}:N", title=None, **options).scale(domain=list(entries), range=colors)


def tips(**titles: str) -> list[alt.Tooltip]:
    """Return what a mark says when it is pointed at: fields, as they are written, by what they are called."""
    return [alt.Tooltip(f"{name}:N", title=title) for name, title in titles.items()]


def parameter(name: str, value: float | None) -> alt.Parameter:
    """Return a parameter that the script of a page may set."""
    return alt.param(name=name, value=number(value))


def parameter_name(*parts: str) -> str:
    """Return a name for a parameter of its own.

    Example:
        >>> parameter_name("kept", "OPNP()", "near")
        'kept_4f504e502829_6e656172'

    """
    return "_".join([parts[0], *(part.encode().hex() for part in parts[1:])])


def diagonal() -> alt.Chart:
    """Return the diagonal from (0, 0) to (100, 100)."""
    ends = data([{"x": 0, "y": 0}, {"x": 100, "y": 100}])
    line: alt.Chart = alt.Chart(ends).mark_line(color=GREY, strokeDash=[2, 3], strokeWidth=1).encode(x="x:Q", y="y:Q")
    return line
