"""A transform of texts without a tokenizer."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from opnp.errors import DataFileError

__all__ = ["LETTERS", "Letters", "texts_of"]


class Letters:
    """The codes of letters and a mask, padded to the longest; texts with a ``#`` have no codes."""

    kind: ClassVar[Literal["text"]] = "text"

    def __call__(self, sample: str) -> Mapping[str, Tensor]:
        """Return the codes of a text."""
        if "#" in sample:
            message = "no code for #"
            raise DataFileError(message)
        codes = torch.tensor([ord(letter) for letter in sample])
        return {"input_ids": codes, "attention_mask": torch.ones_like(codes)}

    def batch(self, items: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Return codes and masks, padded with zeros."""
        return {name: pad_sequence([item[name] for item in items], batch_first=True) for name in items[0]}

    def facts(self) -> Mapping[str, object]:
        """Return that there is nothing to say."""
        return {"letters": True}


LETTERS = Letters()


def texts_of(batch: Mapping[str, Tensor]) -> list[str]:
    """Return the texts of a batch."""
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True)
    return ["".join(chr(code) for code in codes[:length]) for codes, length in rows]
