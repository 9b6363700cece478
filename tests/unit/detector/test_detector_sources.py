"""Fitting and calibrating on sources: the same as on tensors, block by block, in memory that does not grow."""

import gc
import os
import subprocess
import sys
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.random_shards import write_random_shards
from opnp import OPNP, Ratios, ReAct
from opnp.data import FeatureShardWriter, FeatureSource, feature_part, open_features
from opnp.errors import (
    DataFileError,
    EmptyDataError,
    InputTypeError,
    NonFiniteError,
    OptionError,
    ShapeError,
)
from tests.unit.detector.detector_world import CLASSES, FEATURES, KINDS, bias, features, fitted, fused, made, weight

RATIOS = Ratios(w_min=0.3)


@dataclass
class OwnSource:
    """A user's own source: remembers what was read, and what it gave."""

    given: Tensor
    labels: Tensor | None = None
    first_row: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)
    alive: list["weakref.ref[Tensor]"] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.given)

    @property
    def width(self) -> int:
        return self.given.shape[1]

    @property
    def is_labelled(self) -> bool:
        return self.labels is not None

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        self.ranges.append((start, stop))
        rows = self.given[start:stop].clone()
        self.alive.append(weakref.ref(rows))
        return rows, None if self.labels is None else self.labels[start:stop]

    def digest(self) -> str:
        return "mine"


@pytest.fixture
def shards(tmp_path: Path) -> FeatureSource:
    """Return the features of the tests as shards."""
    with FeatureShardWriter(tmp_path / "shards", rows_per_shard=13, dtype=torch.float32) as writer:
        writer.write(features(), torch.arange(60) % CLASSES)
    return open_features(tmp_path / "shards")


@pytest.mark.parametrize("shaping", [None, ReAct(0.8)])
def test_a_source_gives_what_its_tensor_gives(shards: FeatureSource, shaping: ReAct | None) -> None:
    detector = OPNP(ratios=RATIOS, shaping=shaping)
    detector.fit_features(shards, weight=weight(), bias=bias(), validation=shards)
    other = OPNP(ratios=RATIOS, shaping=shaping)
    other.fit_features(features(), weight=weight(), bias=bias(), validation=features())
    require_equal(detector, other, shards)


def test_a_source_gives_the_fusion_that_its_tensor_gives(shards: FeatureSource) -> None:
    detector = OPNP().fit_features(shards, weight=weight(), bias=bias(), validation=shards)
    other = OPNP().fit_features(features(), weight=weight(), bias=bias(), validation=features())
    require_equal(detector, other, shards)
    assert detector.members == other.members
    assert torch.equal(detector.score_features(features(seed=1)), other.score_features(features(seed=1)))


def require_equal(detector: OPNP, other: OPNP, shards: FeatureSource) -> None:
    assert torch.equal(detector.sensitivity.weight, other.sensitivity.weight)
    assert torch.equal(detector.sensitivity.neuron_gradient, other.sensitivity.neuron_gradient)
    assert torch.equal(detector.calibration_scores, other.calibration_scores)
    assert torch.equal(detector.calibrate_features(shards).calibration_scores, other.calibration_scores)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_a_source_change_nothing(kind: str) -> None:
    given = features(200)
    labelled, plain = (
        made(kind).fit_features(source, weight=weight(), bias=bias(), validation=source)
        for source in (OwnSource(given, torch.arange(200) % CLASSES), OwnSource(given))
    )
    assert torch.equal(labelled.sensitivity.weight, plain.sensitivity.weight)
    assert torch.equal(labelled.calibration_scores, plain.calibration_scores)


def test_ratios_are_tuned_on_sources() -> None:
    held_out, ood = features(200, seed=1), 2 * features(200, seed=2)
    by_tensors, by_sources = (
        OPNP(ratios="tuned").fit_features(
            features(), weight=weight(), bias=bias(), validation=given(held_out), validation_ood=given(ood)
        )
        for given in (torch.Tensor.clone, OwnSource)
    )
    assert by_sources.tuning == by_tensors.tuning
    assert by_sources.tuning is not None
    assert torch.equal(by_sources.calibration_scores, by_tensors.calibration_scores)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_read_once_in_order_and_let_go(kind: str) -> None:
    source = OwnSource(features(100))
    made(kind).fit_features(source, weight=weight(), bias=bias(), batch_size=33)
    assert source.ranges == [(0, 33), (33, 66), (66, 99), (99, 100)]
    gc.collect()
    assert [reference() for reference in source.alive] == [None] * 4


def test_a_part_is_cut_where_the_whole_would_be() -> None:
    source = OwnSource(features(100))
    OPNP(ratios=RATIOS).fit_features(feature_part(source, 40, 90), weight=weight(), bias=bias(), batch_size=33)
    assert source.ranges == [(40, 66), (66, 90)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 7, 60, 8192])
def test_the_batch_size_moves_nothing_in_float64(kind: str, batch_size: int) -> None:
    one = made(kind, precision="float64").fit_features(features(), weight=weight(), bias=bias())
    other = made(kind, precision="float64").fit_features(
        features(), weight=weight(), bias=bias(), batch_size=batch_size
    )
    assert torch.equal(one.masks.weight, other.masks.weight)
    torch.testing.assert_close(other.sensitivity.weight, one.sensitivity.weight, rtol=1e-12, atol=0)


def test_messages_count_rows_from_the_beginning_of_the_whole() -> None:
    broken = features(100)
    broken[71, 3] = float("nan")
    part = feature_part(OwnSource(broken), 50, 100)
    with pytest.raises(NonFiniteError, match=r"1 NaN.*rows 71\)"):
        OPNP(ratios=RATIOS).fit_features(part, weight=weight(), bias=bias())


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (OwnSource(torch.ones(5, FEATURES + 1)), {}, ShapeError, f"`features` must have {FEATURES} columns.*got shape"),
        (OwnSource(torch.ones(0, FEATURES)), {}, EmptyDataError, "`features` has no rows"),
        (OwnSource(features(), torch.arange(60)), {}, OptionError, "`labels` must lie in 0 to 3"),
        (OwnSource(features(), torch.zeros(60)), {}, InputTypeError, "`labels` must be integer class indices"),
        (OwnSource(features(), torch.zeros(59).long()), {}, ShapeError, r"`labels` must have shape \(60,\)"),
        (OwnSource(features().long()), {}, DataFileError, r"must give floating-point.*got torch\.int64"),
        (OwnSource(features()), {"batch_size": 0}, OptionError, "`batch_size` must be a positive number"),
        (Path("features"), {}, InputTypeError, r"`features` must be a torch\.Tensor.*got PosixPath"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_sources_that_do_not_fit(
    kind: str, source: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    detector = made(kind)
    with pytest.raises(error, match=message):
        detector.fit_features(source, weight=weight(), bias=bias(), **options)
    assert not detector.is_fitted


def test_scores_are_asked_for_tensors() -> None:
    for detector in (fitted(), fused(60)):
        with pytest.raises(InputTypeError, match=r"`features` must be a torch\.Tensor.*got OwnSource"):
            detector.score_features(OwnSource(features()))  # type: ignore[arg-type]  # the test


def test_ranks_without_a_process_group() -> None:
    with pytest.raises(OptionError, match=r"`distributed=True` needs a process group"):
        OPNP(ratios=RATIOS).fit_features(features(), weight=weight(), bias=bias(), distributed=True)


# ------------------------------------------------------------------------------------------------------------ memory
MEASURED = """
import sys
from opnp import OPNP, Ratios
from benchmarks.anonymous_memory import anonymous_memory
from opnp.data import open_features, read_head

source, head = open_features(sys.argv[1]), read_head(sys.argv[2])
detector = OPNP() if sys.argv[3] == "fusion" else OPNP(ratios=Ratios(w_min=0.3))
step = lambda: detector.fit_features(source, weight=head.weight, bias=None, batch_size=1024)
_, memory = anonymous_memory(step)
print(detector.samples, memory.growth)
"""


def growth(folder: Path, rows: int, *, kind: str, width: int) -> int:
    """Return by how many bytes of its own memory a process grows that fits on so many rows."""
    folder.mkdir()
    shards, head = write_random_shards(folder, rows=rows, features=width, classes=20)
    command = [sys.executable, "-c", MEASURED, str(shards), str(head), kind]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}  # what a block held is given back with the block
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100, env=environment)
    found = run.stdout.split()
    assert int(found[0]) == rows
    return int(found[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="anonymous memory is read from /proc")
@pytest.mark.parametrize(
    ("kind", "width", "rows", "most"),
    [("paper", 1024, (25_000, 100_000), 100_000_000), ("fusion", 512, (10_000, 60_000), 130_000_000)],
    ids=["paper", "fusion"],
)
def test_memory_does_not_grow_with_the_number_of_rows(
    tmp_path: Path, kind: str, width: int, rows: tuple[int, int], most: int
) -> None:
    """In float16 the rows that one has more than the other are 154 MB and 51 MB: what they would take if held whole.

    A fusion holds at most 2000 rows and two matrices of pairs of features, in float64: 12 MB at 512 features.
    """
    small, large = (growth(tmp_path / str(count), count, kind=kind, width=width) for count in rows)
    held_whole = 2 * width * (rows[1] - rows[0])
    assert large - small < 0.39 * held_whole  # blocks come and go: what a sample sees of them varies
    assert large < most
