"""What every subject promises: to leave alone what is not its own, to answer as OPNP does, to fit in a fit alone."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from torch import Tensor, nn

from opnp import auroc
from opnp.core import Sensitivity, flagged_rank
from opnp.core.kept_rows import row_hashes
from tests.child_process import started
from tests.contract.shell import ABILITIES, BROKEN, KEEP, OTHER, SETTING, SUBJECTS, Shell, ready
from tests.contract.snapshot import unchanged
from tests.contract.world import class_labels, classifier, features, fresh, head_of, known, strange

__all__ = ["CHECKS", "Check", "check", "raised"]

_Run = TypeVar("_Run", bound=Callable[[type[Shell]], None])


@dataclass(frozen=True, slots=True)
class Check:
    """A check.

    Attributes:
        run: Raises AssertionError where a kind of shell breaks the promise.
        needs: Abilities without which it has nothing to ask.
        is_of_detectors: Whether it is put to detectors of the library on inputs alone.
        is_of_settings: Whether it is put to these under each of their settings.

    """

    run: Callable[[type[Shell]], None]
    needs: frozenset[str]
    is_of_detectors: bool
    is_of_settings: bool


CHECKS: dict[str, Check] = {}
"""All checks, by the names of their functions."""


def check(*needs: str, is_of_detectors: bool = False, is_of_settings: bool = False) -> Callable[[_Run], _Run]:
    """Enter a function in the table of checks, with the abilities that it needs."""
    unknown = set(needs) - set(ABILITIES)
    if unknown:
        raise ValueError(unknown)

    def entered(function: _Run) -> _Run:
        CHECKS[function.__name__] = Check(function, frozenset(needs), is_of_detectors, is_of_settings)
        return function

    return entered


def asserted_close(found: Tensor, wanted: Tensor, *, tolerance: float, what: str) -> None:
    """Assert that scores S are equal: to the bit at tolerance 0, else to that many times 1 + |S|."""
    assert found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    if tolerance == 0:
        assert torch.equal(found, wanted), f"{what}: not to the bit"
        return
    off = torch.where(found == wanted, 0.0, (found.double() - wanted.double()).abs())  # two infinities are equal
    allowed = tolerance * (1 + wanted.double().abs())
    assert bool((off <= allowed).all()), f"{what}: off by {float(off.max()):.2g}"


def raised(call: Callable[[], object], *errors: type[BaseException]) -> BaseException | None:
    """Return the error of one of these kinds that a call raises, or None if it raises none."""
    try:
        call()
    except errors as error:
        return error
    return None


def questions(shell: Shell, inputs: Tensor) -> dict[str, Callable[[], object]]:
    """Return every question that may be asked of a shell, by name."""
    asked = {"scores": shell.scores, "verdicts": shell.verdicts, "p-values": shell.p_values, "classes": shell.classes}
    found: dict[str, Callable[[], object]] = {
        name: partial(ask, inputs) for name, ask in asked.items() if name not in shell.lacks
    }
    if "labels" not in shell.lacks:
        found["labelled scores"] = partial(shell.labelled_scores, inputs, class_labels(inputs))
    return found


# ------------------------------------------------------------------------------------------------ what is left alone


@check()
def check_nothing_of_the_users_changes(kind: type[Shell]) -> None:
    images = {"training": known().clone(), "calibration": fresh().clone(), "test": strange()[:8].clone()}
    before = {name: each.clone() for name, each in images.items()}
    shell = kind()
    options = None if "parameters" in kind.lacks else shell.parameters()
    with unchanged(shell.owned, "fit"):
        shell.fit(images["training"], images["calibration"])
    calls = questions(shell, images["test"])
    if "copies" not in kind.lacks:
        calls["a copy"] = lambda: shell.copied().scores(images["test"])
    for name, call in calls.items():
        with unchanged(shell.owned, name):
            call()
    for name, each in images.items():
        assert torch.equal(each, before[name]), f"{name} inputs were written to"
        assert each.grad is None
        assert not each.requires_grad
    assert options is None or shell.parameters() == options, "the parameters are not those that were given"
    if "ratios" not in kind.lacks:
        with unchanged(shell.owned, "other ratios"):
            shell.set_ratios(OTHER)
            shell.scores(images["test"])


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


@check("model")
def check_a_failing_model_changes_nothing(kind: type[Shell]) -> None:
    for error in kind.errors:
        shell, name = kind(), error.__name__
        if "refit" not in kind.lacks:
            with _broken(shell.running_model(), error), unchanged(shell.owned, f"{name} in fit"):
                assert raised(shell.fit, BaseException), f"{name} in fit was swallowed"
        shell.fit()
        state, scores = shell.state(), shell.scores(strange())
        calls: dict[str, Callable[[], object]] = {"scores": partial(shell.scores, strange())}
        if "refit" not in kind.lacks:
            calls["a second fit"] = partial(shell.refit, known(), fresh())
        for doing, call in calls.items():
            with _broken(shell.running_model(), error), unchanged(shell.owned, f"{name} in {doing}"):
                assert raised(call, BaseException), f"{name} in {doing} was swallowed"
            assert shell.state() == state, f"{name} in {doing} changed the detector"
            assert torch.equal(shell.scores(strange()), scores), f"{name} in {doing} changed the scores"


# ------------------------------------------------------------------------------------------------ what is answered


@check(is_of_settings=True)
def check_larger_scores_mean_what_is_declared(kind: type[Shell]) -> None:
    shell = ready(kind)
    inside, outside = shell.scores(fresh()) * kind.sign, shell.scores(strange()) * kind.sign
    assert auroc(inside, outside) > 0.9, "the sign is the other one"


@check("agreement")
def check_scores_are_those_of_opnp(kind: type[Shell]) -> None:
    shell, inputs = ready(kind), torch.cat([fresh(), strange()])
    wanted = shell.expected(inputs).score
    asserted_close(shell.scores(inputs) * kind.sign, wanted, tolerance=kind.tolerance, what="scores beside OPNP's")


@check("agreement", "verdicts")
def check_verdicts_are_those_of_opnp(kind: type[Shell]) -> None:
    shell, inputs = ready(kind), torch.cat([fresh(), strange()])
    wanted, scores = shell.expected(inputs), shell.scores(inputs) * kind.sign
    is_off = shell.verdicts(inputs) != wanted.is_ood
    highest, lowest = scores[~wanted.is_ood].max(), scores[wanted.is_ood].min()
    edge = 2 * kind.tolerance * (1 + scores.abs())
    is_at_the_cut = (scores >= highest - edge) & (scores <= lowest + edge)
    assert not bool((is_off & ~is_at_the_cut).any()), "verdicts differ away from the cut"
    assert int(is_off.sum()) <= 1, "verdicts differ"


@check("agreement", "p-values")
def check_p_values_are_those_of_opnp(kind: type[Shell]) -> None:
    shell, inputs = ready(kind), torch.cat([fresh(), strange()])
    found, wanted = shell.p_values(inputs), shell.expected(inputs).p_value
    assert found.dtype == torch.float64
    rank = 1 / (len(shell.calibrated_on()) + 1)
    worst = float((found - wanted).abs().max())
    assert worst <= (0 if kind.tolerance == 0 else 1.001 * rank), "p-values differ by more than one rank"


@check("classes")
def check_classes_are_those_of_the_whole_head(kind: type[Shell]) -> None:
    inputs = torch.cat([fresh(), strange()])
    with torch.no_grad():
        wanted = classifier()(inputs).argmax(1)
    assert torch.equal(ready(kind).classes(inputs), wanted)


@check("verdicts", "calibration")
def check_the_share_flagged_of_the_calibration_is_exact(kind: type[Shell]) -> None:
    shell = ready(kind)
    inputs = shell.calibrated_on()
    flagged, wanted = int(shell.verdicts(inputs).sum()), flagged_rank(len(inputs), keep=KEEP) - 1
    assert abs(flagged - wanted) <= (0 if kind.tolerance == 0 else 1), f"flags {flagged}, not {wanted}"


@check(is_of_settings=True)
def check_the_same_question_has_the_same_answer(kind: type[Shell]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one = kind().fit()
        torch.manual_seed(2)
        other = kind().fit()
    found = one.scores(strange())
    for shell in (one, other):
        assert torch.equal(shell.scores(strange()), found), "the same question has two answers"
    assert one.state() == other.state(), "the same data give two detectors"


@check("modes")
def check_the_mode_does_not_matter(kind: type[Shell]) -> None:
    shell = kind().fit()
    before = shell.scores(strange())
    shell.switch_to_training()
    assert torch.equal(shell.scores(strange()), before), "scores depend on the mode"


@check()
def check_the_batch_of_an_input_does_not_matter(kind: type[Shell]) -> None:
    shell, inputs = ready(kind), torch.cat([strange()[:4], fresh(), strange()[4:]])
    whole = shell.scores(inputs)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(3))
    for what, found, wanted in (
        ("one by one", torch.cat([shell.scores(each) for each in inputs[:4].split(1)]), whole[:4]),
        ("in parts", torch.cat([shell.scores(each) for each in (inputs[:5], inputs[5:70], inputs[70:])]), whole),
        ("in another order", shell.scores(inputs[order]), whole[order]),
    ):
        asserted_close(found, wanted, tolerance=kind.cutting, what=what)


@check()
def check_no_inputs_are_answered_as_documented(kind: type[Shell]) -> None:
    shell, nothing = ready(kind), fresh()[:0]
    if kind.on_empty is None:
        assert shell.scores(nothing).shape == (0,), "no inputs must have no answers"
    else:
        assert raised(lambda: shell.scores(nothing), kind.on_empty), "no inputs must be refused"


@check("nan")
def check_nan_is_answered_as_documented(kind: type[Shell]) -> None:
    shell, inputs = ready(kind), strange()[:8].clone()
    inputs[3, 0, 2, 2] = torch.nan
    if not isinstance(kind.on_nan, str):
        assert raised(lambda: shell.scores(inputs), kind.on_nan), "NaN must be refused"
        return
    is_nan = torch.arange(8) == 3
    scores = shell.scores(inputs)
    assert torch.equal(scores.isnan(), is_nan), "the score of NaN must be NaN, and no other"
    without = shell.scores(strange()[:8])[~is_nan]
    asserted_close(scores[~is_nan], without, tolerance=kind.cutting, what="beside NaN")
    if kind.on_nan == "flagged":
        assert bool(shell.verdicts(inputs)[3]), "NaN must be flagged"
        assert float(shell.p_values(inputs)[3]) == 1 / (len(shell.calibrated_on()) + 1), "NaN has the least p-value"


@check("labels")
def check_labels_of_what_is_scored_are_not_read(kind: type[Shell]) -> None:
    shell, inputs = ready(kind), fresh()[:12]
    labels = class_labels(inputs)
    found = shell.labelled_scores(inputs, labels)
    for other in (labels.flip(0), torch.zeros_like(labels)):
        assert torch.equal(shell.labelled_scores(inputs, other), found), "labels change the scores"
    # A file with labels holds its features at another place of memory, where a product may be rounded another way.
    asserted_close(found, shell.scores(inputs), tolerance=kind.cutting, what="with labels")


@check()
def check_answers_carry_no_graph(kind: type[Shell]) -> None:
    found = ready(kind).scores(fresh()[:3])
    assert found.dtype in (torch.float32, torch.float64)
    assert found.shape == (3,)
    assert not found.requires_grad, "answers are part of a graph"
    assert not found.is_inference(), "answers are inference tensors"
    assert bool(found.isfinite().all())


@check("threads")
def check_several_at_once_get_the_answers_of_one(kind: type[Shell]) -> None:
    shell = ready(kind)
    parts = [torch.cat([strange()[place : place + 7], fresh()[: place + 1]]) for place in range(6)] * 2
    wanted = [shell.scores(part) for part in parts]
    interval = sys.getswitchinterval()
    with unchanged(shell.owned, "asking by threads", but=tuple(kind.shared)):
        sys.setswitchinterval(1e-6)
        try:
            found = shell.concurrent_scores(parts)
        finally:
            sys.setswitchinterval(interval)
    for one, other in zip(found, wanted, strict=True):
        asserted_close(one, other, tolerance=kind.concurrency, what="asked by several at once")


# ------------------------------------------------------------------------------------------------ what is fitted


@check()
def check_scoring_fits_nothing(kind: type[Shell]) -> None:
    shell = kind().fit()
    state, scores = shell.state(), shell.scores(fresh())
    for call in 2 * list(questions(shell, strange()).values()):
        call()
    assert shell.state() == state, "scoring changed what was fitted"
    assert torch.equal(shell.scores(fresh()), scores), "scoring changed the scores to come"


@check("refit")
def check_a_second_fit_replaces_the_first(kind: type[Shell]) -> None:
    shell = kind().fit()
    state, scores = shell.state(), shell.scores(strange())
    shell.refit(known(), fresh())
    assert shell.state() == state, "a second fit adds to the first"
    assert torch.equal(shell.scores(strange()), scores), "a second fit gives other scores"
    training, held_out = known()[:96] * 0.5, fresh()[20:]
    shell.refit(training, held_out)
    anew = kind().fit(training, held_out)
    assert shell.state() == anew.state(), "something of the first fit is left"
    assert torch.equal(shell.scores(strange()), anew.scores(strange())), "scores are partly those of the first fit"
    if "sums" not in kind.lacks:
        assert shell.state() != state, "the second fit was not done"


@check("agreement", "ratios")
def check_other_ratios_take_effect(kind: type[Shell]) -> None:
    shell = kind().fit()
    before = shell.scores(strange())
    shell.set_ratios(OTHER)
    inputs = torch.cat([fresh(), strange()])
    assert not torch.equal(shell.scores(strange()), before), "the mask is stale"
    wanted = shell.expected(inputs)
    changed = shell.scores(inputs) * kind.sign
    asserted_close(changed, wanted.score, tolerance=kind.tolerance, what="scores under other ratios")
    if "verdicts" not in kind.lacks:
        is_off = shell.verdicts(inputs) != wanted.is_ood
        assert int(is_off.sum()) <= (0 if kind.tolerance == 0 else 1), "the threshold is stale"


@check("sums")
def check_sums_are_float64(kind: type[Shell]) -> None:
    """Assert that blocks of equal rows have the mean of one of them, which a sum in float32 would not keep."""
    if kind.is_fusion:  # which needs rows that differ
        _assert_sums_of_a_fusion(kind(precision="float64").fit().sensitivity())
        return
    few = known()[:4].repeat(256, 1, 1, 1)
    one, many = (kind().fit(few.repeat(times, 1, 1, 1)).sensitivity() for times in (1, 3))
    assert many.count == 3 * one.count == 3 * 1024
    for name in ("weight", "neuron_gradient", "neuron_aggregate"):
        single, repeated = getattr(one, name), getattr(many, name)
        assert repeated.dtype == torch.float64
        assert torch.allclose(repeated, single, rtol=1e-12, atol=0), f"{name} is summed in less than float64"


def _assert_sums_of_a_fusion(found: Sensitivity) -> None:
    """Assert that sensitivities in precision float64 are the means over four fifths of the rows, one by one.

    The fifth with the smallest hashes gives the scales, and is in no sum.
    """
    rows, head = features(known()), head_of(classifier()).double()
    summed = rows.double()[row_hashes(rows).argsort()[len(rows) // 5 :]]
    assert found.count == len(summed)
    with torch.no_grad():
        shares = head(summed).softmax(1)
        by_neuron = (shares @ head.weight).abs().mean(0)
    assert torch.allclose(found.weight, (shares.T @ summed.abs()) / len(summed), rtol=1e-12, atol=0), "weight"
    assert torch.allclose(found.neuron_gradient, by_neuron, rtol=1e-12, atol=0), "gradient"
    assert torch.allclose(found.neuron_aggregate, found.weight.mean(0), rtol=1e-12, atol=0), "aggregate"
    assert found.weight.dtype == found.neuron_gradient.dtype == found.neuron_aggregate.dtype == torch.float64


@check("unfitted")
def check_the_unfitted_is_told(kind: type[Shell]) -> None:
    assert raised(lambda: kind().scores(strange()), kind.unfitted), "what was never fitted answers"


@check("copies")
def check_a_copy_answers_alike_and_apart(kind: type[Shell]) -> None:
    shell = kind().fit()
    scores = shell.scores(strange())
    copy = shell.copied()
    assert copy.state() == shell.state(), "a copy is not the whole"
    assert torch.equal(copy.scores(strange()), scores), "a copy has other scores"
    if "verdicts" not in kind.lacks:
        assert torch.equal(copy.verdicts(strange()), shell.verdicts(strange())), "a copy has other verdicts"
    if "ratios" not in kind.lacks:
        shell.set_ratios(OTHER)
        assert torch.equal(copy.scores(strange()), scores), "a copy shares what it was copied from"


@check("files")
def check_another_process_answers_alike(kind: type[Shell]) -> None:
    found = _answers_elsewhere()
    assert isinstance(found, dict), found
    assert torch.equal(found[kind.__name__], ready(kind).scores(strange())), "another process answers otherwise"


def _travellers() -> dict[str, type[Shell]]:
    """Return the kinds of shells that travel in files, broken ones too."""
    for module in ("library_shells", "toolkit_shells", "surface_shells", "broken"):
        import_module(f"tests.contract.{module}")  # which enters its shells in the tables
    kinds = [kind for name, kind in SUBJECTS.items() if "files" not in kind.lacks and not name.startswith(SETTING)]
    return {kind.__name__: kind for kind in kinds + BROKEN["check_another_process_answers_alike"]}


@cache
def _answers_elsewhere() -> dict[str, Tensor] | str:
    """Return the scores of all at once, as a process takes seconds to begin; where it failed, what it printed."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        for kind in _travellers().values():
            (folder / kind.__name__).mkdir()
            ready(kind).sent(folder / kind.__name__)
        torch.save(strange(), folder / "inputs.pt")
        process = started(_answer, folder, log=folder / "log")
        process.join(300)
        if process.exitcode != 0:
            process.kill()
            return f"the other process ended with {process.exitcode}: {(folder / 'log').read_text(encoding='utf-8')}"
        return {each: torch.load(folder / each / "scores.pt", weights_only=True) for each in _travellers()}


def _answer(folder: Path) -> None:
    """Score as each subject does; a task for the other process."""
    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    for name, kind in _travellers().items():
        torch.save(kind.received(folder / name).scores(inputs), folder / name / "scores.pt")
