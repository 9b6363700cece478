"""Every score of a benchmark in one Parquet file: model, set, method, index, score."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from opnp.errors import MissingExtraError
from opnp.files import write_atomically

__all__ = ["ScoreBlock", "require_parquet", "write_scores"]


@dataclass(frozen=True, eq=False, slots=True)
class ScoreBlock:
    """Scores of one method on one set of one model.

    Attributes:
        model: Name of the model.
        set: Name of the file of features without its ending: ``test`` or ``ood_*``.
        method: Name of the row.
        index: Rows of the file, shape ``(samples,)``, int64.
        score: Larger = more OOD, shape ``(samples,)``, float64.

    """

    model: str
    set: str
    method: str
    index: Tensor
    score: Tensor


def require_parquet() -> None:
    """Raise if pyarrow is not installed.

    Raises:
        MissingExtraError: If it is not; the message names the command that installs it.

    """
    if find_spec("pyarrow") is None:
        raise MissingExtraError("The score file needs pyarrow, which is not installed: `pip install 'opnp[bench]'`.")


def write_scores(path: str | os.PathLike[str], blocks: Sequence[ScoreBlock]) -> None:
    """Write blocks of scores one after another.

    Raises:
        MissingFileError: If the folder does not exist.

    """
    import pyarrow as pa
    from pyarrow import parquet

    lengths = torch.tensor([len(block.score) for block in blocks], dtype=torch.int64)

    def names(values: list[str]) -> Any:  # noqa: ANN401  # pyarrow ships no types
        distinct = list(dict.fromkeys(values))
        codes = torch.tensor([distinct.index(value) for value in values], dtype=torch.int32)
        return pa.DictionaryArray.from_arrays(codes.repeat_interleave(lengths).numpy(), pa.array(distinct, pa.string()))

    columns = {
        "model": names([block.model for block in blocks]),
        "set": names([block.set for block in blocks]),
        "method": names([block.method for block in blocks]),
        "index": torch.cat([torch.empty(0, dtype=torch.int64), *(block.index for block in blocks)]).numpy(),
        "score": torch.cat([torch.empty(0, dtype=torch.float64), *(block.score for block in blocks)]).numpy(),
    }
    content = io.BytesIO()
    parquet.write_table(pa.table(columns), content, compression="zstd", write_page_checksum=True)
    write_atomically(path, content.getvalue())
