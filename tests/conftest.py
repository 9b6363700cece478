"""The fixture by which tests tell the table of ``make test-long`` what they tried."""

import json
from collections.abc import Callable

import pytest

from tests.tried import AREAS, Tried


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Tried:
    """Return a function that tells area, what was tried and how often; it travels in the JUnit report."""

    def tell(area: str, what: str, times: int = 1) -> None:
        if area not in AREAS or times < 1:
            raise ValueError(f"`area` must be one of {AREAS} and `times` at least 1, got {area!r} and {times}.")
        record_property("tried", json.dumps([area, what, times]))

    return tell
