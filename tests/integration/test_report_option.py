"""``--report`` of the commands that leave results, and ``opnp report`` on what they leave."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from opnp.data import read_features, write_features, write_head
from opnp.values.pictures import PictureRecord
from tests.in_process import Opnp
from tests.unit.bench.bench_world import write_world
from tests.unit.bench.image_world import OPTIONS, write_images, write_module


def test_the_demo_leaves_a_report_and_all_that_it_is_made_of(opnp: Opnp, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    outcome = opnp("demo", "--out", tmp_path / "demo", "--report", page)
    assert outcome.code == 0, outcome.err
    assert outcome.out.rstrip().endswith(f"Report: {page}")
    assert opnp("report", tmp_path / "demo", "--out", tmp_path / "again.html").code == 0
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
    (pictures,) = PictureRecord.from_json((tmp_path / "demo" / "pictures.json").read_text(encoding="utf-8")).models
    record = json.loads((tmp_path / "demo" / "results.json").read_text(encoding="utf-8"))
    threshold = next(row["threshold"] for row in record["methods"] if row["method"] == "OPNP()")
    assert [each.set for each in pictures.gallery] == ["test", "ood_near", "ood_far"]
    for each in pictures.gallery:
        scores = [item.score for item in each.items]
        assert scores == sorted(scores, reverse=each.set == "test")
        assert [item.is_ood for item in each.items] == [score > threshold for score in scores]
        assert len({item.image for item in each.items}) > 1
        assert all(item.image in page.read_text(encoding="utf-8") for item in each.items)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (("--rho-w-min", "0.2"), "uses pruning rho_w_min 0.2, no shaping"),
        (("--members", "gen,norm"), "uses a fusion of gen and norm"),
        ((), "uses a fusion of gen, react, fdbd, mahalanobis, vim, opnp and norm"),
    ],
)
def test_a_fit_is_reported_with_its_threshold(opnp: Opnp, tmp_path: Path, kind: tuple[str, ...], words: str) -> None:
    write_head(tmp_path / "head.safetensors", torch.randn(4, 30, generator=torch.Generator().manual_seed(0)))
    for seed, name in enumerate(("train", "validation")):
        rows = torch.rand(100, 30, generator=torch.Generator().manual_seed(seed))
        write_features(tmp_path / f"{name}.safetensors", rows)
    fit = ("fit", "--features", tmp_path / "train.safetensors", "--head", tmp_path / "head.safetensors")
    more = (*kind, "--out", tmp_path / "d.safetensors", "--json")
    for options in ((), ("--validation", tmp_path / "validation.safetensors")):
        page = tmp_path / "report.html"
        outcome = opnp(*fit, *more, *options, "--report", page)
        assert outcome.code == 0, outcome.err
        facts = json.loads(outcome.out)
        text = page.read_text(encoding="utf-8")
        assert "train.safetensors" in text
        assert words in text
        assert ("threshold" in facts) == bool(options)
        if options:
            assert f"{facts['threshold']:.4g}"[:5] in text
        page.unlink()


def test_scores_without_a_number_are_one_message(opnp: Opnp, cached: Path) -> None:
    """Features that overflow score +inf, which JSON has no number for and no figure can show."""
    found = read_features(cached / "validation.safetensors").features
    found[:20] *= 1e25
    write_features(cached / "many.safetensors", found)
    write_features(cached / "validation.safetensors", torch.cat([found[:5], found[20:]]))
    detector, page = cached / "d.safetensors", cached / "report.html"
    fit = ("fit", "--features", cached / "train.safetensors", "--head", cached / "head.safetensors", "--out", detector)
    outcome = opnp(*fit, "--validation", cached / "validation.safetensors", "--json")
    assert outcome.code == 0, outcome.err
    assert math.isfinite(json.loads(outcome.out)["threshold"])
    outcome = opnp(*fit, "--validation", cached / "validation.safetensors", "--report", page)
    assert outcome.code == 2
    assert "opnp: 5 of 185 calibration scores are infinite: their features are too large" in outcome.err
    assert detector.exists()
    assert not page.exists()
    outcome = opnp(*fit, "--validation", cached / "many.safetensors")
    assert outcome.code == 2
    assert "20 of 200 calibration samples have an infinite score" in outcome.err


def test_a_sweep_is_reported(opnp: Opnp, tmp_path: Path) -> None:
    features, page = write_world(tmp_path / "features"), tmp_path / "sweep.html"
    curves = ("--curves", "w_min,o_min")
    outcome = opnp("sweep", "--features", features, *curves, "--out", tmp_path / "sweep", "--report", page)
    assert outcome.code == 0, outcome.err
    assert outcome.out.rstrip().endswith(f"Report: {page}")
    assert "hindsight" in page.read_text(encoding="utf-8")


def test_a_benchmark_on_images_has_a_gallery_of_what_was_read(
    opnp: Opnp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_module(write_images(tmp_path)))
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    model = ("bench", "--model", "tinynets:net", *OPTIONS, "--id", "test.safetensors", "--train", "train.safetensors")
    others = ("--ood", "noise=noise.safetensors", "--methods", "reference,product", "--out", "results")
    for _ in range(2):  # the second time from features that were kept
        outcome = opnp(*model, *others, "--report", "report.html")
        assert outcome.code == 0, outcome.err
        record = PictureRecord.from_json(Path("results/pictures.json").read_text(encoding="utf-8"))
        (pictures,) = record.models
        assert (pictures.model, pictures.method) == ("tinynets-net", "OPNP()")
        assert {each.set: len(each.items) for each in pictures.gallery} == {"test": 12, "ood_noise": 12}
        assert all(item.p_value is not None for each in pictures.gallery for item in each.items)
        text = Path("report.html").read_text(encoding="utf-8")
        assert all(item.image in text for each in pictures.gallery for item in each.items)


def test_without_its_packages_nothing_is_computed(opnp: Opnp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opnp.cli.report_option.find_spec", lambda name: None if name == "plotly" else name)
    outcome = opnp("demo", "--out", tmp_path / "demo", "--report", tmp_path / "report.html")
    assert outcome.code == 2
    assert outcome.err == "opnp: `--report` needs plotly, not installed: `pip install 'opnp[report]'`.\n"
    assert not (tmp_path / "demo").exists()
