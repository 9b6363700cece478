"""The suite of all subjects is worth something: each check fails a subject that breaks the promise."""

import pytest
import torch

from tests.contract.broken_subjects import BROKEN
from tests.contract.checking import CHECKS
from tests.contract.shell import Shell
from tests.contract.subjects import PAIRS, SUBJECTS

TRIED = "broken detectors, adapters and exports that a check must fail"

pytestmark = pytest.mark.reliability


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        pytest.param(check, broken, id=f"{broken.__name__}-{check}")
        for check, family in BROKEN.items()
        for broken in family
    ],
)
def test_a_broken_subject_fails(check: str, broken: type[Shell]) -> None:
    before = torch.is_grad_enabled()
    try:
        with pytest.raises(_failures(broken)):
            CHECKS[check].run(broken)
    finally:
        torch.set_grad_enabled(before)


def test_each_check_has_a_subject_that_it_fails() -> None:
    assert set(BROKEN) == set(CHECKS)
    assert all(BROKEN.values())


def test_a_broken_subject_is_put_to_checks_that_its_sound_kind_passes() -> None:
    kinds = {kind: name for name, kind in SUBJECTS.items()}
    for check, family in BROKEN.items():
        for broken in family:
            sound = next(kinds[kind] for kind in broken.__mro__ if kind in kinds)
            assert (sound, check) in PAIRS, f"{broken.__name__} is held against a check that {sound} is not put to"


def _failures(broken: type[Shell]) -> tuple[type[BaseException], ...]:
    """Return the errors that count as failing: of an ONNX file that refuses a batch, onnxruntime's own."""
    if broken.__name__ != "OneAtATime":
        return (AssertionError,)
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument  # type: ignore[import-untyped]  # no types

    return AssertionError, InvalidArgument
