"""Scores, shaping and metrics against pytorch-ood, scikit-learn and torchmetrics."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytorch_ood.detector import GEN, EnergyBased, Entropy, MaxLogit, MaxSoftmax
from pytorch_ood.detector import ash as pytorch_ood_ash
from pytorch_ood.detector import scale as pytorch_ood_scale
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score, roc_curve
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from opnp.core import (
    accuracy,
    ash_s,
    aupr,
    auroc,
    energy_score,
    entropy_score,
    expected_calibration_error,
    fpr_at_tpr,
    gen_score,
    max_logit_score,
    msp_score,
    scale,
)

LOGITS = torch.randn(50, 12, generator=torch.Generator().manual_seed(0)) * 3


def two_sets(seed: int, *, levels: int) -> tuple[Tensor, Tensor]:
    """ID and OOD scores; few levels make ties within and between the sets."""
    generator = torch.Generator().manual_seed(seed)
    inside = torch.randn(400, generator=generator, dtype=torch.float64)
    outside = torch.randn(260, generator=generator, dtype=torch.float64) + 1
    return (inside * levels).round() / levels, (outside * levels).round() / levels


def joined(inside: Tensor, outside: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels, 1 = OOD, and scores."""
    return np.r_[np.zeros(len(inside)), np.ones(len(outside))], torch.cat([inside, outside]).numpy()


@pytest.mark.parametrize("levels", [2, 10, 10**9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rank_metrics_are_those_of_scikit_learn(seed: int, levels: int) -> None:
    inside, outside = two_sets(seed, levels=levels)
    is_ood, scores = joined(inside, outside)
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(is_ood, scores), abs=1e-12)
    of_ood, of_id = average_precision_score(is_ood, scores), average_precision_score(1 - is_ood, -scores)
    assert aupr(inside, outside, positive="ood") == pytest.approx(of_ood, abs=1e-12)
    assert aupr(inside, outside, positive="id") == pytest.approx(of_id, abs=1e-12)

    rates, shares, _ = roc_curve(is_ood, scores, drop_intermediate=False)
    assert fpr_at_tpr(inside, outside, positive="ood") == rates[np.argmax(shares >= 0.95)]
    rates, shares, _ = roc_curve(1 - is_ood, -scores, drop_intermediate=False)
    assert fpr_at_tpr(inside, outside) == rates[np.argmax(shares >= 0.95)]


def test_calibration_error_is_that_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (torch.randn(2000, 5, generator=generator, dtype=torch.float64) * 2).softmax(1)
    labels = torch.multinomial(probabilities, 1, generator=generator).flatten()
    for bins in (10, 15):
        position = probabilities.amax(1) * bins
        inner = (position - position.round()).abs() > 1e-6
        kept = probabilities[inner].float()
        expected = multiclass_calibration_error(kept, labels[inner], num_classes=5, n_bins=bins, norm="l1")
        found = expected_calibration_error(kept, labels[inner], bins=bins)
        assert found == pytest.approx(float(expected), abs=1e-6)
        assert found > 0.001


def test_accuracy_is_that_of_scikit_learn() -> None:
    labels = torch.randint(0, 12, (50,), generator=torch.Generator().manual_seed(1))
    labels[:30] = LOGITS[:30].argmax(1)
    assert accuracy(LOGITS, labels) == accuracy_score(labels.numpy(), LOGITS.argmax(1).numpy())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_scores_have_the_values_and_the_sign_of_pytorch_ood(temperature: float) -> None:
    pairs = [
        (energy_score(LOGITS, temperature=temperature), EnergyBased.score(LOGITS, t=temperature)),
        (msp_score(LOGITS, temperature=temperature), MaxSoftmax.score(LOGITS, t=temperature)),
        (entropy_score(LOGITS), Entropy.score(LOGITS)),
        (max_logit_score(LOGITS), MaxLogit.score(LOGITS)),
    ]
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("gamma", "top"), [(0.1, 5), (0.5, 12), (0.01, 3)])
def test_gen_is_that_of_pytorch_ood_times_the_number_of_terms(gamma: float, top: int) -> None:
    """pytorch-ood takes the mean of the terms and bounds probabilities at 1e-7: none of these comes near."""
    logits = LOGITS / 3
    expected = GEN.score(logits, gamma=gamma, M=top) * top
    torch.testing.assert_close(gen_score(logits, gamma=gamma, top=top), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("quantile", [0.65, 0.85, 0.9, 0.95])
def test_ash_s_and_scale_are_those_of_pytorch_ood(quantile: float) -> None:
    """pytorch-ood wants feature maps of four axes, and makes NaN of a row of zeros: there is none here."""
    features = torch.randn(20, 342, generator=torch.Generator().manual_seed(2)).clamp_min(0)
    maps = features[:, :, None, None]
    expected_ash_s = pytorch_ood_ash.ash_s(maps.clone(), quantile).flatten(1)
    expected_scale = pytorch_ood_scale.scale(maps.clone(), quantile).flatten(1)
    torch.testing.assert_close(ash_s(features, quantile=quantile), expected_ash_s, rtol=1e-5, atol=0)
    torch.testing.assert_close(scale(features, quantile=quantile), expected_scale, rtol=1e-5, atol=0)
