"""Models with heads of many kinds, each in a function that returns it, as ``--model module:callable`` takes them."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from tests.reliability.models_world import CLASSES, FEATURES, Net, body

__all__ = ["Backbone", "Linear"]


class Backbone(nn.Module):
    """A body and two heads, with a function of what they make."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Any], *, other: int = CLASSES) -> None:
        super().__init__()
        self.body, self.answer = body(), answer
        self.one, self.two = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, other)

    def forward(self, inputs: Tensor) -> Any:
        features = self.body(inputs)
        return self.answer(self.one(features), self.two(features))


class Repeated(Net):
    """A head that runs twice."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, inputs: Tensor) -> Any:
        features = self.body(inputs)
        return self.answer(self.fc(features), self.fc(features.flip(1)))


def shared_by_two_outputs() -> nn.Module:
    return Repeated(lambda one, two: (one, two))


def shared_and_the_first_is_returned() -> nn.Module:
    return Repeated(lambda one, _: one)


def shared_and_the_last_is_returned() -> nn.Module:
    return Repeated(lambda _, two: two)


def shared_and_averaged() -> nn.Module:
    return Repeated(lambda one, two: (one + two) / 2)


def tied_to_another_layer() -> nn.Module:
    model = Backbone(lambda _, two: two)
    model.two.weight = model.one.weight
    return model


def tied_to_a_layer_before_it() -> nn.Module:
    model = Net(nn.Linear(FEATURES, FEATURES, bias=False))
    model.fc = nn.Sequential(nn.Linear(FEATURES, CLASSES, bias=False), nn.ReLU(), nn.Linear(CLASSES, FEATURES))
    model.fc.append(nn.ReLU()).append(nn.Linear(FEATURES, CLASSES, bias=False))
    model.fc[4].weight = model.fc[0].weight
    return model


def tasks_in_a_tuple() -> nn.Module:
    return Backbone(lambda one, two: (one, two), other=7)


def tasks_in_a_mapping() -> nn.Module:
    return Backbone(lambda one, two: {"shape": two, "colour": one}, other=7)


class Auxiliary(Backbone):
    """An auxiliary head in training mode alone, as Inception and GoogLeNet have."""

    def __init__(self) -> None:
        super().__init__(lambda one, two: {"logits": one, "aux": two})

    def forward(self, inputs: Tensor) -> Any:
        return super().forward(inputs) if self.training else self.one(self.body(inputs))


def auxiliary_in_training() -> nn.Module:
    return Auxiliary()


def auxiliary_always() -> nn.Module:
    return Backbone(lambda one, two: {"logits": one, "aux": two})


def no_bias() -> nn.Module:
    return Net(nn.Linear(FEATURES, CLASSES, bias=False))


def temperature_after() -> nn.Module:
    return Net(after=lambda logits: logits / 2)


def softmax_after() -> nn.Module:
    return Net(after=lambda logits: logits.softmax(1))


def log_softmax_after() -> nn.Module:
    return Net(after=lambda logits: logits.log_softmax(1))


def sigmoid_after() -> nn.Module:
    return Net(after=torch.sigmoid)


def layer_norm_after() -> nn.Module:
    return Net(after=nn.LayerNorm(CLASSES))


def one_subtracted_in_place() -> nn.Module:
    return Net(after=lambda logits: logits.sub_(1))


class Linear(nn.Linear):
    """A linear layer with a forward of its own."""

    def __init__(self, forward: Callable[[Tensor, nn.Linear], Tensor]) -> None:
        super().__init__(FEATURES, CLASSES)
        self.made = forward

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as nn.Linear has it
        return self.made(input, self)


def cosine_head() -> nn.Module:
    return Net(Linear(lambda inputs, layer: 16 * linear(normalize(inputs), normalize(layer.weight))))


def scaled_head() -> nn.Module:
    return Net(Linear(lambda inputs, layer: 3 * linear(inputs, layer.weight, layer.bias)))


def head_in_other_words() -> nn.Module:
    return Net(Linear(lambda inputs, layer: inputs @ layer.weight.T + layer.bias))


def noisy_in_training() -> nn.Module:
    def noisy(inputs: Tensor, layer: nn.Linear) -> Tensor:
        weight = layer.weight + torch.randn_like(layer.weight) if layer.training else layer.weight
        return linear(inputs, weight, layer.bias)

    return Net(Linear(noisy))


def noisy_always() -> nn.Module:
    return Net(Linear(lambda inputs, layer: linear(inputs, layer.weight + torch.randn_like(layer.weight))))


def weight_as_a_buffer() -> nn.Module:
    model = Net()
    weight = model.fc.weight.detach()
    del model.fc.weight
    model.fc.register_buffer("weight", weight)
    return model


class Dequantised(nn.Linear):
    """Integers, which the forward makes numbers of."""

    def __init__(self) -> None:
        super().__init__(FEATURES, CLASSES)
        self.weight = nn.Parameter((100 * self.weight.detach()).round().to(torch.int8), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as nn.Linear has it
        return linear(input, self.weight.float() / 100, self.bias)


def weight_of_integers() -> nn.Module:
    return Net(Dequantised())


class Bilinear(Net):
    """A head of two inputs."""

    def forward(self, inputs: Tensor) -> Any:
        features = self.body(inputs)
        return self.fc(features, features)


def bilinear_head() -> nn.Module:
    return Bilinear(nn.Bilinear(FEATURES, FEATURES, CLASSES))


def lazy_head() -> nn.Module:
    return Net(nn.LazyLinear(CLASSES))


def lazy_head_that_ran() -> nn.Module:
    model = lazy_head()
    model(torch.zeros(1, 3, 8, 8))
    return model


def inside_sequentials() -> nn.Module:
    return nn.Sequential(body(), nn.Sequential(nn.Dropout(), nn.Linear(FEATURES, CLASSES)))


class Chosen(nn.Module):
    """One of several heads is used."""

    def __init__(self, heads: nn.ModuleList | nn.ModuleDict, key: Any) -> None:
        super().__init__()
        self.body, self.heads, self.key = body(), heads, key

    def forward(self, inputs: Tensor) -> Any:
        return self.heads[self.key](self.body(inputs))


def inside_a_list() -> nn.Module:
    return Chosen(nn.ModuleList(nn.Linear(FEATURES, CLASSES) for _ in range(3)), 1)


def inside_a_mapping() -> nn.Module:
    return Chosen(nn.ModuleDict({name: nn.Linear(FEATURES, CLASSES) for name in "abc"}), "b")


class Functional(Net):
    """The head's weight is used without the layer."""

    def forward(self, inputs: Tensor) -> Any:
        return linear(self.body(inputs), self.fc.weight, self.fc.bias)


class Bare(nn.Module):
    """A head that is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.weight = body(), nn.Parameter(torch.randn(CLASSES, FEATURES))

    def forward(self, inputs: Tensor) -> Tensor:
        return linear(self.body(inputs), self.weight)


def functional_head() -> nn.Module:
    return Functional()


def functional_head_of_a_parameter() -> nn.Module:
    return Bare()


def equal_heads() -> nn.Module:
    model = Backbone(lambda one, _: one.clone())
    model.two.load_state_dict(model.one.state_dict())
    return model


def one_output() -> nn.Module:
    return Net(nn.Linear(FEATURES, 1))


def one_output_squeezed() -> nn.Module:
    return Net(nn.Linear(FEATURES, 1), after=lambda logits: logits.squeeze(1))


def hook_that_scales() -> nn.Module:
    model = Net()
    model.fc.register_forward_hook(_tripled)
    return model


def _tripled(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
    return 3 * output


def forward_replaced_by_the_same() -> nn.Module:
    model = Net()
    model.fc.forward = lambda inputs: linear(inputs, model.fc.weight, model.fc.bias)
    return model


def frozen() -> nn.Module:
    return Net().requires_grad_(requires_grad=False)


def weight_not_a_number() -> nn.Module:
    model = Net()
    model.fc.weight.data[1, 2] = float("nan")
    return model


def bias_infinite() -> nn.Module:
    model = Net()
    model.fc.bias.data[1] = float("inf")
    return model


def weight_sparse() -> nn.Module:
    model = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sparse rows are called a beta
        model.fc.weight = nn.Parameter(model.fc.weight.data.to_sparse_csr())
    return model


def complex_head() -> nn.Module:
    return nn.Sequential(body(), _Complex(), nn.Linear(FEATURES, CLASSES, dtype=torch.complex64))


class _Complex(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.to(torch.complex64)
