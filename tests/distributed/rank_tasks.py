"""What ranks do in the tests: functions of a module, so that another process finds them by name."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from PIL.Image import Image
from torch import Tensor, nn

from opnp import OPNP, Checkpoint, Ratios
from opnp.bench import CacheReport
from opnp.bench import cache as cache_module
from opnp.core import Precision
from opnp.data import InputSet, feature_part, open_features, open_inputs, read_head
from opnp.detector import fit_pass
from opnp.distributed import Ranks, gathered, sent_by_first, summed, together
from opnp.errors import DataFileError, OptionError
from tests.unit.bench.image_world import INPUTS, cached, image_sets, tiny_model

Figures = dict[str, Tensor]


def sums(ranks: Ranks, parts: list[Figures]) -> Figures:
    """Add up what each rank has."""
    return summed(parts[ranks.rank], ranks)


def tell(ranks: Ranks, tensors: list[Tensor]) -> tuple[list[Tensor], bytes]:
    """Tell all ranks a tensor; and hear what rank 0 says."""
    return gathered(tensors[ranks.rank], ranks), sent_by_first(f"rank {ranks.rank}".encode(), ranks)


def trouble(ranks: Ranks, what: str, rank: int, seconds: float = 0) -> str:
    """Fail, be killed or keep the others waiting on one rank, after all have done something together."""
    with together(ranks):
        pass
    with together(ranks):
        if ranks.rank == rank and what == "fail":
            raise OptionError("the data of this rank are broken.")
        if ranks.rank == rank and what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if ranks.rank == rank:
            time.sleep(seconds)
    return "left the block"


def refuse(ranks: Ranks, what: str) -> str:
    """Fit together what cannot be: something is not the same on all ranks, or not right on rank 0, which reads it."""
    features, weight, first = torch.rand(50, 4), torch.ones(3, 4), ranks.is_first
    options: dict[str, Any] = {"validation": features}
    ratios: Ratios | Literal["tuned"] | None = None
    match what:
        case "heads":
            weight += ranks.rank
        case "settings":
            ratios = Ratios(w_min=0.3) if first else None
        case "no OOD data":
            ratios, options["validation_ood"] = "tuned", None if first else features
        case "width":
            options["validation"] = torch.rand(50, 5)
    OPNP(ratios=ratios).fit_features(features, weight=weight, bias=None, distributed=True, **options)
    return "fitted"


def figures(detector: OPNP) -> Figures:
    """Return what there is to compare of a detector."""
    found = {
        "weight": detector.sensitivity.weight,
        "neuron": detector.sensitivity.neuron_gradient,
        "count": torch.tensor([detector.sensitivity.count, detector.samples]),
        "mask_weight": detector.masks.weight,
        "mask_neuron": detector.masks.neuron,
        "settings": letters(detector.settings),
        "members": letters((detector.members, dict(detector.left_out))),
        "tuning": letters(detector.tuning),
        "scores": detector.score_features(torch.rand(60, 32, generator=torch.Generator().manual_seed(5))),
    }
    state = detector._fitted()
    if state.panel is not None and state.scales is not None:
        found |= {"scales": state.scales, "mean": state.panel.mean, "kept": torch.tensor(state.kept)}
    if detector.is_calibrated:
        found["calibration"] = detector.calibration_scores
    return found


def letters(value: object) -> Tensor:
    """Return a value in words as a tensor."""
    return torch.frombuffer(bytearray(repr(value).encode()), dtype=torch.uint8)


def fit_alone(
    folder: Path,
    *,
    options: dict[str, Any],
    precision: Precision = "float32",
    batch_size: int = 128,
    rows: int | None = None,
    ranks: Ranks | None = None,
    checkpoint: Checkpoint | None = None,
    kept_rows: int = fit_pass.KEPT_ROWS,
) -> Figures:
    """Fit on the cached features of a folder, or on their first rows; alone or as one of several ranks."""
    source, head = open_features(folder / "train"), read_head(folder / "head.safetensors")
    held_out = open_features(folder / "validation.safetensors")  # rank 0 alone has it
    ood = open_features(folder / "ood.safetensors")
    is_reading = ranks is None or ranks.is_first
    start, stop = (ranks or Ranks()).part(source.rows if rows is None else rows)
    with patch.object(fit_pass, "KEPT_ROWS", kept_rows):
        detector = OPNP(**options, precision=precision).fit_features(
            feature_part(source, start, stop),
            weight=head.weight,
            bias=head.bias,
            validation=held_out if is_reading else None,
            validation_ood=ood if is_reading and options.get("ratios") == "tuned" else None,
            batch_size=batch_size,
            checkpoint=checkpoint,
            distributed=ranks is not None,
        )
    return figures(detector)


def fit(ranks: Ranks, folder: Path, given: dict[str, Any]) -> Figures:
    """Fit together on the cached features of a folder."""
    return fit_alone(folder, ranks=ranks, **given)


def fit_loader(ranks: Ranks | None, folder: Path, options: dict[str, Any]) -> Figures:
    """Fit a model on loaders of this rank's own part of the data."""
    whole, head = open_features(folder / "train"), read_head(folder / "head.safetensors")
    start, stop = (ranks or Ranks()).part(whole.rows)
    module = nn.Linear(whole.width, len(head.weight))
    module.weight.data, module.bias.data = head.weight, torch.zeros(len(head.weight))

    def loader(first: int, last: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        for row in range(first, last, 100):
            features, labels = whole.read(row, min(row + 100, last))
            yield features.float(), labels

    is_reading = ranks is None or ranks.is_first
    detector = OPNP(**options, precision="float64").fit(
        nn.Sequential(nn.ReLU(), module),
        loader(start, stop),
        validation=loader(0, 200) if is_reading else iter(()),
        distributed=ranks is not None,
    )
    return figures(detector)


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
