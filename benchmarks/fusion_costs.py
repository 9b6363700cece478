"""What `OPNP()` costs against its own matrix products, and what it holds: in memory, on disk, with more rows."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.measuring import Outcome, ratios, seconds
from opnp import OPNP, Settings
from opnp.core import ClassGaussian, PrincipalSpace
from opnp.detector.fit_pass import KEPT_ROWS, FitSum

__all__ = ["fusion_costs"]

_CLASSES, _FEATURES, _SAMPLES = 1000, 2048, 8192
_BATCH = 1024
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_MEGABYTE = 1e6


def fusion_costs(*, repeats: int) -> Iterator[Outcome]:
    """Yield the time of the sums, of the decompositions and of scores, and the sizes of state and file."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(_SAMPLES, _FEATURES, generator=generator).to(_DEVICE)
    weight = torch.randn(_CLASSES, _FEATURES, generator=generator).mul(0.05).to(_DEVICE)
    settings, shape = Settings.of_fusion(), f"C {_CLASSES}, D {_FEATURES}, N {_SAMPLES}"

    def sums(rows: Tensor = features) -> FitSum:
        return FitSum.of([(rows, None)], weight, None, settings)

    def products() -> None:
        for rows in features[KEPT_ROWS:].split(_BATCH):  # those that are kept are in no sum
            shares, wide = rows @ weight.T, rows.double()
            shares.T @ rows
            shares @ weight
            wide.T @ wide
            wide.T @ wide

    values = ratios(sums, products, repeats=repeats)
    yield Outcome(f"sums of OPNP() beside their five products, {shape}", values, 1.3)
    total = sums()
    yield from _decompositions(total, weight, repeats=repeats)
    detector = OPNP().fit_features(features, weight=weight, bias=None)
    judged = ratios(lambda: detector.score_features(features), lambda: features @ weight.T, repeats=repeats)
    yield Outcome(f"score_features of OPNP() beside one product of features and head, {shape}", judged, 12)
    size = _bytes(total) / _MEGABYTE
    yield Outcome(f"sums of OPNP() and rows kept, C {_CLASSES}, D {_FEATURES}", (size,), 180, unit=" MB")
    half = _bytes(sums(features[: _SAMPLES // 2])) / _MEGABYTE
    yield Outcome("the same on half of the rows, as a share of it", (half / size,), 1, kind="at least")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "detector.safetensors"
        detector.save(path)
        saved = path.stat().st_size / _MEGABYTE
        loads = tuple(seconds(lambda: OPNP.load(path), is_wall=True) for _ in range(repeats))
    yield Outcome(f"saved OPNP(), C {_CLASSES}, D {_FEATURES}", (saved,), 90, unit=" MB")
    yield Outcome(f"OPNP.load of it, C {_CLASSES}, D {_FEATURES}", loads, 1, unit=" s")


def _decompositions(total: FitSum, weight: Tensor, *, repeats: int) -> Iterator[Outcome]:
    """Yield the time of what is decomposed once, after the pass."""
    moments, kept = total.moments, total.kept
    if moments is None or kept is None:
        return
    rows = kept.smallest(len(kept))
    logits = rows @ weight.double().T

    def decompose() -> None:
        ClassGaussian.from_moments(moments)
        PrincipalSpace.from_moments(moments, weight=weight.double(), bias=None, features=rows, logits=logits)

    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    decompose()
    times = tuple(seconds(decompose, is_wall=True) for _ in range(repeats))
    torch.set_num_threads(threads)
    yield Outcome(f"decompositions of OPNP(), C {_CLASSES}, D {_FEATURES}, all cores", times, 3, unit=" s")


def _bytes(total: FitSum) -> int:
    """Return the bytes of all that a sum holds."""
    held = list(total.to_tensors().values())
    if total.kept is not None:
        held += [total.kept.hashes, total.kept.rows]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)
