"""The scikit-learn example runs as it stands; search and fusion are no worse than the plain energy."""

import sys

import numpy as np
import pytest

from examples import scikit_learn_detector


@pytest.mark.slow
def test_search_and_fusion_are_not_worse_than_the_energy(
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
