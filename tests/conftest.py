"""Fixtures of all tests: the command line in this process, and what tells the table of ``make test-long``."""

import json
import os
import random
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings

from tests.in_process import Opnp, command_line
from tests.tried import AREAS, Tried

# No test asserts a time. Under mutmut, which asks whether a test fails, no smallest example is looked for.
_PHASES = [Phase.explicit, Phase.generate] if "MUTANT_UNDER_TEST" in os.environ else [*Phase]
settings.register_profile("here", deadline=None, phases=_PHASES)
settings.load_profile("here")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let each test, and what is made for it, draw the same numbers in any order and on any worker."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # the generators that libraries draw from
    torch.manual_seed(0)


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Tried:
    """Return a function that tells area, what was tried and how often; it travels in the JUnit report."""

    def tell(area: str, what: str, times: int = 1) -> None:
        if area not in AREAS or times < 1:
            raise ValueError(f"`area` must be one of {AREAS} and `times` at least 1, got {area!r} and {times}.")
        record_property("tried", json.dumps([area, what, times]))

    return tell


@pytest.fixture
def opnp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Opnp:
    """Return a function that runs ``opnp`` with the given arguments."""
    return partial(command_line, monkeypatch, capsys)
