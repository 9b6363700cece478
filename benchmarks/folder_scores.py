"""``opnp score`` on a folder of photographs: against a loop written by hand, and against the bare forward."""

import contextlib
import io
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.measuring import Outcome
from opnp.cli.app import app
from opnp.core import energy_score
from opnp.data.inputs import usual_workers

__all__ = ["folder_scores"]

_BATCH = 64
_SHORT = 256
"""Images of the short run, whose time is taken off that of the long one: what is left is no start-up.

More than two batches, for which `opnp` starts no process by default: what starts one would not be apart.
"""
_WORKERS = (0, 1, 2, 4)


class _Folder(Dataset[Tensor]):
    """Photographs as a model of torchvision takes them, as a tutorial would have it."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.iterdir())
        self.transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        tensor: Tensor = self.transform(Image.open(self.files[index]).convert("RGB"))
        return tensor


def folder_scores(*, images: int, repeats: int) -> Iterator[Outcome]:
    """Yield how long scoring a folder takes, for each by hand and here at its best number of workers, by the clock.

    Args:
        images: Photographs of 500 x 375 pixels in the folder.
        repeats: Rounds; in each everything runs once, in turns.

    """
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        with TemporaryDirectory() as name:
            folder = Path(name)
            yield from _outcomes(folder, images=images, repeats=repeats)
    finally:
        torch.set_num_threads(threads)


def _outcomes(folder: Path, *, images: int, repeats: int) -> Iterator[Outcome]:
    _write_photographs(folder / "short", images=_SHORT)
    _write_photographs(folder / "long", images=images)
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    torch.save(model.state_dict(), folder / "weights.pt")
    given = ["--model", "torchvision:resnet18", "--weights", folder / "weights.pt"]
    _opnp(
        "fit", *given, "--data", folder / "short", "--validation", folder / "short", "--out", folder / "d.safetensors"
    )

    def own(workers: int | None) -> float:
        more = [] if workers is None else ["--workers", workers]
        line = ("score", folder / "d.safetensors", "--out", folder / "s.csv", *more)
        return _each(lambda part: _opnp(*line, folder / part), images=images)

    def by_hand(workers: int) -> float:
        return _each(lambda part: _by_hand(model, folder / part, workers=workers), images=images)

    tensors = torch.randn(_BATCH, 3, 224, 224)
    rounds: list[dict[str, float]] = []
    for _ in range(repeats):
        found = {f"own {workers}": own(workers) for workers in _WORKERS}
        found |= {f"hand {workers}": by_hand(workers) for workers in _WORKERS}
        found |= {"own": own(None), "forward": _seconds(lambda: _forward(model, tensors)) / _BATCH}
        rounds.append(found)
    middle = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    best = {kind: min(_WORKERS, key=lambda workers: middle[f"{kind} {workers}"]) for kind in ("own", "hand")}
    times = {name: f"{1000 * value:.1f}" for name, value in middle.items()}
    yield Outcome(
        "score: a folder of photographs / a loop written by hand, a ResNet-18, each at its best number of workers",
        tuple(each[f"own {best['own']}"] / each[f"hand {best['hand']}"] for each in rounds),
        bound=1.1,
        notes="ms an image, "
        + ", ".join(f"{w} workers {times[f'own {w}']} (by hand {times[f'hand {w}']})" for w in _WORKERS),
    )
    yield Outcome(
        f"score: that folder with the default number of workers, here {usual_workers()} / with the best",
        tuple(each["own"] / each[f"own {best['own']}"] for each in rounds),
        bound=1.1,
    )
    yield Outcome(
        "score: that folder / the bare forward over a tensor in memory",
        tuple(each["own"] / each["forward"] for each in rounds),
        bound=None,
        notes=f"ms an image: {times['own']} and {times['forward']}",
    )


def _each(step: Callable[[str], object], *, images: int) -> float:
    """Return the seconds an image takes beyond the start-up."""
    short, long = (_seconds(lambda part=part: step(part)) for part in ("short", "long"))  # type: ignore[misc]
    return (long - short) / (images - _SHORT)


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _opnp(*arguments: object) -> None:
    """Run the command line in this process, without what it prints; its errors come through."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        app([*map(str, arguments)], standalone_mode=False)


def _by_hand(model: nn.Module, folder: Path, *, workers: int) -> Tensor:
    loader = DataLoader(_Folder(folder), batch_size=_BATCH, num_workers=workers)
    with torch.inference_mode():
        return torch.cat([energy_score(model(batch)) for batch in loader])


def _forward(model: nn.Module, tensors: Tensor) -> Tensor:
    with torch.inference_mode():
        output: Tensor = model(tensors)
    return output


def _write_photographs(folder: Path, *, images: int) -> None:
    """Write JPEG files with something on every scale, as photographs have."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for place in range(images):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        grain = generator.integers(-20, 21, (375, 500, 3))
        pixels = (np.asarray(coarse).astype(np.int64) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{place:05d}.jpg", quality=90)
