"""The same detector on a CUDA device and on the processor; skipped where there is no such device."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios, conformal_p_value
from opnp.core.masks import pruned_count

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a CUDA device with the processor"),
]
SHARE = 0.3


@pytest.fixture(scope="module")
def world() -> tuple[nn.Sequential, Tensor]:
    """Return a small classifier and its inputs, on the processor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
        return model, torch.randn(4000, 32)


def fitted(kind: Callable[[], OPNP], world: tuple[nn.Sequential, Tensor], device: str) -> OPNP:
    """Return a detector that was fitted and calibrated on a device."""
    model, inputs = world
    return kind().fit(model, inputs[:3000].split(256), validation=inputs[3000:].split(256), device=device)


def test_masks_differ_at_the_cut_alone(world: tuple[nn.Sequential, Tensor]) -> None:
    """An entry whose side depends on the device is as close to the cut as the sums are to each other."""
    here, there = (fitted(lambda: OPNP(ratios=Ratios(w_min=SHARE)), world, place) for place in ("cpu", "cuda"))
    values, others = here.sensitivity.weight, there.sensitivity.weight.cpu()
    torch.testing.assert_close(others, values, rtol=1e-4, atol=0)
    cut = values.flatten().sort().values[pruned_count(SHARE, values.numel())]
    away = (values - cut).abs() > 1e-4 * cut
    assert torch.equal(here.masks.weight[away], there.masks.weight.cpu()[away])


@pytest.mark.parametrize("kind", [OPNP, lambda: OPNP(ratios=Ratios(w_min=SHARE, o_max=0.1))], ids=["fusion", "paper"])
def test_scores_agree(world: tuple[nn.Sequential, Tensor], kind: Callable[[], OPNP]) -> None:
    """To 1e-4, and p-values as far as that moves a rank."""
    model, inputs = world
    here, there = (fitted(kind, world, place) for place in ("cpu", "cuda"))
    left, right = here.score(inputs[:500]), there.score(inputs[:500]).cpu()
    torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-4)
    calibration = here.calibration_scores
    slack = 1e-4 * (1 + left.abs())
    low, high = (conformal_p_value(left + way * 2 * slack, calibration) for way in (1, -1))
    found = there.p_value(inputs[:500]).cpu()
    assert bool(((low <= found) & (found <= high)).all())
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_a_fit_costs_little_beside_the_forward() -> None:
    """At most 1.05 times the forward of a model of some size, the least of five, in one run."""
    model = nn.Sequential(nn.Flatten(), *(nn.Sequential(nn.Linear(4096, 4096), nn.ReLU()) for _ in range(8)))
    model = nn.Sequential(model, nn.Linear(4096, 100)).eval().cuda()
    batches = list(torch.randn(16, 1024, 4096, device="cuda"))

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    def seconds(call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))

    detector = OPNP(ratios=Ratios(w_min=SHARE))
    pairs = [(seconds(forward), seconds(lambda: detector.fit(model, batches))) for _ in range(6)][1:]
    assert min(fit for _, fit in pairs) <= 1.05 * min(plain for plain, _ in pairs)
