"""Every block of Python and shell in the documentation runs, page by page, in the order it stands there.

Shell blocks are given to the command line in this process, line by line. A page says in a comment which small data it
takes for granted (`tests.integration.docs_world`), and why a block cannot run here.
"""

import re
import shlex
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest
import torch

from opnp.errors import OpnpWarning
from tests.in_process import Opnp
from tests.integration.docs_pages import DOCS, Block, blocks, pages, world
from tests.integration.docs_world import WORLDS

RUN = {name: path for name, path in pages().items() if blocks(path)}
NOT_RUN = {
    "index.md": 1,
    "how-to/hugging-face.md": 1,
    "how-to/imagenet-torchrun.md": 2,
    "how-to/openood.md": 1,
    "how-to/report.md": 1,
    "how-to/serving.md": 1,
    "how-to/timm.md": 1,
    "tutorials/own-model.md": 1,
}
"""How many blocks of a page are not run. Each says why in its page; more of them are more that nobody has tried."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Go to an empty folder, from which modules can be imported; forget those afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with torch.random.fork_rng():
        yield tmp_path
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin and Path(origin).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.parametrize("name", RUN)
def test_every_block_runs(opnp: Opnp, folder: Path, name: str) -> None:
    path = RUN[name]
    if world(path):
        WORLDS[world(path)](folder)
    page = ModuleType("page")
    with ExitStack() as stack:
        address, taken = "", ""
        for block in blocks(path):
            if block.background:
                address, taken = block.background, stack.enter_context(service(block))
            elif not block.reason:
                run(replace(block, text=block.text.replace(address, taken)) if address else block, page, opnp, name)


def run(block: Block, page: ModuleType, opnp: Opnp, name: str) -> None:
    """Run one block in this process; a page's blocks share their names."""
    if block.title:
        Path(block.title).write_text(block.text, encoding="utf-8")
    elif block.language == "python":
        code = compile("\n" * (block.line - 1) + block.text, str(DOCS / name), "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", OpnpWarning)  # the data of these pages are few
            exec(code, vars(page))  # noqa: S102  # the project's own page
    elif block.language == "sh":
        for line in block.text.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "opnp", f"{name}:{block.line}: only `opnp` is run, got {line}"
            expected = re.search(r"# exit code (\d+)$", line)
            outcome = opnp(*arguments)
            assert outcome.code == int(expected[1] if expected else 0), f"{name}:{block.line}: {line}\n{outcome.err}"


@contextmanager
def service(block: Block) -> Iterator[str]:
    """Run a command that goes on until the end of the page, at a free port; yield its address once it answers."""
    parts = urlsplit(block.background)
    with socket.create_server((str(parts.hostname), 0)) as probe:
        port = probe.getsockname()[1]
    address = f"{parts.scheme}://{parts.hostname}:{port}"
    arguments = [*shlex.split(block.text.replace("\\\n", " "))[1:], "--port", str(port)]
    with subprocess.Popen([sys.executable, "-m", "opnp", *arguments], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()  # printed once requests are answered
            assert address in first, first + process.stderr.read()
            yield address
        finally:
            process.terminate()
            process.communicate(timeout=30)


def test_blocks_have_a_language_that_is_run_or_is_text() -> None:
    for name, path in pages().items():
        fences = re.findall(r"^```(.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        opening = fences[::2]
        assert len(fences) % 2 == 0, name
        assert {fence.partition(" ")[0] for fence in opening} <= {"python", "sh", "text", "json", "toml"}, name
        assert len(opening) == len(blocks(path)), f"{name}: a block that the tests do not see"


def test_what_is_not_run_is_little_and_says_why() -> None:
    found = {name: [block.reason for block in blocks(path) if block.reason] for name, path in RUN.items()}
    assert {name: len(reasons) for name, reasons in found.items() if reasons} == NOT_RUN
    assert all(len(reason) > 15 for reasons in found.values() for reason in reasons)


def test_a_block_that_fails_is_seen(opnp: Opnp, folder: Path) -> None:
    wrong = {
        "python": ("import opnp\nassert opnp.auroc is None\n", AssertionError),
        "sh": ("opnp score --no-such-option\n", AssertionError),
    }
    for language, (text, error) in wrong.items():
        block = Block(language=language, text=text, title="", reason="", background="", line=1)
        with pytest.raises(error):
            run(block, ModuleType("page"), opnp, "index.md")
    assert not list(folder.iterdir())
