"""Scores, shaping and metrics against pytorch-ood, scikit-learn and torchmetrics."""

from typing import Any

import numpy as np
import pytest
import torch
from pytorch_ood.detector import GEN, EnergyBased, Entropy, MaxLogit, MaxSoftmax
from pytorch_ood.detector import ash as pytorch_ood_ash
from pytorch_ood.detector import scale as pytorch_ood_scale
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score, roc_curve
from torchmetrics.functional.classification import multiclass_calibration_error

from opnp.core import (
    PositiveClass,
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


@pytest.mark.parametrize("levels", [2, 10, 10**9])
def test_metrics_are_those_of_scikit_learn(levels: int) -> None:
    """Few levels make ties within and between the sets."""
    generator = torch.Generator().manual_seed(levels)
    inside, outside = torch.randn(400, generator=generator), torch.randn(260, generator=generator) + 1
    inside, outside = ((each.double() * levels).round() / levels for each in (inside, outside))
    is_ood, scores = np.r_[np.zeros(400), np.ones(260)], torch.cat([inside, outside]).numpy()
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(is_ood, scores), abs=1e-12)
    sides: list[tuple[PositiveClass, Any, int]] = [("ood", is_ood, 1), ("id", 1 - is_ood, -1)]
    for positive, is_positive, sign in sides:
        precision = average_precision_score(is_positive, sign * scores)
        rates, shares, _ = roc_curve(is_positive, sign * scores, drop_intermediate=False)
        assert aupr(inside, outside, positive=positive) == pytest.approx(precision, abs=1e-12)
        assert fpr_at_tpr(inside, outside, positive=positive) == rates[np.argmax(shares >= 0.95)]
    labels = torch.randint(0, 12, (50,), generator=generator)
    assert accuracy(LOGITS, labels) == accuracy_score(labels.numpy(), LOGITS.argmax(1).numpy())


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
    assert expected_calibration_error(kept, labels[inner]) == found  # 15 bins unless told


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
