"""Print what the long tests tried, how often and what failed, from their JUnit report; write it into the page.

    python tools/reliability.py REPORT.xml [MORE.xml ...] [PAGE.md]

Of a test that stands in several reports the last one counts: after a mend, what failed is run again, and only that.
Files that could not be collected are those of the last report, whose run must have collected all of them. The exit code
is 1 if anything failed or the report holds no row; tests that were skipped are named.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


@dataclass(slots=True)
class Row:
    """One row of the table: what was tried, how many times, and the tests that failed at it."""

    area: str
    what: str
    times: int = 0
    failed: list[str] = field(default_factory=list)


def told(case: ET.Element) -> list[tuple[str, str, int]]:
    """Return what one test told: area, what and times; under its own name if it told nothing."""
    values = [item.get("value", "") for item in case.iter("property") if item.get("name") == "tried"]
    rows = [(str(area), str(what), int(times)) for area, what, times in map(json.loads, values)]
    return rows or [("other", f"`{case.get('name')}`", 1)]


def table(*reports: Path) -> tuple[list[Row], list[str]]:
    """Return the rows in the order in which they first came, and the names of the tests that were skipped."""
    cases: dict[str, ET.Element] = {}
    for report in reports:
        cases = {name: case for name, case in cases.items() if case.get("classname")}  # others failed at collection
        for case in ET.parse(report).iter("testcase"):  # noqa: S314 -- pytest wrote the report a moment ago
            cases[f"{case.get('classname')}::{case.get('name')}"] = case
    rows: dict[tuple[str, str], Row] = {}
    skipped = []
    for name, case in cases.items():
        if case.find("skipped") is not None:
            skipped.append(name)
            continue
        has_failed = case.find("failure") is not None or case.find("error") is not None
        for area, what, times in told(case):
            row = rows.setdefault((area, what), Row(area, what))
            row.times += times
            if has_failed:
                row.failed.append(name)
    return list(rows.values()), skipped


def ordered(rows: list[Row]) -> list[Row]:
    """Return the rows by area, in the order of ``tests/tried.py``, and by name within one."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.tried import AREAS  # noqa: PLC0415 -- the tool is started by its path

    place = {area: index for index, area in enumerate(AREAS)}
    return sorted(rows, key=lambda row: (place.get(row.area, len(place)), row.what))


def markdown(rows: list[Row]) -> str:
    """Return the table as Markdown, its last row the total."""
    lines = ["| Area | What was tried | Times | Failed |", "|---|---|---:|---:|"]
    lines += [f"| {row.area} | {row.what} | {row.times:,} | {len(row.failed)} |" for row in rows]
    lines.append(f"| | **all** | **{sum(row.times for row in rows):,}** | **{sum(len(row.failed) for row in rows)}** |")
    return "\n".join(lines) + "\n"


def written(page: str, rows: list[Row]) -> str:
    """Return the page with the table between its two marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{markdown(rows)}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Print the table, write the page if one is given, and return the exit code."""
    reports = [Path(each) for each in arguments if each.endswith(".xml")]
    pages = [Path(each) for each in arguments if not each.endswith(".xml")]
    if not reports or len(pages) > 1:
        sys.stderr.write("usage: reliability.py REPORT.xml [MORE.xml ...] [PAGE.md]\n")
        return 2
    rows, skipped = table(*reports)
    rows = ordered(rows)
    sys.stdout.write(markdown(rows))
    failed = [f"failed: {row.what}: {name}" for row in rows for name in row.failed]
    problems = failed + [f"skipped: {name}" for name in skipped] + ([] if rows else ["No test told anything."])
    sys.stdout.writelines(f"{problem}\n" for problem in problems)
    for page in pages:
        page.write_text(written(page.read_text(encoding="utf-8"), rows), encoding="utf-8")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
