"""A default device that is not where the data are: a tensor made without its device would meet them there and fail.

The device is "meta", which any machine has and whose tensors hold nothing, so that no such tensor stays unnoticed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios, Verdict
from opnp.adapters.pytorch_ood import OPNPDetector
from opnp.monitor import DriftMonitor

KINDS: dict[str, Callable[[], OPNP]] = {
    "fusion": OPNP,
    "every member": lambda: OPNP(members=("energy", "nci", "relative_mahalanobis", "opnp", "scale", "ash_s", "norm")),
    "paper": lambda: OPNP(ratios=Ratios(w_min=0.3, o_max=0.1), scope="class"),
    "tuned": lambda: OPNP(ratios="tuned"),
}


class World:
    """A small classifier with its inputs, made on the CPU."""

    def __init__(self) -> None:
        """Draw everything from one seed."""
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12)).eval()
        self.inputs = torch.randn(700, 8, generator=generator)
        self.other = 4 * torch.randn(100, 8, generator=generator)
        self.uncut = self.inputs[:400].split(50)
        self.held_out = self.inputs[400:].split(50)

    def answers(self, kind: str) -> dict[str, Tensor]:
        """Return what a detector of a kind says, fitted, calibrated and asked here and now."""
        foreign = self.other.split(50) if kind == "tuned" else None
        detector = KINDS[kind]().fit(self.model, self.uncut, validation=self.held_out, validation_ood=foreign)
        x = self.inputs[:5]
        verdict: Verdict = detector.verdict(x)
        found = {
            "score": detector.score(x),
            "p-value": detector.p_value(x),
            "verdict": verdict.is_ood,
            "shares": detector.explain(x).share,
            "module": detector.to_module(self.model)(x)[1],
            "wealth": DriftMonitor(detector.calibration_scores, seed=1).update(detector.score(self.inputs[:60])),
        }
        detector.calibrate(self.held_out[:4], keep=0.9)
        return found | {"threshold": torch.tensor(detector.threshold, device="cpu")}


@pytest.fixture
def meta() -> Iterator[None]:
    """Make tensors on the meta device unless they are told otherwise."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.fixture(scope="module")
def world() -> World:
    """Return the classifier and its inputs."""
    return World()


@pytest.fixture(scope="module")
def expected(world: World) -> dict[str, dict[str, Tensor]]:
    """Return the answers without a default device."""
    return {kind: world.answers(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_without_a_default_device(
    world: World, expected: dict[str, dict[str, Tensor]], meta: None, kind: str
) -> None:
    """From the fit to the monitor, to the bit."""
    found = world.answers(kind)
    assert found.keys() == expected[kind].keys()
    for name, value in found.items():
        assert torch.equal(value, expected[kind][name]), name


def test_files_are_written_and_read(world: World, tmp_path: Path, meta: None) -> None:
    """A detector and a monitor come back from disk, and go on."""
    detector = OPNP().fit(world.model, world.uncut, validation=world.held_out)
    detector.save(tmp_path / "d.safetensors")
    loaded = OPNP.load(tmp_path / "d.safetensors", model=world.model)
    assert torch.equal(loaded.score(world.inputs[:9]), detector.score(world.inputs[:9]))
    monitor = DriftMonitor(detector.calibration_scores)
    monitor.update(detector.score(world.inputs[:50]))
    monitor.save(tmp_path / "m.safetensors")
    again, scores = DriftMonitor.load(tmp_path / "m.safetensors"), detector.score(world.inputs[50:90])
    assert torch.equal(again.update(scores), monitor.update(scores))


def test_an_adapter_fits(world: World, meta: None) -> None:
    """As the toolkits' users do, from the model and a loader."""
    head = world.model[2]
    assert isinstance(head, nn.Linear)
    detector = OPNPDetector(world.model[:2], head=head)
    known = torch.zeros(50, dtype=torch.int64, device="cpu")
    scores = detector.fit([(x, known) for x in world.uncut]).predict(world.inputs[:5])
    assert torch.equal(scores, OPNP().fit(world.model, world.uncut).score(world.inputs[:5]).to(scores))
