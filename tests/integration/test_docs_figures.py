"""Every figure that a page quotes is that of a record, and the page of the members says where the code is."""

import ast
import doctest
import re
from pathlib import Path

import pytest

from opnp.core import PANEL
from studies import panel, quotes, spread
from studies.results_page import Records
from tests.integration.docs_pages import DOCS, pages

ROOT = DOCS.parent
MEMBERS = DOCS / "explanation" / "members.md"
_GENERATED = re.compile(
    r"<!-- Made by .*?<!-- End of the table. -->|<!-- table: begin -->.*?<!-- table: end -->", flags=re.DOTALL
)
PAGES = {"README.md": ROOT / "README.md", **pages()}


@pytest.fixture(scope="module")
def known() -> dict[str, float]:
    """Return the figures of the records by name."""
    return quotes.figures(Records.read(DOCS / "records"))


@pytest.mark.parametrize("name", PAGES)
def test_figures_are_those_of_the_records_and_each_says_which(name: str, known: dict[str, float]) -> None:
    text = PAGES[name].read_text(encoding="utf-8")
    assert quotes.quoted(text, known) == text, "run `make results`"
    assert quotes.unquoted(_GENERATED.sub("", text)) == []


def test_another_record_gives_other_figures(known: dict[str, float]) -> None:
    others = {name: value + 1 for name, value in known.items()}
    for name in ("README.md", "explanation/limits.md", "explanation/members.md", "how-to/choosing-ratios.md"):
        text = PAGES[name].read_text(encoding="utf-8")
        changed = quotes.quoted(text, others)
        assert len(changed.splitlines()) == len(text.splitlines())
        assert sum(one != other for one, other in zip(text.splitlines(), changed.splitlines(), strict=True)) >= 2
        assert quotes.quoted(changed, known) == text


def test_what_the_pages_say_beside_their_figures_holds(known: dict[str, float]) -> None:
    sayings = {
        "the fusion loses less than any single setting": ("OPNP() mean regret", "best single mean regret"),
        "elsewhere one setting is ahead": (
            "other: best single mean regret",
            "other: OPNP() mean regret",
        ),
        "and behind at worst": ("other: OPNP() worst regret", "other: best single worst regret"),
        "the pruned head earns its place": ("OPNP() mean regret", "OPNP() without opnp mean regret"),
        "and costs elsewhere": ("other: OPNP() without opnp mean regret", "other: OPNP() mean regret"),
        "one score is better near": ("fDBD mean regret by AUROC, near", "OPNP() mean regret by AUROC, near"),
        "and worse far": ("OPNP() mean regret by AUROC, far", "fDBD mean regret by AUROC, far"),
        "MSP tells wrong answers better": ("failures: OPNP() mean", "failures: MSP mean"),
        "no member is worth as much": ("OPNP() without fdbd mean regret", "OPNP() without mahalanobis mean regret"),
    }
    assert {saying for saying, (less, more) in sayings.items() if not known[less] < known[more]} == set()


@pytest.mark.parametrize(
    ("names", "message"), [("a; b", "has the numbers 0.1, and below it are named a; b"), ("aa", "there are: a")]
)
def test_a_wrong_name_is_told(names: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quotes.quoted(f"It is 0.1.\n<!-- figures: {names} -->", {"a": 0.1, "b": 0.2})


@pytest.mark.parametrize("module", [quotes, spread, panel], ids=lambda module: module.__name__)
def test_examples_of_the_studies_run(module: object) -> None:
    found = doctest.testmod(module)  # type: ignore[arg-type]  # a module
    assert found.attempted > 0
    assert found.failed == 0


def sections() -> dict[str, str]:
    """Return what the page says of each member."""
    parts = re.split(r"^## `(\w+)`", MEMBERS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_member_is_told_in_25_lines() -> None:
    assert tuple(sections()) == PANEL
    for name, text in sections().items():
        assert len(text.strip().splitlines()) < 25, name
        for part in (
            "```text",
            "**Source.**",
            "**Needs**",
            "**Code.**",
            "**Strong on**",
            "**Fails on**",
            "**Without it**",
        ):
            assert text.count(part) == 1, (name, part)


def test_the_code_of_every_member_is_where_the_page_says() -> None:
    for name, text in sections().items():
        code = re.search(r"\*\*Code\.\*\*(.*?)\n- ", text, flags=re.DOTALL)
        assert code is not None
        places = re.findall(r"((?:`\w+`(?: and )?)+) in\s+`(src/[\w/]+\.py)`", code[1])
        assert places, name
        for functions, path in places:
            assert set(re.findall(r"`(\w+)`", functions)) <= defined(ROOT / path), (name, path)


def defined(path: Path) -> set[str]:
    """Return the names that a file defines outermost."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {each.id for each in targets if isinstance(each, ast.Name)}
    return names


def test_a_member_fails_where_the_page_says_that_it_is_worst(known: dict[str, float]) -> None:
    for name, text in sections().items():
        quoted = re.findall(rf"{name} alone regret on (\w+)", text)
        regrets = {key: value for key, value in known.items() if key.startswith(f"{name} alone regret on ")}
        assert f"{name} alone regret on {quoted[0]}" == max(regrets, key=lambda key: regrets[key]), name
