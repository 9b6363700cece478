"""What a subject answers: the numbers of OPNP in the sign it declares, however the inputs come."""

import sys

import torch

from opnp import auroc
from opnp.core import flagged_rank
from tests.contract.checking import asserted_close, check, raised, ready
from tests.contract.shell import KEEP, Shell, class_labels, fresh, strange

__all__: list[str] = []


@check()
def check_larger_scores_mean_what_is_declared(kind: type[Shell]) -> None:
    shell = ready(kind)
    inside, outside = shell.scores(fresh()) * kind.sign, shell.scores(strange()) * kind.sign
    assert auroc(inside, outside) > 0.9, "the sign is the other one"


@check("verdicts")
def check_verdicts_flag_what_is_strange(kind: type[Shell]) -> None:
    shell = ready(kind)
    assert shell.verdicts(strange()).dtype == torch.bool
    assert shell.verdicts(strange()).double().mean() > 0.5 > shell.verdicts(fresh()).double().mean()


@check("p-values")
def check_p_values_are_small_for_what_is_strange(kind: type[Shell]) -> None:
    shell = ready(kind)
    p_values = shell.p_values(torch.cat([fresh(), strange()]))
    assert 0 < float(p_values.min()) <= float(p_values.max()) <= 1
    assert p_values[len(fresh()) :].mean() < p_values[: len(fresh())].mean(), "large p-values for what is strange"


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
    shell = ready(kind)
    assert torch.equal(shell.classes(inputs), shell.expected(inputs).predicted_class)


@check("verdicts", "calibration")
def check_the_share_flagged_of_the_calibration_is_exact(kind: type[Shell]) -> None:
    shell = ready(kind)
    inputs = shell.calibrated_on()
    flagged, wanted = int(shell.verdicts(inputs).sum()), flagged_rank(len(inputs), keep=KEEP) - 1
    assert abs(flagged - wanted) <= (0 if kind.tolerance == 0 else 1), f"flags {flagged}, not {wanted}"


@check()
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
def check_a_batch_of_one_is_enough(kind: type[Shell]) -> None:
    shell = ready(kind)
    whole = shell.scores(strange()[:4])
    parts = torch.cat([shell.scores(each) for each in strange()[:4].split(1)])
    asserted_close(parts, whole, tolerance=kind.cutting, what="one by one")


@check()
def check_batches_of_any_size_will_do(kind: type[Shell]) -> None:
    shell = ready(kind)
    inputs = torch.cat([fresh(), strange()])
    parts = torch.cat([shell.scores(each) for each in (inputs[:5], inputs[5:70], inputs[70:])])
    asserted_close(parts, shell.scores(inputs), tolerance=kind.cutting, what="in three batches")


@check()
def check_the_order_of_a_batch_does_not_matter(kind: type[Shell]) -> None:
    shell = ready(kind)
    inputs = torch.cat([fresh(), strange()])
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(3))
    asserted_close(
        shell.scores(inputs[order]), shell.scores(inputs)[order], tolerance=kind.cutting, what="in another order"
    )


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
    shell = ready(kind)
    found = shell.scores(fresh()[:3])
    assert found.dtype in (torch.float32, torch.float64)
    assert found.shape == (3,)
    assert not found.requires_grad, "answers are part of a graph"
    assert not found.is_inference(), "answers are inference tensors"
    assert bool(found.isfinite().all())


@check("threads")
def check_several_at_once_get_the_answers_of_one(kind: type[Shell]) -> None:
    shell = kind().fit()
    parts = [torch.cat([strange()[place : place + 7], fresh()[: place + 1]]) for place in range(6)] * 2
    wanted = [shell.scores(part) for part in parts]
    owned, interval = shell.owned(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        found = shell.concurrent_scores(parts)
    finally:
        sys.setswitchinterval(interval)
    for one, other in zip(found, wanted, strict=True):
        asserted_close(one, other, tolerance=kind.concurrency, what="asked by several at once")
    after = shell.owned()
    changed = [name for name in owned if name not in kind.shared and owned[name] != after[name]]
    assert not changed, f"threads change what the user owns: {changed}"
