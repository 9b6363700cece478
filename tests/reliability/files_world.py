"""Every kind of file that opnp writes and reads back: how it is made, what reading it gives, and what reads it."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from opnp.artifact import tensors_digest
from opnp.bench.odin import OdinAbout, OdinScores, read_odin, write_odin
from opnp.bench.origin import FeatureSource, ModelSource, SetSource
from opnp.data import FeatureShardWriter, open_features, read_features, read_head, write_score_table
from opnp.data.tables import read_score_table
from opnp.detector import OPNP, Checkpoint, Ratios
from opnp.errors import OpnpError
from opnp.monitor import DriftMonitor
from opnp.report.results import read_results
from opnp.values.bench import BenchRecord
from opnp.values.fit import FitRecord, TuningFigures
from opnp.values.sweep import SweepRecord
from tests.unit.bench.bench_world import world_features, world_weight, write_world
from tests.unit.report.report_world import RECORDS, demo_folder, picture_record, scores_by_set


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: What it is called in the table of tests, in the plural.
        file: Its place in a world.
        read: Returns all that reading gives, as text that two readings of the same content have in common.
        arguments: Arguments of the command line that read it, by the folder of a world; None where none does.
        is_sealed: Whether a digest covers every byte, so that a change that is not refused has changed nothing.

    """

    name: str
    file: str
    read: Callable[[Path], str]
    arguments: Callable[[Path], list[object]] | None = None
    is_sealed: bool = False

    @property
    def is_safetensors(self) -> bool:
        """Whether it begins with the length of a header of JSON."""
        return self.file.endswith(".safetensors")

    def outcome(self, path: Path, expected: str) -> str:
        """Return what reading a file comes to: ``refused``, ``same`` or ``other``; any error but those of opnp is one.

        What was refused must be named.
        """
        try:
            found = self.read(path)
        except OpnpError as error:
            assert path.name in str(error) or str(path.parent) in str(error), error  # noqa: PT017  # one of two names
            return "refused"
        return "same" if found == expected else "other"


def chance(seed: str) -> np.random.Generator:
    """Return a source of random numbers that a text names."""
    return np.random.default_rng(zlib.crc32(seed.encode()))


def flipped(content: bytes, place: int, mask: int) -> bytes:
    """Return the content with bits of one byte turned over."""
    return content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :]


def world(folder: Path) -> Path:
    """Return the folder with one file of each kind in it."""
    write_world(folder / "features", rows=60)
    features, labels = world_features(60, seed=0)
    _fitted(folder / "fusion_checkpoint.safetensors", every=1).save(folder / "fusion.safetensors")
    detector = _fitted(folder / "checkpoint.safetensors", every=1)
    detector.save(folder / "detector.safetensors")
    monitor = DriftMonitor(detector.calibration_scores)
    monitor.update(detector.score_features(features))
    monitor.save(folder / "monitor.safetensors")
    with FeatureShardWriter(folder / "shards", rows_per_shard=32) as writer:
        writer.write(features, labels)
    _source().write(folder)
    write_odin(
        folder,
        OdinScores(
            OdinAbout(1000.0, 0.0014, (0.25,), "pytorch-ood 0", "", {"test": "00"}), {"test": torch.arange(9).double()}
        ),
    )
    _records(folder)
    verdict = detector.verdict_features(features)
    columns = {"score": verdict.score.tolist(), "p_value": verdict.p_value.tolist(), "is_ood": verdict.is_ood.tolist()}
    for ending in ("csv", "parquet"):
        write_score_table(folder / f"scored.{ending}", columns)
    return folder


def _fitted(checkpoint: Path, *, every: int) -> OPNP:
    """Return the detector of this world, with the checkpoint of its fit; by its name that of a fusion."""
    detector = OPNP() if checkpoint.name.startswith("fusion") else OPNP(ratios=Ratios(w_min=0.1, o_max=0.1))
    return detector.fit_features(
        open_features(checkpoint.parent / "features" / "train.safetensors"),
        weight=world_weight(),
        bias=None,
        batch_size=16,
        checkpoint=Checkpoint(checkpoint, every=every),
        validation=world_features(40, seed=1)[0],
    )


def _source() -> FeatureSource:
    model = ModelSource("timm:a", "w.pt", "00", "11", None, "float16", {"size": 8}, {"torch": "2"}, {"amp": "bf16"})
    inputs = SetSource("images", 3, "22", "33", 0.5, (("a.png", "it is cut short"),))
    return FeatureSource(model, "fc", "44", {"train": inputs, "ood_far": inputs})


def _records(folder: Path) -> None:
    """Write one folder of results for each kind of record, as small as it can be."""
    for name in ("bench", "swept", "fit"):
        (folder / name).mkdir()
    demo_folder(folder / "demo")
    bench = BenchRecord.from_json((RECORDS / "bench.json").read_text(encoding="utf-8"))
    model = bench.models[0]
    chosen = [row for row in model.methods if row.group == "product" or row.status == "failed"]
    model = replace(model, methods=(*model.methods[:2], *chosen))
    (folder / "bench" / "results.json").write_text(replace(bench, models=(model,)).to_json(), encoding="utf-8")
    columns: dict[str, list[object]] = {"model": [], "set": [], "method": [], "index": [], "score": []}
    for name, values in scores_by_set(samples=60).items():
        columns["model"] += [model.model] * len(values)
        columns["set"] += ["test" if name == "test" else f"ood_{next(iter(model.nearness))}"] * len(values)
        columns["method"] += ["OPNP()"] * len(values)
        columns["index"] += range(len(values))
        columns["score"] += values.tolist()
    write_score_table(folder / "bench" / "scores.parquet", columns)
    sweep = SweepRecord.from_json((RECORDS / "sweep.json").read_text(encoding="utf-8"))
    curves = (sweep.curves[0], next(curve for curve in sweep.curves if len(curve.varies) == 2))
    swept = sweep.models[0]
    points = tuple(point for curve in curves for point in swept.curve(curve.name))
    small = replace(sweep, curves=curves, models=(replace(swept, points=points),))
    (folder / "swept" / "sweep.json").write_text(small.to_json(), encoding="utf-8")
    (folder / "demo" / "pictures.json").write_text(picture_record("digits", items=2).to_json(), encoding="utf-8")
    fit = FitRecord(
        model="net",
        classes=4,
        features=16,
        training_samples=60,
        settings={"ratios": {"w_min": 0.1, "w_max": 0.0, "o_min": 0.0, "o_max": 0.0}, "shaping": None},
        settings_text="--rho-w-min 0.1",
        left_out={"vim": "it has no room"},
        tuning=TuningFigures(3, (20, 20), (20, 20), 0.8, 0.7),
        keep=0.95,
        threshold=-3.0,
        expected_flagged=0.05,
        calibration_scores=tuple(-5 + number / 10 for number in range(30)),
        head_sha256="00",
        versions={"torch": "2"},
    )
    (folder / "fit" / "fit.json").write_text(fit.to_json(), encoding="utf-8")


def _text(value: object) -> str:
    """Return tensors by their digest, and all else by its representation."""
    if isinstance(value, Tensor):
        return tensors_digest({"": value})
    if isinstance(value, dict):
        return f"{ {key: _text(item) for key, item in value.items()} }"
    return repr(value)


def _detector(path: Path) -> str:
    loaded = OPNP.load(path)
    features = world_features(8, seed=3)[0]
    with torch.no_grad():
        found = {"scores": loaded.score_features(features), "repr": repr(loaded), "left_out": dict(loaded.left_out)}
        if loaded.is_calibrated:
            found |= {"calibration": loaded.calibration_scores, "shares": loaded.explain_features(features).share}
    return _text(found)


def _monitor(path: Path) -> str:
    watching = DriftMonitor.load(path)
    before = watching.summary()
    wealth = watching.update(torch.linspace(-9, 3, 40))
    return _text({"before": before, "wealth": wealth, "after": watching.summary()})


def _checkpoint(path: Path) -> str:
    """Go on from a checkpoint of the run of this world."""
    detector = _fitted(path, every=1000)
    scores = detector.score_features(world_features(8, seed=3)[0])
    return _text({"weight": detector.sensitivity.weight, "scores": scores, "repr": repr(detector)})


def _features(path: Path) -> str:
    found, opened = read_features(path), open_features(path)
    rows, labels = opened.read(0, opened.rows)
    assert _text(rows) == _text(found.features)  # by their bits, as NaN is no equal of itself
    return _text({"features": found.features, "labels": labels})


def _head(path: Path) -> str:
    found = read_head(path)
    return _text({"weight": found.weight, "bias": found.bias})


def _shards(path: Path) -> str:
    opened = open_features(path.parent)
    opened.verify()
    rows, labels = opened.read(0, opened.rows)
    return _text({"rows": rows, "labels": labels})


def _odin(path: Path) -> str:
    found = read_odin(path.parent)
    return "none" if found is None else _text({"scores": dict(found.scores), "settings": found.about.settings})


def _results(path: Path) -> str:
    found = read_results(path.parent)
    return repr((found.bench, found.demo, found.sweep, found.pictures))


def _scores_of_results(path: Path) -> str:
    results = read_results(path.parent)
    chosen = results.models[0].chosen
    found = results.scores(results.models[0].model, "" if chosen is None else chosen.method)
    return repr(None if found is None else {name: values.tolist() for name, values in found.items()})


def _scored(path: Path) -> str:
    found = read_score_table(path)
    return _text({"scores": found.scores, "p": found.p_values, "is_ood": found.is_ood})


def _report(name: str) -> Callable[[Path], list[object]]:
    return lambda folder: ["report", folder / name, "--out", folder / "page.html"]


def _score(features: str, detector: str = "detector.safetensors") -> Callable[[Path], list[object]]:
    return lambda folder: [
        *("score", "--detector", folder / detector, "--features", folder / features, "--out", folder / "out.csv")
    ]


def _fit(folder: Path, *more: object) -> list[object]:
    given = ["--features", folder / "features" / "train.safetensors", "--out", folder / "new.safetensors"]
    return ["fit", *given, "--head", folder / "features" / "head.safetensors", "--rho-w-min", "0.1", *more]


def _resume(checkpoint: str) -> Callable[[Path], list[object]]:
    return lambda folder: _fit(folder, "--checkpoint", folder / checkpoint)


def _watch(name: str, *, state: str | None = None) -> Callable[[Path], list[object]]:
    def arguments(folder: Path) -> list[object]:
        kept = () if state is None else ("--detector", folder / "detector.safetensors", "--state", folder / state)
        return ["monitor", folder / name, *kept]

    return arguments


_TRAIN, _FUSION, _STATE = "features/train.safetensors", "fusion.safetensors", "monitor.safetensors"
_RUN, _FUSION_RUN = "checkpoint.safetensors", "fusion_checkpoint.safetensors"
_SHARDS = "shards/features-00000.safetensors"
KINDS = (
    Kind(
        "detector files",
        "detector.safetensors",
        _detector,
        lambda folder: ["inspect", folder / "detector.safetensors"],
        is_sealed=True,
    ),
    Kind("detector files of fusions", _FUSION, _detector, _score(_TRAIN, _FUSION), is_sealed=True),
    Kind("monitor states", _STATE, _monitor, _watch("scored.csv", state=_STATE), is_sealed=True),
    Kind("checkpoints", _RUN, _checkpoint, _resume(_RUN), is_sealed=True),
    Kind("checkpoints of fusions", _FUSION_RUN, _checkpoint, _resume(_FUSION_RUN), is_sealed=True),
    Kind("files of features", _TRAIN, _features, _score(_TRAIN)),
    Kind("files of heads", "features/head.safetensors", _head, _fit),
    Kind("shards", _SHARDS, _shards, _score("shards"), is_sealed=True),
    Kind("indexes of shards", "shards/index.json", _shards, _score("shards")),
    Kind("sources of features", "source.json", lambda path: repr(FeatureSource.read(path.parent))),
    Kind("scores of ODIN", "odin.safetensors", _odin),
    Kind("records of benchmarks", "bench/results.json", _results, _report("bench")),
    Kind("records of demos", "demo/results.json", _results, _report("demo")),
    Kind("records of sweeps", "swept/sweep.json", _results, _report("swept")),
    Kind("records of pictures", "demo/pictures.json", _results, _report("demo")),
    Kind("records of fits", "fit/fit.json", lambda path: repr(read_results(path.parent).fit), _report("fit")),
    Kind("scores of benchmarks", "bench/scores.parquet", _scores_of_results, _report("bench")),
    Kind("scores of demos", "demo/scores.csv", _scores_of_results, _report("demo")),
    Kind("score files in CSV", "scored.csv", _scored, _watch("scored.csv")),
    Kind("score files in Parquet", "scored.parquet", _scored, _watch("scored.parquet")),
)


def kind(name: str) -> Kind:
    """Return the kind of this name."""
    return next(each for each in KINDS if each.name == name)
