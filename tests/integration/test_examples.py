"""The examples run as they stand, and the fusion loses little there to the best single score."""

import json
import sys
from pathlib import Path

import pytest

from examples import clinc150_intents, tabular_digits
from examples.comparison import Comparison
from opnp import PANEL
from tests.real.locations import DATA

TEXT = DATA / "text" / "clinc150.json"
SINGLE = ["Energy", "MSP", "ReAct 0.9", "SCALE 0.85", "OPNP w_min=0.3"]
METHODS = [*SINGLE, "OPNP()"]

needs_text = pytest.mark.skipif(not TEXT.is_file(), reason=f"the CLINC150 sentences are not at {TEXT}")
every_example = pytest.mark.parametrize("name", [pytest.param("text", marks=needs_text), "table"])

_COMPARISONS: dict[str, Comparison] = {}


def comparison(name: str) -> Comparison:
    """The comparison over three seeds, made once."""
    if name not in _COMPARISONS:
        _COMPARISONS[name] = clinc150_intents.run(TEXT) if name == "text" else tabular_digits.run()
    return _COMPARISONS[name]


@pytest.mark.slow
@every_example
def test_the_fusion_has_little_regret(name: str) -> None:
    """Against the single score that is best on each set, which nobody knows beforehand."""
    found = comparison(name)
    sets = {each.ood for each in found.results}
    best = {ood: max(found.mean(method, ood, "auroc") for method in SINGLE) for ood in sets}
    regrets = {ood: 100 * (best[ood] - found.mean("OPNP()", ood, "auroc")) for ood in sets}
    assert max(regrets.values()) <= (1.0 if name == "text" else -1.0), regrets
    assert {each.scored_by for each in found.results if each.method == "OPNP()"} == {", ".join(PANEL)}


@pytest.mark.slow
@every_example
def test_every_method_is_reported_on_every_set_and_seed(name: str) -> None:
    found = comparison(name)
    sets = ["out_of_scope"] if name == "text" else ["unseen_classes", "shuffled_columns"]
    expected = [(seed, method, ood) for seed in range(3) for method in METHODS for ood in sets]
    assert [(each.seed, each.method, each.ood) for each in found.results] == expected
    assert min(found.accuracy) > 0.85
    for method in METHODS:
        assert 0.02 < found.mean(method, sets[0], "flagged_id") < 0.09
        assert found.mean(method, sets[0], "auroc") > 0.8
    lines = found.table().splitlines()
    for method in METHODS:
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
    record = json.loads(out.read_text(encoding="utf-8"))
    first = [each for each in comparison("table").results if each.seed == 0]
    assert record["results"] == [{name: getattr(each, name) for name in type(each).__slots__} for each in first]
    assert record["counts"] == comparison("table").counts
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
