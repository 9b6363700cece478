"""What the reference makes of docstrings that are written for reading in the source: an extension of griffe.

The doctest of a section ``Example:`` becomes a block of code, as that of ``Examples:`` is; a formula after
``.. math::`` becomes a block of text. Nothing in the source changes.
"""

import re
import textwrap
from typing import Any

from griffe import Extension, Object

__all__ = ["DocstringSections", "readable"]

_EXAMPLE = re.compile(r"^Example:$", flags=re.MULTILINE)
_MATH = re.compile(r"^( *)\.\. math:: *(.*\n(?:\1 +.*\n)*)", flags=re.MULTILINE)


class DocstringSections(Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:  # noqa: ANN401  # what griffe passes beside it
        """Rewrite the docstring of one object; the class documents the arguments of its constructor."""
        if obj.name == "__init__":
            obj.docstring = None
        elif obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)


def readable(docstring: str) -> str:
    """Return a docstring in the form that the reference shows well."""
    return _MATH.sub(_block, _EXAMPLE.sub("Examples:", docstring))


def _block(found: re.Match[str]) -> str:
    indent = found[1]
    lines = textwrap.dedent(" " * 4 + found[2].lstrip()).splitlines()
    return "\n".join([f"{indent}```text", *(f"{indent}{line.strip()}" for line in lines), f"{indent}```", ""])
