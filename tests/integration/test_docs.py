"""The site: it builds strictly, lacks nothing public, has no dead link, needs no network and quotes the records."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import opnp
import opnp.adapters
import opnp.data
import opnp.errors
from opnp.adapters.openood import OPNPPostprocessor
from opnp.adapters.pytorch_ood import OPNPDetector
from opnp.adapters.scikit_learn import OPNPOutlierDetector
from opnp.cli.app import COMMANDS, named_command
from opnp.errors import OpnpError, OpnpWarning
from studies import embeddings
from studies.results_page import Records, results_page
from tests.integration.docs_pages import DOCS, pages
from tests.made_once import made_once
from tools.docs_reference import readable

ROOT = DOCS.parent
METHOD = DOCS / "explanation" / "method.md"
RESULTS = DOCS / "explanation" / "results.md"
_LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
_FOLLOWED = {"canonical", "next", "prev", "edit", "alternate"}


@dataclass(slots=True)
class Page(HTMLParser):
    """One page.

    Attributes:
        ids: Its anchors.
        links: Targets of its links.
        loaded: Targets of what a browser loads with it.

    """

    ids: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        HTMLParser.__init__(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of one element."""
        found = {name: value or "" for name, value in attrs}
        if found.get("id"):
            self.ids.add(found["id"])
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        elif tag in _LOADING and _LOADING[tag] in found and found.get("rel") not in _FOLLOWED:
            self.loaded.add(found[_LOADING[tag]])


def read_site(folder: Path) -> dict[str, Page]:
    """Return the pages of a site by their path in it."""
    found = {}
    for path in sorted(folder.rglob("*.html")):
        page = Page()
        page.feed(path.read_text(encoding="utf-8"))
        found[path.relative_to(folder).as_posix()] = page
    return found


def dead_links(folder: Path) -> list[str]:
    """Return the links inside a site, and what it loads from itself, that lead nowhere; anchors too."""
    site = read_site(folder)
    dead = []
    for name, page in site.items():
        if name == "404.html":  # its links begin at the root of a server
            continue
        for link in sorted(page.links | page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = unquote(parts.path)
            target = (folder / name).parent / path if path else folder / name
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                dead.append(f"{name}: {link}")
            elif parts.fragment and target.suffix == ".html":
                other = site[target.resolve().relative_to(folder.resolve()).as_posix()]
                if unquote(parts.fragment) not in other.ids:
                    dead.append(f"{name}: {link}")
    return dead


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the site, built from the pages as they are."""

    def build(folder: Path) -> None:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
        silent = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
        run = subprocess.run(command, cwd=ROOT, env=silent, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr

    return made_once(tmp_path_factory, "site", build)


@pytest.fixture(scope="module")
def read(site: Path) -> dict[str, Page]:
    return read_site(site)


@pytest.fixture(scope="module")
def anchors(read: dict[str, Page]) -> set[str]:
    """Return the anchors of the reference."""
    return set().union(*(page.ids for name, page in read.items() if name.startswith("reference/")))


@pytest.mark.slow
def test_every_public_name_has_an_entry(anchors: set[str]) -> None:
    expected = {f"opnp.{name}" for name in dir(opnp) if not inspect.ismodule(getattr(opnp, name))}
    expected |= {f"opnp.{room}.{name}" for room in ("adapters", "data") for name in getattr(opnp, room).__all__}
    expected |= {f"{kind.__module__}.{kind.__name__}" for kind in (OPNPDetector, OPNPOutlierDetector)}
    expected.add("opnp.adapters.openood.OPNPPostprocessor")
    assert expected - anchors == set()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [opnp.OPNP, OPNPDetector, OPNPOutlierDetector, OPNPPostprocessor])
def test_every_method_has_an_entry(anchors: set[str], kind: type) -> None:
    package = "opnp" if kind is opnp.OPNP else kind.__module__
    own = {
        name
        for base in kind.__mro__
        if base.__module__.startswith("opnp.")
        for name, value in vars(base).items()
        if not name.startswith("_") and (inspect.isroutine(value) or isinstance(value, property))
    }
    assert {f"{package}.{kind.__name__}.{name}" for name in own} - anchors == set()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_an_entry(read: dict[str, Page], command: str) -> None:
    options = [
        item
        for item in named_command(command).params
        if "--help" not in item.opts and not getattr(item, "hidden", False)
    ]
    expected = {f"opnp-{command}-{item.opts[0].lstrip('-').replace('_', '-')}" for item in options}
    assert options
    assert {f"opnp-{command}", *expected} - read["reference/commands.html"].ids == set()


@pytest.mark.slow
def test_every_error_has_its_meaning(site: Path) -> None:
    text = (site / "reference" / "errors.html").read_text(encoding="utf-8")
    kinds = [value for value in map(vars(opnp.errors).get, opnp.errors.__all__) if inspect.isclass(value)]
    for kind in kinds:
        assert issubclass(kind, OpnpError | OpnpWarning)
        meaning = str(inspect.getdoc(kind)).partition("\n")[0]
        assert text.count(meaning) >= 2, kind  # in the table, and below


@pytest.mark.slow
def test_no_link_is_dead(site: Path) -> None:
    assert dead_links(site) == []


@pytest.mark.slow
def test_no_page_is_left_out_of_the_navigation(site: Path, read: dict[str, Page]) -> None:
    assert {name.removesuffix(".md") for name in pages()} <= {
        name.replace("records/index", "records/README").removesuffix(".html") for name in read
    }
    reached = {
        (site / "index.html").parent.joinpath(urlsplit(link).path).resolve() for link in read["index.html"].links
    }
    assert {name for name in read if (site / name).resolve() not in reached} == {"404.html"}


@pytest.mark.slow
def test_nothing_is_loaded_from_the_network(site: Path, read: dict[str, Page]) -> None:
    for name, page in read.items():
        assert [link for link in page.loaded if urlsplit(link).netloc] == [], name
    for path in (*site.rglob("*.css"), *(site / "assets").glob("*.css")):
        found = re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']+", path.read_text(encoding="utf-8"))
        assert found == [], path


@pytest.mark.slow
def test_docstrings_are_shown_as_they_are_meant(site: Path) -> None:
    for path in sorted(site.glob("reference/*.html")):
        text = re.sub(r"<details.*?</details>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)  # the sources
        assert "<blockquote>" not in text, f"{path.name}: an example is taken for a quotation"
        assert ".. math" not in text, path.name
        assert "&gt;&gt;&gt;" in text or path.stem in {"index", "commands", "errors", "services"}, path.name


def test_an_example_becomes_a_section_and_a_formula_a_block() -> None:
    assert readable("Return 1.\n\nExample:\n    >>> 1\n    1\n") == "Return 1.\n\nExamples:\n    >>> 1\n    1\n"
    found = readable("Return.\n\n.. math:: a =\n    b\n\nArgs:\n")
    assert found == "Return.\n\n```text\na =\nb\n```\n\nArgs:\n"


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<a id="here" href="#here"></a><a href="other.html#there"></a>')
    assert dead_links(tmp_path) == ["index.html: other.html#there"]
    (tmp_path / "other.html").write_text('<img src="none.png"><a href="https://example.org/none"></a>')
    assert dead_links(tmp_path) == ["index.html: other.html#there", "other.html: none.png"]
    (tmp_path / "other.html").write_text('<p id="there"></p>')
    assert dead_links(tmp_path) == []


def test_files_of_the_repository_that_pages_name_are_there() -> None:
    for name, path in pages().items():
        text = path.read_text(encoding="utf-8")
        named = re.findall(r"(?<![\w/])(?:src|docs|tests|tools|examples|studies|benchmarks|notebooks)/[\w./-]*\w", text)
        assert [each for each in named if not (ROOT / each).exists()] == [], name


def test_the_method_quotes_the_code() -> None:
    text = METHOD.read_text(encoding="utf-8")
    quoted = 0
    for block in re.finditer(r"```text\n(.*?)```", text, flags=re.DOTALL):
        paragraph = text[: block.start()].rstrip().rpartition("\n\n")[2]
        named = re.search(r"`([\w.]+)`\s+in\s+`(src/[\w/]+\.py)`", paragraph)
        if named is None:  # a formula
            continue
        source = [line.strip() for line in function_source(ROOT / named[2], named[1]).splitlines()]
        for line in block[1].splitlines():
            quoted += 1
            assert line.strip() in source, f"{named[1]}: {line}"
    assert quoted >= 18


def function_source(path: Path, name: str) -> str:
    """Return the source of a function or method in a file, or of a class."""
    nodes: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        (node,) = (each for each in nodes if getattr(each, "name", None) == part)
        nodes = getattr(node, "body", [])
    return str(ast.get_source_segment(path.read_text(encoding="utf-8"), node))


@pytest.fixture(scope="module")
def records() -> Records:
    return Records.read(ROOT / "docs" / "records")


def test_the_page_is_the_one_the_records_make(records: Records) -> None:
    assert RESULTS.read_text(encoding="utf-8") == results_page(records), "run `make results`"


def test_the_short_table_is_that_of_the_record(records: Records) -> None:
    row = next(line for line in results_page(records).splitlines() if line.startswith("| **`OPNP()`** |"))
    fused = records.panel["rows"]["OPNP()"]
    figures = [f"{value:.1f}" for value in fused["auroc"].values()]
    assert row.split(" | ")[1:] == [*figures, f"{fused['mean_regret']:.2f}", f"{fused['worst_regret']:.2f} |"]


def test_every_baseline_that_ran_is_on_the_page_with_its_figures(records: Records) -> None:
    page = RESULTS.read_text(encoding="utf-8")
    for model in records.bench.models:
        section = page.split(f"### {model.model}\n")[1].split("\n#")[0]
        rows = [row for row in model.methods if row.group == "baseline" and row.status == "ok"]
        assert len(rows) > 20
        for row in rows:
            if row.source == "pytorch-ood" and not row.method.endswith("(pytorch-ood)") and row.far is not None:
                figures = f"{100 * row.far.fpr95:.2f} / {100 * row.far.auroc:.2f}"
                assert any(line.startswith(f"| {row.method} | {figures} |") for line in section.splitlines())


def test_the_records_cover_the_same_models_and_no_figure_is_missing(records: Records) -> None:
    models = {model.model for model in records.bench.models}
    assert {model.model for model in records.sweep.models} <= models == set(records.panel["best_single"])
    for record in (records.panel, records.panel_other):
        assert sum(row["kind"] == "single" for row in record["rows"].values()) == 26  # as the page says
    others = {model.model for model in records.other.models}
    assert set(records.panel_other["best_single"]) == others
    assert set(records.spread["models"]) == models
    assert set(records.robustness["models"]) == models | others
    for name, row in records.panel["rows"].items():
        assert set(row["auroc"]) == set(row["regret"]) == models, name
        assert len(row["mean_regret_by_split"]) == records.panel["splits"], name
    for model in records.bench.models:
        assert model.row("OPNP()").status == "ok"
        assert [row.method for row in model.methods if row.group == "product" and row.status != "ok"] == []


def test_the_table_of_embeddings_is_that_of_the_record() -> None:
    rows = json.loads((DOCS / "records" / "embeddings.json").read_text(encoding="utf-8"))
    page = (DOCS / "how-to" / "embeddings.md").read_text(encoding="utf-8")
    assert embeddings.with_table(page, rows) == page
    assert embeddings.with_table(page, rows[1:]) != page
