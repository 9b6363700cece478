"""A pass over cached features: blocks of tensors and sources, memory that does not grow, and checkpoints."""

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors import safe_open
from torch import Tensor

from benchmarks.random_shards import write_random_shards
from opnp import OPNP, Checkpoint, Ratios, ReAct, Settings
from opnp.artifact import read_artifact, write_artifact
from opnp.data import FeatureShardWriter, feature_part, open_features, write_features
from opnp.data.parquet import ParquetFeatures
from opnp.detector import fit_pass
from opnp.detector.fit_pass import FORMAT_VERSION, FitSum
from opnp.distributed import Ranks
from opnp.errors import (
    CheckpointError,
    DataFileError,
    EmptyDataError,
    InputTypeError,
    NonFiniteError,
    OptionError,
    ShapeError,
)
from tests.unit.detector.detector_world import CLASSES, FEATURES, KINDS, bias, features, fitted, made, weight

RATIOS = Ratios(w_min=0.3)
both_kinds = pytest.mark.parametrize("kind", KINDS)


# ------------------------------------------------------------------------------------------------------------ sources
@dataclass
class OwnSource:
    """A user's own source: remembers what was read, and what it gave."""

    given: Tensor
    labels: Any = None
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

    def read(self, start: int, stop: int) -> tuple[Tensor, Any]:
        self.ranges.append((start, stop))
        rows = self.given[start:stop].clone()
        self.alive.append(weakref.ref(rows))
        return rows, None if self.labels is None else self.labels[start:stop]

    def digest(self) -> str:
        return "mine"


@pytest.mark.parametrize("options", [{}, {"ratios": RATIOS}, {"shaping": ReAct(0.8)}], ids=["fusion", "paper", "react"])
def test_a_source_gives_what_its_tensor_gives_and_labels_change_nothing(tmp_path: Path, options: Any) -> None:
    given = features(200)
    labels = torch.arange(200) % CLASSES
    with FeatureShardWriter(tmp_path / "shards", rows_per_shard=13, dtype=torch.float32) as writer:
        writer.write(given, labels)
    sources = (given, open_features(tmp_path / "shards"), OwnSource(given), OwnSource(given, labels))
    one, *others = (
        OPNP(**options).fit_features(source, weight=weight(), bias=bias(), validation=source) for source in sources
    )
    for other in others:
        assert torch.equal(other.sensitivity.weight, one.sensitivity.weight)
        assert torch.equal(other.calibration_scores, one.calibration_scores)
        assert torch.equal(other.calibrate_features(sources[1]).calibration_scores, one.calibration_scores)


@both_kinds
def test_blocks_are_read_once_in_order_and_let_go(kind: str) -> None:
    source = OwnSource(features(100))
    made(kind).fit_features(source, weight=weight(), bias=bias(), batch_size=33)
    assert source.ranges == [(0, 33), (33, 66), (66, 99), (99, 100)]
    gc.collect()
    assert [reference() for reference in source.alive] == [None] * 4
    source.ranges.clear()
    part = feature_part(source, 40, 90)  # which is cut where the whole would be
    made(kind).fit_features(part, weight=weight(), bias=bias(), batch_size=33)
    assert source.ranges == [(40, 66), (66, 90)]


def test_messages_count_rows_from_the_beginning_of_the_whole() -> None:
    broken = features(100)
    broken[71, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"1 NaN.*rows 71\)"):
        OPNP().fit_features(feature_part(OwnSource(broken), 50, 100), weight=weight(), bias=bias())


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (OwnSource(torch.ones(5, FEATURES + 1)), {}, ShapeError, f"`features` must have {FEATURES} columns.*got shape"),
        (OwnSource(torch.ones(0, FEATURES)), {}, EmptyDataError, "`features` has no rows"),
        (OwnSource(features(), torch.arange(60)), {}, OptionError, "`labels` must lie in 0 to 3"),
        (OwnSource(features(), torch.full((60,), 0.5)), {}, InputTypeError, "got 0.5: targets of a regression"),
        (OwnSource(features(), ["cat"] * 60), {}, InputTypeError, "got names such as 'cat'"),
        (OwnSource(features(), torch.zeros(59).long()), {}, ShapeError, r"`labels` must have shape \(60,\)"),
        (OwnSource(features().long()), {}, DataFileError, r"must give floating-point.*got torch\.int64"),
        (OwnSource(features()), {"batch_size": 0}, OptionError, "`batch_size` must be a positive number"),
        (OwnSource(features()), {"distributed": True}, OptionError, r"`distributed=True` needs a process group"),
        (Path("features"), {}, InputTypeError, r"`features` must be a torch\.Tensor.*got PosixPath"),
    ],
)
@both_kinds
def test_sources_that_do_not_fit(
    kind: str, source: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    detector = made(kind)
    with pytest.raises(error, match=message):
        detector.fit_features(source, weight=weight(), bias=bias(), **options)
    assert not detector.is_fitted


def test_scores_are_asked_for_tensors() -> None:
    with pytest.raises(InputTypeError, match=r"`features` must be a torch\.Tensor.*got OwnSource"):
        fitted().score_features(OwnSource(features()))  # type: ignore[arg-type]  # the test


# ----------------------------------------------------------------------------------------------------------- the sums
@pytest.mark.parametrize("options", [{"settings": Settings(temperature=2.0)}, {"weight": 2 * weight()}])
def test_sums_of_other_heads_or_settings_are_not_merged(options: dict[str, Any]) -> None:
    arguments = {"weight": weight(), "bias": None, "settings": Settings()}
    one, other = (FitSum.zeros(**given) for given in (arguments, arguments | options))
    with pytest.raises(OptionError, match="only if head and settings are the same"):
        one + other  # the sum is the test
    with pytest.raises(EmptyDataError, match="There are no training samples"):
        (one + one).fitted()


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


@pytest.mark.slow
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


# -------------------------------------------------------------------------------------------------------- checkpoints
ROWS, BLOCK, KEPT = 200, 10, 50
FIXED = Settings(ratios=RATIOS, shaping=ReAct(0.9))
FUSED = Settings.of_fusion()
both_settings = pytest.mark.parametrize("settings", [FIXED, FUSED], ids=["react", "fusion"])


class Killed(Exception):  # noqa: N818  # no error: what stands for the end of a process
    """Stands for the end of a process in the middle of a pass."""


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """Return a checkpoint, and let the sample that scales are taken of be smaller than the data."""
    monkeypatch.setattr(fit_pass, "KEPT_ROWS", KEPT)
    return Checkpoint(tmp_path / "fit.checkpoint", every=3)


def fit(checkpoint: Checkpoint | None, settings: Settings = FIXED, **changes: Any) -> OPNP:
    given: dict[str, Any] = {
        "features": features(ROWS),
        "weight": weight(),
        "bias": bias(),
        "batch_size": BLOCK,
    } | changes
    return OPNP.from_settings(settings).fit_features(checkpoint=checkpoint, **given)


def blocks_of(checkpoint: Checkpoint, settings: Settings, *, killed_after: int | None) -> tuple[int, OPNP | None]:
    """Return how many blocks a pass goes through, and the detector if it is not killed before."""
    seen: list[Any] = []

    def watched(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            if len(seen) == killed_after:
                raise Killed
            seen.append(item)
            yield item

    try:
        detector = fit(checkpoint, settings, progress=watched)
    except Killed:
        return len(seen), None
    return len(seen), detector


@both_settings
def test_a_pass_that_was_killed_ends_in_the_same_bits(checkpoint: Checkpoint, settings: Settings) -> None:
    kills = (7, 0, 8, 2, None, None)
    runs = [blocks_of(checkpoint, settings, killed_after=killed_after) for killed_after in kills]
    # Each goes on from the last checkpoint, after 6 and 12 blocks, and at last 18 of 20.
    assert [count for count, _ in runs] == [7, 0, 8, 2, 8, 2]
    detector = runs[-1][1]
    assert detector is not None
    found, straight, probe = detector._fitted(), fit(None, settings)._fitted(), features(30, seed=1)
    assert (found.sensitivity.count, found.kept) == ((ROWS - 40, 40) if settings.is_fusion else (ROWS, 0))
    assert torch.equal(found.sensitivity.weight, straight.sensitivity.weight)
    assert found.react_thresholds == straight.react_thresholds
    assert torch.equal(found.scores(probe), straight.scores(probe))


def test_held_out_samples_are_no_part_of_the_run_and_remove_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / ".fit.checkpoint.abc.part").write_bytes(b"what a killed writer left")
    fit(checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["fit.checkpoint"]
    assert len(fit(checkpoint, validation=features(40, seed=3)).calibration_scores) == 40
    for name in (".fit.checkpoint.xyz.part", ".other.xyz.part"):
        (tmp_path / name).write_bytes(b"half")
    for _ in range(2):
        checkpoint.remove()
    assert [path.name for path in tmp_path.iterdir()] == [".other.xyz.part"]


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (FIXED, {"batch_size": 20}, r"batch size: 10 there, 20 here\)"),
        (FIXED, {"features": features(ROWS, seed=1)}, r"data: [0-9a-f]{12} there, [0-9a-f]{12} here\)"),
        (FIXED, {"features": features(ROWS - 1)}, r"data: .*; rows: \[0, 200\] there, \[0, 199\] here\)"),
        (FIXED, {"weight": 2 * weight()}, r"head: [0-9a-f]{12} there, [0-9a-f]{12} here\)"),
        (FIXED, {"bias": None}, "head: "),
        (Settings(temperature=2.0), {}, r"settings: .* there, .*'temperature': 2\.0.* here\)"),
        (FUSED, {}, r"settings: .* there, \{'members': \['gen', .* here\)"),
    ],
)
def test_another_run_is_refused_with_the_reason(
    checkpoint: Checkpoint, settings: Settings, changes: dict[str, Any], message: str
) -> None:
    fit(checkpoint)
    content = checkpoint.file(Ranks()).read_bytes()
    with pytest.raises(CheckpointError, match=rf"fit\.checkpoint is a checkpoint of another run \({message}") as caught:
        fit(checkpoint, settings, **changes)
    assert "remove the file to start over" in str(caught.value)
    assert checkpoint.file(Ranks()).read_bytes() == content
    assert fit(checkpoint).is_fitted


def test_other_threads_and_another_part_of_the_data_are_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, threads = OwnSource(features(ROWS)), torch.get_num_threads()
    fit(checkpoint, features=feature_part(source, 0, 100))
    with pytest.raises(CheckpointError, match=r"\(rows: \[0, 100\] there, \[100, 200\] here\)"):
        fit(checkpoint, features=feature_part(source, 100, 200))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    with pytest.raises(CheckpointError, match=rf"\(threads: {threads} there, {threads + 1} here\)"):
        fit(checkpoint, features=feature_part(source, 0, 100))


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def of_version(version: int) -> Callable[[Path], None]:
    return lambda path: write_artifact(
        path, kind="fit checkpoint", format_version=version, tensors={}, metadata={"run": {}}
    )


def test_a_pass_over_the_columns_of_a_table_in_another_order_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path, names = tmp_path / "rows.parquet", [f"f{place}" for place in range(FEATURES)]
    parquet.write_table(pa.table(dict(zip(names, features(100).numpy().T, strict=True))), path)
    for opened in (open_features, ParquetFeatures):
        fit(checkpoint, features=opened(path))
        with pytest.raises(CheckpointError, match=r"\(columns: \['f0', .* there, \['f11', .* here\)"):
            fit(checkpoint, features=opened(path, feature_names=names[::-1]))
        assert fit(checkpoint, features=opened(path)).is_fitted
        checkpoint.remove()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-100]),
            "no readable safetensors file .*If it is a checkpoint, remove it .*another",
        ),
        (lambda path: path.write_bytes(b""), "no readable safetensors file"),
        (damaged, "is damaged: its content does not match its own SHA-256"),
        (lambda path: write_features(path, features()), "holds no opnp metadata"),
        (fitted().save, r"holds an opnp detector, not a fit checkpoint\. If it is a checkpoint, remove it"),
        (of_version(FORMAT_VERSION + 1), f"has format version {FORMAT_VERSION + 1}"),
        (of_version(FORMAT_VERSION), "lacks something that a checkpoint must hold"),
    ],
)
def test_what_is_no_sound_checkpoint_is_refused_and_left_alone(
    checkpoint: Checkpoint, change: Callable[[Path], None], message: str
) -> None:
    fit(checkpoint)
    path = checkpoint.file(Ranks())
    change(path)
    content = path.read_bytes()
    with pytest.raises(CheckpointError, match=message):
        fit(checkpoint)
    assert path.read_bytes() == content


def rewrite(checkpoint: Checkpoint, tensors: Mapping[str, Tensor | None], *, blocks: int | None = None) -> None:
    """Write a checkpoint again with other tensors and a digest that fits it; None is one that is missing."""
    path = checkpoint.file(Ranks())
    found, metadata = read_artifact(path, kind="fit checkpoint", format_version=FORMAT_VERSION)
    kept = {name: tensor for name, tensor in {**found, **tensors}.items() if tensor is not None}
    metadata |= {} if blocks is None else {"blocks": blocks}
    write_artifact(path, kind="fit checkpoint", format_version=FORMAT_VERSION, tensors=kept, metadata=metadata)


@pytest.mark.parametrize(
    "changes",
    [
        {"kept.rows": None},
        {"kept.rows": None, "kept.hashes": None},
        {"kept.hashes": torch.zeros(KEPT)},
        {"kept.rows": torch.zeros(KEPT - 1, FEATURES).double()},
        {"product": None},
        {"class_count": torch.zeros(3).long()},
        {"histogram": None},
        {"more": torch.zeros(1)},
    ],
    ids=range(8),
)
def test_sums_that_are_not_those_of_the_run_are_refused(
    checkpoint: Checkpoint, changes: dict[str, Tensor | None]
) -> None:
    fit(checkpoint, FUSED)
    rewrite(checkpoint, changes)
    with pytest.raises(CheckpointError, match=r"holds other sums than those of this run\. Remove it to start over"):
        fit(checkpoint, FUSED)


@both_settings
def test_a_checkpoint_of_more_blocks_or_of_no_sample_is_refused(checkpoint: Checkpoint, settings: Settings) -> None:
    fit(checkpoint, settings)
    empty = {"kept.hashes": torch.full((KEPT,), 2**63 - 1)} if settings.is_fusion else {}
    for tensors, blocks in (({}, ROWS // BLOCK + 1), ({"count": torch.tensor([0]), **empty}, 18)):
        rewrite(checkpoint, tensors, blocks=blocks)
        with pytest.raises(CheckpointError, match="speaks of other data than there are"):
            fit(checkpoint, settings)


def test_a_checkpoint_says_what_it_belongs_to(checkpoint: Checkpoint) -> None:
    fit(checkpoint)
    with safe_open(checkpoint.file(Ranks()), framework="pt") as file:
        metadata = json.loads(json.loads(file.metadata()["opnp"])["body"])["metadata"]
    assert metadata["blocks"] == 18
    assert {"batch size", "data", "head", "ranks", "settings", "threads"} < set(metadata["run"])


@pytest.mark.parametrize("every", [0, -1, True, 1.5])
def test_a_number_of_blocks_that_is_none(every: Any) -> None:
    with pytest.raises(OptionError, match=r"`Checkpoint\.every` must be a positive number"):
        Checkpoint("file", every=every)


def test_a_folder_that_is_missing_is_said_at_the_first_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing is no folder"):
        fit(Checkpoint(tmp_path / "missing" / "file", every=1))
