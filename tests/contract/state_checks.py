"""What was fitted stays as it is while a detector answers, and is summed in float64."""

from dataclasses import replace

import torch

from opnp.adapters.detector_bytes import bytes_of
from tests.contract.model_checks import Make, fitted
from tests.contract.world import batches, classifier, features_of, held_out, outside, training

__all__ = ["check_scoring_fits_nothing", "check_sums_are_float64"]


def check_scoring_fits_nothing(make: Make) -> None:
    detector = fitted(make)
    before, scores = bytes_of(detector), detector.score(held_out())
    strange = features_of(classifier(), outside())
    for name in ("score", "p_value", "predict", "verdict"):
        getattr(detector, name)(outside())
        getattr(detector, f"{name}_features")(strange)
    assert bytes_of(detector) == before, "scoring changed what was fitted"
    assert torch.equal(detector.score(held_out()), scores), "scoring changed the scores to come"


def check_sums_are_float64(make: Make) -> None:
    """Assert that three blocks of equal rows have the mean of one of them, which a sum in float32 would not keep.

    A fusion keeps a fifth out of its sums, the same images with all their copies, and needs images that differ. The
    others go through products in new blocks, which are float64 here so that no block rounds another way.
    """
    detectors = [make(), make()]
    few = training()[:4].repeat(256, 1, 1, 1)
    if detectors[0].settings.is_fusion:
        settings = replace(detectors[0].settings, precision="float64")
        detectors = [type(each).from_settings(settings) for each in detectors]
        few = training().repeat(8, 1, 1, 1)
    one, many = (
        detector.fit(classifier(), batches(few.repeat(times, 1, 1, 1), 160 if len(few) > 1024 else 256)).sensitivity
        for detector, times in zip(detectors, (1, 3), strict=True)
    )
    assert many.count == 3 * one.count == 3 * 1024
    for name in ("weight", "neuron_gradient", "neuron_aggregate"):
        single, repeated = getattr(one, name), getattr(many, name)
        assert repeated.dtype == torch.float64
        assert torch.allclose(repeated, single, rtol=1e-12, atol=0), f"{name} is summed in less than float64"
