"""What ranks do in the tests of caching: functions of a module, so that another process finds them by name."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL.Image import Image

from opnp.bench import CacheReport
from opnp.bench import cache as cache_module
from opnp.data import InputSet, open_inputs
from opnp.distributed import Ranks
from opnp.errors import DataFileError
from tests.unit.bench.image_world import INPUTS, cached, image_sets, tiny_model

__all__ = ["cache", "cache_other_models", "cache_tree", "cache_with_a_broken_image"]


def cache(ranks: Ranks, folder: Path, options: dict[str, Any], piece: int | None = None) -> dict[str, Any]:
    """Cache the images of a folder together, and return what this rank knows of it."""
    with patch.object(cache_module, "_PIECE", cache_module._PIECE if piece is None else piece):
        report = cached(tiny_model(), image_sets(folder), folder / "together", distributed=True, **options)
    return _facts(report)


def cache_with_a_broken_image(ranks: Ranks, folder: Path, failing: int) -> str:
    """Cache images, one of which one rank cannot read."""
    sets = image_sets(folder)
    if ranks.rank == failing:
        sets["test"] = InputSet(_Broken(sets["test"].source), sets["test"].transform, is_strict=True)  # type: ignore[arg-type]  # stands in for it
    cached(tiny_model(), sets, folder / "together", is_odin_wanted=False, distributed=True)
    return "cached"


def cache_tree(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Cache the images of a tree together, and return what this rank knows of them."""
    inputs = open_inputs(folder / "tree", INPUTS)
    options: dict[str, Any] = {"dtype": torch.float32, "is_odin_wanted": False, "batch_size": 2}
    report = cached(tiny_model(), {"test": inputs}, folder / "together", distributed=True, **options)
    found = report.source.sets["test"]
    assert found.unreadable == inputs.unreadable
    return {
        "samples": found.samples,
        "unreadable": [name for name, _ in found.unreadable],
        "accuracy": found.accuracy,
    }


def cache_other_models(ranks: Ranks, folder: Path) -> str:
    """Cache with another model on each rank."""
    model = tiny_model(seed=ranks.rank)
    cached(model, image_sets(folder), folder / "together", is_odin_wanted=False, distributed=True)
    return "cached"


class _Broken:
    """Images of which none can be read."""

    def __init__(self, images: object) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)  # type: ignore[arg-type]  # images have a length

    def __getattr__(self, name: str) -> object:
        return getattr(self._images, name)

    def sample(self, _index: int) -> Image:
        message = "the image is broken"
        raise DataFileError(message)


def _facts(report: CacheReport) -> dict[str, Any]:
    return {
        "computed": list(report.computed),
        "kept": list(report.kept),
        "accuracy": {name: found.accuracy for name, found in report.source.sets.items()},
    }
