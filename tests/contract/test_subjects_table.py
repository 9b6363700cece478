"""The table of subjects and checks is whole: nothing is left out without a reason, and nothing new is forgotten."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

import pytest
from torch import nn

import opnp
import opnp.adapters
import opnp.detector
from tests.contract.checking import CHECKS
from tests.contract.shell import ABILITIES, Shell
from tests.contract.subjects import NO_DETECTORS, PAIRS, SUBJECTS

TRIED = "tables of subjects and checks"

pytestmark = pytest.mark.reliability

ANSWERS = ("score", "predict", "verdict", "score_features", "score_samples", "postprocess", "output")
"""Methods by which something answers about inputs."""

COVERED = {name for kind in SUBJECTS.values() for name in kind.covers}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_what_a_subject_lacks_has_a_reason_and_no_verb(subject: str) -> None:
    kind = SUBJECTS[subject]
    assert set(kind.lacks) <= set(ABILITIES)
    for ability, verbs in ABILITIES.items():
        for verb in verbs:
            is_written = _of(kind, verb) is not _of(Shell, verb)
            assert is_written == (ability not in kind.lacks), f"{verb} of {subject}"
    for ability, reason in kind.lacks.items():
        assert len(reason.split()) >= 4, f"{subject} must say why it lacks {ability}"


def test_every_subject_is_put_to_every_check_but_for_what_it_lacks() -> None:
    for subject, kind in SUBJECTS.items():
        for name, check in CHECKS.items():
            assert ((subject, name) in PAIRS) == (not check.needs & set(kind.lacks)), (subject, name)
    assert all(any(ability in check.needs for check in CHECKS.values()) for ability in ABILITIES)


def test_every_check_has_subjects_and_every_subject_most_checks() -> None:
    for name in CHECKS:
        assert sum(check == name for _, check in PAIRS) >= 3, f"{name} is put to hardly anything"
    for subject in SUBJECTS:
        assert sum(found == subject for found, _ in PAIRS) >= len(CHECKS) * 0.4, f"{subject} is put to hardly anything"


def test_every_public_name_of_an_adapter_has_a_subject_or_needs_none() -> None:
    names = {f"opnp.adapters.{name}" for name in dir(opnp.adapters)}
    known = {id(getattr(opnp.adapters, name)) for name in dir(opnp.adapters)}
    for module in _modules(opnp.adapters):
        names |= {f"{module.__name__}.{name}" for name in module.__all__ if id(getattr(module, name)) not in known}
    adapted = {name for name in COVERED if name.startswith("opnp.adapters.")}
    assert names - adapted == set(NO_DETECTORS), "a new adapter needs a subject; a name that is gone, no line"
    assert not adapted & set(NO_DETECTORS)


def test_what_needs_no_subject_answers_nothing() -> None:
    for name in NO_DETECTORS:
        found = _named(name)
        assert not any(hasattr(found, verb) for verb in ANSWERS), f"{name} answers, and needs a subject"


def test_every_detector_and_every_module_of_the_library_has_a_subject() -> None:
    public = {f"opnp.{name}": getattr(opnp, name) for name in dir(opnp)}
    detectors = {
        name
        for name, found in public.items()
        if inspect.isclass(found) and any(inspect.isfunction(getattr(found, verb, None)) for verb in ANSWERS)
    }
    modules = {
        f"{module.__name__}.{name}"
        for module in _modules(opnp.detector)
        for name in module.__all__
        if inspect.isclass(getattr(module, name)) and issubclass(getattr(module, name), nn.Module)
    }
    assert detectors == {"opnp.OPNP"}
    assert modules <= COVERED, f"without a subject: {sorted(modules - COVERED)}"
    assert detectors <= COVERED


@pytest.mark.parametrize("name", sorted(COVERED))
def test_what_subjects_stand_for_is_there(name: str) -> None:
    assert _named(name) is not None


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
