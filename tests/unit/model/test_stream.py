"""Batches as loaders yield them, and streams of (features, logits) from models of many kinds."""

import weakref
from collections import UserDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader, TensorDataset

from opnp import OPNP, Ratios, ReAct
from opnp.errors import EmptyDataError, HeadNotFoundError, InputTypeError, NonFiniteError, ShapeError
from opnp.model import find_head, head_stream, head_tap, sensitivity
from tests.contract.snapshot import unchanged
from tests.unit.model.tiny_models import INPUTS, Answering, WithLogits, batch, batches, compiled, mlp, read

GIVEN, LABELS = batch(), torch.arange(8) % 3


# --------------------------------------------------------------------------------------------------------- streams
def streamed(model: nn.Module, loader: Any, **options: Any) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    with unchanged(model, "head_stream"), head_stream(model, loader, **options) as stream:
        return list(stream.batches)


def assert_reads(found: list[tuple[Tensor, Tensor, Tensor | None]], model: nn.Sequential, count: int = 3) -> None:
    assert len(found) == count
    for (features, logits, _), inputs in zip(found, batches(count), strict=True):
        expected_features, expected_logits = read(model, inputs)
        assert torch.equal(features, expected_features)
        torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-6)
        assert not features.requires_grad
        assert not logits.requires_grad


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inputs: inputs,
        lambda inputs: (inputs, LABELS),
        lambda inputs: (inputs,),
        lambda inputs: [inputs, LABELS],
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


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(TensorDataset(torch.cat(batches()), LABELS.repeat(3)), batch_size=8),
        lambda: iter(batches()),
        lambda: [torch.empty(0, INPUTS), *batches()],
    ],
    ids=["data loader", "iterator", "empty first batch"],
)
def test_every_kind_of_loader(loader: Callable[[], Any]) -> None:
    with torch.random.fork_rng(), head_stream(mlp(), loader()) as stream:
        assert_reads(list(stream.batches), mlp())


@pytest.mark.parametrize(
    ("after", "head"),
    [
        (WithLogits, None),
        (lambda logits: {"logits": logits}, None),
        (lambda logits: logits.softmax(1), "fc"),
        (lambda logits: logits.div_(10), "fc"),
        (lambda logits: (logits, 0), "fc"),
    ],
)
def test_every_kind_of_output(after: Callable[[Tensor], object], head: str | None) -> None:
    assert_reads(streamed(Answering(after), batches(), head=head), mlp())


def with_part(index: int, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model = mlp()
    model[index] = change(model[index])
    return model


def compiled_in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


class Keyword(Answering):
    """Calls its head by keyword."""

    def forward(self, inputs: Tensor) -> object:
        return self.fc(input=self.body(inputs))


@pytest.mark.parametrize(
    "make",
    [
        lambda: compiled(mlp()),
        lambda: nn.DataParallel(mlp()),
        lambda: nn.DataParallel(compiled(mlp())),
        lambda: compiled_in_place(mlp()),
        *(partial(with_part, index, compiled) for index in range(3)),
        partial(with_part, 2, compiled_in_place),
        partial(with_part, 2, weight_norm),
        Keyword,
    ],
)
def test_models_that_are_wrapped_and_compiled(make: Callable[[], nn.Module]) -> None:
    model = make()
    with torch.no_grad():
        before = model(batch())  # which compiles what is to be compiled
        assert_reads(streamed(model, batches()), mlp())
        assert torch.equal(model(batch()), before)


class Twice(Answering):
    """Runs its head twice."""

    def forward(self, inputs: Tensor) -> object:
        self.fc(self.body(inputs) + 1)
        return self.fc(self.body(inputs))


LARGE = nn.Linear(INPUTS, 2)
nn.init.constant_(LARGE.weight, torch.finfo(torch.float32).max)


@pytest.mark.parametrize(
    ("model", "loader", "error", "message"),
    [
        (Twice(), batches(), HeadNotFoundError, "`fc` ran 2 times in one forward pass"),
        (LARGE, [batch()], NonFiniteError, "`logits` in batch 0 must be finite"),
        (nn.Linear(INPUTS, 3), [torch.ones(2, 7, INPUTS)], ShapeError, r"\(2, 7, 6\).*every token.*pool them as the"),
        (mlp(), [(batch(), LABELS[:3])], ShapeError, "Batch 0 holds 3 labels for 8 inputs: one each is needed"),
        (mlp(), [], EmptyDataError, "`loader` yields no batch"),
        (mlp(), batch(), InputTypeError, r"got Tensor\. For a single batch pass a list of one: `\[inputs\]`"),
        (mlp(), "images", InputTypeError, "`loader` must be an iterable of batches, got str"),
        (mlp(), TensorDataset(batch()), InputTypeError, r"got TensorDataset\..*`DataLoader\(dataset, batch_size=64\)`"),
    ],
)
def test_what_cannot_be_read_is_refused(model: nn.Module, loader: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        streamed(model, loader)


def test_what_is_no_model() -> None:
    model: Any = "model"
    with pytest.raises(InputTypeError, match=r"`model` must be a torch\.nn\.Module, got str"), head_stream(model, [1]):
        pass


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("after", [lambda logits: logits, lambda logits: logits.clone()], ids=["same", "copy"])
@pytest.mark.parametrize("index", [0, 2])
def test_a_batch_that_is_not_finite_is_named(value: float, after: Callable[[Tensor], Tensor], index: int) -> None:
    loader = batches()
    loader[index][5, 0] = value
    with pytest.raises(NonFiniteError, match=rf"`features` in batch {index} must be finite.*rows 5"):
        streamed(Answering(after), loader)


def test_the_owners_hooks_see_and_change_what_they_did() -> None:
    model = mlp()
    model[2].register_forward_pre_hook(lambda _module, args: (args[0] * 2,))
    for (features, _, _), inputs in zip(streamed(model, batches()), batches(), strict=True):
        assert torch.equal(features, 2 * read(mlp(), inputs)[0])


@pytest.mark.parametrize("error", [RuntimeError("a worker died"), KeyboardInterrupt()])
def test_errors_leave_nothing_behind(error: BaseException) -> None:
    def loader() -> Iterator[Tensor]:
        yield batch()
        raise error

    model = mlp().train()
    with unchanged(model, "a broken loader"), pytest.raises(type(error)) as caught:
        streamed(model, loader())
    assert caught.value is error


def test_a_stream_that_is_left_early() -> None:
    model = mlp().train()
    with unchanged(model, "leaving early"), head_stream(model, batches()) as stream:
        next(stream.batches)


def test_the_stream_tells_head_and_axes() -> None:
    for loader, axes in (([{"input": batch(), "labels": LABELS}], {"input": 2}), (batches(), 2)):
        with head_stream(mlp(), loader) as stream:
            assert (stream.head.name, stream.axes) == ("2", axes)


def test_a_stream_keeps_no_batches() -> None:
    with head_stream(mlp(), batches()) as stream:
        kept = [weakref.ref(item) for item in next(stream.batches)[:2]]
        next(stream.batches)
        assert [item() for item in kept] == [None, None]


def test_threads_that_score_by_one_model_get_their_own_features() -> None:
    model = mlp().train()
    head = find_head(model, batch())
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def run(seed: int) -> None:
        with head_tap(model, head) as tap:
            found[seed] = [tap(batch(seed=seed)) for _ in range(5)]

    threads = [Thread(target=run, args=(seed,)) for seed in range(4)]
    with unchanged(model, "threads"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    for seed in range(4):
        for features, logits in found[seed]:
            assert torch.equal(features, read(mlp(), batch(seed=seed))[0])
            assert torch.equal(logits, read(mlp(), batch(seed=seed))[1])


@pytest.mark.parametrize("head", [None, "2"])
def test_the_model_runs_once_a_batch_the_one_it_is_searched_by_among_them(head: str | None) -> None:
    model = mlp()
    runs: list[int] = []
    model.register_forward_hook(lambda _module, args, _output: runs.append(len(args[0])))
    with head_stream(model, [batch()[:rows] for rows in (4, 2, 3)], head=head) as stream:
        sizes = [len(features) for features, _, _ in stream.batches]
    assert runs == sizes == [4, 2, 3]


@pytest.mark.parametrize("options", [{}, {"ratios": Ratios(w_min=0.3), "shaping": ReAct(0.9)}, {"ratios": "tuned"}])
def test_the_default_device_changes_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    """A tensor that is made without its device would be on the meta device, which meets the others nowhere."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(INPUTS, 32), nn.ReLU(), nn.Linear(32, 3))
    loader = [(batch(50, seed=seed), torch.arange(50) % 3) for seed in range(8)]
    ood = [3 * inputs for inputs, _ in loader] if options.get("ratios") == "tuned" else None
    found: list[list[Tensor]] = []
    for device in (None, "meta"):
        torch.set_default_device(device)
        try:
            detector = OPNP(**options).fit(model, loader, validation=loader, validation_ood=ood).calibrate(loader)
            detector.save(tmp_path / "detector.safetensors")
            loaded, inputs = OPNP.load(tmp_path / "detector.safetensors", model), loader[0][0]
            found.append([*loaded.verdict(inputs), *detector.explain(inputs)[1:], *detector.to_module()(inputs)])
            found[-1] += [detector.score(inputs[0]), sensitivity(model, loader, layers=["0"])["0"].weight]
        finally:
            torch.set_default_device(None)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
