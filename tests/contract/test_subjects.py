"""One suite for every detector, adapter and exported module."""

from collections.abc import Mapping

import pytest

from tests.contract.checking import CHECKS
from tests.contract.subjects import PAIRS, SUBJECTS

pytestmark = pytest.mark.reliability


def TRIED(parameters: Mapping[str, str]) -> str:  # read by conftest, a text elsewhere
    """Return the row of the table that a test belongs to."""
    return f"checks of {SUBJECTS[parameters['subject']].plural}"


@pytest.mark.parametrize(("subject", "check"), PAIRS)
def test_the_contract_holds(subject: str, check: str) -> None:
    CHECKS[check].run(SUBJECTS[subject])
