"""What a detector refuses rather than answer silently for something else."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios
from opnp.data import open_features, write_features
from opnp.errors import HeadNotFoundError, InputTypeError, NonFiniteError, OptionError, ShapeError

CLASSES, FEATURES = 12, 32


def small_head() -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(FEATURES, CLASSES)


def small_model() -> nn.Sequential:
    return nn.Sequential(small_head())


def rows(count: int, *, seed: int = 1) -> Tensor:
    return torch.rand(count, FEATURES, generator=torch.Generator().manual_seed(seed))


def fitted() -> OPNP:
    detector = OPNP(ratios=Ratios(w_min=0.1)).fit(small_model(), rows(100).split(20))
    return detector.calibrate(rows(100, seed=2).split(20))


def test_labels_of_a_source_that_are_no_class_indices_are_refused(tmp_path: Path) -> None:
    for shift in (-1, 3):
        write_features(tmp_path / "features", rows(200), labels=torch.arange(200) % CLASSES + shift)
        with pytest.raises(OptionError, match=r"`labels` must lie in 0 to 11 for 12 classes, got"):
            OPNP().fit_features(open_features(tmp_path / "features"), weight=small_head().weight, bias=None)


def test_another_number_of_labels_than_inputs_names_the_batch() -> None:
    batches = [(part, torch.zeros(50, dtype=torch.int64)) for part in (rows(50), rows(49), rows(50))]
    with pytest.raises(ShapeError, match="Batch 1 holds 50 labels for 49 inputs"):
        OPNP(ratios=Ratios()).fit(small_model(), batches)


def test_a_list_of_batches_or_of_single_inputs_is_no_batch() -> None:
    detector = fitted()
    for several in ([rows(4)] * 3, (rows(4), rows(4)), [rows(4), [rows(4), torch.zeros(4)]]):
        with pytest.raises(InputTypeError, match="look like several"):
            detector.score(several)
    assert detector.score((rows(4), torch.zeros(4, dtype=torch.int64))).shape == (4,)


def test_features_that_overflow_the_head_are_refused_when_fitted_and_when_scored() -> None:
    weight = torch.full((CLASSES, FEATURES), 10.0)
    detector = OPNP(ratios=Ratios()).fit_features(rows(100), weight=weight, bias=None, validation=rows(100, seed=2))
    huge = torch.full((3, FEATURES), 3e38)
    with pytest.raises(NonFiniteError, match="`logits` of the pruned head must be finite"):
        detector.predict_features(huge)
    with pytest.raises(NonFiniteError, match="`logits` must be finite"):
        OPNP(ratios=Ratios()).fit_features(huge, weight=weight, bias=None)


def test_a_loader_may_use_its_buffer_again() -> None:
    everything = rows(500, seed=3)

    def reused() -> Iterator[Tensor]:
        buffer = torch.empty(50, FEATURES)
        for part in everything.split(50):
            buffer.copy_(part)
            yield buffer

    for ratios in (None, Ratios(w_min=0.1)):
        direct = OPNP(ratios=ratios).fit(small_model(), everything.split(50), validation=everything.split(50))
        again = OPNP(ratios=ratios).fit(small_model(), reused(), validation=reused())
        assert torch.equal(direct.sensitivity.weight, again.sensitivity.weight)
        assert torch.equal(direct.calibration_scores, again.calibration_scores)
        assert len(again.calibration_scores.unique()) > 450
    direct, again = (
        OPNP(ratios="tuned").fit(small_model(), rows(200).split(50), validation=held_out(), validation_ood=held_out())
        for held_out in (lambda: everything.split(50), reused)
    )
    assert direct.tuning == again.tuning
    assert torch.equal(direct.calibration_scores, again.calibration_scores)


def test_a_lazy_layer_is_left_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(CLASSES))
    with pytest.raises(HeadNotFoundError, match="lazy layers that were never run"):
        OPNP(ratios=Ratios()).fit(model, rows(20).split(10))
    assert isinstance(model[0], nn.LazyLinear)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(InputTypeError, match=r"`model` must be a torch.nn.Module, got str"):
        OPNP(ratios=Ratios()).fit("resnet50", rows(20).split(10))  # type: ignore[arg-type]  # on purpose
