"""Folders of results: opnp writes over its own alone, and keeps what is of one run; and the record of a fit."""

from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import asdict

from opnp import OPNP, PANEL, Ratios, Settings
from opnp.bench import run_bench, run_sweep
from opnp.bench.records import record_fit, require_own_results
from opnp.bench.run import BENCH_FILES
from opnp.bench.sweep import SWEEP_FILES
from opnp.errors import DataFileError, MemberWarning, NonFiniteError
from opnp.values.files import PICTURES_FILE, RECORD_FILES
from opnp.values.fit import FitRecord
from opnp.values.pictures import PictureRecord
from tests.unit.bench.bench_world import write_world

FILES = ("results.json", "sweep.json", "results.md")


FOREIGN = ("", "[0.93]", '{"accuracy": 0.93}', '{"record_version"', "\ufffd", "[" * 10_000)


OWN = '{"record_version": 1}'


@pytest.mark.parametrize("there", [each for size in range(4) for each in combinations(FILES, size)])
@pytest.mark.parametrize("own", [each for size in range(3) for each in combinations(FILES[:2], size)])
@pytest.mark.parametrize("written", [FILES[:1], FILES[1:2], FILES])
def test_only_what_opnp_wrote_is_written_over(
    tmp_path: Path, there: tuple[str, ...], own: tuple[str, ...], written: tuple[str, ...]
) -> None:
    for place, name in enumerate(there):
        content = OWN if name in own else FOREIGN[(place + len(there)) % len(FOREIGN)]
        (tmp_path / name).write_text(content, encoding="utf-8")
    lost = [name for name in written if name in there and name not in own]  # all that is there and is no record
    is_own = bool({*own} & {*there})
    if lost and not (is_own and lost == ["results.md"]):
        with pytest.raises(DataFileError, match=r"holds (results\.json|sweep\.json|results\.md), which opnp did not"):
            require_own_results(tmp_path, files=written)
    else:
        require_own_results(tmp_path, files=written)


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("name", RECORD_FILES)
def test_a_file_of_others_with_the_name_of_a_record(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataFileError, match=f"holds {name}, which opnp did not write: name another folder"):
        require_own_results(tmp_path, files=[name])
    require_own_results(tmp_path / "new", files=[name])
    with pytest.raises(DataFileError, match="is a file: name a folder"):
        require_own_results(tmp_path / name, files=[name])


@pytest.mark.parametrize(
    ("run", "chosen", "files"),
    [(run_bench, {"methods": ["energy-rest"]}, BENCH_FILES), (run_sweep, {"curves": ["samples"]}, SWEEP_FILES)],
)
def test_what_a_killed_run_left_is_not_kept_by_the_run_before_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., object],
    chosen: dict[str, Any],
    files: list[str],
) -> None:
    world, move = write_world(tmp_path / "net"), Path.replace
    run(world, tmp_path / "whole", seed=0, **chosen)
    for at in range(len(files)):
        out = tmp_path / str(at)
        for _ in range(2):  # into a new folder, and over results
            is_last = iter([*[False] * at, True])

            def moved(part: Path, target: Path, is_last: Iterator[bool] = is_last) -> Path:
                if next(is_last):
                    raise KeyboardInterrupt
                return move(part, target)

            with monkeypatch.context() as patched:
                patched.setattr(Path, "replace", moved)
                with pytest.raises(KeyboardInterrupt):
                    run(world, out, seed=1, **chosen)
            run(world, out, seed=0, is_resumed=True, **chosen)
            for name in {*files} - {"timings.json"}:
                assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), f"{name} after {at} files"


def rows_and_weight() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 600 features and the weight of a head of 12 classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(600, 30, generator=generator), torch.randn(12, 30, generator=generator)


@pytest.mark.parametrize("given", [{}, {"ratios": Ratios(w_min=0.1)}, {"ratios": "tuned"}])
def test_a_fit_is_recorded_with_its_calibration_and_choice(tmp_path: Path, given: dict[str, Any]) -> None:
    rows, weight = rows_and_weight()
    detector = OPNP(**given).fit_features(
        rows[:400],
        weight=weight,
        bias=None,
        validation=rows[400:],
        validation_ood=3 * rows[:50] if given.get("ratios") == "tuned" else None,
    )
    record = record_fit(detector, tmp_path, model="mine", settings_text="as chosen")
    read = FitRecord.from_json((tmp_path / "fit.json").read_text())
    assert read == record
    assert Settings.from_json(read.settings) == detector.settings
    assert record.training_samples == 400
    assert record.calibration_scores == tuple(detector.calibration_scores.tolist())
    assert record.threshold == detector.threshold
    assert record.expected_flagged == pytest.approx(0.05, abs=0.005)
    assert record.left_out == detector.left_out == {}
    assert record.head_sha256 == detector.head_digest
    assert (record.tuning is None) == (detector.tuning is None) == (given.get("ratios") != "tuned")
    if record.tuning is not None:
        assert asdict(record.tuning) == {name: getattr(detector.tuning, name) for name in asdict(record.tuning)}
    assert PictureRecord.from_json((tmp_path / PICTURES_FILE).read_text()).models[0].model == "mine"


def test_what_is_left_out_of_a_fusion_is_recorded(tmp_path: Path) -> None:
    _, weight = rows_and_weight()
    equal = torch.ones(200, 30) * torch.linspace(1, 2, 200)[:, None]
    with pytest.warns(MemberWarning, match="goes without"):
        detector = OPNP().fit_features(equal, weight=weight, bias=None)
    record = record_fit(detector, tmp_path, model="mine", settings_text="")
    assert record.left_out == detector.left_out
    assert set(record.left_out) | set(detector.members) == set(PANEL)
    assert all(record.left_out.values())


def test_infinite_calibration_scores_are_refused(tmp_path: Path) -> None:
    rows, weight = rows_and_weight()
    detector = OPNP().fit_features(rows[:400], weight=weight, bias=None)
    detector.calibrate_features(torch.cat([rows[400:], 1e25 * rows[:2]]))
    with pytest.raises(NonFiniteError, match="2 of 202 calibration scores are infinite"):
        record_fit(detector, tmp_path, model="mine", settings_text="")
    assert list(tmp_path.iterdir()) == []


def test_a_fit_without_calibration_has_no_threshold(tmp_path: Path) -> None:
    rows, weight = rows_and_weight()
    detector = OPNP(ratios=Ratios(w_min=0.1)).fit_features(rows, weight=weight, bias=None)
    record = record_fit(detector, tmp_path, model="mine", settings_text="w_min 0.1")
    assert (record.keep, record.threshold, record.expected_flagged, record.calibration_scores) == (None, None, None, ())
    assert record.tuning is None


def test_a_record_of_a_fit_by_class_has_no_one_threshold(tmp_path: Path) -> None:
    rows, weight = rows_and_weight()
    detector = OPNP(ratios=Ratios(w_min=0.1)).fit_features(rows[:300], weight=weight, bias=None)
    detector.calibrate_features(rows[300:], by="predicted")
    record = record_fit(detector, tmp_path, model="net", settings_text="")
    assert (record.calibrated_by, record.threshold, record.expected_flagged) == ("predicted", None, None)
    assert (record.keep, len(record.calibration_scores)) == (0.95, 300)
    assert FitRecord.from_json((tmp_path / "fit.json").read_text(encoding="utf-8")) == record
