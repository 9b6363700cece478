"""The tool of `make mutation`: which changes it makes, which it leaves out, and what the record says of survivors."""

import tomllib
from pathlib import Path

import pytest

from tools.mutation import REASONS, ROOT
from tools.mutation_operators import Mutant, mutants_of

SOURCE = '''"""A module."""

import warnings
from typing import Literal

__all__ = ["Pace", "doubled"]

Pace = Literal["slow", "fast"]
_FACTOR = 2


class Pair:
    """Two numbers."""

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.first + self.second


def doubled(value: int, *, pace: Pace = "slow") -> int:
    """Return twice the value."""
    if value < 0:
        raise ValueError(f"`value` must be at least {1 - 1}, got " + str(value))
    warnings.warn("half of " + pace, UserWarning, stacklevel=2)
    return value * _FACTOR
'''


@pytest.fixture
def mutants(tmp_path: Path) -> list[Mutant]:
    (tmp_path / "pairs.py").write_text(SOURCE, encoding="utf-8")
    found, excluded = mutants_of(tmp_path, "pairs.py")
    assert excluded > 10
    return found


def test_functions_properties_defaults_and_constants_are_changed(mutants: list[Mutant]) -> None:
    changes = {(mutant.function, mutant.original, mutant.mutated) for mutant in mutants}
    assert ("doubled", "return value * _FACTOR", "return value / _FACTOR") in changes
    assert ("doubled", "if value < 0:", "if value <= 0:") in changes
    assert ("Pair.total", "return self.first + self.second", "return self.first - self.second") in changes
    assert ("_FACTOR", "_FACTOR = 2", "_FACTOR = 3") in changes
    assert any('pace: Pace = "XXslowXX"' in mutated for _, _, mutated in changes)
    assert any("stacklevel=3" in mutated for _, _, mutated in changes)


def test_messages_aliases_and_public_names_are_not(mutants: list[Mutant]) -> None:
    for mutant in mutants:
        assert mutant.function in {"doubled", "Pair.total", "_FACTOR"}
        assert "raise" not in mutant.original
        assert '"half of " + pace' in mutant.code


def test_each_is_one_change_of_the_whole_file(mutants: list[Mutant]) -> None:
    assert len({mutant.code for mutant in mutants}) == len(mutants)
    assert len({mutant.key for mutant in mutants}) == len(mutants)
    for mutant in mutants:
        before, after = SOURCE.splitlines(), mutant.code.splitlines()
        assert before[mutant.line - 1].strip() == mutant.original.splitlines()[0]
        assert after[mutant.line - 1].strip() == mutant.mutated.splitlines()[0]


def test_reasons_are_about_files_and_functions_that_exist() -> None:
    listed = tomllib.loads(REASONS.read_text(encoding="utf-8"))
    assert all(rule["reason"].endswith(".") for rule in listed["rule"])
    for group in listed["equivalent"]:
        source = (ROOT / "src" / "opnp" / "core" / group["file"]).read_text(encoding="utf-8")
        assert group["function"].rpartition(".")[2] in source
        assert group["reason"].endswith(".")
        for before, after in group["changes"]:
            assert before != after
            assert all(line in source for line in before.splitlines()), f"{group['file']} no longer holds {before!r}"
