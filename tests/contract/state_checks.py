"""What was fitted stays as it is while a detector answers, and is summed in float64."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from opnp.adapters.toolkits import bytes_of
from opnp.core import Sensitivity
from opnp.core.kept_rows import row_hashes
from tests.contract.model_checks import Make, fitted
from tests.contract.world import HEAD, batches, classifier, features_of, held_out, outside, training

__all__ = ["assert_sums_of_a_fusion", "check_scoring_fits_nothing", "check_sums_are_float64"]


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
    """Assert that three blocks of equal rows have the mean of one of them, which a sum in float32 would not keep."""
    detector = make()
    if detector.settings.is_fusion:  # which needs rows that differ
        model, settings = classifier(), replace(detector.settings, precision="float64")
        found = type(detector).from_settings(settings).fit(model, batches(training())).sensitivity
        rows = torch.cat([features_of(model, batch) for batch in batches(training())])
        assert_sums_of_a_fusion(found, rows, model.get_submodule(HEAD))
        return
    few = training()[:4].repeat(256, 1, 1, 1)
    one, many = (make().fit(classifier(), batches(few.repeat(times, 1, 1, 1), 256)).sensitivity for times in (1, 3))
    assert many.count == 3 * one.count == 3 * 1024
    for name in ("weight", "neuron_gradient", "neuron_aggregate"):
        single, repeated = getattr(one, name), getattr(many, name)
        assert repeated.dtype == torch.float64
        assert torch.allclose(repeated, single, rtol=1e-12, atol=0), f"{name} is summed in less than float64"


def assert_sums_of_a_fusion(found: Sensitivity, rows: Tensor, head: nn.Module) -> None:
    """Assert that sensitivities in precision float64 are the means over four fifths of the rows, one by one.

    The fifth with the smallest hashes gives the scales, and is in no sum.
    """
    summed = rows.double()[row_hashes(rows).argsort()[len(rows) // 5 :]]
    assert found.count == len(summed)
    with torch.no_grad():
        weight = head.weight.double()
        shares = head.double()(summed).softmax(1)
        head.float()
    assert torch.allclose(found.weight, (shares.T @ summed.abs()) / len(summed), rtol=1e-12, atol=0), "weight"
    assert torch.allclose(found.neuron_gradient, (shares @ weight).abs().mean(0), rtol=1e-12, atol=0), "gradient"
    assert torch.allclose(found.neuron_aggregate, found.weight.mean(0), rtol=1e-12, atol=0), "aggregate"
    assert found.weight.dtype == found.neuron_gradient.dtype == found.neuron_aggregate.dtype == torch.float64
