"""Images at an address: the same as in the folder, and what cannot be read is named."""

from pathlib import Path

import pytest

from opnp.data import InputSet, open_inputs
from opnp.data.addresses import ImagesAtAddress
from opnp.errors import DataFileError, EmptyDataError
from tests.unit.bench.image_world import INPUTS, write_broken_tree


def test_images_at_an_address_are_those_of_the_folder(tmp_path: Path) -> None:
    write_broken_tree(tmp_path, {2})
    for passed_over in (".hidden", "@eaDir", "__MACOSX"):
        (tmp_path / passed_over).mkdir()
        (tmp_path / passed_over / "a.png").write_bytes(b"")
    expected = open_inputs(tmp_path, INPUTS, is_labelled=False)
    found = InputSet(ImagesAtAddress.of(f"file://{tmp_path}/"), INPUTS)
    assert list(found.names) == list(expected.names)
    assert found.labels is None
    for mine, other in zip(found.batches(3), expected.batches(3), strict=True):
        assert mine.equal(other)
    assert found.unreadable == expected.unreadable
    before = found.source.digest()
    (tmp_path / "0" / "0.png").write_bytes(b"another")
    assert found.source.digest() != before


def test_places_without_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(EmptyDataError, match="holds no image"):
        ImagesAtAddress.of(f"file://{tmp_path}")
    with pytest.raises(DataFileError, match="nowhere cannot be listed"):
        ImagesAtAddress.of(f"file://{tmp_path}/nowhere")


def test_an_image_that_is_gone_is_unreadable(tmp_path: Path) -> None:
    write_broken_tree(tmp_path, set())
    found = InputSet(ImagesAtAddress.of(f"file://{tmp_path}"), INPUTS)
    (tmp_path / "1" / "5.png").unlink()
    assert sum(map(len, found.batches(4))) == 6
    assert [name for name, _ in found.unreadable] == ["1/5.png"]
