"""What was fitted: changed by fitting and by other ratios at once, and by nothing else."""

import torch

from tests.contract.checking import asserted_close, check, raised, ready
from tests.contract.other_process import answers_elsewhere
from tests.contract.shell import OTHER, Shell, features, fresh, head_of, known, strange
from tests.contract.state_checks import assert_sums_of_a_fusion
from tests.contract.world import classifier

__all__: list[str] = []


@check()
def check_scoring_fits_nothing(kind: type[Shell]) -> None:
    shell = kind().fit()
    state, scores = shell.state(), shell.scores(fresh())
    for _ in range(2):
        shell.scores(strange())
        if "verdicts" not in kind.lacks:
            shell.verdicts(strange())
    assert shell.state() == state, "scoring changed what was fitted"
    assert torch.equal(shell.scores(fresh()), scores), "scoring changed the scores to come"


@check("refit")
def check_a_second_fit_gives_the_same_bits(kind: type[Shell]) -> None:
    shell = kind().fit()
    state, scores = shell.state(), shell.scores(strange())
    shell.refit(known(), fresh())
    assert shell.state() == state, "a second fit adds to the first"
    assert torch.equal(shell.scores(strange()), scores), "a second fit gives other scores"


@check("refit")
def check_other_training_data_replace_the_first(kind: type[Shell]) -> None:
    training, held_out = known()[:96] * 0.5, fresh()[20:]
    shell = kind().fit()
    first = shell.state()
    shell.refit(training, held_out)
    anew = kind().fit(training, held_out)
    assert shell.state() == anew.state(), "something of the first fit is left"
    assert torch.equal(shell.scores(strange()), anew.scores(strange())), "scores are partly those of the first fit"
    if "sums" not in kind.lacks:
        assert shell.state() != first, "the second fit was not done"


@check("agreement", "ratios")
def check_other_ratios_take_effect(kind: type[Shell]) -> None:
    shell = kind().fit()
    before = shell.scores(strange())
    shell.set_ratios(OTHER)
    changed = shell.scores(strange())
    assert not torch.equal(changed, before), "the mask is stale"
    wanted = shell.expected(strange()).score
    asserted_close(changed * kind.sign, wanted, tolerance=kind.tolerance, what="scores under other ratios")
    if "verdicts" not in kind.lacks:
        inputs = torch.cat([fresh(), strange()])
        is_off = shell.verdicts(inputs) != shell.expected(inputs).is_ood
        assert int(is_off.sum()) <= (0 if kind.tolerance == 0 else 1), "the threshold is stale"


@check("sums")
def check_sums_are_float64(kind: type[Shell]) -> None:
    """Assert that blocks of equal rows have the mean of one of them, which a sum in float32 would not keep."""
    if kind.is_fusion:  # which needs rows that differ
        assert_sums_of_a_fusion(kind(precision="float64").fit().sensitivity(), features(known()), head_of(classifier()))
        return
    few = known()[:4].repeat(256, 1, 1, 1)
    one, many = (kind().fit(few.repeat(times, 1, 1, 1)).sensitivity() for times in (1, 3))
    assert many.count == 3 * one.count == 3 * 1024
    for name in ("weight", "neuron_gradient", "neuron_aggregate"):
        single, repeated = getattr(one, name), getattr(many, name)
        assert repeated.dtype == torch.float64
        assert torch.allclose(repeated, single, rtol=1e-12, atol=0), f"{name} is summed in less than float64"


@check("unfitted")
def check_the_unfitted_is_told(kind: type[Shell]) -> None:
    assert raised(lambda: kind().scores(strange()), kind.unfitted), "what was never fitted answers"


@check("copies")
def check_a_copy_answers_alike_and_apart(kind: type[Shell]) -> None:
    shell = kind().fit()
    scores = shell.scores(strange())
    copy = shell.copied()
    assert torch.equal(copy.scores(strange()), scores), "a copy has other scores"
    if "verdicts" not in kind.lacks:
        assert torch.equal(copy.verdicts(strange()), shell.verdicts(strange())), "a copy has other verdicts"
    assert copy.state() == shell.state(), "a copy is not the whole"
    if "ratios" not in kind.lacks:
        shell.set_ratios(OTHER)
        assert torch.equal(copy.scores(strange()), scores), "a copy shares what it was copied from"


@check("files")
def check_another_process_answers_alike(kind: type[Shell]) -> None:
    assert torch.equal(answers_elsewhere(kind), ready(kind).scores(strange())), "another process answers otherwise"
