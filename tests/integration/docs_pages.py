"""Pages of the documentation, taken apart: blocks of code with what is said of them in comments."""

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DOCS", "Block", "blocks", "pages", "world"]

DOCS = Path(__file__).parents[2] / "docs"
GENERATED = ("explanation/results.md", "explanation/performance.md")
_BLOCK = re.compile(
    r"(?:^<!-- (?P<kind>not run|background): (?P<reason>[^\n]*) -->\n)?"
    r"^```(?P<language>[a-z]+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    Attributes:
        language: ``python``, ``sh`` or another.
        text: What is in it.
        title: Name of the file that it is, or "".
        reason: Why it is not run, or "" for one that is.
        background: Where a command that goes on answers once it is ready, or "".
        line: Number of its first line in the page.

    """

    language: str
    text: str
    title: str
    reason: str
    background: str
    line: int


def pages() -> dict[str, Path]:
    """Return the pages written by hand, by their path below ``docs``."""
    found = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
    return {name: path for name, path in found.items() if name not in GENERATED}


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page in their order."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(
            language=found["language"],
            text=found["text"],
            title=found["title"] or "",
            reason=(found["reason"] or "") if found["kind"] == "not run" else "",
            background=(found["reason"] or "") if found["kind"] == "background" else "",
            line=text.count("\n", 0, found.start("text")) + 1,
        )
        for found in _BLOCK.finditer(text)
    ]


def world(path: Path) -> str:
    """Return the name of what a page takes for granted, or "" for nothing."""
    found = re.search(r"^<!-- world: (\w+) -->$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return found[1] if found else ""
