"""One suite for every detector, adapter, exported module and surface; and the suite itself: it catches broken ones."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

import pytest
import torch
from torch import nn

import opnp
import opnp.adapters
import opnp.detector
from tests.contract import broken, detector_checks, surface_shells, toolkit_shells  # noqa: F401  # fill the tables
from tests.contract.checks import CHECKS
from tests.contract.library_shells import Inputs
from tests.contract.shell import ABILITIES, BROKEN, SETTING, SUBJECTS, Shell
from tests.tried import Tried

pytestmark = pytest.mark.reliability

PAIRS = [
    (subject, name)
    for subject, kind in SUBJECTS.items()
    for name, check in CHECKS.items()
    if not check.needs & set(kind.lacks)
    and (check.is_of_settings or not subject.startswith(SETTING))
    and (not check.is_of_detectors or subject in ("inputs", "fused_inputs") or subject.startswith(SETTING))
]
"""Which subject is put to which check: all that need nothing the subject lacks."""


@pytest.mark.parametrize(("subject", "check"), PAIRS)
def test_the_contract_holds(subject: str, check: str, tried: Tried) -> None:
    tried("contract", f"checks of {SUBJECTS[subject].plural}")
    CHECKS[check].run(SUBJECTS[subject])


@pytest.mark.parametrize(
    ("check", "kind"),
    [pytest.param(check, kind, id=f"{kind.__name__}-{check}") for check, kinds in BROKEN.items() for kind in kinds],
)
def test_what_is_broken_fails(check: str, kind: type[Shell], tried: Tried) -> None:
    whose = "detectors" if issubclass(kind, Inputs) else "detectors, adapters and exports"
    tried("contract", f"broken {whose} that a check must fail")
    errors: tuple[type[BaseException], ...] = (AssertionError,)
    if kind is broken.OneAtATime:
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument  # type: ignore[import-untyped]  # no types

        errors = (AssertionError, InvalidArgument)
    before = torch.is_grad_enabled()
    try:
        with pytest.raises(errors):
            CHECKS[check].run(kind)
    finally:
        torch.set_grad_enabled(before)


def test_each_check_fails_something_whose_sound_kind_passes_it(tried: Tried) -> None:
    tried("contract", "tables of subjects and checks")
    assert set(BROKEN) == set(CHECKS)
    names = {kind: name for name, kind in SUBJECTS.items()}
    for check, kinds in BROKEN.items():
        for kind in kinds:
            sound = next(names[base] for base in kind.__mro__ if base in names)
            assert (sound, check) in PAIRS, f"{kind.__name__} is held against a check that {sound} is not put to"


@pytest.mark.parametrize("subject", [name for name in SUBJECTS if not name.startswith(SETTING)])
def test_what_a_subject_lacks_has_a_reason_and_no_verb(subject: str, tried: Tried) -> None:
    tried("contract", "tables of subjects and checks")
    kind = SUBJECTS[subject]
    assert set(kind.lacks) <= set(ABILITIES)
    for ability, verbs in ABILITIES.items():
        for verb in verbs:
            is_written = _of(kind, verb) is not _of(Shell, verb)
            assert is_written == (ability not in kind.lacks), f"{verb} of {subject}"
    for ability, reason in kind.lacks.items():
        assert len(reason.split()) >= 4, f"{subject} must say why it lacks {ability}"
    universal = [check for check in CHECKS.values() if not check.is_of_detectors]
    assert sum(found == subject for found, _ in PAIRS) >= 0.4 * len(universal), f"{subject} is put to hardly anything"


ANSWERS = ("score", "predict", "verdict", "score_features", "score_samples", "postprocess", "output")
"""Methods by which something answers about inputs."""


def test_everything_that_answers_about_inputs_has_a_subject(tried: Tried) -> None:
    tried("contract", "tables of subjects and checks")
    covered = {name for kind in SUBJECTS.values() for name in kind.covers}
    found = {f"opnp.{name}": getattr(opnp, name) for name in dir(opnp)}
    for module in (opnp.adapters, *_modules(opnp.adapters)):
        found |= {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
    answering = {name: each for name, each in found.items() if _answers(each)}
    for module in _modules(opnp.detector):
        modules = {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
        answering |= {name: each for name, each in modules.items() if _is_class(each, nn.Module)}
    known = [_named(name) for name in covered]
    assert not [name for name, each in answering.items() if not any(each is other for other in known)]
    assert opnp.OPNP in known


def _answers(found: object) -> bool:
    """Return whether it is a class with a method that answers, or a function of an adapter that returns scores."""
    if inspect.isclass(found):
        return any(inspect.isfunction(getattr(found, verb, None)) for verb in ANSWERS)
    return inspect.isfunction(found) and found.__module__.startswith("opnp.adapters") and "score" in found.__name__


def _is_class(found: object, base: type) -> bool:
    return inspect.isclass(found) and issubclass(found, base)


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for found in iter_modules(package.__path__):
        yield import_module(f"{package.__name__}.{found.name}")


def _named(name: str) -> object:
    """Return what a dotted name stands for."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: object = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            found = getattr(found, attribute)
        return found
    raise AssertionError(name)


def _of(kind: type[Shell], verb: str) -> object:
    """Return the function of a verb, whether it is a method of the object or of the class."""
    found = inspect.getattr_static(kind, verb)
    return found.__func__ if isinstance(found, classmethod) else found
