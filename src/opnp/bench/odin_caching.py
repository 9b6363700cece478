"""ODIN's scores computed with the model and its images, and stored beside the features of the same images."""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from opnp.adapters import ODIN_EPS, ODIN_TEMPERATURE, odin_scores
from opnp.bench.odin_file import OdinScores, read_odin, write_odin
from opnp.core.checks import require_finite
from opnp.errors import DataFileError, OpnpError
from opnp.model import BatchHalving

__all__ = ["cache_odin"]

_NO_IMAGES = (
    "ODIN changes the inputs by a small step in pixels: it needs floating-point images, and what they were divided by."
)


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
        The scores of all sets that have any, or why there are none: a model that ODIN fails on is no error.

    """
    if std is None:
        odin = OdinScores(ODIN_TEMPERATURE, ODIN_EPS, norm_std=(), computed_with="", reason=_NO_IMAGES)
        write_odin(folder, odin)
        return odin
    computed_with = f"pytorch-ood {version('pytorch-ood')}"
    empty = OdinScores(temperature=ODIN_TEMPERATURE, eps=ODIN_EPS, norm_std=std, computed_with=computed_with)
    try:
        stored = read_odin(folder)
    except DataFileError:  # damaged: computed again
        stored = None
    is_same = stored is not None and stored.settings == empty.settings
    scores = stored.valid_for(features_sha256) if stored is not None and is_same else {}
    reason = ""
    for name, loader in loaders.items():
        if name in scores:
            continue
        try:
            scores[name] = odin_scores(model, loader, std=std, device=device, halving=halving)
            _require_scores(scores[name], samples[name], name)
        except Exception as error:  # noqa: BLE001  # model and pytorch-ood may fail as they like: that is the result
            first_line = str(error).partition("\n")[0]
            is_ours = isinstance(error, OpnpError)
            reason = first_line if is_ours else f"ODIN raised {type(error).__name__}: {first_line}"
            break
    odin = OdinScores(
        temperature=ODIN_TEMPERATURE,
        eps=ODIN_EPS,
        norm_std=std,
        computed_with=computed_with,
        reason=reason,
        features_sha256={} if reason else {name: features_sha256[name] for name in scores},
        scores={} if reason else scores,
    )
    write_odin(folder, odin)
    return odin


def _require_scores(scores: Tensor, samples: int, name: str) -> None:
    """Raise if scores are not finite, or not of the samples that features are of."""
    if len(scores) != samples:
        raise DataFileError(
            f"{name} has changed: {len(scores)} inputs could be read, and there are {samples} features."
        )
    require_finite(scores, name="scores", where=f" of ODIN on {name}")
