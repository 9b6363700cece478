"""Scores and fits on a cluster of Ray, the real package, with two workers on this machine."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import dataset, parquet

import opnp as package
from opnp import OPNP
from opnp.adapters.ray import BatchOfArrays, Scorer, cluster, fit, rows_dataset, summed
from opnp.data import read_features, read_head
from opnp.detector.storage import read_detector
from opnp.errors import EmptyDataError, NonFiniteError, OpnpWarning, OptionError
from tests.in_process import Opnp, done, refused, run_opnp
from tests.integration.cli_world import line, write_cached
from tests.unit.bench.image_world import INPUTS, OPTIONS, class_images, tiny_model
from tests.unit.data.image_files import save_image

ray = pytest.importorskip("ray", reason="Ray is not installed")

pytestmark = [
    pytest.mark.slow,
    # Ray reads its own settings by names that it warns of, and leaves sockets and files to the end of the process.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROWS = 20_000
_MODULE = """
import os, signal
from pathlib import Path
from torch import nn
from tests.unit.bench.image_world import tiny_model


class Mortal(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = tiny_model()

    def forward(self, inputs):
        die_once()
        return self.inner(inputs)


def die_once():
    if os.getpid() != {owner}:
        try:
            Path({mark!r}).unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Join a cluster of two workers, and return a folder from which they import ``mortal``, a model that dies once."""
    folder = tmp_path_factory.mktemp("ray")
    text = _MODULE.format(owner=os.getpid(), mark=str(folder / "mark"))
    (folder / "mortal.py").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.setenv("RAY_worker_niceness", "0")  # else they wait for whatever else runs
        mine = (folder, Path(__file__).parents[2], Path(package.__file__).parents[1])
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, mine)))  # of the workers
        patch.syspath_prepend(folder)
        ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
        yield folder
        ray.shutdown()
        sys.modules.pop("mortal", None)


@pytest.fixture(scope="module")
def features(place: Path) -> Path:
    """Write features of more than two blocks as Parquet of several row groups, a head, and a detector of them."""
    write_cached(place)
    random = np.random.default_rng(0)
    rows = random.random((ROWS, 32)).astype(np.float32)
    columns = {f"f{place}": values for place, values in enumerate(rows.T)} | {"label": np.arange(ROWS) % 5}
    parquet.write_table(pa.table(columns), place / "rows.parquet", row_group_size=3000)
    made = f"fit --features {place}/train.safetensors --head {place}/head.safetensors"
    done(run_opnp, *made.split(), "--validation", place / "validation.safetensors", "--out", place / "d.st")
    return place


def die_once(place: Path) -> None:
    """Let the next task that asks for it die."""
    (place / "mark").touch()


def table(path: Path) -> pa.Table:
    """Return what is written at a path, by its index."""
    return dataset.dataset(path, format="parquet").to_table().sort_by("index")


def mortal_rows(batch: BatchOfArrays) -> BatchOfArrays:
    """Return rows by their numbers, and die once on the way."""
    from mortal import die_once  # type: ignore[import-not-found]  # written by the fixture

    die_once()
    return {"features": made_rows(batch["id"]), "label": batch["id"] % 5}


def made_rows(numbers: Any) -> Any:
    """Return the features of some rows."""
    return np.sin(np.outer(numbers + 1, np.arange(1, 33)) ** 1.5).astype(np.float32)


def test_features_are_scored_to_the_bit_as_by_one_process(features: Path, opnp: Opnp) -> None:
    one, many = features / "one.parquet", features / "many"
    asked = ("score", features / "d.st", "--explain", "--fdr", "0.2", "--json")
    alone = done(opnp, *asked, "--features", features / "rows.parquet", "--out", one)
    outcome = done(opnp, *asked, "--data", f"file://{features}/rows.parquet", "--out", many, "--ray", "local")
    assert table(many).equals(parquet.read_table(one))
    assert outcome.out.replace(str(many), str(one)) == alone.out
    in_order = [row for file in sorted(many.iterdir()) for row in parquet.read_table(file)["index"].to_pylist()]
    assert in_order == list(range(ROWS))
    assert "new or an empty folder" in refused(opnp, *asked, "--features", one, "--out", many, "--ray", "local")


def test_a_worker_that_dies_loses_and_doubles_no_image(place: Path, opnp: Opnp) -> None:
    for row, image in enumerate(class_images(90, seed=1)[0]):
        save_image(place / "images" / f"{row:03}.png", image)
    (place / "images" / "050.png").write_bytes(b"no image")
    for row, (image, label) in enumerate(zip(*class_images(300, seed=0), strict=True)):
        save_image(place / "train" / str(int(label)) / f"{row:03}.png", image)
    asked = ("fit", "--model", "mortal:Mortal", *OPTIONS, "--data", place / "train", "--validation", place / "train")
    done(opnp, *asked, "--out", place / "one.st")
    die_once(place)
    done(opnp, *asked, "--out", place / "many.st", "--ray", "local")
    assert not (place / "mark").exists()
    assert_same_fit(place / "one.st", place / "many.st")
    score = ("score", place / "one.st", place / "images", "--batch-size", 16)
    done(opnp, *score, "--out", place / "images.parquet")
    die_once(place)
    outcome = done(opnp, *score, "--out", place / "scored", "--ray", "local")
    assert not (place / "mark").exists()
    assert "1 of 90 inputs could not be read: 050.png (no image)" in outcome.err
    assert table(place / "scored").equals(parquet.read_table(place / "images.parquet"))
    on_gpu = refused(opnp, *score, "--device", "cuda:1", "--out", place / "never", "--ray", "local")
    assert "'cuda' and no GPU among them" in on_gpu
    strict = refused(opnp, *score, "--strict", "--out", place / "never", "--ray", "local")
    assert not [*(place / "never").iterdir()]
    assert strict == f"opnp: {place / 'images'}: 050.png cannot be read (no image): mend or remove it.\n"
    (place / "broken").mkdir()
    (place / "broken" / "a.png").write_bytes(b"no image")
    nothing = refused(opnp, "score", place / "one.st", place / "broken", "--out", place / "none", "--ray", "local")
    assert "none of 1 inputs could be read" in nothing


def assert_same_fit(one: Path, other: Path) -> None:
    """Compare two detectors: what they were made of to 1e-12, what they answer with and remember exactly."""
    mine, others = read_detector(one), read_detector(other)
    assert (mine.samples, mine.head_name, mine.axes, mine.origin) == (
        others.samples,
        others.head_name,
        others.axes,
        others.origin,
    )
    assert mine.id_accuracy == others.id_accuracy
    torch.testing.assert_close(others.sensitivity.weight, mine.sensitivity.weight, rtol=1e-6, atol=0)
    assert mine.panel is not None
    assert others.panel is not None
    torch.testing.assert_close(others.panel.mean, mine.panel.mean, rtol=1e-12, atol=0)
    assert torch.equal(others.pruned.masks.weight, mine.pruned.masks.weight)


def test_a_fit_of_many_partitions_is_that_of_one_process_whoever_dies(place: Path) -> None:
    head = read_head(write_cached(place) / "head.safetensors")
    rows = torch.from_numpy(made_rows(np.arange(9000)))
    expected = OPNP().fit_features(rows, weight=head.weight, bias=head.bias)
    die_once(place)
    with cluster("local"):
        found = ray.data.range(9000, override_num_blocks=7).map_batches(mortal_rows, batch_size=None)
        detector = fit(found, weight=head.weight, bias=head.bias, partition_bytes=1)
    assert not (place / "mark").exists()
    mine, others = expected._fitted(), detector._fitted()
    assert mine.panel is not None
    assert others.panel is not None
    for name, tensor in mine.panel.tensors().items():
        if name in ("mean", "gaussian.center", "gaussian.means"):
            torch.testing.assert_close(others.panel.tensors()[name], tensor, rtol=1e-12, atol=1e-13)
    assert (others.samples, others.kept) == (9000, mine.kept)
    torch.testing.assert_close(others.scales, mine.scales, rtol=1e-5, atol=1e-6)
    assert 0 < detector.id_accuracy["training"] < 1


def test_partitions_in_flight_are_of_the_cores_of_now(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.is_dir()  # on a cluster that has one core, and ten later
    head, cores = torch.eye(3, 32), iter([1, 1, *[10] * 6])
    block = ray.put(pa.table({"features": [*made_rows(np.arange(50))]}))
    waits: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr("opnp.adapters.ray._partitions", lambda *_: [[(None, block)]] * 8)
        patch.setattr(ray, "cluster_resources", lambda: {"CPU": next(cores)})
        patch.setattr(ray, "wait", lambda refs: waits.append(len(refs)))
        assert summed(None, head, None, OPNP().settings).seen == 400  # type: ignore[arg-type]  # not looked at
    assert not waits


def test_a_fit_runs_a_model_on_images(place: Path) -> None:
    images, labels = class_images(200, seed=0)
    model = tiny_model()
    expected = OPNP().fit(model, [INPUTS.batch([INPUTS(Image.fromarray(each.numpy())) for each in images])])
    rows = [{"image": image.numpy(), "label": int(label)} for image, label in zip(images, labels, strict=True)]
    with cluster("local"):
        detector = fit(ray.data.from_items(rows), model="mortal:Mortal", transform=INPUTS)
        with pytest.raises(EmptyDataError, match="holds no rows"):
            fit(ray.data.from_items(rows[:2]).limit(0), model="mortal:Mortal", transform=INPUTS)
    refused = pytest.raises(OptionError, match="'cuda:1' and no GPU among them")
    with refused, cluster("local", device="cuda:1"):  # and not: none on this machine
        pass
    with cluster("auto", device="cuda:1"), pytest.warns(OpnpWarning, match="'cuda:1': tasks wait until one is started"):
        rows_dataset(lambda: lambda _start, _stop: [], 8, size=4, device="cuda:1")  # which may start one on demand
    mine, others = expected._fitted(), detector._fitted()
    assert mine.panel is not None
    assert others.panel is not None
    assert (others.head_name, others.axes, others.samples) == ("inner.6", 4, 200)
    torch.testing.assert_close(others.panel.mean, mine.panel.mean, rtol=1e-5, atol=0)
    assert 0 <= detector.id_accuracy["training"] <= 1


def test_a_scorer_goes_into_the_pipelines_of_others(features: Path) -> None:
    rows = made_rows(np.arange(500))
    source = ray.data.from_items([{"id": row, "features": values} for row, values in enumerate(rows)])
    with cluster("local"):
        scored = source.map_batches(
            Scorer,
            fn_constructor_args=(features / "d.st",),
            batch_size=128,
            batch_format="numpy",
            num_cpus=0.5,
            concurrency=1,
        )
        found = {row["id"]: row["score"] for row in scored.take_all()}
    expected = OPNP.load(features / "d.st").score_features(torch.from_numpy(rows))
    assert [found[row] for row in range(500)] == pytest.approx(expected.tolist(), rel=1e-5)


def test_what_is_wrong_in_a_worker_is_told_in_one_sentence(features: Path, opnp: Opnp) -> None:
    wrong = read_features(features / "test.safetensors").features
    wrong[7, 3] = torch.nan
    columns = {f"f{number}": values.numpy() for number, values in enumerate(wrong.T)}
    parquet.write_table(pa.table(columns), features / "wrong.parquet")
    asked = ("score", features / "d.st", "--features", features / "wrong.parquet", "--ray", "local", "--out")
    message = refused(opnp, *asked, features / "never")
    assert message.startswith("opnp: `features`")
    assert message.count("\n") == 1
    head = read_head(features / "head.safetensors")
    with cluster("local"):
        found = ray.data.from_items([{"features": row} for row in wrong.numpy()])
        with pytest.raises(NonFiniteError, match=r"^`features`"):
            fit(found, weight=head.weight, bias=head.bias)
    assert "--out FOLDER" in refused(opnp, *line(f"score {features}/d.st --features a.parquet --ray local"))
