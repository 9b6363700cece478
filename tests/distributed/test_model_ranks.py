"""``opnp fit --model`` and ``opnp score --model`` on ranks: the detector and the table of one process."""

from pathlib import Path

import pytest
import torch

from opnp import OPNP
from tests.distributed.rank_world import ran
from tests.unit.bench.image_world import OPTIONS, class_images
from tests.unit.data.image_files import save_image

MODEL = ("--model", "tests.unit.bench.image_world:tiny_model", *OPTIONS, "--batch-size", "4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of folders of images, of which some cannot be read."""
    unreadable = {"train": {3, 30}, "validation": {0}, "test": {5, 6, 7}}
    for seed, (name, count) in enumerate({"train": 31, "validation": 24, "test": 8}.items()):
        for index, image in enumerate(class_images(count, seed=seed)[0]):
            path = save_image(tmp_path / name / f"{index:02d}.png", image)
            if index in unreadable[name]:
                path.write_text("no image", encoding="utf-8")
    return tmp_path


def run(folder: Path, world: int, *arguments: str) -> list[str]:
    """Run the command line on ranks, and return what each wrote."""
    found = ran(folder, world, arguments)
    assert [code for code, _ in found] == [0] * world, found
    return [text for _, text in found]


@pytest.mark.parametrize("options", [("--rho-w-min", "0.2"), ()], ids=["paper", "fusion"])
def test_ranks_fit_and_score_as_one_process_does(folder: Path, options: tuple[str, ...]) -> None:
    detectors, tables = [], []
    for world in (1, 3):
        detector, table = folder / f"detector{world}.safetensors", folder / f"scores{world}.csv"
        data = ("--data", str(folder / "train"), "--validation", str(folder / "validation"), "--precision", "float64")
        first, *others = run(folder, world, "fit", *MODEL, *data, *options, "--out", str(detector))
        assert "train: 2 of 31 inputs could not be read: 03.png (no image), 30.png (no image)" in first
        assert "validation: 1 of 24 inputs could not be read: 00.png" in first
        assert others == [""] * (world - 1)
        # The last of three ranks has images that cannot be read, and nothing else.
        given = ("--detector", str(folder / "detector1.safetensors"), "--data", str(folder / "test"))
        first, *others = run(folder, world, "score", *MODEL, *given, "--out", str(table), "--json")
        assert '"unreadable": 3' in first
        assert others == [""] * (world - 1)
        detectors.append(OPNP.load(detector))
        tables.append([line.split(",") for line in table.read_text(encoding="utf-8").splitlines()])
    alone, together = detectors
    assert together.samples == alone.samples == 29
    assert together.members == alone.members
    assert torch.equal(together.masks.weight, alone.masks.weight)
    if options:
        assert torch.equal(together.calibration_scores, alone.calibration_scores)
    torch.testing.assert_close(together.calibration_scores, alone.calibration_scores, rtol=1e-6, atol=1e-6)
    assert [row[:3] for row in tables[1]] == [row[:3] for row in tables[0]]
    assert [row[1] for row in tables[1]] == ["name", "00.png", "01.png", "02.png", "03.png", "04.png"]
    scores = [torch.tensor([float(row[3]) for row in table[1:]]) for table in tables]
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-6, atol=1e-6)
