"""Ctrl-C that comes while the model is being lent or given back: that is ended first, and then the call."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn
from torch.utils.hooks import RemovableHandle

from opnp import OPNP, sensitivity
from opnp.model.kept_buffers import KeptBuffers
from opnp.model.undisturbed import Undisturbed
from tests.contract.snapshot import unchanged
from tests.reliability.faults_world import Faulty, answers, batches, detector, same_answers
from tests.tried import Tried

CALLS: dict[str, Callable[[OPNP, nn.Module], object]] = {
    "fit": lambda found, model: found.fit(model, batches(2), validation=batches(2), keep=0.9),
    "calibrate": lambda found, _: found.calibrate(batches(2, seed=3), keep=0.9),
    "score": lambda found, _: found.score(batches(1)[0]),
    "sensitivity of layers": lambda _, model: sensitivity(model, batches(1), layers=["5", "7"]),
}
STEPS: dict[str, tuple[type, str]] = {
    "buffers are kept": (KeptBuffers, "of"),
    "buffers are given back": (KeptBuffers, "give_back"),
    "a hook before a layer is made": (nn.Module, "register_forward_pre_hook"),
    "a hook after a layer is made": (nn.Module, "register_forward_hook"),
    "a hook is removed": (RemovableHandle, "remove"),
}


def fitted() -> tuple[OPNP, Faulty]:
    """Return a fitted detector with its model."""
    faulty = Faulty()
    return detector().fit(faulty.model, batches(seed=5), validation=batches(seed=6), keep=0.9), faulty


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # a hook of the model, as it should
@pytest.mark.parametrize("is_after", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_in_the_midst_of_lending(
    monkeypatch: pytest.MonkeyPatch, name: str, step: str, is_after: bool, tried: Tried
) -> None:
    """The signal comes at the second such step, or the first if there is no other."""
    tried("faults", "Ctrl-C while a model is lent or given back")
    found, faulty = fitted()
    CALLS[name](found, faulty.model)  # what is imported on first use is imported
    before = answers(found)
    kind, method = STEPS[step]
    real: Any = getattr(kind, method)
    calls: list[int] = []

    def interrupted(*arguments: Any, **options: Any) -> Any:  # whatever the method takes and returns
        calls.append(1)
        if not is_after and len(calls) <= 2:
            signal.raise_signal(signal.SIGINT)
        result = real(*arguments, **options)
        if is_after and len(calls) <= 2:
            signal.raise_signal(signal.SIGINT)
        return result

    with unchanged(faulty.model, f"{name}, interrupted when {step}"), monkeypatch.context() as patch:
        patch.setattr(kind, method, interrupted)
        is_interrupted = False
        try:
            CALLS[name](found, faulty.model)
        except KeyboardInterrupt:
            is_interrupted = True
    assert is_interrupted is bool(calls)
    assert not calls or same_answers(answers(found), before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # as above
@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_at_random_moments(name: str, tried: Tried) -> None:
    times, chance, landed = 200, random.Random(0), 0  # noqa: S311  # moments, no secrets
    tried("faults", "Ctrl-C at random moments of a call", times)
    found, faulty = fitted()
    begin = time.perf_counter()
    for _ in range(5):
        CALLS[name](found, faulty.model)
    duration = (time.perf_counter() - begin) / 5
    while landed < times:
        found, faulty = fitted()
        before = answers(found)
        moment, is_over = chance.uniform(0, duration), threading.Event()

        def ring(moment: float = moment, is_over: threading.Event = is_over) -> None:
            if not is_over.wait(moment):
                os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=ring)
        with unchanged(faulty.model, name):
            try:
                thread.start()
                CALLS[name](found, faulty.model)
                is_over.set()
                thread.join()
            except KeyboardInterrupt:
                landed += 1
                thread.join()
        if name in {"score", "sensitivity of layers"}:
            assert same_answers(answers(found), before)


def test_in_other_threads_there_is_nothing_to_put_off() -> None:
    seen: list[object] = []

    def run() -> None:
        before = signal.getsignal(signal.SIGINT)
        with Undisturbed():
            seen.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [True]


def test_an_error_goes_before_ctrl_c() -> None:
    error = ValueError("first")
    with pytest.raises(ValueError, match="first"):
        fail_after_ctrl_c(error)


def fail_after_ctrl_c(error: Exception) -> None:
    """Hear Ctrl-C and raise, undisturbed."""
    with Undisturbed():
        signal.raise_signal(signal.SIGINT)
        raise error
