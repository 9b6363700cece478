"""Colours, line styles and marks by what they stand for: told apart by colour-blind readers, in grey, light and dark.

The colours are those of Okabe and Ito that stand out by 3:1 or more against white and against near-black, and a grey
that does so as well. Nothing is told by colour alone: a dash, a mark or a hatch says the same.

References:
    Okabe and Ito, "Color Universal Design", 2008.

"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["BLUE", "GREEN", "GREY", "HEAT", "ROLES", "VERMILLION", "Role", "Style"]

BLUE = "#0072B2"
GREEN = "#009E73"
GREY = "#767676"
VERMILLION = "#D55E00"
HEAT = ("#FFFFFF", "#56B4E9")
"""Ends of the scale of a heat map, the worse first: both light enough for black numbers."""

Role = Literal["id", "ood", "near", "far", "baseline", "chosen", "before", "after", "kept", "lowest", "highest"]


@dataclass(frozen=True, slots=True)
class Style:
    """How something is drawn.

    Attributes:
        color: Colour as ``#rrggbb``.
        dash: Dash of a line: ``solid``, ``dash`` or ``dot``.
        mark: Mark of a point: ``circle``, ``square`` or ``diamond``.
        hatch: Pattern of a filled area as plotly and matplotlib both write it; empty for none.
        is_filled: Whether marks are filled.

    """

    color: str
    dash: Literal["solid", "dash", "dot"] = "solid"
    mark: Literal["circle", "square", "diamond"] = "circle"
    hatch: Literal["", "/", "\\", "x"] = ""
    is_filled: bool = True


ROLES: dict[Role, Style] = {
    "id": Style(BLUE),
    "ood": Style(VERMILLION, dash="dash", hatch="/"),
    "near": Style(VERMILLION, mark="circle", is_filled=False),
    "far": Style(BLUE, mark="square"),
    "baseline": Style(GREY, dash="dash", mark="circle"),
    "chosen": Style(GREEN, mark="square"),
    "before": Style(GREY, dash="dash", mark="circle"),
    "after": Style(GREEN, mark="square"),
    "kept": Style(GREY),
    "lowest": Style(BLUE, hatch="/"),
    "highest": Style(VERMILLION, hatch="x"),
}
"""Style by role."""
