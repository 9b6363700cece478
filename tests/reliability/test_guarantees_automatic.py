"""How far the guarantee is off where settings are chosen, and the detector calibrated, on the same samples.

`fit(validation=)` does both, and so the promise for `keep` is approximate there. The same samples calibrate a detector
with nothing to choose, for which it is exact; the difference of both shares on fresh samples is what the choice costs.
"""

import pytest
import torch
from scipy import stats
from torch import Tensor

from opnp import OPNP, Ratios
from tests.tried import Tried

CLASSES, WIDTH, TESTED = 10, 32, 10_000


class World:
    """Features round the weights of their class, as a head with these weights would get them."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(CLASSES, WIDTH, generator=self.generator)

    def samples(self, rows: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, CLASSES, (rows,), generator=self.generator)
        noise = torch.randn(rows, WIDTH, generator=self.generator)
        return torch.relu(0.5 * self.weight[labels] + noise), labels


def shares_flagged(samples: int, seed: int) -> tuple[float, float, bool]:
    """Return the shares flagged by an automatic detector and by a plain one, and whether anything was chosen."""
    world = World(seed)
    training, validation, (tested, _) = world.samples(1000)[0], world.samples(samples), world.samples(TESTED)
    automatic, plain = OPNP(), OPNP(ratios=Ratios(), shaping=None)
    for detector in (automatic, plain):
        detector.fit_features(training, weight=world.weight, bias=None, validation=validation, keep=0.95)
    one, other = (float(each.predict_features(tested).double().mean()) for each in (automatic, plain))
    settings = automatic.settings
    return one, other, settings.ratios != Ratios() or settings.shaping is not None


@pytest.mark.parametrize(("runs", "most"), [(2, 0.04), pytest.param(50, 0.006, marks=pytest.mark.long)])
def test_choosing_on_the_calibration_samples_moves_the_share_flagged_by_little(
    tried: Tried, runs: int, most: float
) -> None:
    tried("guarantees", "automatic fits that are calibrated on the samples they chose on, against fixed ones", runs)
    found = [shares_flagged(200, seed) for seed in range(runs)]
    assert any(is_chosen for *_, is_chosen in found)
    differences = torch.tensor([one - other for one, other, _ in found], dtype=torch.float64)
    error = float(differences.std()) / runs**0.5
    print(f"{float(differences.mean()):.4f} +- {error:.4f}")  # noqa: T201  # shown where the test fails, or with -s
    assert abs(float(differences.mean())) <= most
    plain = torch.tensor([other for _, other, _ in found], dtype=torch.float64)
    spread = stats.betabinom(TESTED, 10, 191).std() / TESTED
    assert abs(float(plain.mean()) - 10 / 201) <= 4 * spread / runs**0.5
