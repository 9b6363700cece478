"""The command line in this process, and a folder with one good input of every kind that it takes."""

import contextlib
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from opnp.data import write_features, write_head
from tests import in_process
from tests.in_process import Outcome
from tests.unit.bench.image_world import CLASSES, OPTIONS, class_images, write_module
from tests.unit.data.image_files import write_tensors

LINES: dict[str, tuple[str, ...]] = {
    "fit features": (
        *("fit", "--features", "f/train.safetensors", "--head", "f/head.safetensors"),
        *("--validation", "f/validation.safetensors", "--rho-w-min", "0.1", "--shaping", "none", "--out", "d.st"),
    ),
    "fit model": (
        *("fit", "--model", "tinynets:net", *OPTIONS, "--data", "train.safetensors"),
        *("--validation", "validation.safetensors", "--rho-w-min", "0.1", "--shaping", "none", "--out", "dm.st"),
    ),
    "fit a fusion": (
        *("fit", "--features", "f/train.safetensors", "--head", "f/head.safetensors"),
        *("--validation", "f/validation.safetensors", "--members", "gen,fdbd,mahalanobis", "--out", "df.st"),
    ),
    "score features": ("score", "--detector", "d.st", "--features", "f/test.safetensors", "--out", "s.csv"),
    "score model": (
        *("score", "--detector", "dm.st", "--model", "tinynets:net", *OPTIONS),
        *("--data", "test.safetensors", "--out", "sm.csv"),
    ),
    "score by a fusion": ("score", "--detector", "df.st", "--features", "f/test.safetensors", "--out", "sf.csv"),
    "inspect": ("inspect", "d.st"),
    "tune": (
        *("tune", "--features", "f/train.safetensors", "--head", "f/head.safetensors", "--shaping", "none"),
        *("--validation", "f/validation.safetensors", "--val-ood", "f/ood_a.safetensors"),
    ),
    "cache": (
        *("cache", "--model", "tinynets:net", *OPTIONS, "--train", "train.safetensors"),
        *("--test", "test.safetensors", "--no-odin", "--out", "c"),
    ),
    "bench features": ("bench", "--features", "f", "--methods", "energy", "--out", "b"),
    "bench model": (
        *("bench", "--model", "tinynets:net", *OPTIONS, "--id", "test.safetensors", "--train", "train.safetensors"),
        *("--ood", "x=test.safetensors", "--methods", "energy", "--out", "bm"),
    ),
    "sweep": ("sweep", "--features", "f", "--curves", "temperature", "--out", "sw"),
    "report": ("report", "b", "--out", "r.html"),
    "monitor": ("monitor", "s.csv", "--detector", "d.st"),
    "export": ("export", "--detector", "dm.st", "--model", "tinynets:net", *OPTIONS, "--out", "e.pt2"),
    "demo": ("demo", "--out", "demo"),
    "serve": ("serve", "--detector", "dm.st", "--model", "tinynets:net", *OPTIONS, "--port", "0"),
}
"""Commands that work in the folder of `write_world`, each of which leaves what later ones read."""


def write_world(folder: Path) -> Path:
    """Write what `LINES` read into a folder, and return it."""
    write_module(folder)
    (folder / "f").mkdir()
    generator = torch.Generator().manual_seed(0)
    for name, rows in {"train": 60, "validation": 40, "test": 40, "ood_a": 40}.items():
        features = torch.rand(rows, 8, generator=generator)
        write_features(folder / "f" / f"{name}.safetensors", features, labels=torch.arange(rows) % CLASSES)
    weight, bias = torch.randn(CLASSES, 8, generator=generator), torch.randn(CLASSES, generator=generator)
    write_head(folder / "f" / "head.safetensors", weight, bias=bias)
    for seed, (name, rows) in enumerate({"train": 24, "validation": 24, "test": 8}.items()):
        write_tensors(folder / f"{name}.safetensors", *class_images(rows, seed=seed))
    return folder


def run_opnp(*arguments: object) -> Outcome:
    """Return what ``opnp`` does with these arguments, for fixtures of a module too; it has some minutes."""
    with within(300):
        return in_process.run_opnp(*arguments)


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise in this process if the block takes longer."""

    def late(*_: object) -> None:
        message = f"took longer than {seconds} s"
        raise AssertionError(message)

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def is_told(ran: Outcome) -> bool:
    """Return whether a run was refused by a message with exit code 2, of opnp or of the reader of arguments."""
    told = [line for line in ran.err.splitlines() if line.startswith(("opnp: ", "Usage: opnp "))]
    return ran.code == 2 and "Traceback" not in ran.err and bool(told)


def damaged(content: bytes, trials: int, *, seed: int, head: int) -> Iterator[bytes]:
    """Yield so many damaged forms of a file: a third cut off somewhere, a third with one byte of its head changed.

    The rest have some bytes changed anywhere, or a piece that is doubled or lost.
    """
    generator = random.Random(seed)  # noqa: S311  # damage, not secrets
    for trial in range(trials):
        spoiled = bytearray(content)
        if trial % 3 == 0:
            yield bytes(spoiled[: generator.randrange(len(spoiled))])
            continue
        if trial % 3 == 1:
            spoiled[generator.randrange(min(head, len(spoiled)))] ^= 1 << generator.randrange(8)
        elif generator.random() < 0.5:
            for _ in range(generator.randrange(1, 9)):
                spoiled[generator.randrange(len(spoiled))] = generator.choice((0, 255, generator.randrange(256)))
        else:
            start = generator.randrange(len(spoiled))
            piece = spoiled[start : start + generator.randrange(1, 64)]
            spoiled[start : start + generator.choice((0, len(piece)))] = piece if generator.random() < 0.5 else b""
        yield bytes(spoiled)
