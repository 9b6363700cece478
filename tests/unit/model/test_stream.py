"""Streams of (features, logits) from models of many kinds and loaders of many kinds."""

import weakref
from collections import UserDict
from collections.abc import Callable, Iterator
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader, TensorDataset

from opnp.errors import EmptyDataError, HeadNotFoundError, InputTypeError, NonFiniteError, ShapeError
from opnp.model import find_head, head_stream, head_tap
from tests.contract.snapshot import unchanged
from tests.unit.model.tiny_models import INPUTS, Answering, Named, WithLogits, batch, batches, compiled, mlp, read

LABELS = torch.arange(8) % 3


def streamed(model: nn.Module, loader: Any, **options: Any) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    with unchanged(model, "head_stream"), head_stream(model, loader, **options) as stream:
        return list(stream.batches)


def answered(model: nn.Module) -> Tensor:
    """Return what the model answers by itself, which compiles it if it is to be compiled."""
    with torch.no_grad():
        outputs: Tensor = model(batch())
        return outputs


def assert_reads(found: list[tuple[Tensor, Tensor, Tensor | None]], model: nn.Sequential, count: int = 3) -> None:
    assert len(found) == count
    for (features, logits, _), inputs in zip(found, batches(count), strict=True):
        expected_features, expected_logits = read(model, inputs)
        assert torch.equal(features, expected_features)
        assert torch.equal(logits, expected_logits)
        assert not features.requires_grad
        assert not logits.requires_grad


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inputs: inputs,
        lambda inputs: (inputs, LABELS),
        lambda inputs: (inputs,),
        lambda inputs: [inputs, LABELS],
        lambda inputs: {"input": inputs},
        lambda inputs: {"not_a_keyword_of_forward": inputs},
        lambda inputs: UserDict(pixel_values=inputs, labels=LABELS),
    ],
)
def test_every_kind_of_batch(wrap: Callable[[Tensor], object]) -> None:
    model = mlp()
    found = streamed(model, [wrap(inputs) for inputs in batches()])
    assert_reads(found, model)
    wrapped = wrap(batch())
    has_labels = not isinstance(wrapped, Tensor) and len(wrapped) > 1  # type: ignore[arg-type]  # all are sized
    for _, _, labels in found:
        assert (labels is not None) is has_labels
        assert labels is None or torch.equal(labels, LABELS)


def test_keywords_reach_a_model_that_names_them() -> None:
    model = Named()
    assert_reads(streamed(model, [{"pixel_values": inputs, "scale": 1.0} for inputs in batches()]), model.inner)


@pytest.mark.parametrize("after", [WithLogits, lambda logits: {"logits": logits}, lambda logits: logits])
def test_every_kind_of_output(after: Callable[[Tensor], object]) -> None:
    assert_reads(streamed(Answering(after), batches()), mlp())


@pytest.mark.parametrize(
    "after", [lambda logits: logits.softmax(1), lambda logits: logits.div_(10), lambda logits: (logits, 0)]
)
def test_logits_are_the_heads_whatever_follows_it(after: Callable[[Tensor], object]) -> None:
    assert_reads(streamed(Answering(after), batches(), head="fc"), mlp())


@pytest.mark.parametrize(
    "wrap",
    [
        compiled,
        nn.DataParallel,
        lambda model: nn.DataParallel(compiled(model)),
    ],
    ids=["compiled", "data parallel", "both"],
)
def test_wrapped_models(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = mlp()
    wrapped = wrap(model)
    before = answered(wrapped)
    assert_reads(streamed(wrapped, batches()), model)
    assert torch.equal(answered(wrapped), before)


def test_a_model_compiled_in_place() -> None:
    model = mlp()
    model.compile(backend="eager")
    before = answered(model)
    assert_reads(streamed(model, batches()), mlp())
    assert torch.equal(answered(model), before)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_compiled_part(index: int) -> None:
    model, plain = mlp(), mlp()
    model[index] = compiled(model[index])
    before = answered(model)
    assert_reads(streamed(model, batches()), plain)
    assert torch.equal(answered(model), before)


def test_a_part_compiled_in_place() -> None:
    model, plain = mlp(), mlp()
    model[2].compile(backend="eager")
    before = answered(model)
    assert_reads(streamed(model, batches()), plain)
    assert torch.equal(answered(model), before)


def test_a_weight_normalised_head() -> None:
    model, plain = mlp(), mlp()
    weight_norm(model[2])
    for (features, logits, _), inputs in zip(streamed(model, batches()), batches(), strict=True):
        assert torch.equal(features, read(plain, inputs)[0])
        assert torch.allclose(logits, read(plain, inputs)[1], rtol=1e-5)


def test_a_head_called_by_keyword() -> None:
    class Keyword(Answering):
        def forward(self, inputs: Tensor) -> object:
            return self.fc(input=self.body(inputs))

    assert_reads(streamed(Keyword(), batches()), mlp())


def test_a_model_that_is_its_head() -> None:
    model = nn.Linear(INPUTS, 3)
    for (features, _, _), inputs in zip(streamed(model, batches()), batches(), strict=True):
        assert torch.equal(features, inputs)


def test_a_head_called_twice() -> None:
    class Twice(Answering):
        def forward(self, inputs: Tensor) -> object:
            self.fc(self.body(inputs) + 1)
            return self.fc(self.body(inputs))

    model = Twice()
    with pytest.raises(HeadNotFoundError, match=r"`fc` ran 2 times in one forward pass"):
        streamed(model, batches())


def test_a_head_that_never_runs() -> None:
    class Functional(Answering):
        def forward(self, inputs: Tensor) -> object:
            return nn.functional.linear(self.body(inputs), self.fc.weight, self.fc.bias)

    with pytest.raises(HeadNotFoundError, match="ran 0 times"):
        streamed(Functional(), batches(), head="fc")


def test_a_head_on_every_token() -> None:
    with pytest.raises(ShapeError, match=r"shape \(2, 7, 6\).*every token.*pool them as the model does"):
        streamed(nn.Linear(INPUTS, 3), [torch.ones(2, 7, INPUTS)])


def test_the_owners_hooks_see_and_change_what_they_did() -> None:
    model = mlp()
    model[2].register_forward_pre_hook(lambda _module, args: (args[0] * 2,))
    for (features, _, _), inputs in zip(streamed(model, batches()), batches(), strict=True):
        assert torch.equal(features, 2 * read(mlp(), inputs)[0])


def test_a_data_loader_and_a_generator() -> None:
    model = mlp()
    dataset = TensorDataset(torch.cat(batches()), LABELS.repeat(3))
    assert_reads(streamed_quietly(model, DataLoader(dataset, batch_size=8)), model)

    def generator() -> Iterator[Tensor]:
        yield from batches()

    assert_reads(streamed(model, generator()), model)
    assert_reads(streamed(model, iter(batches(1))), model, count=1)


def streamed_quietly(model: nn.Module, loader: Any) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Stream a loader that draws random numbers itself."""
    with torch.random.fork_rng(), head_stream(model, loader) as stream:
        return list(stream.batches)


@pytest.mark.parametrize("loader", [[], iter([])])
def test_an_empty_loader(loader: Any) -> None:
    with pytest.raises(EmptyDataError, match="`loader` yields no batch"):
        streamed(mlp(), loader)


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        (batch(), r"got Tensor\. For a single batch pass a list of one: `\[inputs\]`"),
        ("images", "got str"),
        (3, "got int"),
        (None, "got NoneType"),
        (TensorDataset(batch()), "got TensorDataset"),
    ],
)
def test_what_is_no_loader(loader: Any, reason: str) -> None:
    with pytest.raises(InputTypeError, match=f"`loader` must be an iterable of batches, {reason}"):
        streamed(mlp(), loader)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("after", [lambda logits: logits, lambda logits: logits.clone()], ids=["same", "copy"])
@pytest.mark.parametrize("index", [0, 2])
def test_a_batch_that_is_not_finite_is_named(value: float, after: Callable[[Tensor], Tensor], index: int) -> None:
    loader = batches()
    loader[index][5, 0] = value
    with pytest.raises(NonFiniteError, match=rf"`features` in batch {index} must be finite.*rows 5"):
        streamed(Answering(after), loader)


def test_logits_that_are_not_finite_are_named() -> None:
    model = nn.Linear(INPUTS, 2)
    loader = batches()
    loader[1][3] = torch.finfo(torch.float32).max
    nn.init.constant_(model.weight, 10.0)
    with pytest.raises(NonFiniteError, match=r"`logits` in batch 1 must be finite.*rows 3"):
        streamed(model, loader)


def test_an_empty_first_batch_is_no_riddle() -> None:
    model = mlp()
    with head_stream(model, [torch.empty(0, INPUTS), *batches()]) as stream:
        assert stream.head.name == "2"
        assert sum(len(features) for features, _, _ in stream.batches) == 24


def test_errors_keep_their_cause_and_leave_nothing_behind() -> None:
    cause = ValueError("the file is cut short")

    def loader() -> Iterator[Tensor]:
        yield batch()
        try:
            raise cause
        except ValueError as error:
            message = "a worker died"
            raise RuntimeError(message) from error

    model = mlp().train()
    with unchanged(model, "a broken loader"), pytest.raises(RuntimeError, match="a worker died") as caught:
        streamed(model, loader())
    assert caught.value.__cause__ is cause


def interrupted_while_recovering(model: nn.Module) -> None:
    def broken() -> Iterator[Tensor]:
        yield batch()
        message = "first"
        raise ValueError(message)

    def interrupted() -> Iterator[Tensor]:
        yield batch()
        raise KeyboardInterrupt

    try:
        streamed(model, broken())
    except ValueError:
        streamed(model, interrupted())


def test_an_error_while_handling_an_error_leaves_nothing_behind() -> None:
    model = mlp().train()
    with unchanged(model, "nested errors"), pytest.raises(KeyboardInterrupt) as caught:
        interrupted_while_recovering(model)
    assert isinstance(caught.value.__context__, ValueError)


def test_a_stream_that_is_left_early() -> None:
    model = mlp().train()
    with unchanged(model, "leaving early"), head_stream(model, batches()) as stream:
        next(stream.batches)


def test_the_stream_tells_head_and_axes() -> None:
    with head_stream(mlp(), [{"input": batch(), "labels": LABELS}]) as stream:
        assert stream.head.name == "2"
        assert stream.axes == {"input": 2}
    with head_stream(mlp(), batches()) as stream:
        assert stream.axes == 2


def test_a_stream_keeps_no_batches() -> None:
    with head_stream(mlp(), batches()) as stream:
        kept = [weakref.ref(item) for item in next(stream.batches)[:2]]
        next(stream.batches)
        assert [item() for item in kept] == [None, None]


def test_two_threads_get_their_own_features() -> None:
    barrier = Barrier(2)

    class Slow(Answering):
        def forward(self, inputs: Tensor) -> object:
            features = self.body(inputs)
            barrier.wait(10)
            logits = self.fc(features)
            barrier.wait(10)
            return logits

    model = Slow().eval()
    head = type(find_head(mlp(), batch()))(name="fc", module=model.fc, is_output=True)
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def run(seed: int) -> None:
        with head_tap(model, head) as tap:
            barrier.wait(10)
            for _ in range(5):
                found[seed] = tap(batch(seed=seed))

    threads = [Thread(target=run, args=(seed,)) for seed in (1, 2)]
    with unchanged(model, "two threads"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    for seed in (1, 2):
        expected_features, expected_logits = read(mlp(), batch(seed=seed))
        assert torch.equal(found[seed][0], expected_features)
        assert torch.equal(found[seed][1], expected_logits)


@pytest.mark.parametrize("head", [None, "2"])
def test_the_model_runs_once_a_batch_the_one_it_is_searched_by_among_them(head: str | None) -> None:
    model = mlp()
    runs: list[int] = []
    model.register_forward_hook(lambda _module, args, _output: runs.append(len(args[0])))
    loader = [batch()[:rows] for rows in (4, 2, 3)]
    with head_stream(model, loader, head=head) as stream:
        sizes = [len(features) for features, _, _ in stream.batches]
    assert runs == sizes == [4, 2, 3]


def test_the_first_batch_too_is_read_while_the_model_is_on_loan() -> None:
    """Logits that are computed beside the model need its weights where they run, in the mode they run in."""
    model = Answering(lambda logits: (logits, logits))
    seen: list[tuple[bool, bool]] = []
    linear = torch.nn.functional.linear

    def watched(*args: Tensor) -> Tensor:
        seen.append((torch.is_grad_enabled(), model.training))
        return linear(*args)

    model.train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", watched)
        with head_stream(model, [batch(), batch()], head="fc") as stream:
            list(stream.batches)
    assert set(seen) == {(False, False)}
    assert model.training
