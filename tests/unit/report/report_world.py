"""Records to draw: pictures of a head made from arrays, and small results."""

from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from opnp.data import write_score_table
from opnp.values.bench import BenchRecord, DemoRecord, DemoRow
from opnp.values.figures import DetectionFigures
from opnp.values.pictures import ModelPictures, NeuronPicture, PictureRecord, SensitivityPicture, WeightPicture

Array = NDArray[np.float64]
BINS = 50


def sensitivities(features: Array, weight: Array, bias: Array) -> tuple[Array, Array]:
    """Return the sensitivity of each weight, and of each neuron by its gradient."""
    logits = features @ weight.T + bias
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    return probabilities.T @ np.abs(features) / len(features), np.abs(probabilities @ weight).mean(0)


def ends(values: Array, lowest: float, highest: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which entries have the smallest and which the largest values, by share."""
    order = np.argsort(values.ravel(), kind="stable")
    low, high = np.zeros(values.size, dtype=bool), np.zeros(values.size, dtype=bool)
    low[order[: round(lowest * values.size)]] = True
    high[order[values.size - round(highest * values.size) :]] = True
    return low.reshape(values.shape), high.reshape(values.shape)


def sensitivity_picture(values: Array, low: NDArray[np.bool_], high: NDArray[np.bool_]) -> SensitivityPicture:
    edges = np.linspace(0, 1, BINS + 1)
    shares = values / values.max()
    counts = [np.histogram(shares[mask], edges)[0].tolist() for mask in (~(low | high), low, high)]
    return SensitivityPicture(
        maximum=float(values.max()),
        mean=float(shares.mean()),
        edges=tuple(edges.tolist()),
        kept=tuple(counts[0]),
        lowest=tuple(counts[1]),
        highest=tuple(counts[2]),
    )


def pictures_of_head(
    model: str,
    features: Array,
    weight: Array,
    bias: Array,
    ratios: tuple[float, float, float, float] = (0.3, 0.002, 0.1, 0.02),
) -> ModelPictures:
    """Return the pictures of a head pruned at `ratios`: w_min, w_max, o_min, o_max."""
    of_weights, of_neurons = sensitivities(features, weight, bias)
    weight_ends = ends(of_weights, ratios[0], ratios[1])
    neuron_ends = ends(of_neurons, ratios[2], ratios[3])
    stays = ~(weight_ends[0] | weight_ends[1] | neuron_ends[0] | neuron_ends[1])
    edges = np.linspace(weight.min(), weight.max(), BINS + 1)
    place = np.clip(np.digitize(weight, edges) - 1, 0, BINS - 1)
    before = np.histogram(weight, edges)[0]
    sums = np.bincount(place.ravel(), of_weights.ravel() / of_weights.max(), minlength=BINS)
    order = np.argsort(of_neurons, kind="stable")
    return ModelPictures(
        model=model,
        method="OPNP()",
        weight_sensitivity=sensitivity_picture(of_weights, *weight_ends),
        neuron_sensitivity=sensitivity_picture(of_neurons, *neuron_ends),
        weights=WeightPicture(
            edges=tuple(edges.tolist()),
            before=tuple(before.tolist()),
            after=tuple(np.histogram(weight[stays], edges)[0].tolist()),
            sensitivity=tuple(
                float(total / count) if count else None for total, count in zip(sums, before, strict=True)
            ),
        ),
        neurons=NeuronPicture(
            neurons=len(of_neurons),
            removed_lowest=int(neuron_ends[0].sum()),
            removed_highest=int(neuron_ends[1].sum()),
            ranks=tuple(range(len(of_neurons))),
            sensitivity=tuple((of_neurons[order] / of_neurons.max()).tolist()),
            norm_before=tuple(np.linalg.norm(weight[:, order], axis=0).tolist()),
            norm_after=tuple(np.linalg.norm((weight * stays)[:, order], axis=0).tolist()),
        ),
    )


RECORDS = Path(__file__).parents[3] / "docs" / "records"
"""Records of real runs."""

MODEL = "densenet_cifar100"


def bench_record() -> BenchRecord:
    """Return the real benchmark's record."""
    return BenchRecord.from_json((RECORDS / "bench.json").read_text(encoding="utf-8"))


def first_version_record() -> BenchRecord:
    """Return some rows of one model as version 0.1 recorded them: it chose ratios and shaping without OOD data."""
    path = Path(__file__).with_name("first_version.json")
    return BenchRecord.from_json(path.read_text(encoding="utf-8"))


FUSED = ("gen", "vim")
"""Members of the fusion in `fusion_record`."""


def fusion_record() -> BenchRecord:
    """Return the record of version 0.1 with rows of this one for its own: a fusion, and its members."""
    record = first_version_record()
    settings = {
        "ratios": {"w_min": 0.5, "w_max": 0.0, "o_min": 0.0, "o_max": 0.0},
        "neuron": "gradient",
        "scope": "layer",
        "temperature": 1.0,
        "score": "energy",
        "shaping": {"name": "scale", "quantile": 0.85},
        "precision": "float32",
    }
    models = []
    for model in record.models:
        old = model.row("OPNP()")
        rows = tuple(row for row in model.methods if not row.method.startswith("OPNP("))
        names = {"OPNP()": FUSED} | {f"{name} alone": (name,) for name in FUSED}
        fused = tuple(
            replace(old, method=name, settings={"members": list(members), **settings}, after=None)
            for name, members in names.items()
        )
        models.append(replace(model, methods=(*rows, *fused)))
    return replace(record, models=tuple(models))


def small_head(seed: int = 0) -> tuple[Array, Array, Array]:
    """Return features, weight and bias: 200 samples, 12 classes, 40 neurons."""
    draw = np.random.default_rng(seed)
    return draw.gamma(0.5, 1.0, (200, 40)), draw.normal(0, 0.5, (12, 40)), draw.normal(0, 0.1, 12)


def scores_by_set(seed: int = 0, *, samples: int = 300) -> dict[str, Array]:
    """Return scores of a test set, and of a near and a far OOD set."""
    draw = np.random.default_rng(seed)
    return {
        "test": draw.normal(-8, 2, samples),
        "ood_far": draw.normal(-3, 2, samples - 40),
        "ood_near": draw.normal(-6, 2, samples - 20),
    }


def demo_record(scores: dict[str, Array]) -> DemoRecord:
    """Return a record of the demo with the rows Energy and OPNP; its figures are made up."""
    figures = {"near": DetectionFigures(0.3, 0.4, 0.9), "far": DetectionFigures(0.1, 0.2, 0.95)}
    rows = [
        DemoRow(
            method=method,
            settings={"ratios": {"w_min": 0.1, "w_max": 0.0, "o_min": 0.1, "o_max": 0.0}, "shaping": None},
            detection=figures,
            accuracy=0.99,
            pruned_accuracy=0.98,
            flagged_id=0.06,
            threshold=-5.0,
        )
        for method in ("Energy", "OPNP")
    ]
    counts = {name: len(values) for name, values in scores.items()}
    return DemoRecord("digits", seed=0, keep=0.95, counts=counts, versions={"opnp": "0"}, methods=tuple(rows))


def demo_folder(folder: Path) -> Path:
    """Return a folder as the demo leaves it, with pictures: scores of the row OPNP alone."""
    scores = scores_by_set()
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(demo_record(scores).to_json(), encoding="utf-8")
    pictures = PictureRecord(models=(pictures_of_head("digits", *small_head()),))
    (folder / "pictures.json").write_text(pictures.to_json(), encoding="utf-8")
    names = {"test": "id_test"}
    rows = [
        (names.get(name, name), place, value) for name, values in scores.items() for place, value in enumerate(values)
    ]
    write_score_table(
        folder / "scores.csv",
        dict(zip(("set", "index", "score"), (list(column) for column in zip(*rows, strict=True)), strict=True)),
    )
    return folder


def bench_folder(folder: Path, record: BenchRecord | None = None) -> Path:
    """Return a folder as a benchmark leaves it: the real record or another, the real sweep, and made-up scores."""
    folder.mkdir(exist_ok=True)
    for source, name in (("bench.json", "results.json"), ("sweep.json", "sweep.json")):
        (folder / name).write_bytes((RECORDS / source).read_bytes())
    if record is not None:
        (folder / "results.json").write_text(record.to_json(), encoding="utf-8")
    columns: dict[str, list[object]] = {"model": [], "set": [], "method": [], "index": [], "score": []}
    for seed, method in enumerate(("Energy, rest of test", "OPNP()")):
        given = scores_by_set(seed)
        for name, values in {
            "test": given["test"],
            "ood_cifar10": given["ood_near"],
            "ood_dtd": given["ood_far"],
            "ood_mnist": given["ood_far"] + 1,
            "ood_tiny_imagenet_crop": given["ood_far"] - 1,
        }.items():
            columns["model"] += [MODEL] * len(values)
            columns["set"] += [name] * len(values)
            columns["method"] += [method] * len(values)
            columns["index"] += range(len(values))
            columns["score"] += values.tolist()
    write_score_table(folder / "scores.parquet", columns)
    return folder
