"""Parts of sources, and the blocks that they are read in."""

from pathlib import Path

import pytest
import torch

from opnp.data import block_edges, feature_part, open_features, write_features
from opnp.errors import OptionError

FEATURES = torch.arange(40.0).reshape(20, 2)


def test_a_part_is_a_source_that_knows_its_place(tmp_path: Path) -> None:
    write_features(tmp_path / "file", FEATURES, labels=torch.arange(20))
    whole = open_features(tmp_path / "file")
    part = feature_part(feature_part(whole, 5, 15), 2, 8)
    assert (part.rows, part.width, part.is_labelled, part.first_row) == (6, 2, True, 7)
    features, labels = part.read(1, 3)
    assert features.equal(FEATURES[8:10])
    assert labels is not None
    assert labels.tolist() == [8, 9]
    assert part.digest() == whole.digest()
    assert feature_part(whole, 20, 20).rows == 0


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (3, 21), (5, 4)])
def test_a_part_that_there_is_not(tmp_path: Path, start: int, stop: int) -> None:
    write_features(tmp_path / "file", FEATURES)
    with pytest.raises(OptionError, match="A part must lie in rows 0 to 20"):
        feature_part(open_features(tmp_path / "file"), start, stop)


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "8"])
def test_a_block_of_no_size(size: int) -> None:
    with pytest.raises(OptionError, match="`batch_size` must be a positive number of rows"):
        block_edges(10, size=size)
