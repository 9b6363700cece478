"""Checkpoints: a pass that was interrupted ends in the same bits, and what belongs to another run is refused."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from opnp import OPNP, Checkpoint, Ratios, ReAct, Settings
from opnp.artifact import read_artifact, write_artifact
from opnp.data import feature_part, open_features, write_features
from opnp.detector import fit_pass
from opnp.detector.checkpoint import FORMAT_VERSION
from opnp.distributed import Ranks
from opnp.errors import CheckpointError, OptionError
from tests.unit.detector.detector_world import FEATURES, bias, features, weight

ROWS, BLOCK, KEPT = 200, 10, 50
FIXED = Settings(ratios=Ratios(w_min=0.3), shaping=ReAct(0.9))
FUSED = Settings.of_fusion()


class Killed(Exception):  # noqa: N818  # no error: what stands for the end of a process
    """Stands for the end of a process in the middle of a pass."""


class Pass:
    """One pass over the features of the tests, which may be killed after some blocks."""

    def __init__(self, checkpoint: Checkpoint | None, settings: Settings, *, killed_after: int | None = None) -> None:
        self.seen = 0
        self._killed_after = killed_after
        self.detector = OPNP.from_settings(settings)
        self._checkpoint = checkpoint

    def run(self) -> "Pass":
        self.detector.fit_features(
            features(ROWS).half(),
            weight=weight(),
            bias=bias(),
            batch_size=BLOCK,
            checkpoint=self._checkpoint,
            progress=self._watched,
        )
        return self

    def bits(self) -> dict[str, torch.Tensor]:
        """Return all that comes of the pass."""
        state = self.detector._fitted()
        found = {
            "weight": state.sensitivity.weight,
            "neuron": state.sensitivity.neuron_gradient,
            "counts": torch.tensor([state.sensitivity.count, state.kept]),
            "thresholds": torch.tensor(list(state.react_thresholds.values())),
            "scores": state.scores(features(30, seed=1)),
        }
        if state.panel is not None and state.scales is not None:
            found |= {"scales": state.scales} | state.panel.tensors()
        return found

    def _watched(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            if self.seen == self._killed_after:
                raise Killed
            self.seen += 1
            yield item


@pytest.fixture(autouse=True)
def _few_kept_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sample that scales are taken of be smaller than the data."""
    monkeypatch.setattr(fit_pass, "KEPT_ROWS", KEPT)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path / "fit.checkpoint", every=3)


@pytest.mark.parametrize(
    "settings",
    [FIXED, FUSED, Settings.of_fusion(precision="float64"), Settings(ratios=Ratios(), precision="float64")],
    ids=["react", "fusion", "fusion in float64", "float64"],
)
@pytest.mark.parametrize("kills", [[0], [2], [3], [4, 5], [19], [7, 0, 8, 2]])
def test_a_pass_that_was_killed_ends_in_the_same_bits(
    checkpoint: Checkpoint, settings: Settings, kills: list[int]
) -> None:
    straight = Pass(None, settings).run().bits()
    done = 0
    for killed_after in kills:
        broken = Pass(checkpoint, settings, killed_after=killed_after)
        with pytest.raises(Killed):
            broken.run()
        assert broken.seen == killed_after
        done = (done + killed_after) // 3 * 3
    last = Pass(checkpoint, settings).run()
    assert last.seen == ROWS // BLOCK - done  # it went on from the last checkpoint, not from the beginning
    found = last.bits()
    assert set(found) == set(straight)
    assert found["counts"].tolist() == ([ROWS - 40, 40] if settings.is_fusion else [ROWS, 0])
    for name, tensor in straight.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("settings", [FIXED, FUSED], ids=["react", "fusion"])
def test_a_pass_with_a_checkpoint_is_one_without(checkpoint: Checkpoint, settings: Settings) -> None:
    for every in (1, 4, 100):
        found = Pass(Checkpoint(f"{checkpoint.path}{every}", every=every), settings).run().bits()
        for name, tensor in Pass(None, settings).run().bits().items():
            assert torch.equal(found[name], tensor), name
    assert not checkpoint.file(Ranks()).with_name("fit.checkpoint100").exists()  # fewer blocks than that


@pytest.mark.parametrize("settings", [FIXED, FUSED], ids=["react", "fusion"])
def test_a_run_that_was_finished_is_not_gone_through_again(checkpoint: Checkpoint, settings: Settings) -> None:
    checkpoint = Checkpoint(checkpoint.path, every=5)
    first = Pass(checkpoint, settings).run()
    again = Pass(checkpoint, settings).run()
    assert (first.seen, again.seen) == (20, 0)
    for name, tensor in first.bits().items():
        assert torch.equal(again.bits()[name], tensor), name


def test_held_out_samples_are_no_part_of_the_run(checkpoint: Checkpoint) -> None:
    fit(checkpoint)
    detector = fit(checkpoint, validation=features(40, seed=3))
    assert torch.equal(detector.sensitivity.weight, fit(checkpoint).sensitivity.weight)
    assert len(detector.calibration_scores) == 40


def test_remove_leaves_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    Pass(checkpoint, FIXED).run()
    (tmp_path / ".fit.checkpoint.xyz.part").write_bytes(b"half")
    (tmp_path / ".other.xyz.part").write_bytes(b"half")
    checkpoint.remove()
    checkpoint.remove()
    assert [path.name for path in tmp_path.iterdir()] == [".other.xyz.part"]


def test_what_a_killed_writer_left_is_removed_on_going_on(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / ".fit.checkpoint.xyz.part").write_bytes(b"half")
    Pass(checkpoint, FIXED).run()
    assert [path.name for path in tmp_path.iterdir()] == ["fit.checkpoint"]


# --------------------------------------------------------------------------------------------- what belongs elsewhere
def fit(checkpoint: Checkpoint, *, rows: int = ROWS, options: dict[str, Any] | None = None, **changes: Any) -> OPNP:
    arguments: dict[str, Any] = {"weight": weight(), "bias": bias(), "batch_size": BLOCK} | changes
    given = changes.pop("features", features(rows))
    arguments.pop("features", None)
    return OPNP(**({"ratios": Ratios(w_min=0.3)} | (options or {}))).fit_features(
        given, checkpoint=checkpoint, **arguments
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 20}, r"\(batch size: 10 there, 20 here\)"),
        ({"features": features(ROWS, seed=1)}, r"\(data: [0-9a-f]{12} there, [0-9a-f]{12} here\)"),
        ({"weight": 2 * weight()}, r"\(head: [0-9a-f]{12} there, [0-9a-f]{12} here\)"),
        ({"bias": None}, r"\(head: "),
        (
            {"options": {"temperature": 2.0}},
            r"\(settings: .*'temperature': 1\.0.* there, .*'temperature': 2\.0.* here\)",
        ),
        ({"options": {"precision": "float64"}}, r"\(settings: "),
        ({"options": {"ratios": None}}, r"\(settings: .* there, \{'members': \['gen', .* here\)"),
        ({"rows": ROWS - 1}, r"\(data: .*; rows: \[0, 200\] there, \[0, 199\] here\)"),
    ],
)
def test_another_run_is_refused_with_the_reason(checkpoint: Checkpoint, changes: Any, message: str) -> None:
    fit(checkpoint)
    content = checkpoint.file(Ranks()).read_bytes()
    with pytest.raises(CheckpointError, match=rf"fit\.checkpoint is a checkpoint of another run {message}") as caught:
        fit(checkpoint, **changes)
    assert "remove the file to start over" in str(caught.value)
    assert checkpoint.file(Ranks()).read_bytes() == content
    assert fit(checkpoint).is_fitted


def test_other_threads_are_refused(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(checkpoint)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    with pytest.raises(CheckpointError, match=rf"\(threads: {threads} there, {threads + 1} here\)"):
        fit(checkpoint)


def test_another_part_of_the_same_data_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_features(tmp_path / "features", features(ROWS))
    source = open_features(tmp_path / "features")
    fit(checkpoint, features=feature_part(source, 0, 100))
    with pytest.raises(CheckpointError, match=r"\(rows: \[0, 100\] there, \[100, 200\] here\)"):
        fit(checkpoint, features=feature_part(source, 100, 200))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(checkpoint: Checkpoint, share: float) -> None:
    fit(checkpoint)
    path = checkpoint.file(Ranks())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        CheckpointError, match=r"no readable safetensors file .*If it is a checkpoint, remove it .*another"
    ):
        fit(checkpoint)


def test_a_damaged_checkpoint_is_refused(checkpoint: Checkpoint) -> None:
    fit(checkpoint)
    path = checkpoint.file(Ranks())
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its content does not match its own SHA-256"):
        fit(checkpoint)


def test_a_foreign_file_is_refused_and_left_alone(checkpoint: Checkpoint) -> None:
    path = checkpoint.file(Ranks())
    detector = fit(Checkpoint(f"{checkpoint.path}.other"))
    write_features(path, features())
    with pytest.raises(CheckpointError, match="holds no opnp metadata"):
        fit(checkpoint)
    detector.save(path)
    content = path.read_bytes()
    with pytest.raises(
        CheckpointError,
        match=r"holds an opnp detector, not a fit checkpoint\. If it is a checkpoint, remove it .* give another file",
    ):
        fit(checkpoint)
    assert path.read_bytes() == content
    write_artifact(path, kind="fit checkpoint", format_version=FORMAT_VERSION + 1, tensors={}, metadata={})
    with pytest.raises(CheckpointError, match=f"has format version {FORMAT_VERSION + 1}"):
        fit(checkpoint)
    write_artifact(path, kind="fit checkpoint", format_version=FORMAT_VERSION, tensors={}, metadata={"run": {}})
    with pytest.raises(CheckpointError, match="lacks something that a checkpoint must hold"):
        fit(checkpoint)


def change(checkpoint: Checkpoint, tensors: dict[str, torch.Tensor | None], *, blocks: int | None = None) -> None:
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
        {"kept.hashes": None},
        {"kept.hashes": torch.zeros(KEPT)},
        {"kept.rows": torch.zeros(KEPT, 3).double()},
        {"kept.rows": torch.zeros(KEPT - 1, FEATURES).double()},
        {"kept.rows": torch.zeros(KEPT, FEATURES)},
        {"product": None},
        {"class_count": torch.zeros(3).long()},
        {"histogram": None},
        {"more": torch.zeros(1)},
    ],
    ids=range(11),
)
def test_sums_that_are_not_those_of_the_run_are_refused(
    checkpoint: Checkpoint, changes: dict[str, torch.Tensor | None]
) -> None:
    Pass(checkpoint, FUSED).run()
    change(checkpoint, changes)
    with pytest.raises(CheckpointError, match=r"holds other sums than those of this run\. Remove it to start over"):
        Pass(checkpoint, FUSED).run()


@pytest.mark.parametrize("settings", [FIXED, FUSED], ids=["react", "fusion"])
def test_a_checkpoint_of_more_blocks_or_of_no_sample_is_refused(checkpoint: Checkpoint, settings: Settings) -> None:
    Pass(checkpoint, settings).run()
    change(checkpoint, {}, blocks=ROWS // BLOCK + 1)
    with pytest.raises(CheckpointError, match="speaks of more data than there are"):
        Pass(checkpoint, settings).run()
    empty = {"kept.hashes": torch.full((KEPT,), 2**63 - 1)} if settings.is_fusion else {}
    change(checkpoint, {"count": torch.tensor([0]), **empty}, blocks=18)
    with pytest.raises(CheckpointError, match="speaks of other data than there are"):
        Pass(checkpoint, settings).run()


def test_a_checkpoint_says_what_it_belongs_to(checkpoint: Checkpoint) -> None:
    fit(checkpoint)
    with safe_open(checkpoint.file(Ranks()), framework="pt") as file:
        metadata = json.loads(json.loads(file.metadata()["opnp"])["body"])["metadata"]
    assert metadata["blocks"] == 18
    assert {"batch size", "data", "head", "ranks", "settings", "threads"} < set(metadata["run"])


@pytest.mark.parametrize("every", [0, -1, True, 1.5])
def test_a_number_of_blocks_that_is_none(every: int) -> None:
    with pytest.raises(OptionError, match=r"`Checkpoint\.every` must be a positive number"):
        Checkpoint("file", every=every)


def test_a_folder_that_is_missing_is_said_at_the_first_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing is no folder"):
        fit(Checkpoint(tmp_path / "missing" / "file", every=1))
