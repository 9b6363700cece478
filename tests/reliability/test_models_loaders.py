"""Loaders and inputs of every kind, given to a model that is as it should be."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios
from opnp.errors import EmptyDataError, InputTypeError, ShapeError
from tests.reliability.models_world import FEATURES, Net, built, images, untouched
from tests.tried import Tried

pytestmark = pytest.mark.reliability

_LABELS = torch.arange(16) % 4


def _fitted(loader: Iterable[Any], model: nn.Module | None = None) -> OPNP:
    model = built(Net) if model is None else model
    with untouched(model):
        return OPNP(ratios=Ratios(w_min=0.25), shaping=None).fit(model, loader)


LOADERS: dict[str, Callable[[], Iterable[Any]]] = {
    "tuples of one": lambda: [(batch,) for batch in images("train")],
    "lists with labels": lambda: [[batch, _LABELS] for batch in images("train")],
    "labels as floats": lambda: [(batch, _LABELS.float()) for batch in images("train")],
    "labels of one hot": lambda: [(batch, nn.functional.one_hot(_LABELS)) for batch in images("train")],
    "labels as a list": lambda: [(batch, _LABELS.tolist()) for batch in images("train")],
    "labels as words": lambda: [(batch, ["a"] * 16) for batch in images("train")],
    "labels in a mapping": lambda: [(batch, {"label": _LABELS, "box": _LABELS}) for batch in images("train")],
    "labels of int8": lambda: [(batch, _LABELS.to(torch.int8)) for batch in images("train")],
    "no labels": lambda: [(batch, None) for batch in images("train")],
    "three parts": lambda: [(batch, _LABELS, "path") for batch in images("train")],
    "mappings": lambda: [{"inputs": batch, "labels": _LABELS} for batch in images("train")],
    "a name that forward lacks": lambda: [{"image": batch, "label": _LABELS} for batch in images("train")],
    "channels last": lambda: [batch.contiguous(memory_format=torch.channels_last) for batch in images("train")],
    "strided views": lambda: [batch.repeat(1, 1, 1, 2)[..., :8] for batch in images("train")],
    "axes exchanged": lambda: [batch.transpose(2, 3).contiguous().transpose(2, 3) for batch in images("train")],
    "inputs with gradients": lambda: [batch.clone().requires_grad_() for batch in images("train")],
    "inputs of inference mode": lambda: [_of_inference(batch) for batch in images("train")],
    "an iterator": lambda: iter(images("train")),
    "a generator": lambda: (batch for batch in images("train")),
    "batches without samples among others": lambda: [images("train")[0][:0], *images("train"), images("train")[0][:0]],
    "batches of one": lambda: [batch[row : row + 1] for batch in images("train") for row in range(16)],
    "one memory for all batches": lambda: _reused(images("train")),
}


def _of_inference(batch: Tensor) -> Tensor:
    with torch.inference_mode():
        return batch.clone()


def _reused(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    place = torch.empty(16, 3, 8, 8)
    for batch in batches:
        yield place.copy_(batch)


@pytest.mark.parametrize("kind", LOADERS)
def test_every_kind_of_loader_gives_the_same(kind: str, tried: Tried) -> None:
    tried("models", "loaders of unusual kinds")
    found, right = _fitted(LOADERS[kind]()), _fitted(images("train"))
    torch.testing.assert_close(found.sensitivity.weight, right.sensitivity.weight, rtol=1e-5, atol=1e-8)
    assert torch.equal(found.masks.weight, right.masks.weight)
    probe = images("probe")[0]
    for inputs in (probe, [probe], (probe, _LABELS[:10]), {"inputs": probe}):
        torch.testing.assert_close(found.score(inputs), right.score(probe), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        ([], EmptyDataError, "yields no batch"),
        (iter(()), EmptyDataError, "yields no batch"),
        ([images("train")[0][:0]], EmptyDataError, "yields no batch"),
        (images("train")[0], InputTypeError, r"got Tensor\. For a single batch pass a list of one: `\[inputs\]`"),
        ("images", InputTypeError, "got str"),
        (7, InputTypeError, "got int"),
        ([None], InputTypeError, "A batch must be a tensor, .*got NoneType"),
        (["cat"], InputTypeError, "A batch must be a tensor, .*got str"),
        ([[]], InputTypeError, "got an empty list"),
        ([images("train")[0].numpy()], InputTypeError, "A batch must be a tensor, .*got ndarray"),
        ([(images("train")[0], _LABELS[:15])], ShapeError, "Batch 0 holds 15 labels for 16 inputs"),
        ([{"one": images("train")[0], "two": _LABELS}], InputTypeError, r"the keywords one, two: .*mapping from names"),
        ([images("train")[0].double()], InputTypeError, r"refused inputs of torch\.float64"),
        ([(255 * images("train")[0]).to(torch.uint8)], InputTypeError, r"images\.float\(\) / 255"),
    ],
)
def test_what_cannot_be_read_is_said(loader: Any, error: type[Exception], message: str, tried: Tried) -> None:
    tried("models", "loaders that cannot be read")
    model = built(Net)
    with untouched(model), pytest.raises(error, match=message):
        OPNP(ratios=Ratios()).fit(model, loader)


def test_a_generator_that_is_used_up_has_no_batch_for_a_second_pass(tried: Tried) -> None:
    tried("models", "generators given twice")
    model = built(Net)
    generator = (batch for batch in images("train"))
    detector = _fitted(generator, model)
    with untouched(model), pytest.raises(EmptyDataError, match="yields no batch"):
        detector.calibrate(generator)
    with untouched(model), pytest.raises(EmptyDataError, match="yields no batch"):
        _fitted(generator, model)


def test_a_loader_without_end_is_left_where_it_is_cut(tried: Tried) -> None:
    tried("models", "loaders without end")

    def endless() -> Iterator[Tensor]:
        while True:
            yield from images("train")

    def few(batches: Iterator[Tensor]) -> Iterator[Tensor]:
        for _ in range(3):
            yield next(batches)

    right = _fitted(images("train"))
    assert torch.equal(_fitted(few(endless())).sensitivity.weight, right.sensitivity.weight)


def test_one_sample_goes_through_a_batch_norm(tried: Tried) -> None:
    tried("models", "batches of one through a batch norm", 10)
    model = built(lambda: Net(nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, 4)))).train()
    detector = _fitted(images("train"), model)
    probe = images("probe")[0]
    with untouched(model):
        together = detector.score(probe)
        alone = torch.stack([detector.score(sample) for sample in probe])
        torch.testing.assert_close(alone, together)
    with untouched(model):
        assert detector.score(probe[:0]).shape == (0,)
