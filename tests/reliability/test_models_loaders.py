"""Loaders and inputs of every kind, given to a model that is as it should be."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP
from opnp.errors import EmptyDataError
from tests.reliability.models_world import CLASSES, FEATURES, Net, built, fitted, images, linear, paper, untouched
from tests.tried import Tried

pytestmark = pytest.mark.reliability

_LABELS = torch.arange(16) % 4


def _fitted(loader: Iterable[Any], model: nn.Module | None = None) -> OPNP:
    model = built(Net) if model is None else model
    with untouched(model):
        return paper().fit(model, loader)


def _of_inference(batch: Tensor) -> Tensor:
    with torch.inference_mode():
        return batch.clone()


def _reused() -> Iterator[Tensor]:
    place = torch.empty(16, 3, 8, 8)
    for batch in images("train"):
        yield place.copy_(batch)


def each(change: Callable[[Tensor], object]) -> Callable[[], Iterable[Any]]:
    return lambda: [change(batch) for batch in images("train")]


LOADERS: dict[str, Callable[[], Iterable[Any]]] = {
    "labels as floats": each(lambda batch: (batch, _LABELS.float())),
    "labels of one hot": each(lambda batch: (batch, nn.functional.one_hot(_LABELS))),
    "labels as a list": each(lambda batch: (batch, _LABELS.tolist())),
    "labels as words": each(lambda batch: (batch, ["a"] * 16)),
    "labels in a mapping": each(lambda batch: (batch, {"label": _LABELS, "box": _LABELS})),
    "three parts": each(lambda batch: (batch, _LABELS, "path")),
    "channels last": each(lambda batch: batch.contiguous(memory_format=torch.channels_last)),
    "strided views": each(lambda batch: batch.repeat(1, 1, 1, 2)[..., :8]),
    "inputs with gradients": each(lambda batch: batch.clone().requires_grad_()),
    "inputs of inference mode": each(_of_inference),
    "a generator": lambda: (batch for batch in images("train")),
    "batches without samples among others": lambda: [images("train")[0][:0], *images("train"), images("train")[0][:0]],
    "batches of one": lambda: [batch[row : row + 1] for batch in images("train") for row in range(16)],
    "one memory for all batches": _reused,
}


@pytest.mark.parametrize("kind", LOADERS)
def test_every_kind_of_loader_gives_the_same(kind: str, tried: Tried) -> None:
    tried("models", "loaders of unusual kinds")
    found, right = _fitted(LOADERS[kind]()), fitted(built(Net))
    torch.testing.assert_close(found.sensitivity.weight, right.sensitivity.weight, rtol=1e-5, atol=1e-8)
    assert torch.equal(found.masks.weight, right.masks.weight)
    probe = images("probe")[0]
    for inputs in (probe, [probe], (probe, _LABELS[:10]), {"inputs": probe}):
        torch.testing.assert_close(found.score(inputs), right.score(probe), rtol=1e-5, atol=1e-6)


def test_a_generator_that_is_used_up_has_no_batch_for_a_second_pass(tried: Tried) -> None:
    tried("models", "generators given twice")
    generator = (batch for batch in images("train"))
    detector = _fitted(generator)
    with pytest.raises(EmptyDataError, match="yields no batch"):
        detector.calibrate(generator)
    with pytest.raises(EmptyDataError, match="yields no batch"):
        _fitted(generator)


def test_one_sample_goes_through_a_batch_norm(tried: Tried) -> None:
    tried("models", "batches of one through a batch norm", 10)
    model = built(lambda: Net(fc=nn.Sequential(nn.BatchNorm1d(FEATURES), linear(FEATURES, CLASSES)))).train()
    detector, probe = _fitted(images("train"), model), images("probe")[0]
    with untouched(model):
        together = detector.score(probe)
        alone = torch.stack([detector.score(sample) for sample in probe])
        torch.testing.assert_close(alone, together)
        assert detector.score(probe[:0]).shape == (0,)
