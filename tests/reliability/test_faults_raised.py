"""Loaders and forwards that raise at any batch, of any call: what is left afterwards is what was there before."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from typing import Any

import pytest
from torch import nn

from opnp import OPNP, sensitivity
from tests.contract.snapshot import unchanged
from tests.reliability import faults_world
from tests.reliability.faults_world import FAULTS, Faulty, Trigger, answers, detector, same_answers
from tests.tried import Tried

ROWS = 24
"""Rows a batch, so that four are enough to fuse scores by, and to tune ratios on."""

batches = partial(faults_world.batches, rows=ROWS)
Call = Callable[[OPNP, nn.Module, Iterable[Any]], object]

CALLS: dict[str, Call] = {
    "fit": lambda found, model, loader: found.fit(model, loader),
    "fit with a validation set": lambda found, model, loader: found.fit(model, batches(), validation=loader, keep=0.9),
    "fit with OOD samples": lambda found, model, loader: found.fit(
        model, batches(), validation=batches(), validation_ood=loader, keep=0.9
    ),
    "calibrate": lambda found, _, loader: found.calibrate(loader, keep=0.9),
    "score": lambda found, _, loader: [found.score(batch) for batch in loader],
    "predict": lambda found, _, loader: [found.predict(batch) for batch in loader],
    "verdict": lambda found, _, loader: [found.verdict(batch) for batch in loader],
    "sensitivity of layers": lambda _, model, loader: sensitivity(model, loader, layers=["5", "7"]),
}
FITS = {"fit": 0, "fit with a validation set": 4, "fit with OOD samples": 8}
"""Calls that fit, with the number of batches that they run before those of the loader."""
KINDS: dict[str, Callable[[], OPNP]] = {
    "paper": detector,
    "fusion": partial(detector, is_fusion=True),
    "tuned": lambda: OPNP(ratios="tuned"),
}


def prepared(faulty: Faulty, kind: str, *, is_fitted: bool) -> OPNP:
    """Return the detector that a call begins with."""
    found, ood = KINDS[kind](), batches(seed=7) if kind == "tuned" else None
    if is_fitted:
        found.fit(faulty.model, batches(seed=5), validation=batches(seed=6), validation_ood=ood, keep=0.9)
    return found


def fails(name: str, kind: str, place: str, fault: str, at: int, *, is_fitted: bool) -> None:
    """Let a call fail at a batch, look at what is left, and make the same call again."""
    faulty = Faulty()
    found = prepared(faulty, kind, is_fitted=is_fitted)
    before = answers(found)
    trigger = Trigger(FAULTS[fault], at if place == "loader" else at + FITS.get(name, 0))
    trigger.lasts = name == "sensitivity of layers"  # which runs samples one by one where many at once have failed
    with unchanged(faulty.model, f"{name} with {fault} in the {place}"):
        raised: BaseException | None = None
        try:
            if place == "loader":
                CALLS[name](found, faulty.model, faults_world.faulty_loader(trigger, rows=ROWS))
            else:
                faulty.trigger = trigger
                CALLS[name](found, faulty.model, batches())
        except BaseException as error:  # noqa: BLE001  # the interrupts that were raised, too
            raised = error
    assert raised is not None, "nothing failed"
    assert type(raised) is type(FAULTS[fault]()) or isinstance(raised.__cause__, type(FAULTS[fault]()))
    assert same_answers(answers(found), before)
    faulty.trigger = Trigger()
    again, anew = CALLS[name](found, faulty.model, batches()), prepared(faulty, kind, is_fitted=is_fitted)
    CALLS[name](anew, faulty.model, batches())
    assert again is not None
    assert same_answers(answers(found), answers(anew))


# The model has a hook on its gradients, and the sensitivity of a layer is none of a parameter's.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in CALLS if name != "fit with OOD samples" for kind in ("paper", "fusion")),
        ("fit with OOD samples", "tuned"),
    ],
)
@pytest.mark.parametrize(
    ("faults", "moments"),
    [(("runtime", "interrupt"), (0, 2)), pytest.param(tuple(FAULTS), (0, 1, 2, 3), marks=pytest.mark.long)],
)
def test_a_call_that_fails_leaves_everything_as_it_was(
    name: str, kind: str, faults: tuple[str, ...], moments: tuple[int, ...], tried: Tried
) -> None:
    fitted = (False, True) if name in FITS else (True,)
    cases = [*product(("loader", "forward"), faults, moments, fitted)]
    tried("faults", "calls of which loader or forward raises at a batch", len(cases))
    for place, fault, at, is_fitted in cases:
        fails(name, kind, place, fault, at, is_fitted=is_fitted)
