"""Two gloo processes: the same sums, masks and settings as one, and one error for all."""

from pathlib import Path
from typing import Any

import pytest
import torch

from opnp import Checkpoint, Ratios
from opnp.data import FeatureShardWriter, write_features, write_head
from opnp.errors import CheckpointError
from tests.distributed import rank_tasks
from tests.distributed.rank_tasks import Figures, fit_alone, fit_loader
from tests.distributed.rank_world import on_ranks

ROWS, CLASSES, FEATURES = 3001, 12, 32
FIXED: dict[str, Any] = {"options": {"ratios": Ratios(w_min=0.3, w_max=0.01, o_max=0.1)}}
FUSED: dict[str, Any] = {"options": {}, "kept_rows": 300}
TUNED: dict[str, Any] = {"options": {"ratios": "tuned"}}
both_kinds = pytest.mark.parametrize("given", [FIXED, FUSED], ids=["paper", "fusion"])


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """Return a folder with training shards, validation features and a head."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(CLASSES, FEATURES, generator=generator)
    write_head(tmp_path / "head.safetensors", weight, bias=torch.zeros(CLASSES))
    with FeatureShardWriter(tmp_path / "train", rows_per_shard=700) as writer:
        features = torch.randn(ROWS, FEATURES, generator=generator).relu()
        writer.write(features, (features @ weight.T).argmax(1))
    features = torch.randn(300, FEATURES, generator=generator).relu()
    write_features(tmp_path / "validation.safetensors", features, labels=(features @ weight.T).argmax(1))
    write_features(tmp_path / "ood.safetensors", torch.rand(200, FEATURES, generator=generator))
    return tmp_path


def assert_same(one: Figures, other: Figures, *, names: set[str] | None = None) -> None:
    assert set(one) == set(other)
    for name in names or set(one):
        assert torch.equal(one[name], other[name]), name


def test_sums_are_taken_in_rank_order_and_are_the_same_bits_on_all_ranks(tmp_path: Path) -> None:
    """1 + 2^53 - 2^53 + 1 in float64 is 2 or 1, by the order."""
    generator = torch.Generator().manual_seed(0)
    scale = 2.0 ** torch.tensor([0, 40, 53, 53])
    parts = [
        {"a": torch.randn(1000, generator=generator, dtype=torch.float64) * scale[rank], "b": torch.tensor([rank + 1])}
        for rank in range(4)
    ]
    expected = ((parts[0]["a"] + parts[1]["a"]) + parts[2]["a"]) + parts[3]["a"]
    assert not torch.equal(expected, parts[3]["a"] + parts[2]["a"] + parts[1]["a"] + parts[0]["a"])
    for found in on_ranks(tmp_path, 4, rank_tasks.sums, parts):
        assert torch.equal(found["a"], expected)
        assert found["b"].tolist() == [10]
        assert found["b"].dtype == torch.int64


DECIDED = {"mask_weight", "mask_neuron", "settings", "members", "tuning", "count"}


@pytest.mark.parametrize(
    ("given", "world", "precision"),
    [
        (FIXED, 2, "float32"),
        (FUSED, 2, "float32"),
        (FUSED | {"kept_rows": 2000}, 2, "float64"),
        (FUSED | {"kept_rows": 100}, 3, "float64"),
        (TUNED | {"rows": 1200}, 2, "float64"),
    ],
)
def test_a_fit_of_ranks_is_that_of_one_process(cached: Path, given: dict[str, Any], world: int, precision: str) -> None:
    """Each rank keeps rows of its own part, and rank 0 alone reads what is held out, and tells what was chosen."""
    given = given | {"precision": precision}
    alone = fit_alone(cached, **given)
    first, *others = on_ranks(cached, world, rank_tasks.fit, cached, given)
    for other in others:
        assert_same(first, other)
    assert_same(first, alone, names=DECIDED)
    tolerance = 1e-12 if precision == "float64" else 1e-6
    torch.testing.assert_close(first["weight"], alone["weight"], rtol=tolerance, atol=0)
    if "kept" in first:
        kept = min(given["kept_rows"], ROWS // 5)
        assert int(first["kept"]) == kept
        assert first["count"].tolist() == [ROWS - kept, ROWS]
        torch.testing.assert_close(first["mean"], alone["mean"], rtol=1e-12, atol=0)
        torch.testing.assert_close(first["scales"], alone["scales"], rtol=1e-9, atol=1e-9)
        tolerance = 1e-5
    for name in ("scores", "calibration"):
        torch.testing.assert_close(first[name], alone[name], rtol=tolerance, atol=tolerance)
    assert ("tuned" in given["options"].values()) == bytes(first["tuning"].tolist()).startswith(b"Tuning(")


@both_kinds
def test_float64_masks_are_equal_for_any_ranks_and_batch_sizes(cached: Path, given: dict[str, Any]) -> None:
    alone = fit_alone(cached, **given, precision="float64")
    changed = given | {"precision": "float64", "batch_size": 77}
    for found in on_ranks(cached, 3, rank_tasks.fit, cached, changed):
        assert_same(found, alone, names={"mask_weight", "mask_neuron", "members", "count"})
        torch.testing.assert_close(found["scores"], alone["scores"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("given", "rows", "world"), [(FIXED, 1, 2), (FUSED, 4, 5), (FUSED, 60, 2)])
def test_ranks_without_rows_of_their_own_take_part(cached: Path, given: dict[str, Any], rows: int, world: int) -> None:
    """Of four rows on five ranks the last rank has none; and on two, a rank may have kept all that it saw."""
    alone = fit_alone(cached, **given, rows=rows)
    for found in on_ranks(cached, world, rank_tasks.fit, cached, given | {"rows": rows}):
        assert_same(found, alone, names=DECIDED)
        assert int(found["count"][1]) == rows
        torch.testing.assert_close(found["scores"], alone["scores"], rtol=1e-5, atol=1e-5)


def test_no_rows_on_any_rank_is_an_error_on_all(cached: Path) -> None:
    found = on_ranks(cached, 2, rank_tasks.fit, cached, FUSED | {"rows": 0})
    assert found[0].startswith("EmptyDataError: There are no training samples")
    assert found[1].startswith("DistributedError: rank 0 of 2 failed: There are no training samples")


@pytest.mark.parametrize("options", [{"ratios": Ratios(w_min=0.3)}, {}], ids=["paper", "fusion"])
def test_a_model_with_a_loader_for_each_rank(cached: Path, options: dict[str, Any]) -> None:
    alone = fit_loader(None, cached, options)
    first, second = on_ranks(cached, 2, rank_tasks.fit_loader, cached, options)
    assert_same(first, second)
    assert_same(first, alone, names=DECIDED)
    torch.testing.assert_close(first["calibration"], alone["calibration"], rtol=1e-12 if options else 1e-9, atol=0)


def test_what_one_rank_says_all_hear(tmp_path: Path) -> None:
    tensors = [torch.arange(6).half().reshape(2, 3), torch.empty(0, 7, dtype=torch.bool), torch.tensor(3.5)]
    for heard, word in on_ranks(tmp_path, 3, rank_tasks.tell, tensors):
        for found, given in zip(heard, tensors, strict=True):
            assert found.dtype == given.dtype
            assert torch.equal(found, given)
        assert word == b"rank 0"


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_rank_is_one_of_all(tmp_path: Path, failing: int) -> None:
    found = on_ranks(tmp_path, 2, rank_tasks.trouble, "fail", failing)
    assert found[failing] == "OptionError: the data of this rank are broken."
    assert found[1 - failing] == f"DistributedError: rank {failing} of 2 failed: the data of this rank are broken."


@pytest.mark.slow
@pytest.mark.parametrize(("what", "lost"), [("die", 0), ("die", 1), ("hang", 1)])
def test_a_rank_that_dies_or_hangs_ends_the_others(tmp_path: Path, what: str, lost: int) -> None:
    patience = 4 if what == "hang" else 120
    found = on_ranks(tmp_path, 2, rank_tasks.trouble, what, lost, 9.0, patience=patience)
    assert what == "hang" or found[lost] is None
    assert found[1 - lost].startswith(f"DistributedError: rank {1 - lost} of 2 lost rank {lost} while waiting")
    assert "it died, or took longer" in found[1 - lost]


@pytest.mark.parametrize(
    ("what", "message", "is_of_first"),
    [
        ("heads", "DistributedError: rank 1 has a head with digest", False),
        ("settings", "DistributedError: rank 1 has the settings {'members': ['gen'", False),
        ("no OOD data", 'OptionError: `ratios="tuned"` needs `validation` and `validation_ood`', True),
        ("width", "ShapeError: `validation` must have 4 columns", True),
    ],
)
def test_what_differs_or_is_wrong_on_rank_0_is_refused_by_all(
    tmp_path: Path, what: str, message: str, is_of_first: bool
) -> None:
    first, second = on_ranks(tmp_path, 2, rank_tasks.refuse, what)
    assert first.startswith(message)
    if is_of_first:  # which alone reads it
        assert second == "DistributedError: rank 0 of 2 failed: " + first.partition(": ")[2]
    else:
        assert second.startswith(message)


def test_each_rank_has_a_checkpoint_that_no_other_run_takes(cached: Path) -> None:
    whole = on_ranks(cached, 2, rank_tasks.fit, cached, FUSED)
    again = FUSED | {"checkpoint": Checkpoint(cached / "fit.checkpoint", every=5)}
    assert_same(on_ranks(cached, 2, rank_tasks.fit, cached, again)[0], whole[0])
    names = sorted(path.name for path in cached.iterdir() if "checkpoint" in path.name)
    assert names == ["fit.checkpoint.rank0", "fit.checkpoint.rank1"]
    assert_same(on_ranks(cached, 2, rank_tasks.fit, cached, again)[1], whole[1])
    (cached / "fit.checkpoint.rank1").unlink()  # killed before it wrote one
    assert_same(on_ranks(cached, 2, rank_tasks.fit, cached, again)[0], whole[0])
    found = on_ranks(cached, 3, rank_tasks.fit, cached, again)
    assert "fit.checkpoint.rank0 is a checkpoint of another run (ranks: 2 there, 3 here; rows: " in found[0]
    assert found[2] == "DistributedError: rank 0 of 3 failed: " + found[0].removeprefix("CheckpointError: ")
    with pytest.raises(CheckpointError, match="ranks: 2 there, 1 here"):
        fit_alone(cached, **again)
