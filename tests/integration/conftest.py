"""What integration tests share: a folder of cached features, and a browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli_world import write_cached


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """Return a folder with features and a head: 5 classes, 32 features."""
    return write_cached(tmp_path)


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
