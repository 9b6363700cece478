"""What ranks do in the tests: functions of a module, so that another process finds them by name."""

import os
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from opnp import OPNP, Checkpoint, Precision, Ratios, Settings
from opnp.data import feature_part, open_features, read_head
from opnp.detector import choosing, learning
from opnp.distributed import Ranks, gathered, require_equal, sent_by_first, summed, together
from opnp.errors import OptionError

__all__ = [
    "die",
    "fail",
    "fit",
    "fit_alone",
    "fit_loader",
    "hang",
    "sample",
    "sums",
    "tell",
    "unequal_heads",
    "unequal_settings",
]

Figures = dict[str, Tensor]


def sums(ranks: Ranks, parts: list[Figures]) -> Figures:
    """Add up what each rank has."""
    return summed(parts[ranks.rank], ranks)


def tell(ranks: Ranks, tensors: list[Tensor]) -> tuple[list[Tensor], bytes]:
    """Tell all ranks a tensor; and hear what rank 0 says."""
    return gathered(tensors[ranks.rank], ranks), sent_by_first(f"rank {ranks.rank}".encode(), ranks)


def fail(ranks: Ranks, failing: int) -> str:
    """Fail on one rank, after all have done something together."""
    with together(ranks):
        pass
    with together(ranks):
        if ranks.rank == failing:
            raise OptionError("the data of this rank are broken.")
    return "left the block"


def die(ranks: Ranks, dying: int) -> str:
    """Be killed on one rank."""
    with together(ranks):
        if ranks.rank == dying:
            os.kill(os.getpid(), signal.SIGKILL)
    return "left the block"


def hang(ranks: Ranks, hanging: int, seconds: float) -> str:
    """Keep the others waiting on one rank."""
    with together(ranks):
        if ranks.rank == hanging:
            time.sleep(seconds)
    return "left the block"


def unequal_heads(ranks: Ranks) -> str:
    """Fit two heads as one."""
    features, weight = torch.rand(50, 4), torch.full((3, 4), 1.0 + ranks.rank)
    OPNP(ratios=Ratios(w_min=0.3)).fit_features(features, weight=weight, bias=None, distributed=True)
    require_equal("the same", ranks, what="a word")
    return "fitted"


def unequal_settings(ranks: Ranks) -> str:
    """Fit with other ratios on each rank, one of them automatic."""
    ratios = Ratios(w_min=0.3) if ranks.is_first else "auto"
    OPNP(ratios=ratios).fit_features(torch.rand(50, 4), weight=torch.rand(3, 4), bias=None, distributed=True)  # type: ignore[arg-type]  # both are allowed
    return "fitted"


def figures(detector: OPNP) -> Figures:
    """Return what there is to compare of a detector."""
    found = {
        "weight": detector.sensitivity.weight,
        "neuron": detector.sensitivity.neuron_gradient,
        "count": torch.tensor(detector.sensitivity.count),
        "mask_weight": detector.masks.weight,
        "mask_neuron": detector.masks.neuron,
        "settings": torch.frombuffer(bytearray(repr(detector.settings).encode()), dtype=torch.uint8),
    }
    if detector.is_calibrated:
        found["calibration"] = detector.calibration_scores
    if detector.tuning is not None:
        found["holdout"] = torch.tensor(detector.tuning.chosen.holdout)
        found["samples"] = torch.tensor(detector.tuning.samples)
    return found


def fit_alone(
    folder: Path,
    *,
    ratios: Ratios | None,
    precision: Precision = "float32",
    is_held_out: bool = True,
    batch_size: int = 128,
    rows: int | None = None,
    ranks: Ranks | None = None,
    checkpoint: Checkpoint | None = None,
) -> Figures:
    """Fit on the cached features of a folder, alone or as one of several ranks."""
    source, head = open_features(folder / "train"), read_head(folder / "head.safetensors")
    detector = OPNP(ratios="auto" if ratios is None else ratios, precision=precision)
    held_out = open_features(folder / "validation.safetensors")  # rank 0 alone has it
    start, stop = (ranks or Ranks()).part(source.rows if rows is None else rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # automatic ratios on training data, and settings that round to nothing
        detector.fit_features(
            feature_part(source, start, stop),
            weight=head.weight,
            bias=head.bias,
            validation=held_out if is_held_out and (ranks is None or ranks.is_first) else None,
            batch_size=batch_size,
            checkpoint=checkpoint,
            distributed=ranks is not None,
        )
    return figures(detector)


def fit(ranks: Ranks, folder: Path, options: dict[str, object]) -> Figures:
    """Fit together on the cached features of a folder."""
    return fit_alone(folder, ranks=ranks, **options)  # type: ignore[arg-type]  # options of that very function


def sample(ranks: Ranks, folder: Path) -> tuple[Tensor, Tensor]:
    """Return the sample of training features, and their labels, that automatic ratios would be chosen on."""
    source, head = open_features(folder / "train"), read_head(folder / "head.safetensors")
    with patch.object(choosing, "TUNING_SAMPLES", 500), patch.object(learning, "TUNING_SAMPLES", 500):
        taking = learning.Learning(Settings(), is_held_out=False, ranks=ranks)
        taking.take_features(
            feature_part(source, *ranks.part(source.rows)),
            weight=head.weight,
            bias=None,
            labels=None,
            size=128,
            checkpoint=None,
            progress=None,
        )
        taking.join()
    features, labels = taking._reservoir.sample()
    assert labels is not None
    return features, labels


def fit_loader(ranks: Ranks | None, folder: Path, is_automatic: bool) -> Figures:
    """Fit a model on loaders of this rank's own part of the data."""
    whole, head = open_features(folder / "train"), read_head(folder / "head.safetensors")
    start, stop = (ranks or Ranks()).part(whole.rows)
    module = nn.Linear(whole.width, len(head.weight))
    module.weight.data, module.bias.data = head.weight, torch.zeros(len(head.weight))

    def loader(first: int, last: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        for row in range(first, last, 100):
            features, labels = whole.read(row, min(row + 100, last))
            yield features.float(), labels

    detector = OPNP(ratios="auto" if is_automatic else Ratios(w_min=0.3), precision="float64")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        detector.fit(
            nn.Sequential(nn.ReLU(), module),
            loader(start, stop),
            validation=loader(0, 200) if ranks is None or ranks.is_first else iter(()),
            distributed=ranks is not None,
        )
    return figures(detector)
