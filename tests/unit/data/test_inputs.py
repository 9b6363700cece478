"""Sets of inputs: what cannot be read is left out, listed and counted, the same way from every process."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

import opnp.data.inputs as inputs_module
from opnp.adapters.transformers_models import TransformersImageTransform
from opnp.data import InputSet, Preprocessing, open_inputs, train_and_test, unreadable_summary
from opnp.data.inputs import usual_workers
from opnp.errors import DataFileError, EmptyDataError, InputTypeError, MissingFileError, ModelRunError, OptionError
from tests.unit.data.image_files import PLAIN, inputs_of, pixels, save_image, scaled, write_tensors, write_tree
from tests.unit.data.text_world import LETTERS

FORKING = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
BROKEN = (0, 3, 4, 5, 9)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder of 10 images in 2 classes, of which half are cut off."""
    folder = write_tree(tmp_path / "tree", {"0": 4, "1": 6})
    for row, file in enumerate(sorted(folder.glob("*/*.png"))):
        if row in BROKEN:
            file.write_bytes(file.read_bytes()[:100])
    return folder


def test_items_and_batches_keep_the_order_and_the_global_random_state(tmp_path: Path) -> None:
    images = open_inputs(write_tensors(tmp_path / "some.safetensors", pixels(7), torch.arange(7) + 5), PLAIN)
    before = torch.random.get_rng_state()
    batches = list(images.batches(3))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [labels.tolist() for _, labels in batches] == [[5, 6, 7], [8, 9, 10], [11]]
    assert torch.equal(inputs_of(images), scaled(pixels(7)))
    items, last = list(iter(images)), images[-1]
    assert isinstance(last, tuple)
    assert [item[1] for item in items if isinstance(item, tuple)] == list(range(5, 12))
    torch.testing.assert_close(items[-1], last, rtol=0, atol=0)
    with pytest.raises(IndexError):
        images[7]
    with pytest.raises(OptionError, match="`batch_size` must be at least 1, got 0"):
        images.batches(0)
    with pytest.raises(OptionError, match="`workers` must be 0 or the number of processes"):
        images.batches(1, workers=-1)


@FORKING
@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_left_out_of_its_batch(tree: Path, workers: int) -> None:
    inputs = open_inputs(tree, PLAIN)
    first, _ = inputs.first_batch()
    assert not inputs.unreadable
    batches = list(inputs.batches(2, workers=workers))
    assert torch.equal(first, batches[0][0])
    assert [labels.tolist() for _, labels in batches] == [[0], [0], [1, 1], [1]]
    names = ["0/000.png", "0/003.png", "1/000.png", "1/001.png", "1/005.png"]
    assert [name for name, _ in inputs.unreadable] == names
    assert all("truncated" in reason for _, reason in inputs.unreadable)
    assert tuple(inputs.reasons) == BROKEN
    assert inputs.readable.tolist() == [1, 2, 6, 7, 8]
    assert inputs.labels is not None
    assert len(inputs) == len(inputs.labels) == 10
    again = list(inputs.batches(2, workers=workers))  # they are known now
    assert [labels.tolist() for _, labels in again] == [[0, 0], [1, 1], [1]]
    assert torch.equal(*(torch.cat([batch for batch, _ in each]) for each in (batches, again)))


@FORKING
@pytest.mark.parametrize("workers", [0, 2])
def test_a_strict_set_raises_the_first(tree: Path, workers: int) -> None:
    inputs = open_inputs(tree, PLAIN, is_strict=True)
    with pytest.raises(DataFileError, match=r"tree: 0/000\.png cannot be read \(.*truncated.*\): mend or remove it"):
        list(inputs.batches(4, workers=workers))
    assert not inputs.unreadable
    with pytest.raises(DataFileError, match=r"0/000\.png cannot be read"):
        inputs.first_batch()
    with pytest.raises(DataFileError, match=r"1/005\.png cannot be read"):
        inputs[-1]


def test_rows_of_which_none_can_be_read_are_no_error_but_a_whole_set_is(tree: Path) -> None:
    inputs = open_inputs(tree, PLAIN)
    assert list(inputs.batches(2, rows=range(3, 6))) == []
    assert list(inputs.batches(2, rows=range(0))) == []
    for file in tree.glob("*/*.png"):
        file.write_bytes(b"no image")
    none = open_inputs(tree, PLAIN)
    message = r"tree holds nothing to work on: 10 of 10 inputs could not be read: 0/000\.png \(no image\), .*, \.\.\.$"
    for attempt in (lambda: list(none.batches(3)), lambda: list(none.batches(3)), none.first_batch):
        with pytest.raises(EmptyDataError, match=message):
            attempt()


class Failing(Preprocessing):
    """Fails on images that are black."""

    error: Exception

    def __call__(self, image: Image.Image) -> torch.Tensor:
        if not np.asarray(image).any():
            raise self.error
        return super().__call__(image)


@FORKING
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("mean must have 1 element\nand more"), "mean must have 1 element"),
        (OSError("broken"), "broken"),
        (MemoryError(), "MemoryError"),
        (TypeError("no tensor"), None),
        (OptionError("sizes differ"), None),
    ],
)
def test_a_transform_that_fails(tmp_path: Path, error: Exception, reason: str | None, workers: int) -> None:
    """Where it is about the image, that is counted; else the run ends with the name of the image, or what opnp says."""
    write_tree(tmp_path, {"0": 2})
    Image.new("RGB", (8, 8)).save(tmp_path / "0" / "black.png")
    transform = type("Once", (Failing,), {"error": error})(8, 8, (0.0,) * 3, (1.0,) * 3)
    inputs = InputSet(open_inputs(tmp_path, PLAIN).source, transform)
    if reason is None:
        message = r"failed on 0/black\.png: TypeError: no tensor$|^sizes differ$"
        with pytest.raises((ModelRunError, OptionError), match=message):
            list(inputs.batches(2, workers=workers))
    else:
        assert sum(len(labels) for _, labels in inputs.batches(2, workers=workers)) == 2
        assert inputs.unreadable == (("0/black.png", reason),)


@pytest.mark.parametrize(
    "transform",
    [
        Preprocessing(size=8, resize=64, mean=(0.0,) * 3, std=(1.0,) * 3),
        TransformersImageTransform(CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=8)),
    ],
    ids=["own", "transformers"],
)
def test_an_image_that_would_become_huge_is_counted(
    tmp_path: Path, transform: Preprocessing | TransformersImageTransform, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_image(tmp_path / "a.png", pixels(1, height=64, width=64)[0])
    Image.new("RGB", (1, 20_000)).save(tmp_path / "thin.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    inputs = open_inputs(tmp_path, transform)
    assert inputs_of(inputs).shape == (1, 3, 8, 8)
    reason = "too long and thin: it would be resized to 64 x 1280000 pixels, above 1000000"
    assert inputs.unreadable == (("thin.png", reason),)


def test_the_summary_shows_five() -> None:
    some = [(f"{index}", "why") for index in range(6)]
    assert unreadable_summary([], total=3) == ""
    assert unreadable_summary(some[:5], total=9).endswith("3 (why), 4 (why)")
    assert unreadable_summary(some, total=9).endswith("4 (why), ...")


@pytest.mark.parametrize(("name", "count"), [("some.csv", 2), ("some.jsonl", 2), ("some.npz", 2), ("tree", 4)])
def test_inputs_without_labels_may_have_any(tmp_path: Path, name: str, count: int) -> None:
    (tmp_path / "some.csv").write_text("path,label\ntree/2/000.png,\ntree/2/001.png,x\n", encoding="utf-8")
    (tmp_path / "some.jsonl").write_text('{"text": "a"}\n{"text": "b", "label": 3}\n', encoding="utf-8")
    np.savez(tmp_path / "some.npz", images=pixels(2).numpy(), labels=np.zeros(3))
    save_image(write_tree(tmp_path / "tree", {"10": 1, "2": 2, "3": 0}) / "loose.png", pixels(1)[0])
    transform = LETTERS if name.endswith("jsonl") else PLAIN
    with pytest.raises(DataFileError):
        open_inputs(tmp_path / name, transform)
    inputs = open_inputs(tmp_path / name, transform, is_labelled=False)
    assert (len(inputs), inputs.labels, inputs.source.class_names) == (count, None, None)
    (batch,) = inputs.batches(8)
    assert not isinstance(batch, tuple)
    if name == "tree":
        assert list(inputs.names) == ["loose.png", "2/000.png", "2/001.png", "10/000.png"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("a.jsonl", InputTypeError, "holds texts, and the model takes images: expected"),
        ("a.csv", InputTypeError, "holds texts, and the model takes images: expected"),
        ("tree", InputTypeError, r"is a folder, and the model takes texts: expected a \.jsonl"),
        ("list.txt", InputTypeError, "holds images, and the model takes texts: expected a"),
        ("b.safetensors", InputTypeError, "holds images, and the model takes texts: expected a"),
        ("tree/0/000.png", DataFileError, r"ends in '\.png': expected a \.jsonl"),
        ("none", MissingFileError, r"does not exist: expected a \.jsonl"),
    ],
)
def test_paths_that_hold_no_such_inputs(tmp_path: Path, name: str, error: type[Exception], message: str) -> None:
    write_tree(tmp_path / "tree", {"0": 1})
    write_tensors(tmp_path / "b.safetensors", pixels(1))
    files: Mapping[str, str] = {"a.jsonl": '{"text": "a"}', "a.csv": "text\na\n", "list.txt": "tree/0/000.png"}
    for file, content in files.items():
        (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(error, match=f"{name} {message}"):
        open_inputs(tmp_path / name, PLAIN if name.startswith("a.") else LETTERS)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("train test", "train test"),
        ("train val", "train val"),
        ("train val test", "train test"),
        ("train train.safetensors test.safetensors", "train test.safetensors"),
        ("test", "holds no train: it must hold both train and test"),
        ("train", r"holds no test \(or val\): it must hold both train and test"),
    ],
)
def test_training_and_test_samples_beside_each_other(tmp_path: Path, names: str, expected: str) -> None:
    for name in names.split():
        (tmp_path / name).mkdir()
    if expected.startswith("holds"):
        with pytest.raises(MissingFileError, match=expected):
            train_and_test(tmp_path)
    else:
        assert train_and_test(tmp_path) == tuple(tmp_path / name for name in expected.split())


@pytest.mark.parametrize("workers", [0, 1])
def test_the_default_device_changes_nothing(tmp_path: Path, workers: int) -> None:
    inputs = open_inputs(write_tensors(tmp_path / "some.safetensors", pixels(7), torch.arange(7)), PLAIN)
    expected = inputs_of(inputs)
    torch.set_default_device("meta")
    try:
        found = list(inputs.batches(4, workers=workers))
        readable = inputs.readable
    finally:
        torch.set_default_device(None)
    assert torch.equal(torch.cat([images for images, _ in found]), expected)
    assert torch.cat([labels for _, labels in found]).tolist() == readable.tolist() == list(range(7))


# ------------------------------------------------------------------------------------------------------ usual workers
def _machine(monkeypatch: pytest.MonkeyPatch, *, cores: int, shared: int, ranks: int | None = None) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(cores)), raising=False)
    monkeypatch.setattr(inputs_module, "disk_usage", lambda _path: SimpleNamespace(free=shared))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="shared memory is looked at where Linux has it")
@pytest.mark.parametrize(
    ("cores", "shared", "ranks", "expected"),
    [
        (2, 1 << 40, None, 2),
        (64, 1 << 40, None, 8),
        (4, 1 << 26, None, 0),
        (8, 1 << 31, None, 4),
        (16, 1 << 40, 4, 4),
        (2, 1 << 40, 4, 0),
    ],
)
def test_usual_workers_are_the_cores_that_are_free_where_memory_is_shared(
    monkeypatch: pytest.MonkeyPatch, cores: int, shared: int, ranks: int | None, expected: int
) -> None:
    _machine(monkeypatch, cores=cores, shared=shared, ranks=ranks)
    assert usual_workers() == expected


def test_a_daemonic_process_starts_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, cores=4, shared=1 << 40)
    monkeypatch.setattr(inputs_module, "current_process", lambda: SimpleNamespace(daemon=True))
    assert usual_workers() == 0


def test_many_images_are_read_by_usual_workers_where_nobody_says(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, cores=3, shared=1 << 40)
    images = open_inputs(tree, PLAIN)
    assert len(images) > 2
    assert images.batches(1, workers=None).workers == usual_workers() == 3
    assert images.batches(len(images), workers=None).workers == 0
    assert images.batches(1).workers == images.batches(1, workers=0).workers == 0
    arrays = open_inputs(write_tensors(tree.parent / "some.safetensors", pixels(7)), PLAIN)
    assert arrays.batches(1, workers=None).workers == 0
