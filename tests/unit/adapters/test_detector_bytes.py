"""A detector as bytes is the detector."""

import pytest

from opnp import OPNP, Ratios
from opnp.adapters.toolkits import bytes_of, detector_from
from opnp.errors import ArtifactError, NotFittedError
from tests.unit.bench.bench_world import world_features, world_weight


@pytest.mark.parametrize("ratios", [Ratios(w_min=0.3), None], ids=["paper", "fusion"])
def test_there_and_back_it_answers_alike(ratios: Ratios | None) -> None:
    features, _ = world_features(200, seed=0)
    detector = OPNP(ratios=ratios).fit_features(features, weight=world_weight(), bias=None)
    found = detector_from(bytes_of(detector))
    assert (found.settings, found.members) == (detector.settings, detector.members)
    assert bytes_of(found) == bytes_of(detector)
    assert found.score_features(features).equal(detector.score_features(features))


def test_other_bytes_are_refused() -> None:
    with pytest.raises(ArtifactError):
        detector_from(b"something else")
    with pytest.raises(NotFittedError):
        bytes_of(OPNP())
