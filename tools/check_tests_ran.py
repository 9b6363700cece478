"""Fail if a JUnit report shows that no test ran: a suite that skips everything proves nothing."""

import sys
from pathlib import Path
from xml.etree import ElementTree as ET


def tests_ran(report: Path) -> int:
    """Return the number of tests in a JUnit XML report that were not skipped."""
    suites = ET.parse(report).iter("testsuite")  # noqa: S314 -- pytest wrote the report a moment ago
    return sum(int(suite.get("tests", "0")) - int(suite.get("skipped", "0")) for suite in suites)


def main(arguments: list[str]) -> int:
    """Return 0 if at least one test of the report ran, else say so and return 1."""
    if len(arguments) != 1:
        sys.stderr.write("usage: check_tests_ran.py REPORT.xml\n")
        return 2
    if tests_ran(Path(arguments[0])) == 0:
        sys.stderr.write("No test ran: all of them were skipped or deselected.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
