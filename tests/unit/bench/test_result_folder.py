"""Results go into new folders and into opnp's own; what others wrote stays as it was."""

from itertools import combinations
from pathlib import Path

import pytest

from opnp.bench.result_folder import RECORD_FILES, require_own_results
from opnp.errors import DataFileError

FILES = ("results.json", "sweep.json", "results.md")
FOREIGN = ("", "[0.93]", '{"accuracy": 0.93}', '{"record_version"', "\ufffd", "[" * 10_000)
OWN = '{"record_version": 1}'


@pytest.mark.parametrize("there", [each for size in range(4) for each in combinations(FILES, size)])
@pytest.mark.parametrize("own", [each for size in range(3) for each in combinations(FILES[:2], size)])
@pytest.mark.parametrize("written", [FILES[:1], FILES[1:2], FILES])
def test_only_what_opnp_wrote_is_written_over(
    tmp_path: Path, there: tuple[str, ...], own: tuple[str, ...], written: tuple[str, ...]
) -> None:
    for place, name in enumerate(there):
        content = OWN if name in own else FOREIGN[(place + len(there)) % len(FOREIGN)]
        (tmp_path / name).write_text(content, encoding="utf-8")
    lost = [name for name in written if name in there and name not in own]  # all that is there and is no record
    is_own = bool({*own} & {*there})
    if lost and not (is_own and lost == ["results.md"]):
        with pytest.raises(DataFileError, match=r"holds (results\.json|sweep\.json|results\.md), which opnp did not"):
            require_own_results(tmp_path, files=written)
    else:
        require_own_results(tmp_path, files=written)


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("name", RECORD_FILES)
def test_a_file_of_others_with_the_name_of_a_record(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataFileError, match=f"holds {name}, which opnp did not write: name another folder"):
        require_own_results(tmp_path, files=[name])
    require_own_results(tmp_path / "new", files=[name])
    with pytest.raises(DataFileError, match="is a file: name a folder"):
        require_own_results(tmp_path / name, files=[name])
