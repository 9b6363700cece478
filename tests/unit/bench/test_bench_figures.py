"""Figures, splits, published settings and measurements against plain arithmetic."""

import mmap
import time
from pathlib import Path

import pytest
import torch

from opnp import accuracy, aupr, auroc, fpr_at_tpr
from opnp.bench import published_settings
from opnp.bench.figures import classifier_figures, detection_figures, mean_figures
from opnp.bench.measure import measured
from opnp.bench.splitting import default_validation_samples, split_test
from opnp.core import expected_calibration_error
from opnp.errors import OptionError

INSIDE = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OUTSIDE = torch.randn(90, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 1


def test_detection_figures_are_the_metrics() -> None:
    figures = detection_figures(INSIDE, OUTSIDE)
    assert figures.fpr95 == fpr_at_tpr(INSIDE, OUTSIDE, positive="id")
    assert figures.fpr95_ood_positive == fpr_at_tpr(INSIDE, OUTSIDE, positive="ood")
    assert figures.auroc == auroc(INSIDE, OUTSIDE)
    assert figures.aupr_id_positive == pytest.approx(aupr(INSIDE, OUTSIDE, positive="id"), abs=1e-12)
    assert figures.aupr_ood_positive == pytest.approx(aupr(INSIDE, OUTSIDE, positive="ood"), abs=1e-12)


def test_the_mean_is_taken_figure_by_figure() -> None:
    figures = [detection_figures(INSIDE, OUTSIDE + shift) for shift in (0, 1, 2)]
    mean = mean_figures(figures)
    assert mean is not None
    for name in ("fpr95", "fpr95_ood_positive", "auroc", "aupr_id_positive", "aupr_ood_positive"):
        assert getattr(mean, name) == pytest.approx(sum(getattr(each, name) for each in figures) / 3, abs=1e-15)
    assert mean_figures([]) is None


def test_classifier_figures_are_the_metrics() -> None:
    logits = torch.randn(300, 5, generator=torch.Generator().manual_seed(2)) * 2
    labels = torch.randint(5, (300,), generator=torch.Generator().manual_seed(3))
    figures = classifier_figures(logits, labels)
    assert figures.accuracy == accuracy(logits, labels)
    assert figures.ece == expected_calibration_error(torch.softmax(logits.double(), 1), labels)
    assert sum(figures.bin_count) == 300
    gaps = zip(figures.bin_count, figures.bin_confidence, figures.bin_accuracy, strict=True)
    assert figures.ece == pytest.approx(sum(n * abs(sure - right) for n, sure, right in gaps) / 300, abs=1e-12)


@pytest.mark.parametrize(("samples", "expected"), [(10000, 2000), (1300, 400), (50, 20), (5000, 2000), (2, 1)])
def test_default_validation_samples(samples: int, expected: int) -> None:
    assert default_validation_samples(samples) == expected


def test_a_split_has_every_row_once_and_follows_the_seed() -> None:
    one, again, other = (split_test(100, validation_samples=30, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.cat([one.validation, one.rest]).sort().values, torch.arange(100))
    assert len(one.validation) == 30
    assert torch.equal(one.validation, again.validation)
    assert not torch.equal(one.validation, other.validation)


def test_a_split_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    split_test(100, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("count", [0, 10, -1, 11])
def test_a_split_with_an_empty_part_is_refused(count: int) -> None:
    with pytest.raises(OptionError, match="must lie in 1 to 9, as `test` has 10 rows"):
        split_test(10, validation_samples=count)


@pytest.mark.parametrize(
    ("classes", "features", "samples", "expected"),
    [
        (10, 342, 25000, {"KNN k=50", "ViM d=100", "DICE p=0.9"}),
        (100, 342, 25000, {"KNN k=200", "ViM d=100", "DICE p=0.9"}),
        (1000, 1280, 1000, {"KNN k=10", "ViM d=256", "DICE p=0.9", "DICE p=0.7"}),
        (1000, 2048, 1_000_000, {"KNN k=1000", "ViM d=256", "DICE p=0.9", "DICE p=0.7"}),
        (3, 8, 50, {"KNN k=1", "ViM d=4", "DICE p=0.9"}),
    ],
)
def test_published_settings_follow_the_size(classes: int, features: int, samples: int, expected: set[str]) -> None:
    settings = published_settings(classes=classes, features=features, samples=samples)
    labels = [each.label for each in settings]
    assert len(set(labels)) == len(labels)
    assert {label for label in labels if label.split()[0] in ("KNN", "ViM", "DICE")} == expected
    assert all(each.citation for each in settings)


def test_time_and_memory_of_a_step_are_measured() -> None:
    def step() -> int:
        with mmap.mmap(-1, 2**26) as block:  # 64 MiB of fresh pages: an allocator may hand out pages it already has
            for page in range(0, len(block), mmap.PAGESIZE):
                block[page] = 1
            time.sleep(0.02)
            return len(block)

    value, took = measured(step)
    assert value == 2**26
    assert took.seconds >= 0.02
    assert took.peak_bytes is None or took.peak_bytes > 2**25


def test_where_memory_cannot_be_measured_it_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("opnp.bench.measure._CLEAR", tmp_path / "absent" / "clear_refs")
    assert measured(lambda: 1)[1].peak_bytes is None
    monkeypatch.setattr("opnp.bench.measure._CLEAR", tmp_path / "clear_refs")
    monkeypatch.setattr("opnp.bench.measure._STATUS", tmp_path / "absent")
    assert measured(lambda: 1)[1].peak_bytes is None
    (tmp_path / "status").write_text("Name: python\n", encoding="ascii")
    monkeypatch.setattr("opnp.bench.measure._STATUS", tmp_path / "status")
    assert measured(lambda: 1)[1].peak_bytes is None
