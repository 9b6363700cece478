"""What a process and its workers with `--ray` make sure of, without a cluster: one whole table, of the same files."""

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from opnp import OPNP
from opnp.adapters.toolkits import bytes_of
from opnp.cli.cluster import _FeatureVerdicts, _InputVerdicts, _listing, _read_back, _TrainingFeatures, _TrainingInputs
from opnp.cli.options import HeadOptions, RunOptions
from opnp.data import open_inputs
from opnp.data.parquet import ParquetFeatures
from opnp.errors import DataFileError, EmptyDataError
from tests.in_process import Opnp, done
from tests.unit.bench.image_world import INPUTS, OPTIONS, class_images, tiny_model, write_module
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


def test_a_worker_that_lists_other_files_than_its_driver_is_stopped(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, weight = torch.rand(300, 4), torch.eye(4)[:3]
    content = bytes_of(OPNP().fit_features(rows, weight=weight, bias=None))
    place = tmp_path / "features"
    place.mkdir()

    def write(name: str, start: int, stop: int) -> None:
        parquet.write_table(pa.table({"features": [*rows[start:stop].numpy()]}), place / f"{name}.parquet")

    write("b", 0, 200)
    write("c", 200, 300)
    listing = _listing(ParquetFeatures(place))
    made = _FeatureVerdicts(content, str(place), listing=listing, is_explained=False)
    assert [part.num_rows for part in made(100, 300)] == [200]
    assert [len(part["features"]) for part in _TrainingFeatures(str(place), listing)(0, 300)] == [300]
    write("b", 0, 100)
    write("c", 100, 300)  # as many rows in all
    with pytest.raises(DataFileError, match="features changed while it was read"):
        _FeatureVerdicts(content, str(place), listing=listing, is_explained=False)
    with pytest.raises(DataFileError, match="features changed while it was read"):
        _TrainingFeatures(str(place), listing)

    monkeypatch.chdir(write_module(tmp_path))
    inputs = INPUTS.batch([INPUTS(Image.fromarray(each.numpy())) for each in class_images(80, seed=0)[0]])
    content = bytes_of(OPNP().fit(tiny_model(), [inputs]))
    name, options = "tinynets:net", HeadOptions(image_size=8, mean="0.5,0.4,0.3", std="0.25,0.2,0.1")
    verdicts = partial(
        _InputVerdicts, content, Path("d"), name=name, options=options, is_forced=False, data=str(images)
    )
    listing = _listing(open_inputs(images, INPUTS))
    assert [part.num_rows for part in verdicts(listing=listing, is_explained=False)(0, 4)] == [3]
    assert [len(part["features"]) for part in _TrainingInputs(name, options, str(images), listing, None)(0, 4)] == [3]
    (images / "3.png").rename(images / "new.png")  # as many in all
    with pytest.raises(DataFileError, match="images changed while it was read"):
        verdicts(listing=listing, is_explained=False)
    with pytest.raises(DataFileError, match="images changed while it was read"):
        _TrainingInputs(name, options, str(images), listing, None)


def test_rows_of_a_worker_are_those_of_one_process(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, opnp: Opnp
) -> None:
    monkeypatch.chdir(write_module(tmp_path))
    for row, image in enumerate(class_images(80, seed=0)[0]):
        save_image(tmp_path / "train" / f"{row % 4} \udcff" / f"{row}.png", image)
    (images / "1.png").rename(images / "\udcff.png")
    data, file = tmp_path / "train", tmp_path / "d.st"
    fit = ("fit", "--model", "tinynets:net", *OPTIONS, "--data", data, "--validation", data, "--out", file)
    done(opnp, *fit, "--calibrate-by", "predicted")
    done(opnp, "score", file, images, "--explain", "--out", tmp_path / "one.parquet")
    (found,) = _InputVerdicts(
        bytes_of(OPNP.load(file)),
        file,
        name=None,
        options=RunOptions(),
        is_forced=False,
        data=str(images),
        listing=_listing(open_inputs(images, INPUTS)),
        is_explained=True,
    )(0, 4)
    assert found.equals(parquet.read_table(tmp_path / "one.parquet"))
    assert {"calibration_group", "class_name"} < {*found.column_names}
    assert found["name"].to_pylist() == ["0.png", "2.png", r"\xff.png"]
