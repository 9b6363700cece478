"""Where in a model's output the logits are."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from opnp.errors import InputTypeError, OptionError
from opnp.model import find_head, head_stream, logits_of, sensitivity
from opnp.model.forward import no_logits_message
from tests.unit.model.tiny_models import Answering, batch, batches

LOGITS, OTHER = torch.arange(6.0).reshape(2, 3), torch.zeros(2)
Pair = namedtuple("Pair", ["loss", "scores"])  # noqa: PYI024  # what a model may return


@dataclass
class Answer:
    """The output of a model that names its parts."""

    scores: Tensor
    note: str = "x"


@pytest.mark.parametrize(
    ("output", "selector"),
    [
        ((OTHER, LOGITS), 1),
        ([OTHER, LOGITS], -1),
        (Pair(OTHER, LOGITS), "scores"),
        (Pair(OTHER, LOGITS), 1),
        ({"out": LOGITS, "logits": OTHER}, "out"),
        (OrderedDict(out=LOGITS), "out"),
        ({3: LOGITS}, 3),
        (Answer(LOGITS), "scores"),
        ((OTHER, {"scores": LOGITS}), lambda output: output[1]["scores"]),
        (LOGITS, lambda output: output),
    ],
)
def test_the_selector_says_where_the_logits_are(output: object, selector: Any) -> None:
    assert logits_of(output, selector) is LOGITS


@pytest.mark.parametrize(
    ("output", "selector", "error", "message"),
    [
        (
            (OTHER, LOGITS),
            2,
            OptionError,
            r"`logits` = 2 is out of range: .* a tuple \(0: a tensor of shape",
        ),
        ((OTHER, LOGITS), -3, OptionError, r"`logits` = -3 is out of range"),
        ((), 0, OptionError, r"out of range: the model's output is a tuple \(\)"),
        ({"out": LOGITS}, "logits", OptionError, r"'logits' is no key or attribute .* a dict \(\"out\": a tensor of "),
        ({"out": LOGITS}, 0, OptionError, r"0 is no index of the model's output, which is a dict"),
        (Answer(LOGITS), "out", OptionError, r"'out' is no key or attribute .* a Answer \(\"scores\": a tensor"),
        (LOGITS, 0, OptionError, r"single tensor of shape \(2, 3\): leave it out"),
        (LOGITS, "T", OptionError, r"single tensor of shape \(2, 3\): leave it out"),
        (("a", LOGITS), 0, InputTypeError, r"must lead to a tensor .*, got 0, a str\."),
        (Answer(LOGITS), "note", InputTypeError, r"must lead to a tensor .*, got 'note', a str\."),
        ((LOGITS,), lambda output: output, InputTypeError, r"got a function that returns a tuple\."),
        ((LOGITS,), True, InputTypeError, r"`logits` must be an index, a key or attribute, or a function .*, got bool"),
        ((LOGITS,), 1.0, InputTypeError, r"got float"),
    ],
)
def test_a_selector_that_leads_nowhere_says_what_there_is(
    output: object, selector: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        logits_of(output, selector)


def test_the_message_suggests_what_looks_like_logits() -> None:
    assert "`logits=1`, say" in no_logits_message((OTHER, LOGITS, LOGITS))
    assert '`logits="b"`, say' in no_logits_message({"a": LOGITS.long(), "b": LOGITS})
    assert '`logits="scores"`, say' in no_logits_message(Answer(LOGITS))
    assert "it is a float. Say" in no_logits_message(1.0)
    assert "`logits=lambda output: ...`" in no_logits_message(((LOGITS,),))
    assert ", ...)" in no_logits_message([OTHER] * 20)


@pytest.mark.parametrize(
    ("after", "selector"),
    [
        (lambda logits: (logits.mean(1), logits), 1),
        (lambda logits: {"out": logits, "chances": logits.softmax(1)}, "out"),
        (lambda logits: ({"out": [logits]},), lambda output: output[0]["out"][0]),
    ],
    ids=["tuple", "dict", "nested"],
)
def test_everything_that_reads_logits_takes_the_selector(after: Any, selector: Any) -> None:
    plain, model = Answering(), Answering(after)
    found = find_head(model, batch(), logits=selector)
    assert (found.name, found.is_output, found.logits) == ("fc", True, selector)
    assert find_head(model, batch(), head="fc", logits=selector).is_output
    with head_stream(model, batches(), logits=selector) as stream, head_stream(plain, batches()) as expected:
        for mine, theirs in zip(stream.batches, expected.batches, strict=True):
            assert torch.equal(mine[0], theirs[0])
            assert torch.equal(mine[1], theirs[1])
    one, other = sensitivity(model, batches(), logits=selector), sensitivity(plain, batches())
    assert all(torch.equal(one[name].weight, other[name].weight) for name in other)


def test_a_selector_of_what_is_not_the_heads_output_finds_no_head() -> None:
    model = Answering(lambda logits: (logits, logits.softmax(1)))
    with pytest.raises(LookupError, match=r"softmax.*`head=\"fc\"`"):
        find_head(model, batch(), logits=1)
    found = find_head(model, batch(), head="fc", logits=1)
    assert not found.is_output
