"""What the library writes, once a module, and a copy of it for a test to damage."""

import shutil
from pathlib import Path

import pytest

from tests.reliability.files_world import world


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "own"))
