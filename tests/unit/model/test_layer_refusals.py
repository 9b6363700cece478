"""Layers whose sensitivity cannot be taken are refused with the reason, and the model is as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opnp import sensitivity
from opnp.errors import (
    EmptyDataError,
    HeadNotFoundError,
    InputTypeError,
    LayerError,
    LayerNotFoundError,
    LayerWarning,
    NonFiniteError,
    OptionError,
    ShapeError,
)
from tests.contract.snapshot import unchanged
from tests.unit.model.layer_models import TinyViT, images, seeded
from tests.unit.model.tiny_models import Answering, batch, batches, mlp


class Stepwise(nn.Module):
    """Two layers and a head, with something done to the inputs of all three."""

    def __init__(self, step: Callable[[Tensor, "Stepwise"], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.step = step

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.step(inputs, self)))
        return logits


def refused(
    model: nn.Module, loader: list[Tensor], layers: list[Any] | None = None
) -> pytest.ExceptionInfo[LayerError]:
    with unchanged(model, "sensitivity"), pytest.raises(LayerError) as caught:
        sensitivity(model, loader, layers=layers)
    return caught


def test_unknown_names_and_modules() -> None:
    model = mlp()
    with pytest.raises(LayerNotFoundError, match=r"`layers` holds '7', which is no layer .* layers: '0', '2'\."):
        sensitivity(model, batches(), layers=["0", "7"])
    with pytest.raises(LayerNotFoundError, match=r"holds a module of type Linear, which is no layer of the model"):
        sensitivity(model, batches(), layers=[nn.Linear(2, 2)])
    with pytest.raises(LayerNotFoundError, match="There is no layer to take the sensitivity of"):
        sensitivity(model, batches(), layers=[])
    with pytest.raises(LayerNotFoundError, match=r"The model has no nn\.Linear and no nn\.Conv2d\."):
        sensitivity(nn.Sequential(nn.ReLU()), batches())
    many = nn.Sequential(*(nn.Linear(6, 6) for _ in range(30)))
    with pytest.raises(LayerNotFoundError, match=r"\(the last ones\): '10', '11'"):
        sensitivity(many, batches(), layers=["x"])


@pytest.mark.parametrize(
    ("layers", "got"), [("2", r'got str\. For one layer write `layers=\["2"\]`'), (3, "got int"), ({}, "dict")]
)
def test_layers_are_a_list(layers: Any, got: str) -> None:
    with pytest.raises(InputTypeError, match=f"`layers` must be a list of layers or of their names, .*{got}"):
        sensitivity(mlp(), batches(), layers=layers)
    with pytest.raises(InputTypeError, match="`layers` must hold layers or their names, got int"):
        sensitivity(mlp(), batches(), layers=[3])  # type: ignore[list-item]  # what a caller without types may do


@pytest.mark.parametrize("layer", ["1", "", nn.LSTM(2, 2)])
def test_other_kinds(layer: Any) -> None:
    model = mlp()
    if isinstance(layer, nn.Module):
        model.append(layer)
    with pytest.raises(LayerError, match=r"it must be an nn\.Linear or an nn\.Conv2d\. Its nn\.Linear and"):
        sensitivity(model, batches(), layers=[layer])


def test_layers_that_never_run() -> None:
    model = mlp()
    model.register_module("spare", nn.Linear(2, 2))
    model.forward = lambda inputs: model[2](model[1](model[0](inputs)))  # type: ignore[method-assign]  # leaves the spare one out
    with pytest.raises(LayerNotFoundError, match=r"have no sensitivity\. 'spare': never ran; .*Leave them out"):
        sensitivity(model, batches(), layers=["0", "spare"])
    with pytest.warns(LayerWarning, match=r"1 layers were left out\. 'spare': never ran"):
        assert list(sensitivity(model, batches())) == ["0", "2"]


@pytest.mark.parametrize("step", [lambda x, m: m.one(x).detach() + m.two(x), lambda x, m: m.two(x) + 0 * len(m.one(x))])
def test_layers_that_the_logits_do_not_depend_on(step: Callable[[Tensor, Stepwise], Tensor]) -> None:
    model = Stepwise(step)
    assert refused(model, batches(), ["one", "two"]).match(
        "'one': the logits do not depend on its output in a way that"
    )
    with pytest.warns(LayerWarning, match="'one': the logits do not depend"):
        assert list(sensitivity(model, batches())) == ["two", "head"]
    assert refused(model, batches(), ["one"]).match("'one': the logits do not depend on its output")
    frozen = model.requires_grad_(requires_grad=False)
    assert refused(frozen, batches(), ["one"]).match("The logits do not depend on any of the layers")


def without_autograd(context: Callable[[], Any], where: str) -> Callable[[Tensor, Stepwise], Tensor]:
    def step(inputs: Tensor, model: Stepwise) -> Tensor:
        if where == "first":
            with context():
                hidden = model.one(inputs)
            return torch.tanh(model.two(hidden.clone()))
        hidden = model.one(inputs)
        with context():
            return torch.tanh(model.two(hidden))

    return step


@pytest.mark.parametrize("where", ["first", "second"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_forwards_that_turn_autograd_off(context: Callable[[], Any], where: str) -> None:
    model = Stepwise(without_autograd(context, where))
    for layers in (["one", "two"], None):
        assert refused(model, batches(), layers).match("The model's forward turns autograd off")
    if context is torch.no_grad:
        inside = "one" if where == "first" else "two"
        message = "logits do not depend on any" if where == "first" else ""
        if message:
            assert refused(model, batches(), [inside]).match(message)


def test_layers_behind_a_backbone_without_autograd_have_theirs() -> None:
    inside = Stepwise(without_autograd(torch.no_grad, "first"))
    plain = Stepwise(lambda inputs, model: torch.tanh(model.two(model.one(inputs))))
    plain.load_state_dict(inside.state_dict())
    found, expected = (sensitivity(model, batches(), layers=["two", "head"]) for model in (inside, plain))
    for name, layer in expected.items():
        assert torch.equal(found[name].weight, layer.weight)


def writes_to_the_input(inputs: Tensor, model: Stepwise) -> Tensor:
    hidden: Tensor = model.one(inputs)
    other: Tensor = model.two(hidden)
    return hidden.mul_(2) + other


@pytest.mark.parametrize("is_frozen", [True, False])
def test_inputs_of_a_layer_that_are_written_to_in_place(*, is_frozen: bool) -> None:
    model = Stepwise(writes_to_the_input).requires_grad_(requires_grad=not is_frozen)
    assert refused(model, batches(), ["two"]).match("'two' cannot be taken: the model wrote in place to what the layer")
    message = "wrote in place to what the layer" if is_frozen else "writes in place to something that the gradient is"
    assert refused(model, batches(), ["one", "two"]).match(message)
    if is_frozen:
        with pytest.warns(LayerWarning, match="'two': the model wrote in place"):
            assert list(sensitivity(model, batches())) == ["one", "head"]


@pytest.mark.parametrize("samples", [4, 7])
def test_layers_that_get_the_batch_as_another_axis(samples: int) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(5, 1, 8)
            self.rows, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            tokens = inputs.transpose(0, 1)
            tokens = self.rows(self.layer(tokens).flatten(0, 1)).unflatten(0, tokens.shape[:2])
            logits: Tensor = self.head(tokens.mean(0))
            return logits

    model = seeded(First)
    tokens = images(samples)[:, 0, :4, :5]
    for name in ("layer.linear1", "rows"):
        message = "rows for a batch of|not those of one sample after the other"
        assert refused(model, [tokens], [name]).match(message)
    with pytest.warns(LayerWarning, match="batch_first=True"):
        assert list(sensitivity(model, [images(4)[:, 0, :4, :5]])) == ["head"]
    with pytest.warns(LayerWarning, match="out_proj"):
        one_by_one = sensitivity(model, tokens.split(1))
    assert list(one_by_one) == ["layer.linear1", "layer.linear2", "rows", "head"]


@pytest.mark.parametrize(
    "mix",
    [
        lambda hidden: hidden - hidden.mean(0),
        lambda hidden: nn.functional.batch_norm(hidden, None, None, training=True),
        lambda hidden: hidden.flip(0),
        lambda hidden: hidden + 1e-3 * hidden.roll(1, 0),
        lambda hidden: torch.softmax(hidden @ hidden.mT, 1) @ hidden,
    ],
    ids=["mean", "batch norm", "flip", "roll", "attention"],
)
@pytest.mark.parametrize("rows", [2, 5, 200])
def test_samples_that_influence_one_another(mix: Callable[[Tensor], Tensor], rows: int) -> None:
    model = seeded(lambda: Stepwise(lambda inputs, model: mix(torch.tanh(model.two(model.one(inputs))))))
    for layers in (["one"], ["head", "two"]):
        message = "samples of a batch influence one another"
        assert refused(model, [batch(rows).double()], layers).match(message)
    with pytest.warns(LayerWarning, match="samples of a batch influence one another"):
        assert list(sensitivity(model, [batch(rows).double()])) == ["head"]


def test_inputs_that_all_samples_share() -> None:
    model = Stepwise(lambda inputs, model: model.one(inputs) + model.two(inputs[:1]))
    assert refused(model, batches(), ["two"]).match("it was given 1 rows for a batch of 8 samples")
    with pytest.warns(LayerWarning, match="'two': it was given 1 rows"):
        assert list(sensitivity(model, batches())) == ["one", "head"]


def test_weights_that_other_modules_read() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.other = nn.Linear(4, 4)
            self.head.weight = self.embedding.weight

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.tanh(self.other(self.embedding(inputs).mean(1))))
            return logits

    tokens = [torch.arange(12).view(4, 3) % 7]
    message = "its weight belongs to a Embedding as well"
    assert refused(Tied(), tokens, ["head"]).match(message)
    with pytest.warns(LayerWarning, match=f"'head': {message}"):
        assert list(sensitivity(Tied(), tokens)) == ["other"]


class Standardized(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the parent's name
        output: Tensor = self._conv_forward(input, self.weight - self.weight.mean(), self.bias)
        return output


class OtherStep(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002  # the parent's name
        output: Tensor = super()._conv_forward(input * 2, weight, bias)
        return output


class Smaller(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the parent's name
        return super().forward(input[:, : self.in_features])


@pytest.mark.parametrize(
    "layer", [Standardized(3, 2, 10), OtherStep(3, 2, 10), nn.Sequential(nn.Flatten(2), nn.Flatten(1), Smaller(5, 2))]
)
def test_layers_that_change_weight_or_input_first(layer: nn.Module) -> None:
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(2, 3)).double()
    name = "0.2" if isinstance(layer, nn.Sequential) else "0"
    message = "has a forward of its own, which changes weight or input first"
    assert refused(model, [images()], [name]).match(message)
    with pytest.warns(LayerWarning, match=f"'{name}': .*{message}"):
        assert list(sensitivity(model, [images()])) == ["2"]


def test_weights_that_are_not_floating_point() -> None:
    model = mlp()
    model[0] = nn.Linear(6, 5, dtype=torch.complex64)
    with pytest.raises(LayerError, match=r"'0' cannot be taken: its weight is torch\.complex64, not floating point"):
        sensitivity(model, batches(), layers=["0"])


def test_nothing_is_left() -> None:
    model = nn.Sequential(Standardized(3, 2, 10), nn.Flatten()).double()
    assert refused(model, [images()]).match(
        r"No layer of the model has a sensitivity\. '0': Standardized has a forward"
    )


def test_lazy_layers_and_tensors_of_inference_mode() -> None:
    with pytest.raises(LayerError, match="lazy layers that were never run"):
        sensitivity(nn.Sequential(nn.LazyLinear(3)), batches())
    with torch.inference_mode():
        model = mlp()
    with pytest.raises(LayerError, match=r"were made under `torch\.inference_mode\(\)`"):
        sensitivity(model, batches())


def test_outputs_without_logits() -> None:
    with pytest.raises(
        HeadNotFoundError,
        match=r"nor holds `\.logits`: .*`logits=0`, say\. Or name the layer whose output are the logits: `head=",
    ):
        sensitivity(Answering(lambda logits: (logits, 0)), batches())
    with pytest.raises(ShapeError, match=r"`logits` must have shape \(batch, classes\), got \(8, 3, 1\)"):
        sensitivity(Answering(lambda logits: logits[..., None]), batches())
    with pytest.raises(ShapeError, match="The model has one output"):
        sensitivity(Answering(lambda logits: logits[:, :1]), batches())
    with pytest.raises(EmptyDataError, match="The model made no logits of the inputs in batch 0"):
        sensitivity(Answering(lambda logits: logits[:0]), batches())
    with pytest.raises(HeadNotFoundError, match="`head` = 'x' is no layer of the model"):
        sensitivity(mlp(), batches(), head="x")


def test_what_is_not_finite() -> None:
    spoilt = batches()
    spoilt[1][2, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="`logits` in batch 1 must be finite"):
        sensitivity(mlp(), spoilt)
    model = Stepwise(lambda inputs, model: (0 * model.one(inputs)).sqrt())
    with pytest.raises(NonFiniteError, match=r"`gradient for one\.weight` must be finite"):
        sensitivity(model, batches(), layers=["one"])


def test_loaders_and_options() -> None:
    wrong: Any
    for wrong in (batch(), 3):
        with pytest.raises(InputTypeError, match="`loader` must be an iterable of batches"):
            sensitivity(mlp(), wrong)
    for empty in ([], [batch(0)]):
        with pytest.raises(EmptyDataError, match="`loader` yields no sample"):
            sensitivity(mlp(), empty)
    wrong = "model"
    with pytest.raises(InputTypeError, match=r"`model` must be a torch\.nn\.Module, got str"):
        sensitivity(wrong, batches())
    for option, value in {"temperature": 0.0, "precision": "half", "chunk_bytes": 0}.items():
        wrong = {option: value}
        with pytest.raises(OptionError, match=f"`{option}` must be"):
            sensitivity(mlp(), [], **wrong)


def test_errors_of_the_model_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        sensitivity(mlp(), [batch(width=5)])
    with pytest.raises(InputTypeError, match=r"refused inputs of torch\.int64"):
        sensitivity(mlp(), [batch().long()])
    model = seeded(TinyViT)

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: Tensor) -> Tensor:
            return inputs.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            message = "the model's own"
            raise RuntimeError(message)

    model.get_submodule("norm").register_forward_hook(lambda _module, _args, output: Broken.apply(output))
    with unchanged(model, "sensitivity"), pytest.raises(RuntimeError, match="the model's own"):
        sensitivity(model, [images()])
