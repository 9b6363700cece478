"""The monitor on real features: quiet while the stream is in distribution, soon heard when a tenth of it is not."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from opnp import OPNP
from opnp.data import read_features, read_head
from opnp.monitor import DriftMonitor
from studies.monitor_streams import alarm_share, stream_wealth
from tests.real.locations import DATA, needs_data

pytestmark = [pytest.mark.real, pytest.mark.slow, needs_data]

CALIBRATION = {"densenet_cifar10": 2000, "densenet_cifar100": 2000, "mobilenet_v2_imagenet": 400}
NEAR = {"densenet_cifar10": "cifar100", "densenet_cifar100": "cifar10"}
FAR = [
    (model, path.stem.removeprefix("ood_"))
    for model in CALIBRATION
    for path in sorted((DATA / "features" / model).glob("ood_*.safetensors"))
    if path.stem != f"ood_{NEAR.get(model)}"
]
BEFORE, AFTER, SHARE, RUNS = 200, 500, 0.1, 10


@dataclass(frozen=True, eq=False)
class Scored:
    """A calibrated detector and its scores: of the held-out ID samples that it was calibrated on, of others, of OOD."""

    detector: OPNP
    rest: Tensor
    ood: dict[str, Tensor]


@cache
def scored(model: str) -> Scored:
    folder = DATA / "features" / model
    head, train, test = (
        read_head(folder / "head.safetensors"),
        read_features(folder / "train.safetensors").features.float(),
        read_features(folder / "test.safetensors"),
    )
    order = torch.randperm(len(test.features), generator=torch.Generator().manual_seed(0))
    held_out, rest = order.tensor_split([CALIBRATION[model]])
    detector = OPNP().fit_features(
        train, weight=head.weight, bias=head.bias, validation=test.features[held_out].float()
    )
    ood = {
        path.stem.removeprefix("ood_"): detector.score_features(read_features(path).features.float())
        for path in sorted(folder.glob("ood_*.safetensors"))
    }
    return Scored(detector, detector.score_features(test.features[rest].float()), ood)


def stream_of(model: str, name: str, generator: torch.Generator, *, before: int, after: int) -> Tensor:
    """Return scores of a stream that is ID for a while, and then OOD with a probability of a tenth."""
    data = scored(model)
    inside = data.rest[torch.randperm(len(data.rest), generator=generator)[: before + after]]
    is_ood = torch.rand(before + after, generator=generator) < SHARE
    is_ood[:before] = False
    outside = data.ood[name][torch.randperm(len(data.ood[name]), generator=generator)[: int(is_ood.sum())]]
    return inside.masked_scatter(is_ood, outside)


def delays(model: str, name: str, runs: int, *, before: int = BEFORE) -> list[int | None]:
    """Return, for each run, how many samples after the change there was an alarm; negative before it, None for none."""
    found: list[int | None] = []
    for seed in range(runs):
        generator = torch.Generator().manual_seed(seed)
        monitor = DriftMonitor(scored(model).detector.calibration_scores, level=0.01, seed=seed)
        monitor.update(stream_of(model, name, generator, before=before, after=AFTER))
        found.append(None if monitor.alarm_at is None else monitor.alarm_at + 1 - before)
    return found


@pytest.mark.parametrize(("model", "name"), FAR)
def test_a_tenth_of_far_ood_is_noticed_within_500_samples(model: str, name: str) -> None:
    found = delays(model, name, RUNS)
    assert sum(delay is not None and 0 < delay <= AFTER for delay in found) >= 9, found


@pytest.mark.parametrize(("model", "name"), NEAR.items())
def test_near_ood_takes_longer_and_raises_no_alarm_before_it_comes(model: str, name: str) -> None:
    assert sum(delay is not None and delay <= 0 for delay in delays(model, name, RUNS)) == 0


@pytest.mark.parametrize("model", CALIBRATION)
def test_streams_that_stay_in_distribution_raise_no_more_alarms_than_stated(model: str) -> None:
    """1000 random splits of scores of samples that nothing was fitted on into calibration and stream."""
    rest, samples, generator = scored(model).rest, CALIBRATION[model], torch.Generator().manual_seed(0)
    length = min(1000, len(rest) - samples)
    splits = torch.stack([torch.randperm(len(rest), generator=generator)[: samples + length] for _ in range(1000)])
    both = rest[splits]
    wealth = stream_wealth(both[:, :samples], both[:, samples:], generator)
    assert alarm_share(wealth, level=0.01) <= 0.01
    assert alarm_share(wealth, level=0.2) <= 0.2
