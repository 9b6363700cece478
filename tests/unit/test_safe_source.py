"""What ruff cannot say: the package trusts no code of data and silences no rule of safety; the core draws nothing."""

import re
from pathlib import Path

import pytest

from tools.minimum_versions import minimum_versions

PACKAGE = Path(__file__).parents[2] / "src" / "opnp"
TRUSTING = r"trust_remote_code\b(?!\"?\s*[=:]\s*False\b)"
DRAWING = (
    r"(?:torch|numpy|np)\.(?:bernoulli|multinomial|normal|poisson|rand\w*|manual_seed|seed|set_rng_state)\("
    r"|\.(?:bernoulli|cauchy|exponential|geometric|log_normal|normal|random|uniform)_\("
)


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [
        (PACKAGE, TRUSTING),
        (PACKAGE, r"#\s*noqa:[^#]*\bS\d{3}\b"),
        (PACKAGE, r"torch\.load\((?!.*weights_only=True)"),
        (PACKAGE / "core", DRAWING),
    ],
)
def test_it_is_nowhere_in_the_source(folder: Path, pattern: str) -> None:
    places = [
        f"{path}:{number}"
        for path in folder.rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert places == []


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (TRUSTING, 'options = {"trust_remote_code": given}'),
        (DRAWING, "torch.randn_like(features)"),
        (DRAWING, "weight.normal_()"),
    ],
)
def test_it_would_be_found(pattern: str, line: str) -> None:
    assert re.search(pattern, line)


PROJECT = {
    "dependencies": ["numpy>=1.26", "torch>=2.6"],
    "optional-dependencies": {"bench": ["Pillow>=10.3"], "all": ["opnp[bench]"], "test": ["pytest"]},
}


def test_minimum_versions_are_the_lower_bounds_of_requirements_and_extras() -> None:
    assert minimum_versions(PROJECT) == {"numpy": "1.26", "torch": "2.6", "pillow": "10.3"}


@pytest.mark.parametrize(("entry", "message"), [("rich", "has no lower bound"), ("torch>=2.7", "two lower bounds")])
def test_a_missing_or_second_bound_is_an_error(entry: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minimum_versions({**PROJECT, "optional-dependencies": {"more": [entry]}})
