"""What a process and its workers with `--ray` make sure of, without a cluster: a whole table of the same files."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from opnp.cli.cluster import _read_back
from opnp.data import open_inputs
from opnp.errors import DataFileError, EmptyDataError
from tests.unit.bench.image_world import INPUTS, class_images
from tests.unit.data.image_files import save_image


def write_part(folder: Path, rows: list[int], name: str = "a") -> None:
    """Write a part of a score table."""
    folder.mkdir(exist_ok=True)
    columns: dict[str, Any] = dict.fromkeys(("score", "p_value"), [0.5] * len(rows))
    columns |= {"index": rows, "is_ood": [False] * len(rows), "calibration_samples": [9] * len(rows)}
    parquet.write_table(pa.table(columns), folder / f"{name}.parquet")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write four images, of which the last cannot be read."""
    for row, image in enumerate(class_images(3, seed=0)[0]):
        save_image(tmp_path / "images" / f"{row}.png", image)
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    return tmp_path / "images"


def test_a_table_whose_rows_lie_on_several_disks_is_refused(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, inputs = tmp_path / "out", open_inputs(images, INPUTS)
    for whole in (None, inputs):
        with pytest.raises(DataFileError, match=r"4 of 4 rows are missing where .* on a disk that all machines share"):
            _read_back(str(out), whole, 4)
    write_part(out, [0, 2])
    for whole in (None, inputs):
        with pytest.raises(DataFileError, match="2 of 4 rows are missing"):
            _read_back(str(out), whole, 4)
    write_part(out, [2, 1], "b")
    with pytest.raises(DataFileError, match=r"holds rows twice \(1\): another run wrote there"):
        _read_back(str(out), inputs, 4)
    write_part(out, [1], "b")
    assert _read_back(str(out), inputs, 4)[1] == {"unreadable": 1}
    assert "1 of 4 inputs could not be read: 3.png (no image)" in capsys.readouterr().err
    for path in images.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(EmptyDataError, match="none of 4 inputs could be read"):
        _read_back(str(tmp_path / "none"), open_inputs(images, INPUTS), 4)
