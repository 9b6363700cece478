"""What every detector does to the model it reads: nothing."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios
from tests.contract.snapshot import unchanged
from tests.contract.world import HEAD, batches, classifier, held_out, outside, training

__all__ = [
    "Make",
    "check_calls_change_nothing",
    "check_failures_change_nothing",
    "check_modes_do_not_matter",
    "check_two_detectors_get_along",
    "fitted",
    "lived_in",
]

Make = Callable[[], OPNP]


def fitted(make: Make, model: nn.Module | None = None) -> OPNP:
    """Return a detector fitted and calibrated on the world."""
    detector = make().fit(classifier() if model is None else model, batches(training()))
    return detector.calibrate(batches(held_out()), keep=0.9)


def check_calls_change_nothing(make: Make) -> None:
    model = lived_in(classifier())
    detector = make()
    inputs = held_out()[:8]
    with unchanged(model, "fit"):
        detector.fit(model, batches(training()))
    with unchanged(model, "fit with validation and a named head"):
        detector.fit(model, batches(training()), head=HEAD, validation=batches(held_out()))
    with unchanged(model, "calibrate"):
        detector.calibrate(batches(held_out()), keep=0.9)
    for name in ("score", "predict", "p_value", "verdict", "explain"):
        with unchanged(model, name):
            getattr(detector, name)(inputs)
    with unchanged(model, "score of one input"):
        detector.score(inputs[0])
    with unchanged(model, "with_ratios"):
        other = detector.with_ratios(Ratios(w_min=0.5, o_max=0.1))
        other.score(inputs)
    with unchanged(model, "pruned_head"):
        other.pruned_head.weight.add_(1.0)
    with unchanged(model, "save and load"), tempfile.TemporaryDirectory() as folder:
        detector.save(Path(folder) / "detector")
        type(detector).load(Path(folder) / "detector", model=model).score(inputs)


def check_failures_change_nothing(make: Make) -> None:
    errors = (ValueError("broken sample"), KeyboardInterrupt(), SystemExit(3), RuntimeError("worker died"))
    for error in errors:
        model = lived_in(classifier())
        detector = make()
        _fails(lambda: detector.fit(model, _broken_loader(error)), model, error, "fit")  # noqa: B023  # called at once
        assert not detector.is_fitted, "a failed fit left the detector fitted"
        detector = fitted(make, model)
        before = detector.score(outside())
        for doing, call in {
            "fit again": lambda: detector.fit(model, _broken_loader(error)),  # noqa: B023  # as above
            "validation": lambda: detector.fit(model, batches(training()), validation=_broken_loader(error)),  # noqa: B023  # as above
            "calibrate": lambda: detector.calibrate(_broken_loader(error)),  # noqa: B023  # as above
        }.items():
            _fails(call, model, error, doing)
            assert detector.is_calibrated, f"a failure in {doing} cost the calibration"
            assert torch.equal(detector.score(outside()), before), f"a failure in {doing} changed the scores"
    for forward in range(1, 4):  # as many as there are batches
        fragile = _Fragile(lived_in(classifier()))
        fragile.left = forward
        _fails(lambda: make().fit(fragile, batches(training()[:96])), fragile, fragile.error, f"forward {forward}")  # noqa: B023  # as above
    fragile = _Fragile(lived_in(classifier()))
    detector = fitted(make, fragile)
    for name in ("score", "predict", "verdict", "explain"):
        fragile.left = 1
        _fails(lambda: getattr(detector, name)(outside()), fragile, fragile.error, name)  # noqa: B023  # as above


def check_modes_do_not_matter(make: Make) -> None:
    quiet, loud = classifier(), classifier()
    loud.train()
    one, other = fitted(make, quiet), fitted(make, loud)
    assert torch.equal(one.sensitivity.weight, other.sensitivity.weight), "sensitivities depend on the model's mode"
    assert torch.equal(one.score(outside()), other.score(outside())), "scores depend on the model's mode"
    quiet.train()
    assert torch.equal(one.score(outside()), other.score(outside())), "scores depend on the model's mode"


def check_two_detectors_get_along(make: Make) -> None:
    model = lived_in(classifier())
    alone = fitted(make, classifier()).score(outside())
    first = fitted(make, model)
    second = make().fit(model, batches(outside(), 16))  # other sensitivities, whatever rounds how
    second_scores = second.score(outside())
    assert torch.equal(first.score(outside()), alone), "a second detector on the model changes the first"

    def interleaved(inputs: Tensor) -> Iterator[Tensor]:
        for batch in batches(inputs):
            assert torch.equal(second.score(outside()), second_scores), "a detector answers otherwise inside a pass"
            yield batch

    undisturbed = make().fit(classifier(), batches(training()), validation=batches(held_out()))
    with unchanged(model, "a pass inside a pass"):
        third = make().fit(model, interleaved(training()), validation=interleaved(held_out()))
    expected = undisturbed.score(outside())
    assert torch.equal(third.score(outside()), expected), "scoring inside another detector's pass changes that pass"


class _Fragile(nn.Module):
    """Fails in its head-bound forward pass number `left`, in the midst of its layers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.left = 0
        self.error = ArithmeticError("inside the model")
        self.training = False

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.inner(inputs)
        if self.left:
            self.left -= 1
            if self.left == 0:
                raise self.error
        return outputs


def lived_in(model: nn.Module) -> nn.Module:
    """Return the model in mixed modes, partly frozen, with gradients and the owner's hooks."""
    model.train()
    for name, module in model.named_modules():
        if name in ("norm", "hidden", "hidden_activation"):
            module.eval()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 != 0)
        if number % 2:
            parameter.grad = torch.full_like(parameter, float(number))
    head = model.get_submodule(HEAD)
    head.register_forward_pre_hook(lambda _module, _args: None)
    head.register_forward_hook(lambda _module, _args, _kwargs, _output: None, with_kwargs=True)
    model.register_buffer("counter", torch.zeros(1), persistent=False)
    return model


def _broken_loader(error: BaseException) -> Iterator[Tensor]:
    yield from batches(training())[:2]
    raise error


def _fails(call: Callable[[], object], model: nn.Module, error: BaseException, doing: str) -> None:
    """Assert that `call` passes `error` on and leaves the model as it was."""
    with unchanged(model, f"{type(error).__name__} in {doing}"):
        try:
            call()
        except BaseException as caught:
            if caught is not error:
                raise
            return
    message = f"{type(error).__name__} in {doing} was swallowed"
    raise AssertionError(message)
