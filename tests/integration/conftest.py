"""What integration tests share: a folder of cached features, and a browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from opnp.data import write_features, write_head


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
            pytest.skip(f"no Chromium to drive (`make browser` installs one): {str(error).splitlines()[0]}")
        yield started
        started.close()
