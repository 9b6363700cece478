"""What a subject leaves alone: the model, the estimator, the inputs, and the process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tests.contract.checking import check, leaving_alone, raised, ready
from tests.contract.shell import OTHER, Shell, class_labels, fresh, known, strange

__all__: list[str] = []


@check()
def check_nothing_of_the_users_changes(kind: type[Shell]) -> None:
    shell = kind()
    with leaving_alone(shell, "fit"):
        shell.fit()
    for name, call in _questions(shell, strange()[:8]).items():
        with leaving_alone(shell, name):
            call()


@check("ratios")
def check_other_ratios_change_nothing_of_the_users(kind: type[Shell]) -> None:
    shell = kind().fit()
    with leaving_alone(shell, "other ratios"):
        shell.set_ratios(OTHER)
        shell.scores(strange()[:8])


@check("copies")
def check_a_copy_changes_nothing_of_the_users(kind: type[Shell]) -> None:
    shell = ready(kind)
    with leaving_alone(shell, "a copy"):
        shell.copied().scores(strange()[:8])


@check()
def check_inputs_stay_as_they_are(kind: type[Shell]) -> None:
    images = {"training": known().clone(), "calibration": fresh().clone(), "test": strange().clone()}
    before = {name: each.clone() for name, each in images.items()}
    shell = kind().fit(images["training"], images["calibration"])
    for call in _questions(shell, images["test"]).values():
        call()
    for name, each in images.items():
        assert torch.equal(each, before[name]), f"{name} inputs were written to"
        assert each.grad is None
        assert not each.requires_grad


@check("model")
def check_a_failing_model_changes_nothing(kind: type[Shell]) -> None:
    for error in kind.errors:
        shell = kind().fit()
        state, scores = shell.state(), shell.scores(strange())
        with _broken(shell.running_model(), error), leaving_alone(shell, f"{error.__name__} of the model"):
            assert raised(lambda: shell.scores(strange()), BaseException), f"{error.__name__} was swallowed"  # noqa: B023  # called at once
        assert shell.state() == state, f"{error.__name__} of the model changed the detector"
        assert torch.equal(shell.scores(strange()), scores), f"{error.__name__} of the model changed the scores"


@check("model", "refit")
def check_a_failing_fit_changes_nothing(kind: type[Shell]) -> None:
    for error in kind.errors:
        shell = kind()
        with _broken(shell.running_model(), error), leaving_alone(shell, f"{error.__name__} in fit"):
            assert raised(shell.fit, BaseException), f"{error.__name__} in fit was swallowed"
        shell.fit()
        state = shell.state()
        with _broken(shell.running_model(), error), leaving_alone(shell, f"{error.__name__} in a second fit"):
            assert raised(lambda: shell.refit(known(), fresh()), BaseException), f"{error.__name__} was swallowed"  # noqa: B023  # called at once
        assert shell.state() == state, f"{error.__name__} in a second fit changed the detector"


@check("parameters")
def check_parameters_stay_as_they_were_given(kind: type[Shell]) -> None:
    shell = kind()
    before = shell.parameters()
    shell.fit()
    assert shell.parameters() == before, "fit changed the parameters"
    shell.scores(strange())
    assert shell.parameters() == before, "scoring changed the parameters"


def _questions(shell: Shell, inputs: Tensor) -> dict[str, Callable[[], object]]:
    """Return every question that may be asked of a shell, by name."""
    lacks = type(shell).lacks
    found: dict[str, Callable[[], object]] = {"scores": lambda: shell.scores(inputs)}
    for ability, ask in {"verdicts": shell.verdicts, "p-values": shell.p_values, "classes": shell.classes}.items():
        if ability not in lacks:
            found[ability] = lambda ask=ask: ask(inputs)  # type: ignore[misc]  # bound now
    if "labels" not in lacks:
        found["labelled scores"] = lambda: shell.labelled_scores(inputs, class_labels(inputs))
    return found


@contextmanager
def _broken(model: nn.Module, error: type[BaseException]) -> Iterator[None]:
    """Break a layer in the midst of a model."""

    def fail(*_arguments: object) -> None:
        raise error("out of order")  # whatever a model says

    handle = next(layer for name, layer in model.named_modules() if name.endswith("pool")).register_forward_hook(fail)
    try:
        yield
    finally:
        handle.remove()
