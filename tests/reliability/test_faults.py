"""Loaders, forwards and commands that fail or are stopped at any moment: what is left afterwards, and what is said."""

import errno
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.random_shards import write_random_shards
from opnp import OPNP, sensitivity
from opnp.data import read_features
from tests.child_process import command_line, started
from tests.contract.snapshot import unchanged
from tests.in_process import Opnp
from tests.reliability import faults_world
from tests.reliability.faults_world import FAULTS, Faulty, Trigger, answers, detector, same_answers
from tests.tried import Tried
from tests.unit.bench.image_world import OPTIONS, class_images
from tests.unit.data.image_files import write_tensors

ROWS = 24
"""Rows a batch, so that four are enough to fuse scores by, and to tune ratios on."""

batches = partial(faults_world.batches, rows=ROWS)
Call = Callable[[OPNP, nn.Module, Iterable[Any]], object]

CALLS: dict[str, Call] = {
    "fit": lambda found, model, loader: found.fit(model, loader),
    "fit with a validation set": lambda found, model, loader: found.fit(model, batches(), validation=loader, keep=0.9),
    "fit with OOD samples": lambda found, model, loader: found.fit(
        model, batches(), validation=batches(), validation_ood=loader, keep=0.9
    ),
    "calibrate": lambda found, _, loader: found.calibrate(loader, keep=0.9),
    "score": lambda found, _, loader: [found.score(batch) for batch in loader],
    "predict": lambda found, _, loader: [found.predict(batch) for batch in loader],
    "verdict": lambda found, _, loader: [found.verdict(batch) for batch in loader],
    "sensitivity of layers": lambda _, model, loader: sensitivity(model, loader, layers=["5", "7"]),
}
FITS = {"fit": 0, "fit with a validation set": 4, "fit with OOD samples": 8}
"""Calls that fit, with the number of batches that they run before those of the loader."""
KINDS: dict[str, Callable[[], OPNP]] = {
    "paper": detector,
    "fusion": partial(detector, is_fusion=True),
    "tuned": lambda: OPNP(ratios="tuned"),
}


def prepared(faulty: Faulty, kind: str, *, is_fitted: bool) -> OPNP:
    """Return the detector that a call begins with."""
    found, ood = KINDS[kind](), batches(seed=7) if kind == "tuned" else None
    if is_fitted:
        found.fit(faulty.model, batches(seed=5), validation=batches(seed=6), validation_ood=ood, keep=0.9)
    return found


def fails(name: str, kind: str, place: str, fault: str, at: int, *, is_fitted: bool) -> None:
    """Let a call fail at a batch, look at what is left, and make the same call again."""
    faulty = Faulty()
    found = prepared(faulty, kind, is_fitted=is_fitted)
    before = answers(found)
    trigger = Trigger(FAULTS[fault], at if place == "loader" else at + FITS.get(name, 0))
    trigger.lasts = name == "sensitivity of layers"  # which runs samples one by one where many at once have failed
    with unchanged(faulty.model, f"{name} with {fault} in the {place}"):
        raised: BaseException | None = None
        try:
            if place == "loader":
                CALLS[name](found, faulty.model, faults_world.faulty_loader(trigger, rows=ROWS))
            else:
                faulty.trigger = trigger
                CALLS[name](found, faulty.model, batches())
        except BaseException as error:  # noqa: BLE001  # the interrupts that were raised, too
            raised = error
    assert raised is not None, "nothing failed"
    assert type(raised) is type(FAULTS[fault]()) or isinstance(raised.__cause__, type(FAULTS[fault]()))
    assert same_answers(answers(found), before)
    faulty.trigger = Trigger()
    again, anew = CALLS[name](found, faulty.model, batches()), prepared(faulty, kind, is_fitted=is_fitted)
    CALLS[name](anew, faulty.model, batches())
    assert again is not None
    assert same_answers(answers(found), answers(anew))


# The model has a hook on its gradients, and the sensitivity of a layer is none of a parameter's.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in CALLS if name != "fit with OOD samples" for kind in ("paper", "fusion")),
        ("fit with OOD samples", "tuned"),
    ],
)
@pytest.mark.parametrize(
    ("faults", "moments"),
    [(("runtime", "interrupt"), (1,)), pytest.param(tuple(FAULTS), (0, 1, 2, 3), marks=pytest.mark.long)],
)
def test_a_call_that_fails_leaves_everything_as_it_was(
    name: str, kind: str, faults: tuple[str, ...], moments: tuple[int, ...], tried: Tried
) -> None:
    fitted = (False, True) if name in FITS else (True,)
    cases = [*product(("loader", "forward"), faults, moments, fitted)]
    tried("faults", "calls of which loader or forward raises at a batch", len(cases))
    for place, fault, at, is_fitted in cases:
        fails(name, kind, place, fault, at, is_fitted=is_fitted)


SECONDS = 240
FIXED = ("--rho-w-min", "0.3", "--shaping", "none")


class Run:
    """A fit on cached features with a checkpoint, in a process of its own."""

    def __init__(self, folder: Path, *, rows: int = 12_000) -> None:
        shards, head = write_random_shards(folder, rows=rows, features=64, classes=12)
        self.folder, self.out, self.checkpoint = folder, folder / "d.safetensors", folder / "fit.checkpoint"
        self.log = folder / "log"
        options = ("--batch-size", "256", "--checkpoint", str(self.checkpoint), "--checkpoint-every", "4", *FIXED)
        self.arguments = ["fit", "--features", str(shards), "--head", str(head), *options, "--out", str(self.out)]

    def start(self, task: Callable[..., object] = command_line, *more: object) -> BaseProcess:
        """Start the command."""
        return started(task, self.arguments, {}, *more, log=self.log)

    def said(self) -> str:
        """Return what the command has said."""
        return self.log.read_text(encoding="utf-8")

    def finished(self) -> bytes:
        """Run the command to its end, and return the detector."""
        process = self.start()
        process.join(SECONDS)
        assert process.exitcode == 0, self.said()
        assert not self.checkpoint.exists()
        return self.out.read_bytes()

    def parts(self) -> list[str]:
        """Return what is half-written."""
        return [path.name for path in self.folder.iterdir() if path.name.endswith(".part")]


def wait_for(path: Path, process: BaseProcess) -> None:
    """Wait until there is a file, or the process is over."""
    while not path.exists() and process.is_alive():
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("number", "times"),
    [
        (signal.SIGINT, 1),
        (signal.SIGTERM, 1),
        *(pytest.param(number, 6, marks=pytest.mark.long) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
    ],
)
def test_a_signal_ends_a_fit_in_order_and_it_goes_on(
    tmp_path: Path, number: signal.Signals, times: int, tried: Tried
) -> None:
    tried("faults", "signals to a fit, each resumed", times)
    run, chance = Run(tmp_path), random.Random(int(number))  # noqa: S311  # moments, no secrets
    expected = run.finished()
    run.out.unlink()
    for _ in range(times):
        run.checkpoint.unlink(missing_ok=True)
        process = run.start()
        wait_for(run.checkpoint, process)
        time.sleep(chance.uniform(0, 0.02))
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(SECONDS)
        words = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
        if process.exitcode != 0:  # else it had ended before
            assert process.exitcode == 128 + number
            assert run.said() == f"opnp: {words}.\n"
            assert not run.out.exists()
            assert run.checkpoint.exists()
        assert run.parts() == []
        assert run.finished() == expected
        run.out.unlink()


def filling(arguments: list[str], environment: dict[str, str], writes: int) -> None:
    """Run ``opnp`` on a disk that is full after some writings; a task for `started`."""
    left, flush = [writes], os.fsync

    def full(descriptor: Any) -> None:  # whatever `os.fsync` takes
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    vars(os)["fsync"] = full
    command_line(arguments, environment)


@pytest.mark.parametrize("writes", [(5,), pytest.param(range(0, 26, 2), marks=pytest.mark.long)])
def test_a_disk_that_fills_up_leaves_the_last_checkpoint(tmp_path: Path, writes: range, tried: Tried) -> None:
    """Each writing of a checkpoint flushes twice, the file and its folder; that of the folder may fail."""
    tried("faults", "disks full at a writing of a checkpoint, the fit then resumed", len(writes))
    run = Run(tmp_path)
    expected = run.finished()
    for count in writes:
        run.out.write_bytes(b"of before")
        process = run.start(filling, count)
        process.join(SECONDS)
        if process.exitcode != 0:
            assert process.exitcode == 2
            assert run.said().startswith("opnp: ")
            assert "No space left on device" in run.said()
            assert any(str(path) in run.said() for path in (run.checkpoint, run.out)), "it does not say which file"
            assert "Traceback" not in run.said()
            assert run.out.read_bytes() == b"of before"
            assert run.checkpoint.exists() is (count > 0)
        assert run.parts() == []
        assert run.finished() == expected


_MODULE = """
import multiprocessing
import os
import torch
from tests.unit.bench.image_world import tiny_model

CALLS = []


class Killing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = tiny_model()

    def forward(self, inputs):
        CALLS.append(len(inputs))
        if len(CALLS) == 2:
            for child in multiprocessing.active_children():
                child.kill()
        return self.inner(inputs)


class Interrupting(Killing):
    def forward(self, inputs):
        CALLS.append(len(inputs))
        if len(CALLS) == 2:
            raise KeyboardInterrupt
        return self.inner(inputs)


class Hungry(Killing):
    def forward(self, inputs):
        if len(inputs) > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return self.inner(inputs)
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with models that bring harm, and inputs."""
    (tmp_path / "harmnets.py").write_text(_MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "harmnets", raising=False)
    for seed, (name, rows) in enumerate({"train": 90, "validation": 24, "test": 20}.items()):
        write_tensors(tmp_path / f"{name}.safetensors", *class_images(rows, seed=seed))
    return tmp_path


_FIT = ("--data", "train.safetensors", "--rho-w-min", "0.2", "--batch-size", "5", "--out", "made")
_CACHE = ("--train", "train.safetensors", "--batch-size", "5", "--no-odin", "--out", "made")


# torch raises in the main thread, at any place, when a reading process is killed: in a `__del__` that is only printed.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("command", "options"), [("fit", _FIT), ("cache", _CACHE)])
def test_a_reading_process_that_dies_is_named_as_the_cause(
    opnp: Opnp, world: Path, command: str, options: tuple[str, ...], tried: Tried
) -> None:
    tried("faults", "processes that read inputs, killed")
    outcome = opnp(command, "--model", "harmnets:Killing", *OPTIONS, *options, "--workers", "1")
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1, outcome.err
    assert "A process that reads inputs ahead of time died (" in outcome.err
    assert "fewer `--workers`" in outcome.err
    assert not (world / "made").is_file()
    assert not list((world / "made").glob("*train*"))


@pytest.mark.parametrize(("command", "options"), [("fit", _FIT), ("cache", _CACHE)])
def test_ctrl_c_in_a_forward_is_one_line(
    opnp: Opnp, world: Path, command: str, options: tuple[str, ...], tried: Tried
) -> None:
    tried("faults", "signals to a fit, each resumed")
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    outcome = opnp(command, "--model", "harmnets:Interrupting", *OPTIONS, *options)
    assert (outcome.code, outcome.err) == (130, "opnp: interrupted.\n")
    assert not (world / "made").is_file()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize(
    "command", ["fit", *(pytest.param(name, marks=pytest.mark.long) for name in ("score", "cache", "bench"))]
)
def test_commands_halve_batches_or_say_how(opnp: Opnp, world: Path, command: str, tried: Tried) -> None:
    tried("faults", "commands whose batches need more memory than there is", 3)
    model: tuple[object, ...] = ("--model", "harmnets:Hungry", *OPTIONS)
    fit = ("fit", *model, "--data", "train.safetensors", "--validation", "validation.safetensors", "--rho-w-min", "0.2")
    sets = ("--train", "train.safetensors", "--ood", "far=test.safetensors")
    given = {
        "fit": (*fit, "--out", "made"),
        "score": ("score", *model, "--detector", "small", "--data", "test.safetensors", "--out", "made.csv"),
        "cache": ("cache", *model, *sets, "--test", "test.safetensors", "--dtype", "float32", "--out", "made"),
        "bench": ("bench", *model, *sets, "--id", "validation.safetensors", "--methods", "energy", "--out", "made"),
    }[command]
    assert opnp(*fit, "--batch-size", "4", "--out", "small").code == 0
    refused = opnp(*given)
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1
    assert "of memory on a batch of " in refused.err
    assert "`--batch-size`" in refused.err
    assert "`--auto-batch`" in refused.err
    assert not (world / "made").is_file()
    outcome = opnp(*given, "--auto-batch")
    assert outcome.code == 0, outcome.err
    assert "ran out of memory on a batch of " in outcome.err
    assert "Traceback" not in outcome.err
    if command == "fit":
        halves, small = OPNP.load("made"), OPNP.load("small")
        assert torch.equal(halves.masks.weight, small.masks.weight)
        torch.testing.assert_close(halves.calibration_scores, small.calibration_scores, rtol=1e-5, atol=1e-6)
    if command == "cache":
        assert len(read_features("made/train.safetensors").features) == 90


def test_memory_that_runs_out_elsewhere_is_one_line(
    opnp: Opnp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Tried
) -> None:
    tried("faults", "batches that need more memory than there is", 2)
    shards, head = write_random_shards(tmp_path, rows=100, features=8, classes=3)
    monkeypatch.chdir(tmp_path)
    fit = ("fit", "--features", shards, "--head", head, *FIXED, "--out", "d")
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")):

        def short(*_: object, raised: Exception = error, **__: object) -> None:
            raise raised

        monkeypatch.setattr("opnp.detector.opnp.summed_blocks", short)
        outcome = opnp(*fit)
        assert outcome.code == 2
        assert outcome.err.startswith("opnp: not enough memory (")
        assert "`--batch-size`" in outcome.err
        assert outcome.err.count("\n") == 1
        assert not (tmp_path / "d").exists()
