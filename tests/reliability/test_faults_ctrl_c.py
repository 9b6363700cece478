"""Ctrl-C while a model answers: the model is given back as it was, and the detector is what it was."""

import signal
from collections.abc import Callable

import pytest
from torch import nn

from opnp import OPNP, sensitivity
from tests.contract.snapshot import unchanged
from tests.reliability.faults_world import Faulty, answers, batches, detector, same_answers
from tests.tried import Tried

CALLS: dict[str, Callable[[OPNP, nn.Module], object]] = {
    "fit": lambda found, model: found.fit(model, batches(2), validation=batches(2), keep=0.9),
    "calibrate": lambda found, _: found.calibrate(batches(2, seed=3), keep=0.9),
    "score": lambda found, _: found.score(batches(1)[0]),
    "sensitivity of layers": lambda _, model: sensitivity(model, batches(1), layers=["5", "7"]),
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # a hook of the model, as it should
@pytest.mark.parametrize("run", [0, 1])
@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_while_a_model_answers(name: str, run: int, tried: Tried) -> None:
    tried("faults", "Ctrl-C while a model answers")
    faulty = Faulty()
    found = detector().fit(faulty.model, batches(seed=5), validation=batches(seed=6), keep=0.9)
    before, runs = answers(found), []

    def ring(*_: object) -> None:
        runs.append(1)
        if len(runs) > run:
            signal.raise_signal(signal.SIGINT)

    handle = faulty.model.register_forward_hook(ring)
    with unchanged(faulty.model, f"{name}, interrupted"):
        try:
            CALLS[name](found, faulty.model)
        except KeyboardInterrupt:
            assert len(runs) == run + 1
        else:
            assert len(runs) <= run
    handle.remove()
    assert same_answers(answers(found), before)
