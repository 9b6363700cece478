"""The table of checks: what each demands of a shell, and the shells that stand ready to be asked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from tests.contract.shell import ABILITIES, Shell

__all__ = ["CHECKS", "Check", "asserted_close", "check", "leaving_alone", "raised", "ready"]

_Run = TypeVar("_Run", bound=Callable[[type[Shell]], None])


@dataclass(frozen=True, slots=True)
class Check:
    """A check.

    Attributes:
        run: Raises AssertionError where a kind of shell breaks the promise.
        needs: Abilities without which it has nothing to ask.

    """

    run: Callable[[type[Shell]], None]
    needs: frozenset[str]


CHECKS: dict[str, Check] = {}
"""All checks, by the names of their functions."""


def check(*needs: str) -> Callable[[_Run], _Run]:
    """Enter a function in the table of checks, with the abilities that it needs."""
    unknown = set(needs) - set(ABILITIES)
    if unknown:
        raise ValueError(unknown)

    def entered(function: _Run) -> _Run:
        CHECKS[function.__name__] = Check(function, frozenset(needs))
        return function

    return entered


_READY: dict[type[Shell], Shell] = {}


def ready(kind: type[Shell]) -> Shell:
    """Return the fitted shell of a kind, for questions that must not change it; that they do not is checked too."""
    if kind not in _READY:
        _READY[kind] = kind().fit()
    return _READY[kind]


def asserted_close(found: Tensor, wanted: Tensor, *, tolerance: float, what: str) -> None:
    """Assert that scores S are equal: to the bit at tolerance 0, else to that many times 1 + |S|."""
    assert found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    if tolerance == 0:
        assert torch.equal(found, wanted), f"{what}: not to the bit"
        return
    off = torch.where(found == wanted, 0.0, (found.double() - wanted.double()).abs())  # two infinities are equal
    allowed = tolerance * (1 + wanted.double().abs())
    assert bool((off <= allowed).all()), f"{what}: off by {float(off.max()):.2g}"


def raised(call: Callable[[], object], *errors: type[BaseException]) -> BaseException | None:
    """Return the error of one of these kinds that a call raises, or None if it raises none."""
    try:
        call()
    except errors as error:
        return error
    return None


@contextmanager
def leaving_alone(shell: Shell, doing: str) -> Iterator[None]:
    """Assert that what happens inside changes nothing that the user owns, whether or not it raises."""
    before = shell.owned()
    try:
        yield
    finally:
        after = shell.owned()
        changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        assert not changed, f"{doing} changed {sorted(changed)}"
