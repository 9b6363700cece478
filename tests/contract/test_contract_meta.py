"""The contract is worth something: each of its checks fails a detector that breaks the promise."""

from functools import partial

import pytest
import torch

from opnp import OPNP, Ratios
from tests.contract.broken import BROKEN
from tests.contract.test_contract import CHECKS

TRIED = "broken detectors that a check must fail"

KINDS: dict[str, Ratios | None] = {"paper": Ratios(w_min=0.3, o_min=0.1), "fusion": None}

pytestmark = pytest.mark.reliability


@pytest.mark.parametrize(
    ("check", "broken"),
    [pytest.param(check, broken, id=broken.__name__) for check, family in BROKEN.items() for broken in family],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_detector_fails(check: str, broken: type[OPNP], kind: str) -> None:
    before = torch.is_grad_enabled()
    try:
        with pytest.raises(AssertionError):
            CHECKS[check](partial(broken, ratios=KINDS[kind]))
    finally:
        torch.set_grad_enabled(before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", CHECKS)
def test_a_sound_detector_of_the_same_options_passes(check: str, kind: str) -> None:
    CHECKS[check](partial(OPNP, ratios=KINDS[kind]))


def test_each_check_has_a_detector_that_it_fails() -> None:
    assert set(BROKEN) == set(CHECKS)
    assert all(BROKEN.values())
