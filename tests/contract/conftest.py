"""Every test of the contract tells the table of the long tests what it tried."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.tried import Tried


@pytest.fixture(autouse=True)
def _told(request: pytest.FixtureRequest, tried: Tried) -> None:
    """Tell what a test tries: `TRIED` of its module, a text or a function of the test's parameters."""
    told: str | Callable[[dict[str, Any]], str] = getattr(request.module, "TRIED")  # noqa: B009  # mypy knows no such name
    callspec = getattr(request.node, "callspec", None)
    params: dict[str, Any] = {} if callspec is None else callspec.params
    tried("contract", told if isinstance(told, str) else told(params), 1)
