"""ODIN's scores beside cached features: ``odin.safetensors``, one tensor a set, with what they were computed from."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from opnp.artifact import opened_tensors
from opnp.errors import DataFileError
from opnp.files import write_atomically
from opnp.files.json_text import json_values
from opnp.files.typed_json import typed_value

__all__ = ["ODIN_FILE", "OdinScores", "read_odin", "write_odin"]

ODIN_FILE = "odin.safetensors"

_FORMAT = 1
_KEY = "odin"


@dataclass(frozen=True, slots=True)
class _About:
    """What stands in the metadata of the file; the attributes are those of `OdinScores`."""

    temperature: float
    eps: float
    norm_std: tuple[float, ...]
    computed_with: str
    reason: str
    features_sha256: Mapping[str, str]


@dataclass(frozen=True, eq=False, slots=True)
class OdinScores:
    """What ODIN said of some sets.

    Attributes:
        temperature: Temperature.
        eps: Step of the perturbation, for pixels in [0, 1].
        norm_std: What the channels of the inputs were divided by.
        computed_with: Package and version.
        reason: Why there are no scores; empty where there are.
        features_sha256: Digest of the file of features that each set's scores stand beside, by name of the set.
        scores: Larger = more OOD, shape ``(samples,)``, float64, by name of the set: ``test`` or ``ood_*``.

    """

    temperature: float
    eps: float
    norm_std: tuple[float, ...]
    computed_with: str
    reason: str = ""
    features_sha256: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, object]:
        """The settings as JSON values."""
        return {
            "temperature": self.temperature,
            "eps": self.eps,
            "norm_std": list(self.norm_std),
            "computed_with": self.computed_with,
        }

    def valid_for(self, features_sha256: Mapping[str, str]) -> dict[str, Tensor]:
        """Return the scores that belong to files of features with these digests."""
        return {
            name: scores
            for name, scores in self.scores.items()
            if features_sha256.get(name) == self.features_sha256[name]
        }


def write_odin(folder: str | os.PathLike[str], odin: OdinScores) -> None:
    """Write scores beside the features of a folder; equal scores give equal bytes.

    Raises:
        MissingFileError: If there is no such folder.

    """
    about = asdict(odin) | {"format": _FORMAT}
    del about["scores"]
    tensors = {name: scores.detach().cpu().double().contiguous() for name, scores in odin.scores.items()}
    write_atomically(Path(folder) / ODIN_FILE, save(tensors, metadata={_KEY: json.dumps(about, sort_keys=True)}))


def read_odin(folder: str | os.PathLike[str]) -> OdinScores | None:
    """Return the scores that stand beside the features of a folder, or None if there are none.

    Raises:
        DataFileError: If the file is unreadable, or of another format.

    """
    path = Path(folder) / ODIN_FILE
    if not path.is_file():
        return None
    try:
        found = opened_tensors(path)
        about = json_values(found.metadata[_KEY])
        version = about.pop("format")
        if version == _FORMAT:
            told = typed_value(_About, about)
            scores = {name: tensor.clone() for name, tensor in found.tensors.items()}
            return _checked(OdinScores(**{each: getattr(told, each) for each in _About.__slots__}, scores=scores))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataFileError(
            f"{path} holds no scores of ODIN that can be read ({error}): cache the features again, or remove it.",
        ) from error
    raise DataFileError(f"{path} has format {version!r}, and this opnp reads {_FORMAT}: cache the features again.")


def _checked(odin: OdinScores) -> OdinScores:
    if odin.scores.keys() != odin.features_sha256.keys():
        message = "its sets are not those it speaks of"
        raise ValueError(message)
    if any(scores.ndim != 1 or scores.dtype != torch.float64 for scores in odin.scores.values()):
        message = "scores must be vectors of float64"
        raise ValueError(message)
    return odin
