"""Labels as files hold them: numbers or names, never a mixture."""

from pathlib import Path

import pytest

from opnp.data.files import class_labels
from opnp.errors import DataFileError

LARGE = [2**63, -(2**63), "9" * 23, "7" * 5000, 10**4000]


@pytest.mark.parametrize("label", LARGE, ids=["2^63", "-2^63", "23 digits", "5000 digits", "4000 digits"])
def test_numbers_of_more_than_64_bits_are_told_where_they_are_read(label: object) -> None:
    message = r"list\.csv: labels must be numbers of classes, below 2\^63, got .{1,170}$"
    with pytest.raises(DataFileError, match=message):
        class_labels([1, label], path=Path("list.csv"))
    with pytest.raises(DataFileError, match=r"got both, such as .{1,170} and 'dog'\. Where"):
        class_labels([label, "dog"], path=Path("list.csv"))
