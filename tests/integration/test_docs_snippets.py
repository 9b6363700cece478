"""Every block of Python and shell in the documentation runs, page by page, in its order, and the notebook runs whole.

Shell blocks are given to the command line in this process, line by line. A page says in a comment which small data it
takes for granted (`WORLDS`), and why a block cannot run here.
"""

import csv
import json
import re
import shlex
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import nbformat
import numpy as np
import pytest
import timm
import torch
from nbclient import NotebookClient
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from opnp.data import write_features, write_head
from opnp.errors import OpnpWarning
from tests.in_process import Opnp
from tests.integration.docs_pages import DOCS, Block, blocks, pages, world
from tests.unit.adapters.hub_caches import (
    cached,
    is_installed,
    offline_cache,
    write_sentence_encoder,
    write_timm,
)
from tests.unit.adapters.hub_folders import TEXT_CLASSES, write_bert, write_clip, write_vit
from tests.unit.adapters.hub_server import hub_server
from tests.unit.adapters.mlflow_store import file_store

TUTORIAL = "tutorials/own-model.md"
RUN = {name: path for name, path in pages().items() if blocks(path)}
NOT_RUN = {
    "index.md": 1,
    "how-to/command-line.md": 1,
    "how-to/hugging-face.md": 2,
    "how-to/imagenet-torchrun.md": 2,
    "how-to/mlflow.md": 1,
    "how-to/openood.md": 1,
    "how-to/report.md": 1,
    "how-to/reproduce-the-paper.md": 1,
    "how-to/serving.md": 2,
    "how-to/timm.md": 1,
    TUTORIAL: 1,
}
"""How many blocks of a page are not run. Each says why in its page; more of them are more that nobody has tried."""


CLASSES, FEATURES, SIDE = 10, 24, 32

_NET = """\
from torch import nn


def classifier():
    body = (nn.Conv2d(3, 16, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(64, 10))
"""


def images(folder: Path) -> None:
    """Write ``net.py`` with ``weights.pt``, and folders of images: train and val by class, new without classes."""
    (folder / "net.py").write_text(_NET, encoding="utf-8")
    scope: dict[str, Callable[[], torch.nn.Module]] = {}
    exec(_NET, scope)  # noqa: S102  # the text above
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(scope["classifier"]().state_dict(), folder / "weights.pt")
    random = np.random.default_rng(0)
    for part, count in {"train": 12, "val": 3, "new": 1}.items():
        for kind in range(CLASSES):
            place = folder / "images" / part / ("" if part == "new" else f"kind_{kind}")
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = random.normal(25 * kind, 20, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{kind}_{number}.png")


def protocols(folder: Path) -> None:
    """Write images, ``net.py``, and weights of two networks."""
    images(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(
            timm.create_model("test_resnet", num_classes=CLASSES).state_dict(), folder / "test_resnet.safetensors"
        )


def bert(folder: Path) -> None:
    """Write ``my-bert``, a text classifier of transformers, and texts for it."""
    write_bert(folder / "my-bert")
    words = ("a", "film", "good", "bad", "very", "not", "is", "this")
    random = np.random.default_rng(0)
    for name, count in {"train": 60, "val": 40, "new": 5}.items():
        lines = [
            json.dumps({"text": " ".join(random.choice(words, 4)), "label": number % TEXT_CLASSES})
            for number in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def hubs(folder: Path) -> None:
    """Write images, and models into the cache of Hugging Face in ``cache``."""
    images(folder)
    cached(folder / "cache", "timm/test_resnet.r160_in1k", write_timm(folder / "cache" / "timm", classes=1000))
    cached(folder / "cache", "nateraw/vit-base-beans", write_vit(folder / "cache" / "vit"))


def sentences(folder: Path) -> None:
    """Write ``my-encoder``, a sentence encoder, texts for it, and ``my-clip``."""
    if not is_installed("sentence_transformers"):
        pytest.skip("sentence-transformers is not installed")
    bert(folder)
    write_sentence_encoder(folder / "my-encoder")
    write_clip(folder / "my-clip")


def features(folder: Path) -> None:
    """Write features of ten classes, their head and one OOD set, as `opnp cache` names them and beside that by use."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(CLASSES, FEATURES, generator=generator)

    def drawn(rows: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(rows) % CLASSES
        return (centres[labels] + 0.15 * torch.randn(rows, FEATURES, generator=generator)).clamp_min(0), labels

    for name, rows in {"train": 600, "validation": 200, "test": 200}.items():
        found, labels = drawn(rows)
        write_features(folder / f"{name}.safetensors", found, labels=labels)
    outside = 0.8 * torch.rand(200, FEATURES, generator=generator)
    write_features(folder / "ood.safetensors", outside)
    write_head(folder / "head.safetensors", 6 * (centres - centres.mean(0)), bias=-3 * (centres**2).sum(1))


def results(folder: Path) -> None:
    """Write a folder of features as `opnp cache` leaves it."""
    inner = folder / "features"
    inner.mkdir()
    features(inner)
    (inner / "ood.safetensors").rename(inner / "ood_uniform.safetensors")
    (inner / "validation.safetensors").unlink()


def demo(folder: Path) -> None:
    """Write what `opnp demo` leaves, of other data."""
    inner = folder / "opnp-demo"
    inner.mkdir()
    features(inner)
    (inner / "ood.safetensors").rename(inner / "ood_far.safetensors")


WORLDS: dict[str, Callable[[Path], None]] = {
    "images": images,
    "protocols": protocols,
    "bert": bert,
    "hubs": hubs,
    "sentences": sentences,
    "features": features,
    "hub": features,
    "results": results,
    "demo": demo,
}
"""By the name that a page gives in a comment: what writes it into a folder."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Go to an empty folder, from which modules can be imported; forget those afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    offline_cache(tmp_path / "cache", monkeypatch)
    file_store(tmp_path / "mlruns", monkeypatch)
    with torch.random.fork_rng():
        yield tmp_path
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin and Path(origin).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUN if name != TUTORIAL])
def test_every_block_runs(opnp: Opnp, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = RUN[name]
    if world(path):
        WORLDS[world(path)](folder)
    page = ModuleType("page")
    with ExitStack() as stack:
        if world(path) == "hub":
            stack.enter_context(hub_server(monkeypatch))
        address, taken = "", ""
        for block in blocks(path):
            if block.background:
                address, taken = block.background, stack.enter_context(service(block))
            elif not block.reason:
                run(replace(block, text=block.text.replace(address, taken)) if address else block, page, opnp, name)


@pytest.mark.slow
def test_the_tutorial_flags_the_odd_images_and_hardly_any_known_one(opnp: Opnp, folder: Path) -> None:
    path, page = RUN[TUTORIAL], ModuleType("page")
    for block in blocks(path):
        if not block.reason:
            run(block, page, opnp, path.name)
    with (folder / "verdicts.csv").open(encoding="utf-8", newline="") as file:
        verdicts = {Path(row["name"]).stem: row for row in csv.DictReader(file)}
    assert {name for name, row in verdicts.items() if row["is_ood"] == "True"} >= {f"other_{each}" for each in range(5)}
    known = {name: row for name, row in verdicts.items() if name.startswith("kind_")}
    assert len(known) == 10
    assert all(row["class_name"] == name for name, row in known.items())
    assert sum(row["is_ood"] == "True" for row in known.values()) <= 2
    assert bool(vars(page)["odd"].is_ood)


def run(block: Block, page: ModuleType, opnp: Opnp, name: str) -> None:
    """Run one block in this process; a page's blocks share their names."""
    for package in ("lightning", "mlflow"):
        if re.search(rf"^import {package}\b", block.text, flags=re.MULTILINE) and not is_installed(package):
            pytest.skip(f"{package} is not installed")
    if block.title:
        Path(block.title).write_text(block.text, encoding="utf-8")
    elif block.language == "python":
        code = compile("\n" * (block.line - 1) + block.text, str(DOCS / name), "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", OpnpWarning)  # the data of these pages are few
            warnings.filterwarnings("ignore", module=r"lightning\.")  # of torch's newer names, and of few workers
            warnings.filterwarnings("ignore", module=r"ray\.")  # of settings that it reads by old names of its own
            warnings.filterwarnings("ignore", module=r"mlflow\.")  # of type hints of its own, at its first import
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
            process.communicate(timeout=120)


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


NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quick_start.ipynb"


def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]  # the package has no annotations


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = [cell for cell in notebook().cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_links_of_the_notebook_lead_somewhere() -> None:
    texts = "\n".join(cell.source for cell in notebook().cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", texts)
    assert targets
    assert [target for target in targets if not (NOTEBOOK.parent / target).exists()] == []


@pytest.mark.slow
def test_the_notebook_runs_and_tells_digits_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    whole = notebook()
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(whole, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in whole.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if "text" in output)
    shares = {name: float(share) for name, share in re.findall(r"(\w+): ([\d.]+)% flagged", printed)}
    assert set(shares) == {"digits", "shuffled", "photographs"}
    assert shares["digits"] < 10
    assert min(shares["shuffled"], shares["photographs"]) > 20
