"""Forwards of every kind: what a model answers, what it does to itself, and what it needs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios
from opnp.errors import HeadMismatchError, HeadNotFoundError, InputTypeError, NonFiniteError, OpnpWarning, ShapeError
from opnp.model import head_stream
from tests.reliability import models_forwards as forwards
from tests.reliability.models_forwards import Answer, Pair, answering
from tests.reliability.models_world import Case, built, check_refused, check_right, images, untouched
from tests.tried import Tried

pytestmark = pytest.mark.reliability

_RUNS = ("attributes of ",)
_NONE = HeadNotFoundError

RIGHT = (
    Case(answering("a_list", lambda logits: [logits, logits.mean(1)]), choice={"logits": 0}),
    Case(answering("a_named_tuple", lambda logits: Pair(logits, None)), choice={"logits": "scores"}),
    Case(answering("a_dataclass", lambda logits: Answer(logits * 2, logits)), choice={"logits": "scores"}),
    Case(answering("an_axis_more", lambda logits: logits[:, None])),
    Case(answering("two_axes_more", lambda logits: logits[:, :, None, None])),
    Case(forwards.pair_later, is_cached=False),
    Case(forwards.random_numbers_without_effect, own=("random numbers",)),
    Case(forwards.counts_its_runs, own=_RUNS),
    Case(forwards.moving_average_in_a_buffer),
    Case(forwards.detached_features),
    Case(forwards.features_in_memory_that_is_used_again, own=("buffer place",)),
    Case(forwards.features_written_to_after_the_head),
    Case(forwards.writes_to_its_inputs),
    Case(forwards.checkpointed),
    Case(forwards.head_by_keyword),
    Case(forwards.autograd_turned_on),
    Case(forwards.inference_mode_inside),
    Case(forwards.training_mode_after_each_run),
    Case(forwards.autocast_inside, tolerance=2e-2),
    Case(forwards.needs_a_second_argument, inputs=forwards.by_name, is_cached=False),
    Case(forwards.takes_keywords_alone, inputs=lambda inputs: {"inputs": inputs}, is_cached=False),
    Case(forwards.recurrent_layer_with_the_batch_second, inputs=forwards.batch_second, is_cached=False),
    Case(forwards.head_of_float32_on_bfloat16),
    Case(forwards.head_of_bfloat16_on_float32, tolerance=1e-2),
    Case(forwards.head_of_float64),
    Case(forwards.all_float16, inputs=Tensor.half, is_cached=False, tolerance=1e-2),
    Case(forwards.all_bfloat16, inputs=Tensor.bfloat16, is_cached=False, tolerance=1e-2),
)

_DRAWN = ("random numbers",)
_ROWS = r"`fc` received {} rows for a batch of 16 inputs: .*`\*_features`"
_DTYPES = r"torch\.{} weights and refused inputs of torch\.float32: .*`inputs\.to\(.*`model\.to\(torch\.float32\)`"
_META = r"on the meta device, where .*no values.*[Ll]oad .*weights"
REFUSED = (
    *(
        Case(answering(name, after), error=_NONE, message=message + r".*`head=\.\.\.`.*'fc' \(12 -> 4\)")
        for name, after, message in (
            ("a_word", lambda _: "cat", r"it is a str\. Say where"),
            ("nothing", lambda _: None, r"it is a NoneType\. Say where"),
            ("an_empty_tuple", lambda _: (), r"it is a tuple \(\)\. Say where"),
            ("an_empty_mapping", lambda _: {}, r"it is a dict \(\)\. Say where"),
            ("a_number", lambda _: 1.0, r"it is a float\. Say where"),
            ("an_array", lambda logits: logits.numpy(), r"it is a ndarray\. Say where"),
            ("rows_as_a_list", list, r"it is a list \(0: a tensor of shape \(4,\)"),
            ("logits_that_are_a_word", lambda logits: {"logits": "a", "x": logits}, r'`logits="x"`'),
            ("classes", lambda logits: logits.argmax(1), r"of shape \(16,\), as its own.*"),
            ("a_sum", lambda logits: logits.sum(0), r"of shape \(4,\), as its own.*"),
        )
    ),
    *(
        Case(answering(name, after), error=ShapeError, message=rf"must have shape \(16, 4\), .*`fc`.*got \({got}\)")
        for name, after, got in (("flat", Tensor.flatten, "64,"), ("transposed", Tensor.t, "4, 16"))
    ),
    *(
        Case(answering(name, after), error=_NONE, message=r"No nn\.Linear has .*`head=\"fc\"`")
        for name, after in (
            ("the_first_row", lambda logits: logits[:1]),
            ("one_row_less", lambda logits: logits[1:]),
            ("rows_twice", lambda logits: torch.cat([logits, logits])),
            ("rows_backwards", lambda logits: logits.flip(0)),
        )
    ),
    Case(forwards.drops_a_sample, error=ShapeError, message=_ROWS.format(15)),
    Case(forwards.doubles_samples, error=ShapeError, message=_ROWS.format(32)),
    Case(forwards.one_row_for_each_channel, error=ShapeError, message=_ROWS.format(48)),
    Case(forwards.logits_of_tokens, error=ShapeError, message=r"\(16, 3, 12\): it runs on every token"),
    Case(forwards.logits_of_one_token, error=_NONE, message=r"\(16, 3, 12\).*its output at one token"),
    Case(forwards.logits_of_pixels, error=_NONE, message=r"shape \(16, 4, 6, 6\), as its own"),
    Case(
        forwards.fewer_columns_later,
        error=ShapeError,
        message=r"must have shape .*got \(16, 2\)",
        is_cached=False,
    ),
    Case(
        forwards.scaled_later,
        error=_NONE,
        message=r"not what its head `fc` makes.*another layer",
        is_cached=False,
    ),
    Case(forwards.other_head_answers_later, error=_NONE, message=r"not what its head `fc` makes", is_cached=False),
    Case(forwards.other_head_later, error=_NONE, message=r"`fc` ran 0 times", is_cached=False),
    Case(forwards.head_for_some_samples, error=_NONE, message=r"2 layers have as many .*'fc' .*'other'"),
    Case(forwards.head_for_some_samples, error=ShapeError, message=_ROWS.format(8), choice={"head": "fc"}),
    Case(forwards.needs_a_second_argument, error=InputTypeError, message=r"takes \(inputs.*, scale.*'scale'.*mapping"),
    Case(forwards.takes_keywords_alone, error=InputTypeError, message=r"takes \(\*, inputs.*one tensor by position"),
    Case(forwards.all_float16, error=InputTypeError, message=_DTYPES.format("float16")),
    Case(forwards.all_bfloat16, error=InputTypeError, message=_DTYPES.format("bfloat16")),
    Case(forwards.on_the_meta_device, error=InputTypeError, message=_META),
    Case(forwards.head_on_the_meta_device, error=InputTypeError, message=_META),
    Case(forwards.body_on_the_meta_device, error=InputTypeError, message=_META),
    Case(forwards.features_not_a_number, error=NonFiniteError, message=r"`features` in batch 0 .* 12 NaN .*\(rows 1\)"),
)


@pytest.mark.parametrize("case", [*RIGHT, *REFUSED], ids=lambda case: case.name)
def test_scores_are_right_or_the_message_says_why_not(case: Case, tmp_path: Path, tried: Tried) -> None:
    tried("models", "forwards of unusual kinds, by every way to a score")
    if case.error is None:
        check_right(case, tmp_path)
    else:
        check_refused(case, tmp_path)


@pytest.mark.parametrize("build", [forwards.functional_dropout, forwards.dropout_set_to_training])
def test_a_dropout_that_ignores_eval_mode_is_told(build: Callable[[], nn.Module], tried: Tried) -> None:
    tried("models", "models with random numbers in eval mode")
    model = built(build)
    detector = OPNP(ratios=Ratios(w_min=0.25), shaping=None)
    with torch.random.fork_rng(devices=[]):
        with (
            untouched(model, own=_DRAWN),
            pytest.warns(OpnpWarning, match=r"random numbers in eval mode.*`training=True`.*differ from run to run"),
        ):
            detector.fit(model, images("train"))
        with pytest.warns(OpnpWarning, match="random numbers in eval mode"), head_stream(model, images("train")):
            pass


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (forwards.batch_norm_without_statistics, r"'body\.3' \(BatchNorm1d\).*no running statistics"),
        (forwards.batch_norm_set_to_training, r"'norm' \(BatchNorm1d\).*sets it to training mode"),
    ],
)
def test_statistics_of_the_batch_in_eval_mode_are_told(
    build: Callable[[], nn.Module], reason: str, tried: Tried
) -> None:
    tried("models", "models with statistics of the batch in eval mode")
    model = built(build)
    with untouched(model), pytest.warns(OpnpWarning, match=reason + r".*depend on\s+the other inputs of its batch"):
        detector = OPNP(ratios=Ratios(w_min=0.25), shaping=None).fit(model, images("train"))
    with untouched(model):
        alone = [detector.score(images("probe")[0][:rows])[0] for rows in (2, 10)]
    assert alone[0] != alone[1], "what was told is not so"


def test_a_layer_that_cannot_be_set_to_eval_mode_by_its_train_is_in_it_all_the_same(tried: Tried) -> None:
    tried("models", "models whose train method is their own")
    model, plain = built(forwards.batch_norm_whose_train_is_its_own), built(forwards.batch_norm_whose_train_is_its_own)
    for module in plain.modules():
        module.training = False
    with untouched(model):
        detector = OPNP(ratios=Ratios(), shaping=None).fit(model, images("train"))
        scores = detector.score(images("probe")[0])
    torch.testing.assert_close(scores, -plain(images("probe")[0]).logsumexp(1).detach())


def test_a_write_to_the_body_is_told_and_one_to_the_head_noticed(tried: Tried) -> None:
    tried("models", "models that write to their parameters", 2)
    with pytest.warns(OpnpWarning, match="wrote to 1 of its parameters in a forward pass in eval mode"):
        OPNP(ratios=Ratios(), shaping=None).fit(built(forwards.writes_to_its_body), images("train"))
    detector = OPNP(ratios=Ratios(), shaping=None).fit(built(forwards.writes_to_its_head), images("train"))
    with pytest.raises(HeadMismatchError, match="its weights have changed since"):
        detector.score(images("probe")[0])


def test_features_and_logits_of_a_square_batch_are_not_mixed_up(tried: Tried) -> None:
    """Logits with their axes exchanged have the shape of logits where there are as many samples as classes."""
    tried("models", "transposed logits of square batches")
    model = built(answering("transposed", Tensor.t))
    with untouched(model), pytest.raises(HeadNotFoundError, match="logits are not what its head `fc` makes"):
        OPNP(ratios=Ratios()).fit(model, [batch[:4] for batch in images("train")])


def test_unlabelled_samples_that_a_model_drops_when_it_scores_are_noticed(tried: Tried) -> None:
    tried("models", "samples dropped or doubled after the fit", 2)

    def made(model: nn.Module, inputs: Tensor) -> object:
        rows = model.body(inputs)  # type: ignore[operator]  # a module
        return model.fc(rows if model.runs == 0 else rows[:-1] if model.runs == 1 else torch.cat([rows, rows]))  # type: ignore[operator]  # as above

    model = built(lambda: forwards.Forward(made))
    detector = OPNP(ratios=Ratios(), shaping=None).fit(model, images("train"))
    for runs, rows in ((1, 9), (2, 20)):
        model.runs = runs
        with untouched(model), pytest.raises(ShapeError, match=f"received {rows} rows for a batch of 10 inputs"):
            detector.score(images("probe")[0])
