"""The results page holds what the records hold."""

from pathlib import Path

import pytest

from studies.results_page import Records, results_page, with_table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "results.md"
README = ROOT / "README.md"


@pytest.fixture(scope="module")
def records() -> Records:
    return Records.read(ROOT / "docs" / "records")


def test_the_page_is_the_one_the_records_make(records: Records) -> None:
    assert PAGE.read_text(encoding="utf-8") == results_page(records), "run `make results`"


def test_the_table_of_the_readme_is_the_one_the_records_make(records: Records) -> None:
    text = README.read_text(encoding="utf-8")
    assert text == with_table(text, records), "run `make results`"
    row = next(line for line in text.splitlines() if line.startswith("| **`OPNP()`** |"))
    fused = records.panel["rows"]["OPNP()"]
    figures = [f"{value:.1f}" for value in fused["auroc"].values()]
    assert row.split(" | ")[1:] == [*figures, f"{fused['mean_regret']:.2f}", f"{fused['worst_regret']:.2f} |"]
    with pytest.raises(ValueError, match="must hold"):
        with_table("no comments", records)


def test_every_baseline_that_ran_is_on_the_page_with_its_figures(records: Records) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for model in records.bench.models:
        section = page.split(f"### {model.model}\n")[1].split("\n#")[0]
        rows = [row for row in model.methods if row.group == "baseline" and row.status == "ok"]
        assert len(rows) > 20
        for row in rows:
            if row.source == "pytorch-ood" and not row.method.endswith("(pytorch-ood)") and row.far is not None:
                figures = f"{100 * row.far.fpr95:.2f} / {100 * row.far.auroc:.2f}"
                assert any(line.startswith(f"| {row.method} | {figures} |") for line in section.splitlines())


def test_the_records_cover_the_same_models_and_no_figure_is_missing(records: Records) -> None:
    models = {model.model for model in records.bench.models}
    assert {model.model for model in records.sweep.models} <= models == set(records.panel["best_single"])
    for name, row in records.panel["rows"].items():
        assert set(row["auroc"]) == set(row["regret"]) == models, name
        assert len(row["mean_regret_by_split"]) == records.panel["splits"], name
    for model in records.bench.models:
        assert model.row("OPNP()").status == "ok"
        assert [row.method for row in model.methods if row.group == "product" and row.status != "ok"] == []
