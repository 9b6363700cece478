"""Look of printed figures: a paper's width, small sans serif, no frames; and files that are equal for equal data."""

import io
import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from opnp.errors import MissingExtraError, OptionError
from opnp.files import write_atomically
from opnp.report.palette import Role, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FORMATS",
    "WIDTH",
    "bar_options",
    "line_options",
    "new_figure",
    "only_whole_counts",
    "print_style",
    "require_matplotlib",
    "write_figure",
]

FORMATS = ("svg", "png", "pdf")
"""Formats of files."""

WIDTH = 6.75
"""Width of a figure in inches: two columns of a paper."""

_RESOLUTION = 200
_TITLE_LETTERS = 88
_SETTINGS = {
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "hatch.linewidth": 0.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "opnp",
    "xtick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 7.5,
    "ytick.major.width": 0.6,
}
_DASHES = {"solid": "-", "dash": (0, (5, 2)), "dot": ":"}
_MARKS = {"circle": "o", "square": "s", "diamond": "D"}
_NO_DATE: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


def require_matplotlib() -> None:
    """Raise if matplotlib is not installed.

    Raises:
        MissingExtraError: If it is not; the message names the command that installs it.

    """
    try:
        found = find_spec("matplotlib") is not None
    except ValueError:  # a module without a spec, such as one that was blocked
        found = False
    if not found:
        raise MissingExtraError("Figures need matplotlib, which is not installed: `pip install 'opnp[report]'`.")


@contextmanager
def print_style() -> Iterator[None]:
    """Set matplotlib's settings for a figure, and put them back.

    Raises:
        MissingExtraError: If matplotlib is not installed.

    """
    require_matplotlib()
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS):  # type: ignore[arg-type]  # names of settings, as text
        yield


def new_figure(height: float, title: str) -> "Figure":
    """Return an empty figure with its title at the top left.

    Args:
        height: In inches, without the title.
        title: The finding.

    Returns:
        The figure, laid out when it is drawn.

    """
    from matplotlib.figure import Figure

    lines = textwrap.wrap(title.replace(" %", "\N{NO-BREAK SPACE}%"), _TITLE_LETTERS)
    figure = Figure(figsize=(WIDTH, height + 0.16 * len(lines) + 0.1), layout="constrained")
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=8.5, fontweight="bold")
    return figure


def line_options(role: Role, *, has_marks: bool = True) -> dict[str, Any]:
    """Return matplotlib's options for a line of a role."""
    look = style(role)
    return {
        "color": look.color,
        "linestyle": _DASHES[look.dash],
        "marker": _MARKS[look.mark] if has_marks else "",
        "markerfacecolor": look.color if look.is_filled else "white",
    }


def bar_options(role: Role) -> dict[str, Any]:
    """Return matplotlib's options for filled areas of a role."""
    look = style(role)
    if not look.hatch:
        return {"facecolor": look.color, "alpha": 0.55, "linewidth": 0}
    return {"facecolor": "none", "edgecolor": look.color, "hatch": 3 * look.hatch, "linewidth": 0.8}


def only_whole_counts(axes: "Axes") -> None:
    """Write large counts with a thin space between thousands."""
    from matplotlib.ticker import FuncFormatter

    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", "\N{THIN SPACE}")))


def write_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of the file's ending; equal figures give equal bytes.

    Raises:
        OptionError: If the ending is none of `FORMATS`.
        MissingExtraError: If matplotlib is not installed.
        MissingFileError: If the folder does not exist.

    """
    ending = os.fspath(path).rpartition(".")[2].lower()
    if ending not in FORMATS:
        raise OptionError(f"`path` must end in {', '.join('.' + name for name in FORMATS)}, got {os.fspath(path)!r}.")
    content = io.BytesIO()
    with print_style():
        figure.savefig(content, format=ending, dpi=_RESOLUTION, metadata=_NO_DATE[ending])
    write_atomically(path, content.getvalue())
