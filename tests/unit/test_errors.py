"""Every error is an `OpnpError` and a built-in that a caller would expect; every warning is an `OpnpWarning`."""

import builtins
import inspect

import pytest

from opnp import errors

CLASSES = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
ERRORS = [value for value in CLASSES.values() if issubclass(value, errors.OpnpError) and value is not errors.OpnpError]
WARNINGS = [value for value in CLASSES.values() if issubclass(value, errors.OpnpWarning)]
PARENTS = {
    "CalibrationError": ValueError,
    "EmptyDataError": ValueError,
    "HeadNotFoundError": LookupError,
    "InputTypeError": TypeError,
    "MissingExtraError": ImportError,
    "NonFiniteError": ValueError,
    "NotFittedError": RuntimeError,
    "OptionError": ValueError,
    "RatioError": errors.OptionError,
    "ShapeError": ValueError,
}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_caught_by_its_base_and_by_a_built_in(error: type[errors.OpnpError]) -> None:
    parents = [parent for parent in error.__mro__ if vars(builtins).get(parent.__name__) is parent]
    narrow = [parent for parent in parents if issubclass(parent, Exception) and parent is not Exception]
    assert narrow, f"{error.__name__} is no built-in error but Exception"
    for expected in (errors.OpnpError, narrow[0]):
        with pytest.raises(expected, match="which argument, what it must be"):
            raise error("which argument, what it must be")


@pytest.mark.parametrize(("name", "parent"), PARENTS.items())
def test_the_built_ins_that_callers_rely_on(name: str, parent: type[Exception]) -> None:
    assert issubclass(CLASSES[name], parent)


def test_every_class_is_listed_named_after_its_family_and_documented() -> None:
    assert sorted(CLASSES) == errors.__all__
    assert {errors.OpnpError, *ERRORS, *WARNINGS} == set(CLASSES.values())
    assert all(value.__name__.endswith("Error") for value in ERRORS)
    assert all(value.__name__.endswith("Warning") for value in WARNINGS)
    for name, value in CLASSES.items():
        own = vars(value).get("__doc__")
        assert own, f"{name} has no docstring of its own"
        assert inspect.cleandoc(own).endswith(".")


def test_warnings_are_shown_by_default_and_are_no_errors() -> None:
    for warning in WARNINGS:
        assert issubclass(warning, UserWarning)
        assert not issubclass(warning, errors.OpnpError)
