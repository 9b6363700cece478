"""The command line, run in this process: arguments in; exit code, output and errors out."""

import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from opnp.cli import main
from opnp.data import write_features, write_head


class Outcome(NamedTuple):
    """What a run of the command line left."""

    code: int
    out: str
    err: str


Opnp = Callable[..., Outcome]


@pytest.fixture
def opnp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Opnp:
    """Return a function that runs ``opnp`` with the given arguments."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["opnp", *map(str, arguments)])
        code = 0
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            try:
                main()
            except SystemExit as leaving:
                code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """Return a folder with features and a head: 5 classes, 32 features."""
    generator = torch.Generator().manual_seed(0)
    for name, rows in {"train": 400, "validation": 200, "test": 50}.items():
        features = torch.rand(rows, 32, generator=generator)
        write_features(tmp_path / f"{name}.safetensors", features, labels=torch.arange(rows) % 5)
    weight, bias = torch.randn(5, 32, generator=generator), torch.randn(5, generator=generator)
    write_head(tmp_path / "head.safetensors", weight, bias=bias)
    write_head(tmp_path / "head_without_bias.safetensors", weight)
    return tmp_path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Yield a headless browser: that of the system, or that of Playwright."""
    from playwright import sync_api as playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium to drive (tools/install_chromium.py installs one): {str(error).splitlines()[0]}")
        yield started
        started.close()
