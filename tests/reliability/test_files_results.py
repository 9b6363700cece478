"""Folders of results: opnp knows its own again, and takes none that others wrote into for one."""

from pathlib import Path

import pytest

from opnp.bench.demo import DEMO_FILES
from opnp.bench.records import require_own_results
from opnp.bench.run import BENCH_FILES
from opnp.bench.sweep import SWEEP_FILES
from opnp.errors import DataFileError
from opnp.values.files import FIT_FILE, PICTURES_FILE, RECORD_FILES
from tests.tried import Tried


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("folder", "files"),
    [("bench", BENCH_FILES), ("demo", DEMO_FILES), ("swept", SWEEP_FILES), ("fit", (FIT_FILE, PICTURES_FILE))],
)
def test_own_results_are_written_over_and_the_files_of_others_are_not(
    own: Path, folder: str, files: tuple[str, ...], tried: Tried
) -> None:
    tried("files", "names of results in folders of others, written to", len(files))
    results = own / folder
    assert {path.name for path in results.iterdir()} <= {*files}
    require_own_results(results, files=files)
    for name in RECORD_FILES:
        (results / name).unlink(missing_ok=True)
    (own / "empty").mkdir()
    for name in files:
        (results / name).write_bytes(b"{}")
        kept = (results / name).replace(own / "empty" / name)
        with pytest.raises(DataFileError, match=f"holds {name}, which opnp did not write"):
            require_own_results(own / "empty", files=files)
        kept.unlink()
    require_own_results(own / "empty", files=files)
