"""Files that were damaged: cut short, or with bytes turned over. Each is refused by name, or read as it was."""

from pathlib import Path

import pytest

from tests.in_process import Opnp
from tests.reliability.files_world import KINDS, Kind, chance, flipped, kind
from tests.tried import Tried

EACH = pytest.mark.parametrize("each", KINDS, ids=lambda each: each.name)
SAFETENSORS = pytest.mark.parametrize(
    "each", [each for each in KINDS if each.is_safetensors], ids=lambda each: each.name
)
RUN = [each for each in KINDS if each.arguments is not None and each.file.endswith(("safetensors", "scored.parquet"))]


def header_length(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def some(number: int, trials: int) -> list[int]:
    """Return at most so many places among `number`, the first and the last among them, evenly spread."""
    step = max(1, number // trials)
    return sorted({*range(0, number, step), number - 1})


@EACH
def test_the_whole_file_is_read_alike_twice(own: Path, each: Kind) -> None:
    """Without this the other tests of this module could not tell a change."""
    path = own / each.file
    assert each.outcome(path, each.read(path)) == "same"


@pytest.mark.parametrize("trials", [6, pytest.param(10**6, marks=pytest.mark.long)])
@SAFETENSORS
def test_headers_cut_short(own: Path, each: Kind, trials: int, tried: Tried) -> None:
    path = own / each.file
    content, expected = path.read_bytes(), each.read(path)
    lengths = some(header_length(content) + 1, trials)
    tried("files", f"{each.name} cut short in their header", len(lengths))
    for length in lengths:
        path.write_bytes(content[:length])
        assert each.outcome(path, expected) == "refused", length


@pytest.mark.parametrize("trials", [6, pytest.param(10**6, marks=pytest.mark.long)])
@SAFETENSORS
def test_a_byte_of_the_header_turned_over(own: Path, each: Kind, trials: int, tried: Tried) -> None:
    path = own / each.file
    content, expected = path.read_bytes(), each.read(path)
    places = [*range(8), *some(header_length(content), trials)]
    tried("files", f"{each.name} with a byte of the header turned over", len(places) * 2)
    for place in places:
        for mask in (1 << (place % 8), 0xFF):
            path.write_bytes(flipped(content, place, mask))
            found = each.outcome(path, expected)
            assert found == "refused" or not each.is_sealed, (place, mask)


@pytest.mark.parametrize("trials", [6, pytest.param(400, marks=pytest.mark.long)])
@EACH
def test_bytes_anywhere_turned_over(own: Path, each: Kind, trials: int, tried: Tried) -> None:
    """Some files have no seal, and another digit is another number; but what is read is then of the right form."""
    path = own / each.file
    content, expected, draw = path.read_bytes(), each.read(path), chance(each.name)
    tried("files", f"{each.name} with one to four bytes turned over", trials)
    for _ in range(trials):
        damaged = content
        for _ in range(draw.integers(1, 5)):
            damaged = flipped(damaged, int(draw.integers(len(content))), int(draw.integers(1, 256)))
        path.write_bytes(damaged)
        found = each.outcome(path, expected)
        assert found == "refused" or damaged == content or not each.is_sealed


@pytest.mark.parametrize("trials", [6, pytest.param(300, marks=pytest.mark.long)])
@EACH
def test_files_cut_short_anywhere(own: Path, each: Kind, trials: int, tried: Tried) -> None:
    path = own / each.file
    content, expected = path.read_bytes(), each.read(path)
    lengths = some(len(content) - 1, trials)
    tried("files", f"{each.name} cut short anywhere", len(lengths))
    for length in lengths:
        path.write_bytes(content[:length])
        found = each.outcome(path, expected)
        # A table of lines may end after any of them, and their last line feed may be missing.
        assert found == "refused" or b"\n" in content[length - 1 : length + 1] or length == len(content.rstrip()), (
            length
        )


@pytest.mark.parametrize("trials", [12, pytest.param(1500, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["score files in Parquet", "scores of benchmarks"])
def test_no_score_in_parquet_changes_unseen(own: Path, name: str, trials: int, tried: Tried) -> None:
    """Pages have checksums; what says how they are to be read stands behind them."""
    from pyarrow import parquet

    each = kind(name)
    path = own / each.file
    content, expected, draw = path.read_bytes(), each.read(path), chance(name)
    group = parquet.read_metadata(path).row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    column = next(column for column in columns if column.path_in_schema == "score")
    start, size = column.dictionary_page_offset or column.data_page_offset, column.total_compressed_size
    tried("files", f"{each.name} with a byte of their scores turned over", trials)
    for _ in range(trials):
        place = int(draw.integers(start, start + size))
        path.write_bytes(flipped(content, place, int(draw.integers(1, 256))))
        assert each.outcome(path, expected) != "other", place


@pytest.mark.parametrize("trials", [2, pytest.param(60, marks=pytest.mark.long)])
@pytest.mark.parametrize("each", RUN, ids=lambda each: each.name)
def test_the_command_line_refuses_damage_with_one_message(
    own: Path,
    each: Kind,
    trials: int,
    tried: Tried,
    opnp: Opnp,
) -> None:
    assert each.arguments is not None
    path, draw = own / each.file, chance(each.name)
    content = path.read_bytes()
    places = header_length(content) if each.is_safetensors else len(content)
    tried("files", f"runs of the command line on damaged {each.name}", 2 * trials)
    for number in range(trials):
        for damaged in (
            content[: int(draw.integers(len(content)))],
            flipped(content, number if number < 8 else int(draw.integers(places)), 1 << int(draw.integers(8))),
        ):
            path.write_bytes(damaged)
            found = opnp(*each.arguments(own))
            assert found.code in ((2,) if each.is_sealed or len(damaged) < len(content) else (0, 2)), found
            assert "Traceback" not in found.err
            assert found.code == 0 or found.err.startswith("opnp: "), found.err
            assert found.code == 0 or path.read_bytes() == damaged
            path.write_bytes(content)
