"""Features cached by several ranks: one folder, as one process would write it, and one error for all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from opnp.data import open_inputs, read_features
from tests.distributed import rank_tasks
from tests.distributed.rank_world import on_ranks, ran
from tests.unit.bench.image_world import (
    INPUTS,
    OPTIONS,
    TREE,
    cached,
    image_sets,
    tiny_model,
    write_broken_tree,
    write_images,
)

FLOATS: dict[str, Any] = {"dtype": torch.float32, "is_odin_wanted": False}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path, rows=53)


@pytest.mark.parametrize(("rows", "world", "piece"), [(53, 2, None), (53, 3, 1), (1, 2, None)], ids=str)
def test_ranks_write_the_folder_of_one_process(tmp_path: Path, rows: int, world: int, piece: int | None) -> None:
    """Also in pieces of one row, of parts that differ by one; and where a rank has no images."""
    images, options = write_images(tmp_path, rows=rows), FLOATS | {"batch_size": 8}
    sets = image_sets(images)
    alone = cached(tiny_model(), sets, images / "alone", **options)
    records = on_ranks(images, world, rank_tasks.cache, images, options, piece)
    assert records == [records[0]] * world
    assert records[0]["computed"] == list(sets)
    assert on_ranks(images, world, rank_tasks.cache, images, options)[-1]["kept"] == list(sets)
    for name in sets:
        one, many = (read_features(images / folder / f"{name}.safetensors") for folder in ("alone", "together"))
        torch.testing.assert_close(many.features, one.features, rtol=1e-6, atol=1e-7)
        assert (many.labels is None) == (one.labels is None)
        assert one.labels is None or torch.equal(one.labels, many.labels)  # type: ignore[arg-type]  # just compared
        assert records[0]["accuracy"][name] == alone.source.sets[name].accuracy
    assert cached(tiny_model(), sets, images / "together", **options).kept == tuple(sets)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_is_named(images: Path, failing: int) -> None:
    found = on_ranks(images, 2, rank_tasks.cache_with_a_broken_image, images, failing)
    message = f"test.safetensors: {26 * failing} cannot be read (the image is broken): mend or remove it."
    assert found[failing] == f"DataFileError: test: {images}/{message}"
    assert found[1 - failing] == f"DistributedError: test: rank {failing} of 2 failed: {images}/{message}"
    assert (images / "together" / "train.safetensors").exists()
    assert not (images / "together" / "test.safetensors").exists()


@pytest.mark.parametrize("broken", [[2, 5], [0, 1, 2], [3, 4, 5, 6]], ids=str)
def test_what_some_ranks_cannot_read_is_left_out_by_all(tmp_path: Path, broken: list[int]) -> None:
    """Of 7 images the first rank has 3 and the second 4; what is left is what one process leaves."""
    write_broken_tree(tmp_path / "tree", broken)
    alone = cached(tiny_model(), {"test": open_inputs(tmp_path / "tree", INPUTS)}, tmp_path / "alone", **FLOATS)
    records = on_ranks(tmp_path, 2, rank_tasks.cache_tree, tmp_path)
    names = [f"{row % 4}/{row}.png" for row in sorted(broken, key=TREE.index)]
    source = alone.source.sets["test"]
    expected = {"samples": 7 - len(broken), "unreadable": names, "accuracy": source.accuracy}
    assert records == [expected] * 2
    assert [name for name, _ in source.unreadable] == names
    one, many = (read_features(tmp_path / folder / "test.safetensors") for folder in ("alone", "together"))
    assert len(one.features) == 7 - len(broken)
    torch.testing.assert_close(many.features, one.features, rtol=1e-6, atol=1e-7)
    assert one.labels is not None
    assert many.labels is not None
    assert one.labels.tolist() == many.labels.tolist() == [row % 4 for row in TREE if row not in broken]
    again = cached(tiny_model(), {"test": open_inputs(tmp_path / "tree", INPUTS)}, tmp_path / "together", **FLOATS)
    assert again.kept == ("test",)


def test_where_no_rank_can_read_anything_all_say_so(tmp_path: Path) -> None:
    write_broken_tree(tmp_path / "tree", TREE)
    for text in on_ranks(tmp_path, 2, rank_tasks.cache_tree, tmp_path):
        assert text.startswith(
            f"EmptyDataError: test: {tmp_path / 'tree'} holds nothing to work on: 7 of 7 inputs could"
        )
        assert text.endswith(
            "0/0.png (no image), 0/4.png (no image), 1/1.png (no image), 1/5.png (no image), 2/2.png (no image), ..."
        )


def test_ranks_must_have_the_same_model(images: Path) -> None:
    for text in on_ranks(images, 2, rank_tasks.cache_other_models, images):
        assert text.startswith("DistributedError: rank 1 has a model and options of digest ")
    assert not (images / "together").exists()


def test_the_command_line_under_torchrun(images: Path) -> None:
    network = ["--model", "tests.unit.bench.image_world:tiny_model", *OPTIONS]
    command = ["cache", *network, "--test", str(images / "test.safetensors")]
    refused = ran(images, 2, [*command, "--out", str(images / "out")])
    assert [code for code, _ in refused] == [2, 2]
    assert "opnp: rank 0 of 2: ODIN's scores are computed by one process" in refused[0][1]
    done = ran(images, 2, [*command, "--out", str(images / "out"), "--no-odin", "--json"])
    assert [code for code, _ in done] == [0, 0], done
    assert json.loads(done[0][1])["sets"]["test"]["samples"] == 53
    assert done[1][1] == ""
