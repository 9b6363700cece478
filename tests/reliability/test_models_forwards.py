"""Forwards of every kind: what a model answers, what it does to itself, what it needs, and what wraps it."""

from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

from opnp import OPNP, Ratios
from opnp.bench import cache_features
from opnp.errors import HeadMismatchError, HeadNotFoundError, InputTypeError, NonFiniteError, OpnpWarning, ShapeError
from tests.contract.snapshot import unchanged
from tests.in_process import Opnp
from tests.reliability import models_world as kinds
from tests.reliability.models_world import (
    CLASSES,
    FEATURES,
    Case,
    Net,
    after,
    body,
    built,
    check,
    fitted,
    image_sets,
    images,
    linear,
)
from tests.tried import Tried
from tests.unit.bench.image_world import OPTIONS

pytestmark = pytest.mark.reliability

Pair = namedtuple("Pair", ["scores", "loss"])  # noqa: PYI024  # what a model may return
Made = Callable[[Any, Tensor], Any]


@dataclass
class Answer:
    """The output of a model that names its parts."""

    hidden: Tensor
    scores: Tensor


def plainly(model: Any, inputs: Tensor) -> Any:
    return model.fc(model.body(inputs))


def doing(*steps: Callable[[Any], object]) -> Made:
    """Return a forward that does something to the model before it answers."""

    def made(model: Any, inputs: Tensor) -> Any:
        for step in steps:
            step(model)
        return plainly(model, inputs)

    return made


def later(answer: Callable[[Any, Tensor], Any], **parts: nn.Module) -> Callable[[], Net]:
    """Return a model that answers as it should once, and then otherwise."""

    def made(model: Any, inputs: Tensor) -> Any:
        model.runs += 1
        return plainly(model, inputs) if model.runs == 1 else answer(model, model.body(inputs))

    return lambda: Net(made, other=linear())


def moving_average(model: Any, inputs: Tensor) -> Any:
    rows = model.body(inputs)
    model.mean.mul_(0.9).add_(rows.mean(0), alpha=0.1)
    model.steps = model.steps + 1
    return model.fc(rows)


def memory_used_again(model: Any, inputs: Tensor) -> Any:
    return model.fc(model.place[: len(inputs)].copy_(model.body(inputs)))


def written_to_after_the_head(model: Any, inputs: Tensor) -> Any:
    rows = model.body(inputs)
    logits = model.fc(rows)
    rows.zero_()
    return logits


def training_mode_after(model: Any, inputs: Tensor) -> Any:
    logits = model.fc(model.drop(model.body(inputs)))
    model.train()
    return logits


def some_by_another_head(model: Any, inputs: Tensor) -> Tensor:
    rows = model.body(inputs)
    is_one = torch.arange(len(rows)) % 2 == 0
    logits: Tensor = rows.new_empty(len(rows), CLASSES)
    logits[is_one], logits[~is_one] = model.fc(rows[is_one]), model.other(rows[~is_one])
    return logits


def not_a_number(model: Any, inputs: Tensor) -> Any:
    return model.fc(model.body(inputs).index_fill(0, torch.tensor([1]), float("nan")))


def tokens(made: Made) -> Net:
    """Return a model with three rows of features for an image."""
    model = Net(lambda model, inputs: made(model, model.body(inputs.flatten(2)).relu()))
    model.body = nn.Sequential(nn.Linear(64, FEATURES))
    return model


def recurrent() -> Net:
    """Return a model that takes the batch on the second axis."""
    return Net(lambda model, inputs: model.fc(model.gru(inputs)[0][-1]), gru=nn.GRU(64, FEATURES))


class Cast(nn.Module):
    """Body and head in unlike precisions."""

    def __init__(self, inside: torch.dtype, head: torch.dtype, *, is_cast: bool = True) -> None:
        super().__init__()
        self.body, self.fc, self.is_cast = body().to(inside), linear(dtype=head), is_cast
        self.inside, self.head = inside, head

    def forward(self, inputs: Tensor) -> Any:
        return self.fc(self.body(inputs.to(self.inside) if self.is_cast else inputs).to(self.head))


def part_on_the_meta_device(part: str) -> Net:
    model = Net()
    model.get_submodule(part).to("meta")
    return model


HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
ALL_HALF, ALL_BFLOAT = (partial(Cast, dtype, dtype, is_cast=False) for dtype in (HALF, BFLOAT))
RIGHT = (
    Case("a list", lambda: Net(after(lambda logits: [logits, logits.mean(1)])), choice={"logits": 0}),
    Case("a named tuple", lambda: Net(after(lambda logits: Pair(logits, None))), choice={"logits": "scores"}),
    Case("a dataclass", lambda: Net(after(lambda logits: Answer(logits * 2, logits))), choice={"logits": "scores"}),
    Case("two axes more", lambda: Net(after(lambda logits: logits[:, :, None, None]))),
    Case("a pair later", later(lambda model, rows: (model.fc(rows), rows)), is_cached=False),
    Case("random numbers without effect", lambda: Net(doing(lambda _: torch.rand([]))), own=("random numbers",)),
    Case("counts its runs", lambda: Net(doing(lambda model: setattr(model, "last", 1))), own=("attributes of ",)),
    Case("a moving average", lambda: Net(moving_average, mean=torch.zeros(FEATURES), steps=torch.zeros(()).long())),
    Case("detached features", lambda: Net(lambda m, inputs: m.fc(m.body(inputs).detach().clone()).clone())),
    Case("memory used again", lambda: Net(memory_used_again, place=torch.zeros(64, FEATURES)), own=("buffer place",)),
    Case("features written to after the head", lambda: Net(written_to_after_the_head)),
    Case("writes to its inputs", lambda: Net(lambda model, inputs: plainly(model, inputs.mul_(0.5)))),
    Case("checkpointed", lambda: Net(lambda m, inputs: checkpoint(partial(plainly, m), inputs, use_reentrant=False))),
    Case("head by keyword", lambda: Net(lambda model, inputs: model.fc(input=model.body(inputs)))),
    Case("autograd turned on", lambda: Net(torch.enable_grad()(plainly))),
    Case("inference mode inside", lambda: Net(torch.inference_mode()(plainly))),
    Case("training mode after each run", lambda: Net(training_mode_after, drop=nn.Dropout())),
    Case("autocast inside", lambda: Net(torch.autocast("cpu", BFLOAT)(plainly)), tolerance=2e-2),
    Case(
        "a second argument",
        kinds.Needs,
        inputs=lambda inputs: {"inputs": inputs, "scale": torch.ones(len(inputs))},
        is_cached=False,
    ),
    Case("keywords alone", kinds.ByKeyword, inputs=lambda inputs: {"inputs": inputs}, is_cached=False),
    Case("the batch second", recurrent, inputs=lambda inputs: inputs.flatten(2).transpose(0, 1), is_cached=False),
    Case("head of float32 on bfloat16", partial(Cast, BFLOAT, FLOAT)),
    Case("head of bfloat16 on float32", partial(Cast, FLOAT, BFLOAT), tolerance=1e-2),
    Case("head of float64", partial(Cast, FLOAT, torch.float64)),
    Case("all of float16", ALL_HALF, inputs=Tensor.half, is_cached=False, tolerance=1e-2),
    Case("all of bfloat16", ALL_BFLOAT, inputs=Tensor.bfloat16, is_cached=False, tolerance=1e-2),
)

ROWS = r"`fc` received {} rows for a batch of 16 inputs: .*`\*_features`"
DTYPES = r"torch\.{} weights and refused inputs of torch\.float32: .*`inputs\.to\(.*`model\.to\(torch\.float32\)`"
META = r"on the meta device, where .*no values.*[Ll]oad .*weights"
ANSWERS: tuple[tuple[str, Callable[[Tensor], object], str, type[Exception]], ...] = (
    ("a word", lambda _: "cat", r"it is a str\. Say where.*`head=\.\.\.`.*'fc' \(12 -> 4\)", HeadNotFoundError),
    ("an empty mapping", lambda _: {}, r"it is a dict \(\)\. Say where", HeadNotFoundError),
    ("an array", lambda logits: logits.numpy(), r"it is a ndarray\. Say where", HeadNotFoundError),
    ("rows as a list", list, r"it is a list \(0: a tensor of shape \(4,\)", HeadNotFoundError),
    ("a word beside", lambda logits: {"logits": "a", "x": logits}, r'`logits="x"`', HeadNotFoundError),
    ("classes", lambda logits: logits.argmax(1), r"of shape \(16,\), as its own.*", HeadNotFoundError),
    ("a sum", lambda logits: logits.sum(0), r"of shape \(4,\), as its own.*", HeadNotFoundError),
    ("flat", Tensor.flatten, r"must have shape \(16, 4\), .*`fc`.*got \(64,\)", ShapeError),
    ("transposed", Tensor.t, r"must have shape \(16, 4\), .*`fc`.*got \(4, 16\)", ShapeError),
    ("one row less", lambda logits: logits[1:], r"No nn\.Linear has .*`head=\"fc\"`", HeadNotFoundError),
    ("rows backwards", lambda logits: logits.flip(0), r"No nn\.Linear has .*`head=\"fc\"`", HeadNotFoundError),
)
BOTH = partial(Net, some_by_another_head)
REFUSED = (
    *(Case(name, partial(Net, after(change)), message, error) for name, change, message, error in ANSWERS),
    Case("drops a sample", kinds.drops_a_sample, ROWS.format(15), ShapeError),
    Case("doubles", lambda: Net(lambda m, x: plainly(m, torch.cat([x, x]))), ROWS.format(32), ShapeError),
    Case("rows of channels", lambda: tokens(lambda m, rows: m.fc(rows.flatten(0, 1))), ROWS.format(48), ShapeError),
    Case("tokens", lambda: tokens(lambda m, rows: m.fc(rows)), r"\(16, 3, 12\): it runs on every token", ShapeError),
    Case("a token", lambda: tokens(lambda m, rows: m.fc(rows)[:, 0]), r"\(16, 3, 12\).*its output at one token"),
    Case("pixels", lambda: nn.Sequential(nn.Conv2d(3, 9, 3), nn.Conv2d(9, 4, 1)), r"\(16, 4, 6, 6\), as its own"),
    Case(
        "fewer columns later",
        later(lambda model, rows: model.fc(rows)[:, :2]),
        r"must have shape .*got \(16, 2\)",
        ShapeError,
        is_cached=False,
    ),
    Case("scaled later", later(lambda m, rows: 3 * m.fc(rows)), "not what its head `fc` makes", is_cached=False),
    Case(
        "another head answers later",
        later(lambda m, rows: [m.fc(rows), m.other(rows)][1]),
        "not what its head `fc`",
        is_cached=False,
    ),
    Case("another head runs later", later(lambda m, rows: m.other(rows)), "`fc` ran 0 times", is_cached=False),
    Case("two heads", lambda: BOTH(other=linear()), r"2 layers have as many .*'fc' .*'other'"),
    Case("a head for some", lambda: BOTH(other=linear()), ROWS.format(8), ShapeError, choice={"head": "fc"}),
    Case(
        "a second argument",
        kinds.Needs,
        r"takes \(inputs.*, scale.*'scale'.*mapping|several ways: item 1 as `labels`; or item 1 as `scale`",
        InputTypeError,
    ),
    Case("keywords", kinds.ByKeyword, r"takes \(\*, inputs.*one tensor by position", InputTypeError),
    Case("half", ALL_HALF, DTYPES.format("float16"), InputTypeError),
    Case("on the meta device", kinds.on_the_meta_device, META, InputTypeError),
    Case("head on the meta device", partial(part_on_the_meta_device, "fc"), META, InputTypeError),
    Case("body on the meta device", partial(part_on_the_meta_device, "body"), META, InputTypeError),
    Case("NaN", lambda: Net(not_a_number), r"`features` in batch 0 .* 12 NaN .*\(rows 1\)", NonFiniteError),
)

_KINDS = r"no nn\.Linear layer.*other kinds, as scripted, .*'fc' \(Linear\)\. Give the model that it was made from"
WRAPPED = (
    Case("compiled", kinds.compiled, plain=Net),
    Case("compiled head", kinds.compiled_head, plain=Net),
    Case("data parallel", lambda: nn.DataParallel(Net()), plain=Net),
    Case("scripted body", kinds.scripted_body, plain=Net),
    Case("graph", lambda: torch.fx.symbolic_trace(kinds.Scriptable())),
    Case("made in inference mode", kinds.made_in_inference_mode),
    Case("weight of another type", kinds.weight_of_another_type, plain=Net, is_copied=False),
    Case("scripted", kinds.scripted, _KINDS),
    Case("traced", kinds.traced, _KINDS),
    Case("exported", kinds.exported, r"no nn\.Linear layer.*`fit_features`"),
)
SPREAD = (
    Case("distributed data parallel", lambda: nn.parallel.DistributedDataParallel(Net()), plain=Net),
    Case(
        "fully sharded by the older way",
        kinds.fully_sharded_by_the_older_way,
        plain=Net,
        is_copied=False,
        own=("attributes of ",),
    ),
    Case(
        "fully sharded",
        kinds.fully_sharded,
        plain=Net,
        is_copied=False,
        own=("state_dict_pre_hooks", "parameter body.1"),
    ),
    Case("head in parts", kinds.head_in_parts_by_columns, plain=Net, is_copied=False),
)


@pytest.mark.parametrize("case", [*RIGHT, *REFUSED], ids=lambda case: case.name)
def test_scores_are_right_or_the_message_says_why_not(case: Case, tmp_path: Path, tried: Tried) -> None:
    tried("models", "forwards of unusual kinds, by every way to a score")
    check(case, tmp_path)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have a process group of this process alone."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("case", WRAPPED, ids=lambda case: case.name)
def test_a_wrapped_model_is_looked_through_or_refused(case: Case, tmp_path: Path, tried: Tried) -> None:
    tried("models", "models wrapped or compiled by torch, by every way to a score")
    check(case, tmp_path)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("case", SPREAD, ids=lambda case: case.name)
def test_a_model_spread_over_ranks_is_that_of_one(case: Case, tmp_path: Path, tried: Tried) -> None:
    tried("models", "models wrapped or compiled by torch, by every way to a score")
    check(case, tmp_path)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("build", [kinds.fully_sharded, kinds.weight_of_another_type])
def test_a_model_that_cannot_be_copied_says_so(build: Callable[[], nn.Module], tried: Tried) -> None:
    tried("models", "models that cannot be copied")
    detector = fitted(built(build)).calibrate(images("test"))
    with pytest.raises(InputTypeError, match=r"The model cannot be copied: copy\.deepcopy raised"):
        detector.to_module()


def test_other_weights_of_a_quantised_body_are_other_features(tmp_path: Path, tried: Tried) -> None:
    tried("models", "quantised models with other weights")
    sets, options = image_sets(tmp_path), {"name": "a:model", "is_odin_wanted": False, "is_replacing": True}
    first, again = (
        cache_features(built(kinds.quantised_body), sets, tmp_path / "cache", **options)  # type: ignore[arg-type]  # options of many kinds
        for _ in range(2)
    )
    assert (first.computed, again.kept) == (("train", "test"), ("train", "test"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        other = kinds.quantised_body()
    other.fc = built(kinds.quantised_body).fc
    assert cache_features(other, sets, tmp_path / "cache", **options).computed == ("train", "test")  # type: ignore[arg-type]  # as above


def drops_always(model: Any, inputs: Tensor) -> Any:
    return model.fc(dropout(model.body(inputs), 0.5, training=True))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Net(drops_always),
        lambda: Net(
            lambda model, inputs: model.fc(model.drop.train()(model.body(inputs))),
            drop=nn.Dropout(),
        ),
    ],
    ids=["by a function", "by a layer"],
)
def test_a_dropout_that_ignores_eval_mode_is_told(build: Callable[[], nn.Module], tried: Tried) -> None:
    tried("models", "models with random numbers in eval mode")
    model = built(build)
    message = r"random numbers in eval mode.*`training=True`.*differ from run to run"
    with (
        torch.random.fork_rng(devices=[]),
        unchanged(model, but=("random numbers",)),
        pytest.warns(OpnpWarning, match=message),
    ):
        fitted(model)


def norm_after(norm: nn.Module) -> Net:
    model = Net()
    model.body.append(norm)
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            lambda: norm_after(nn.BatchNorm1d(FEATURES, track_running_stats=False)),
            r"'body\.3' \(BatchNorm1d\).*no running statistics",
        ),
        (
            lambda: Net(lambda m, inputs: m.fc(m.norm.train()(m.body(inputs))), norm=nn.BatchNorm1d(FEATURES)),
            r"'norm' \(BatchNorm1d\).*sets it to training mode",
        ),
    ],
    ids=["no statistics", "set to training"],
)
def test_statistics_of_the_batch_in_eval_mode_are_told(
    build: Callable[[], nn.Module], reason: str, tried: Tried
) -> None:
    tried("models", "models with statistics of the batch in eval mode")
    model = built(build)
    with unchanged(model), pytest.warns(OpnpWarning, match=reason + r".*depend on\s+the other inputs of its batch"):
        detector = fitted(model)
    with unchanged(model):
        alone = [detector.score(images("probe")[0][:rows])[0] for rows in (2, 10)]
    assert alone[0] != alone[1], "what was told is not so"


class Stubborn(nn.BatchNorm1d):
    """A batch norm that `eval()` leaves in training mode."""

    def train(self, mode: bool = True) -> Any:  # torch's signature
        return super().train(mode=True)


def test_a_layer_that_cannot_be_set_to_eval_mode_by_its_train_is_in_it_all_the_same(tried: Tried) -> None:
    tried("models", "models whose train method is their own")
    model, plain = (built(lambda: norm_after(Stubborn(FEATURES))) for _ in range(2))
    for module in plain.modules():
        module.training = False
    with unchanged(model):
        scores = OPNP(ratios=Ratios(), shaping=None).fit(model, images("train")).score(images("probe")[0])
    torch.testing.assert_close(scores, -plain(images("probe")[0]).logsumexp(1).detach())


def test_a_write_to_the_body_is_told_and_one_to_the_head_noticed(tried: Tried) -> None:
    tried("models", "models that write to their parameters", 2)
    with pytest.warns(OpnpWarning, match="wrote to 1 of its parameters in a forward pass in eval mode"):
        fitted(built(lambda: Net(doing(lambda model: model.body[1].weight.mul_(0.99)))))
    detector = fitted(built(lambda: Net(doing(lambda model: model.fc.weight.data.mul_(0.99)))))
    with pytest.raises(HeadMismatchError, match="its weights have changed since"):
        detector.score(images("probe")[0])


def test_features_and_logits_of_a_square_batch_are_not_mixed_up(tried: Tried) -> None:
    """Logits with their axes exchanged have the shape of logits where there are as many samples as classes."""
    tried("models", "transposed logits of square batches")
    model = built(lambda: Net(after(Tensor.t)))
    with unchanged(model), pytest.raises(HeadNotFoundError, match="logits are not what its head `fc` makes"):
        OPNP(ratios=Ratios()).fit(model, [batch[:4] for batch in images("train")])


@pytest.mark.parametrize(
    ("change", "rows"),
    [(lambda rows: rows[:-1], 9), (lambda rows: torch.cat([rows, rows]), 20)],
    ids=["drop", "double"],
)
def test_samples_that_a_model_drops_or_doubles_when_it_scores_are_noticed(
    change: Callable[[Tensor], Tensor], rows: int, tried: Tried
) -> None:
    tried("models", "samples dropped or doubled after the fit")
    model = built(lambda: Net(lambda m, inputs: m.fc(change(m.body(inputs)) if m.runs else m.body(inputs))))
    detector = fitted(model)
    model.runs = 1
    with unchanged(model), pytest.raises(ShapeError, match=f"received {rows} rows for a batch of 10 inputs"):
        detector.score(images("probe")[0])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (kinds.lora_merged, ""),
        (kinds.older_weight_norm, ""),
        (kinds.pruned_by_its_owner, ""),
        (kinds.compiled, ""),
        (kinds.lora, "Merge the adapter into its layer first"),
        (kinds.quantised, "Give the model that it was made from"),
        (kinds.on_the_meta_device, "on the meta device"),
        (kinds.Needs, "mapping from names of arguments to tensors"),
        (kinds.drops_a_sample, "received 15 rows for a batch of 16 inputs"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_command_line_fits_it_or_refuses_in_one_line(
    build: Callable[[], nn.Module], words: str, opnp: Opnp, tmp_path: Path, tried: Tried
) -> None:
    tried("models", "models of unusual kinds on the command line")
    sets, out = image_sets(tmp_path), tmp_path / "detector.safetensors"
    data = ("--data", tmp_path / "train.safetensors", "--validation", tmp_path / "test.safetensors", "--batch-size", 16)
    model = ("--model", f"{build.__module__}:{build.__name__}", *OPTIONS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        code, said, err = opnp("fit", *model, *data, "--rho-w-min", 0.25, "--out", out)
    if words:
        assert (code, said, out.exists()) == (2, "", False)
        assert words in " ".join(err.split()), err
        assert "Traceback" not in err
        return
    assert code == 0, err
    right = OPNP(ratios=Ratios(w_min=0.25))
    right.fit(built(build), sets["train"].batches(16), validation=sets["test"].batches(16))
    assert torch.equal(OPNP.load(out).calibration_scores, right.calibration_scores)
