"""``opnp report`` and ``--report`` of the commands that leave results: the page, and the figures beside it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from opnp.data import read_features, write_features
from opnp.values.pictures import PictureRecord
from tests.in_process import Opnp, done, refused
from tests.integration.cli_world import FEATURES, line, write_cached
from tests.unit.bench.bench_world import write_world
from tests.unit.bench.image_world import write_images, write_module
from tests.unit.report.report_world import demo_folder

LOADED = """
import sys
from opnp.report import write_report
write_report(sys.argv[1], sys.argv[2])
print(*sorted({"matplotlib", "plotly", "pandas"} & set(sys.modules)))
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return a folder of the demo."""
    return demo_folder(tmp_path / "results")


@pytest.mark.slow
def test_a_page_and_figures_are_written(opnp: Opnp, results: Path, tmp_path: Path) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures"
    given = ("report", results, "--out", page, "--figures", figures)
    shown = done(opnp, *given).out
    drawn = sorted(figures.iterdir())
    assert shown.splitlines()[0] == f"Report: {page}, {page.stat().st_size / 1e6:.1f} MB."
    assert f"{len(drawn)} figures are in {figures}." in shown
    facts = json.loads(done(opnp, *given, "--keep", "0.9", "--json").out)
    assert (facts["out"], facts["bytes"]) == (str(page), page.stat().st_size)
    assert sorted(facts["figures"]) == [str(path) for path in drawn]
    assert 'value="90.0"' in page.read_text(encoding="utf-8")


def test_what_cannot_be_read_or_written_leaves_no_page(opnp: Opnp, results: Path, tmp_path: Path) -> None:
    file, page = tmp_path / "file", tmp_path / "page.html"
    file.touch()
    for place in (file, file / "figures"):
        message = refused(opnp, "report", results, "--out", page, "--figures", place)
        assert "file is a file: name a folder for the figures" in message
    assert "no such folder of results" in refused(opnp, "report", tmp_path / "none", "--out", page)
    assert not page.exists()


def test_a_page_loads_no_other_library_that_draws(results: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOADED, str(results), str(tmp_path / "page.html")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "\n", "")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (("--rho-w-min", "0.2"), "pruning rho_w_min 0.2, no shaping"),
        (("--members", "gen,norm"), "a fusion of gen and norm"),
        ((), "a fusion of gen, react, fdbd, mahalanobis, vim, opnp and norm"),
    ],
)
def test_a_fit_is_reported_with_its_threshold(
    opnp: Opnp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cached(tmp_path / "f")
    for options in ((), ("--validation", "f/validation.safetensors")):
        given = ("fit", *FEATURES.split(), *kind, "--out", "d.st", *options, "--report", "report.html", "--json")
        facts = json.loads(done(opnp, *given).out)
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert "train.safetensors" in text
        assert words in text
        assert ("threshold" in facts) == bool(options)
        assert not options or f"{facts['threshold']:.6g}" in text


def test_scores_without_a_number_are_one_message(opnp: Opnp, cached: Path) -> None:
    """Features that overflow score +inf, which JSON has no number for and no figure can show."""
    found = read_features(cached / "validation.safetensors").features
    found[:20] *= 1e25
    write_features(cached / "many.safetensors", found)
    write_features(cached / "validation.safetensors", torch.cat([found[:5], found[20:]]))
    detector, page = cached / "d.safetensors", cached / "report.html"
    fit = ("fit", "--features", cached / "train.safetensors", "--head", cached / "head.safetensors", "--out", detector)
    outcome = done(opnp, *fit, "--validation", cached / "validation.safetensors", "--json")
    assert math.isfinite(json.loads(outcome.out)["threshold"])
    message = refused(opnp, *fit, "--validation", cached / "validation.safetensors", "--report", page)
    assert "opnp: 5 of 185 calibration scores are infinite: their features are too large" in message
    assert detector.exists()
    assert not page.exists()
    message = refused(opnp, *fit, "--validation", cached / "many.safetensors")
    assert "20 of 200 calibration samples have an infinite score" in message


def test_a_sweep_is_reported(opnp: Opnp, tmp_path: Path) -> None:
    features, page = write_world(tmp_path / "features"), tmp_path / "sweep.html"
    curves = ("--curves", "w_min,o_min")
    outcome = done(opnp, "sweep", "--features", features, *curves, "--out", tmp_path / "sweep", "--report", page)
    assert outcome.out.rstrip().endswith(f"Report: {page}")
    assert "hindsight" in page.read_text(encoding="utf-8")


def test_a_benchmark_on_images_has_a_gallery_of_what_was_read(
    opnp: Opnp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_module(write_images(tmp_path)))
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    sets = "--id test.safetensors --train train.safetensors --ood noise=noise.safetensors"
    given = line(f"bench TINY {sets} --methods reference,product --out results --report report.html")
    for _ in range(2):  # the second time from features that were kept
        done(opnp, *given)
        record = PictureRecord.from_json(Path("results/pictures.json").read_text(encoding="utf-8"))
        (pictures,) = record.models
        assert (pictures.model, pictures.method) == ("tinynets-net", "OPNP()")
        assert {each.set: len(each.items) for each in pictures.gallery} == {"test": 12, "ood_noise": 12}
        assert all(item.p_value is not None for each in pictures.gallery for item in each.items)
        text = Path("report.html").read_text(encoding="utf-8")
        assert all(item.image in text for each in pictures.gallery for item in each.items)
