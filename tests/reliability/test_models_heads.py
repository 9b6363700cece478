"""Heads and loaders of every kind: scores are those of a slow computation, or the message says what to do instead."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from opnp import OPNP
from opnp.errors import EmptyDataError, HeadMismatchError, InputTypeError, NonFiniteError
from tests.contract.snapshot import unchanged
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
    images,
    linear,
    paper,
)
from tests.tried import Tried

pytestmark = pytest.mark.reliability


def two(answer: Callable[[Any, Tensor], Any], *, other: int = CLASSES) -> Net:
    """Return a model with a second head, `two`, and a function of model and features for what it answers."""
    return Net(lambda model, inputs: answer(model, model.body(inputs)), two=linear(outputs=other))


def twice(answer: Callable[[Any, Any], Any]) -> Net:
    """Return a model whose head runs twice."""
    return Net(lambda model, inputs: answer(model.fc(model.body(inputs)), model.fc(model.body(inputs).flip(1))))


class Linear(nn.Linear):
    """A linear layer with a forward of its own."""

    def __init__(self, forward: Callable[[Tensor, nn.Linear], Tensor]) -> None:
        super().__init__(FEATURES, CLASSES)
        self.made = forward

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as nn.Linear has it
        return self.made(input, self)


def own(forward: Callable[[Tensor, nn.Linear], Tensor]) -> Net:
    return Net(fc=Linear(forward))


def noisy(inputs: Tensor, layer: nn.Linear) -> Tensor:
    noise = torch.randn_like(layer.weight) if layer.training else 0
    return functional.linear(inputs, layer.weight + noise, layer.bias)


def tied(*, is_before: bool) -> Net:
    if not is_before:
        model = two(lambda model, rows: model.two(rows))
        model.two.weight = model.fc.weight  # type: ignore[union-attr]  # a module
        return model
    layers = [linear(bias=False), nn.ReLU(), linear(CLASSES, FEATURES), nn.ReLU(), linear(bias=False)]
    layers[4].weight = layers[0].weight
    return Net(fc=nn.Sequential(*layers))


def auxiliary_in_training() -> Net:
    """As Inception and GoogLeNet have it."""
    return two(lambda m, rows: {"logits": m.fc(rows), "aux": m.two(rows)} if m.training else m.fc(rows))


def weight_as_a_buffer() -> Net:
    model = Net()
    weight = model.fc.weight.detach()
    del model.fc.weight
    model.fc.register_buffer("weight", weight)
    return model


def weight(change: Callable[[Tensor], Tensor]) -> Net:
    """Return a model with a weight that is made of the one of before."""
    model = own(lambda inputs, layer: functional.linear(inputs, layer.weight.float() / 100, layer.bias))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sparse rows are called a beta
        model.fc.weight = nn.Parameter(change(model.fc.weight.detach()), requires_grad=False)
    return model


def sparse() -> Net:
    model = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # as above
        model.fc.weight = nn.Parameter(model.fc.weight.data.to_sparse_csr())
    return model


def with_value(name: str, value: float) -> Net:
    model = Net()
    model.get_parameter(f"fc.{name}").data[1:2] = value
    return model


def hooked() -> Net:
    model = Net()
    model.fc.register_forward_hook(lambda _module, _args, output: 3 * output)
    return model


def replaced() -> Net:
    model = Net()
    model.fc.forward = lambda inputs: functional.linear(inputs, model.fc.weight, model.fc.bias)
    return model


class Complex(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.to(torch.complex64)


FC, ADAPTER = {"head": "fc"}, r"sum of .* adapter .*Merge .*`model\.merge_adapter\(\)`"
AFTER, RUNS = r"No nn\.Linear has .*follows the head \(a softmax.*`head=\"fc\"`", r"`fc` ran 2 times"
OWN = r"`fc` is a Linear with a forward of its own.*`fit_features`"
CASES = (
    Case("a plain one", Net),
    Case("tied to another layer", partial(tied, is_before=False), head="two"),
    Case("tied to a layer before it", partial(tied, is_before=True), head="fc.4"),
    Case("one of two tasks", lambda: two(lambda m, rows: (m.fc(rows), m.two(rows)), other=7), choice={"logits": 0}),
    Case("auxiliary in training", auxiliary_in_training),
    Case("auxiliary always", lambda: two(lambda m, rows: {"logits": m.fc(rows), "aux": m.two(rows)})),
    Case("parametrized", kinds.parametrized),
    Case("older weight norm", kinds.older_weight_norm),
    Case("older spectral norm", kinds.older_spectral_norm),
    Case("spectral norm", kinds.spectral_norm, tolerance=1e-4),
    Case("pruned by its owner", kinds.pruned_by_its_owner),
    Case("no bias", lambda: Net(fc=linear(bias=False))),
    Case("quantised body", kinds.quantised_body),
    Case("merged adapter", kinds.lora_merged, head="base_model.model.fc.base_layer"),
    Case("adapter unloaded", lambda: kinds.lora().merge_and_unload()),
    Case("adapter of the body", lambda: kinds.lora("body.1"), head="base_model.model.fc"),
    Case("trained", kinds.lora_with_a_trained_head, head="base_model.model.fc.modules_to_save.default"),
    Case("softmax after", lambda: Net(after(lambda logits: logits.softmax(1))), choice=FC),
    Case("subtraction in place after", lambda: Net(after(lambda logits: logits.sub_(1))), choice=FC),
    Case("in other words", lambda: own(lambda inputs, layer: inputs @ layer.weight.T + layer.bias)),
    Case("noisy in training", lambda: own(noisy)),
    Case("weight as a buffer", weight_as_a_buffer),
    Case("inside a list", lambda: Net(fc=nn.Sequential(nn.Dropout(), nn.ModuleList([linear()])[0])), head="fc.1"),
    Case("chosen of equal ones", lambda: two(lambda m, rows: [m.fc(rows), m.two(rows)][1].clone()), head="two"),
    Case("forward replaced by the same", replaced, is_copied=False),
    Case("frozen", lambda: Net().requires_grad_(requires_grad=False)),
    Case("two outputs", lambda: twice(lambda one, other: (one, other)), r"is a tuple .*`logits=0`, say"),
    Case("the first of two runs", lambda: twice(lambda one, _: one), RUNS + " .* must run once.*`head=`"),
    Case("mean of two runs", lambda: twice(lambda one, other: (one + other) / 2), r"ran 2 times .*combine.*`fit_feat"),
    Case("one of two outputs", lambda: twice(lambda *both: both), RUNS, choice={"logits": 0}),
    Case(
        "a mapping of tasks",
        lambda: two(lambda m, rows: {"shape": m.two(rows), "colour": m.fc(rows)}, other=7),
        r'is a dict \("shape": .*\(16, 7\).*Say where',
    ),
    Case("quantised", kinds.quantised, r"other kinds, as .*quantised .*: .*'fc' \(Linear\).*made from"),
    Case("adapter", kinds.lora, ADAPTER),
    Case("adapter of magnitude and direction", lambda: kinds.lora(use_dora=True), ADAPTER),
    Case("sigmoid after, not told", lambda: Net(after(torch.sigmoid)), AFTER),
    Case("layer norm after, not told", lambda: Net(after(nn.LayerNorm(CLASSES))), AFTER),
    Case("scaled", lambda: own(lambda inputs, layer: 3 * functional.linear(inputs, layer.weight, layer.bias)), OWN),
    Case(
        "noisy always",
        lambda: own(lambda inputs, layer: inputs @ (layer.weight + torch.randn_like(layer.weight)).T),
        "a forward of its own",
        own=("random numbers",),
    ),
    Case(
        "integers",
        lambda: weight(lambda value: (100 * value).round().to(torch.int8)),
        r"weight of the head `fc` must be of fl.*torch\.int8",
        InputTypeError,
    ),
    Case(
        "bilinear",
        lambda: Net(lambda m, x: m.fc(m.body(x), m.body(x)), fc=nn.Bilinear(FEATURES, FEATURES, CLASSES)),
        r"No nn\.Linear has.*nothing to prune.*'body\.1' \(192 -> 12\)",
    ),
    Case("lazy", lambda: Net(fc=nn.LazyLinear(CLASSES)), r"lazy layers that were never run.*Run it once first"),
    Case(
        "never called",
        lambda: Net(lambda m, inputs: functional.linear(m.body(inputs), m.fc.weight, m.fc.bias)),
        r"`fc` .* was never called: .*functional\.linear.*Call the layer",
    ),
    Case("a hook that scales", hooked, r"logits are not what its head `fc` makes.*hook.*Take the hook"),
    Case("NaN", partial(with_value, "weight", float("nan")), r"`weight` of the head `fc` must be fi", NonFiniteError),
    Case("infinite", partial(with_value, "bias", float("inf")), r"`bias` of the head `fc` must be fin", NonFiniteError),
    Case("sparse", sparse, r"`fc` is sparse .*must be dense.*to_dense\(\)", InputTypeError),
    Case(
        "complex",
        lambda: nn.Sequential(body(), Complex(), linear(dtype=torch.complex64)),
        r"head `2` must be of floating-point numbers, got torch\.co",
        InputTypeError,
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_scores_are_those_of_a_slow_computation_or_the_refusal_says_what_to_do(
    case: Case, tmp_path: Path, tried: Tried
) -> None:
    tried("models", "heads of unusual kinds, by every way to a score")
    check(case, tmp_path)


def doubled(name: str) -> Callable[[nn.Module], object]:
    return lambda model: model.get_parameter(name).data[0].mul_(2)


@pytest.mark.parametrize(
    ("build", "change"),
    [
        (kinds.older_weight_norm, doubled("fc.weight_g")),
        (kinds.older_spectral_norm, doubled("fc.weight_orig")),
        (kinds.pruned_by_its_owner, doubled("fc.weight_orig")),
        (kinds.pruned_by_its_owner, lambda model: model.get_parameter("fc.bias_orig").data.mul_(2)),
        (kinds.pruned_by_its_owner, lambda model: prune.random_unstructured(model.fc, "weight", amount=0.5)),
        (kinds.lora_merged, lambda model: model.unmerge_adapter()),
    ],
    ids=["weight norm", "spectral norm", "pruned weight", "pruned bias", "pruned further", "unmerged adapter"],
)
def test_a_head_that_is_computed_from_changed_parameters_is_noticed_before_it_runs(
    build: Callable[[], nn.Module], change: Callable[..., object], tried: Tried
) -> None:
    tried("models", "heads changed after the fit")
    model = built(build)
    detector = fitted(model)
    change(model)
    with pytest.raises(HeadMismatchError, match="its weights have changed since"):
        detector.score(images("probe")[0])


@pytest.mark.parametrize("build", [kinds.older_weight_norm, kinds.older_spectral_norm, kinds.pruned_by_its_owner])
def test_a_detector_is_loaded_for_a_model_whose_weights_were_loaded_and_that_has_not_run(
    build: Callable[[], nn.Module], tmp_path: Path, tried: Tried
) -> None:
    tried("models", "models with loaded weights that have not run yet")
    model, other = built(build), build()
    detector = fitted(model)
    detector.save(tmp_path / "detector.safetensors")
    other.load_state_dict(model.state_dict())
    loaded = OPNP.load(tmp_path / "detector.safetensors", other)
    torch.testing.assert_close(loaded.score(images("probe")[0]), detector.score(images("probe")[0]))


def test_masks_of_the_owner_stay(tried: Tried) -> None:
    tried("models", "models that their owner has pruned")
    model = built(kinds.pruned_by_its_owner)
    mask = model.get_buffer("fc.weight_mask").clone()
    with unchanged(model):
        detector = fitted(model)
        detector.score(images("probe")[0])
    assert not bool(detector.pruned_head.weight[mask == 0].any())


pytestmark = pytest.mark.reliability

_LABELS = torch.arange(16) % 4


def _fitted(loader: Iterable[Any], model: nn.Module | None = None) -> OPNP:
    model = built(Net) if model is None else model
    with unchanged(model):
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
    with unchanged(model):
        together = detector.score(probe)
        alone = torch.stack([detector.score(sample) for sample in probe])
        torch.testing.assert_close(alone, together)
        assert detector.score(probe[:0]).shape == (0,)
