"""ODIN's scores: computed with the model and its images, stored beside cached features as ``odin.safetensors``."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save
from torch import Tensor, nn

from opnp.adapters import ODIN_EPS, ODIN_TEMPERATURE, odin_scores
from opnp.artifact import opened_tensors
from opnp.core.checks import require_finite
from opnp.errors import DataFileError, OpnpError
from opnp.files import write_atomically
from opnp.model import BatchHalving
from opnp.values.reading import Value, json_values

__all__ = ["ODIN_FILE", "OdinAbout", "OdinScores", "cache_odin", "read_odin", "write_odin"]

ODIN_FILE = "odin.safetensors"

_FORMAT = 1
_KEY = "odin"
_NO_IMAGES = (
    "ODIN changes the inputs by a small step in pixels: it needs floating-point images, and what they were divided by."
)


class OdinAbout(Value, frozen=True):
    """What ODIN's scores were computed from: the metadata of their file.

    Attributes:
        temperature: Temperature.
        eps: Step of the perturbation, for pixels in [0, 1].
        norm_std: What the channels of the inputs were divided by.
        computed_with: Package and version.
        reason: Why there are none of some sets; empty where nothing failed.
        features_sha256: Digest of the file of features that each set's scores stand beside, by name of the set.

    """

    temperature: float
    eps: float
    norm_std: tuple[float, ...]
    computed_with: str
    reason: str = ""
    features_sha256: Mapping[str, str] = {}

    @property
    def settings(self) -> dict[str, object]:
        """The settings as JSON values."""
        return {
            "temperature": self.temperature,
            "eps": self.eps,
            "norm_std": list(self.norm_std),
            "computed_with": self.computed_with,
        }


@dataclass(frozen=True, eq=False, slots=True)
class OdinScores:
    """What ODIN said of some sets.

    Attributes:
        about: What the scores were computed from, or why some are missing.
        scores: Larger = more OOD, shape ``(samples,)``, float64, by name of the set: ``test`` or ``ood_*``.

    """

    about: OdinAbout
    scores: Mapping[str, Tensor] = field(default_factory=dict)

    def valid_for(self, features_sha256: Mapping[str, str]) -> dict[str, Tensor]:
        """Return the scores that belong to files of features with these digests."""
        return {
            name: scores
            for name, scores in self.scores.items()
            if features_sha256.get(name) == self.about.features_sha256[name]
        }


def cache_odin(
    model: nn.Module,
    loaders: Mapping[str, Iterable[object]],
    folder: Path,
    *,
    std: tuple[float, ...] | None,
    samples: Mapping[str, int],
    features_sha256: Mapping[str, str],
    device: torch.device | str | None = None,
    halving: BatchHalving | None = None,
) -> OdinScores:
    """Return ODIN's scores after writing them to a folder of features; those that are there already are kept.

    They are written after each set, so that what is cut short goes on from the sets that are done.

    Args:
        model: The model; it comes back as it was.
        loaders: Batches of images by name of the set. Each must have features in the folder.
        folder: The folder.
        std: What the channels of the images were divided by; None where that is not known, or these are no images:
            then there are no scores, and the reason is stored.
        samples: Rows of the files of features by name of the set.
        features_sha256: Digests of the files of features by name of the set.
        device: Where to run; None for where the model is.
        halving: How batches are run that need more memory than there is; None to refuse them.

    Returns:
        The scores of all sets that have any, and why others have none: a model that ODIN fails on is no error.

    """
    if std is None:
        odin = OdinScores(OdinAbout(ODIN_TEMPERATURE, ODIN_EPS, norm_std=(), computed_with="", reason=_NO_IMAGES))
        write_odin(folder, odin)
        return odin
    about = OdinAbout(ODIN_TEMPERATURE, ODIN_EPS, norm_std=std, computed_with=f"pytorch-ood {version('pytorch-ood')}")
    try:
        stored = read_odin(folder)
    except DataFileError:  # damaged: computed again
        stored = None
    is_same = stored is not None and stored.about.settings == about.settings
    scores = stored.valid_for(features_sha256) if stored is not None and is_same else {}
    for name, loader in loaders.items():
        if name in scores:
            continue
        try:
            found = odin_scores(model, loader, std=std, device=device, halving=halving)
            _require_scores(found, samples[name], name)
        except Exception as error:  # noqa: BLE001  # model and pytorch-ood may fail as they like: that is the result
            first_line = str(error).partition("\n")[0]
            is_ours = isinstance(error, OpnpError)
            reason = first_line if is_ours else f"ODIN raised {type(error).__name__}: {first_line}"
            about = msgspec.structs.replace(about, reason=reason)
            break
        scores[name] = found
        _stored(folder, about, scores, features_sha256)
    return _stored(folder, about, scores, features_sha256)


def _stored(
    folder: Path, about: OdinAbout, scores: Mapping[str, Tensor], features_sha256: Mapping[str, str]
) -> OdinScores:
    """Return scores with the digests of the features that they stand beside, after writing them."""
    digests = {name: features_sha256[name] for name in scores}
    odin = OdinScores(msgspec.structs.replace(about, features_sha256=digests), dict(scores))
    write_odin(folder, odin)
    return odin


def _require_scores(scores: Tensor, samples: int, name: str) -> None:
    """Raise if scores are not finite, or not of the samples that features are of."""
    if len(scores) != samples:
        raise DataFileError(
            f"{name} has changed: {len(scores)} inputs could be read, and there are {samples} features."
        )
    require_finite(scores, name="scores", where=f" of ODIN on {name}")


def write_odin(folder: str | os.PathLike[str], odin: OdinScores) -> None:
    """Write scores beside the features of a folder; equal scores give equal bytes.

    Raises:
        MissingFileError: If there is no such folder.

    """
    about = msgspec.to_builtins(odin.about) | {"format": _FORMAT}
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
        found_format = about.pop("format")
        if found_format == _FORMAT:
            told = msgspec.convert(about, OdinAbout)
            _require_fitting(told, found.tensors)
            return OdinScores(told, {name: tensor.clone() for name, tensor in found.tensors.items()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataFileError(
            f"{path} holds no scores of ODIN that can be read ({error}): cache the features again, or remove it.",
        ) from error
    raise DataFileError(f"{path} has format {found_format!r}, and this opnp reads {_FORMAT}: cache the features again.")


def _require_fitting(about: OdinAbout, scores: Mapping[str, Tensor]) -> None:
    if scores.keys() != about.features_sha256.keys():
        message = "its sets are not those it speaks of"
        raise ValueError(message)
    if any(each.ndim != 1 or each.dtype != torch.float64 for each in scores.values()):
        message = "scores must be vectors of float64"
        raise ValueError(message)
