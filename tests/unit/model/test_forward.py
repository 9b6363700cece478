"""One forward pass: how the model is called, what it refuses, and where in its output the logits are."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opnp.errors import InputTypeError, OptionError
from opnp.model import find_head, head_stream, logits_of, run_model, sensitivity
from opnp.model.forward import no_logits_message
from tests.unit.model.tiny_models import Answering, Named, WithLogits, batch, batches, mlp

INPUTS = batch()
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
        ((), 0, OptionError, r"out of range: the model's output is a tuple \(\)"),
        ({"out": LOGITS}, "logits", OptionError, r"'logits' is no key or attribute .* a dict \(\"out\": a tensor of "),
        ({"out": LOGITS}, 0, OptionError, r"0 is no index of the model's output, which is a dict"),
        (Answer(LOGITS), "out", OptionError, r"'out' is no key or attribute .* a Answer \(\"scores\": a tensor"),
        (LOGITS, 0, OptionError, r"single tensor of shape \(2, 3\): leave it out"),
        (("a", LOGITS), 0, InputTypeError, r"must lead to a tensor .*, got 0, a str\."),
        (Answer(LOGITS), "note", InputTypeError, r"must lead to a tensor .*, got 'note', a str\."),
        ((LOGITS,), lambda output: output, InputTypeError, r"got a function that returns a tuple\."),
        ((LOGITS,), True, InputTypeError, r"`logits` must be an index, a key or attribute, or a function .*, got bool"),
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


@pytest.mark.parametrize("output", [INPUTS, WithLogits(INPUTS), {"logits": INPUTS}, UserDict(logits=INPUTS)])
def test_logits_that_need_no_selector(output: object) -> None:
    assert logits_of(output) is INPUTS
    assert logits_of((output, output)) is None


class Anything(nn.Module):
    """Takes any keyword."""

    def forward(self, **inputs: Tensor) -> Tensor:
        return inputs["anything"]


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        (Named(), {"pixel_values": INPUTS, "scale": 2.0}, mlp()(2 * INPUTS)),
        (mlp(), {"pixel_values": INPUTS}, mlp()(INPUTS)),
        (Anything(), {"anything": INPUTS}, INPUTS),
    ],
    ids=["by keyword", "one that forward lacks by position", "any keyword"],
)
def test_a_mapping_is_passed_by_keyword(model: nn.Module, inputs: Any, expected: Tensor) -> None:
    outputs = run_model(model, inputs, device=torch.device("cpu"))
    assert isinstance(outputs, Tensor)
    assert torch.equal(outputs, expected)


IMAGES = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (IMAGES, torch.zeros(1, 3, 3, 3, dtype=torch.uint8), r"torch\.float32.*torch\.uint8.*images\.float\(\) / 255"),
        (IMAGES, {"input": torch.zeros(1, 3, 3, 3, dtype=torch.uint8)}, r"torch\.float32.*torch\.uint8"),
        (mlp(), INPUTS.double(), r"torch\.float32.*torch\.float64.*inputs\.to\(torch\.float32\)"),
        (Named(), {"pixels": INPUTS, "scale": 1.0}, "forward takes .* a batch gave it the keywords pixels, scale"),
        (nn.Linear(2, 2, device="meta"), torch.ones(1, 2), "on the meta device.*Load its weights first"),
    ],
)
def test_what_a_model_cannot_take_is_told(model: nn.Module, inputs: Any, message: str) -> None:
    with pytest.raises(InputTypeError, match=message) as caught:
        run_model(model, inputs, device=None)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("out of memory"), RuntimeError("expected 7 tokens"), TypeError("x")]
)
def test_a_models_own_errors_are_passed_on(error: Exception) -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.EmbeddingBag(10, 4)

        def forward(self, ids: Tensor) -> Tensor:
            raise error

    with pytest.raises(type(error)) as caught:
        run_model(Text(), torch.zeros(2, 5, dtype=torch.int64), device=None)
    assert caught.value is error
