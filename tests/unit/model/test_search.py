"""Finding the head in models of many kinds, without changing them, and what is said where there is none."""

from collections.abc import Callable
from threading import Thread

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp.errors import HeadNotFoundError
from opnp.model import find_head, head_stream, linear_layers
from tests.contract.snapshot import unchanged
from tests.unit.model.tiny_models import CLASSES, FEATURES, INPUTS, Answering, WithLogits, batch, mlp


def test_the_head_is_found() -> None:
    model = mlp()
    with unchanged(model, "find_head"):
        found = find_head(model, batch())
    assert (found.name, found.is_output, found.label) == ("2", True, "`2`")
    assert found.module is model[2]
    assert list(linear_layers(model)) == ["0", "2"]


@pytest.mark.parametrize(
    "after",
    [
        WithLogits,
        lambda logits: {"logits": logits, "hidden": logits + 1},
        lambda logits: logits.view(-1, CLASSES),
        lambda logits: logits.clone(),
        lambda logits: logits.double(),
    ],
    ids=["object", "mapping", "view", "copy", "other dtype"],
)
@pytest.mark.parametrize("inputs", [batch(), torch.full((2, INPUTS), float("nan"))], ids=["finite", "not a number"])
def test_the_head_is_found_behind_every_kind_of_output(after: Callable[[Tensor], object], inputs: Tensor) -> None:
    assert find_head(Answering(after), inputs).name == "fc"


class Bodies(nn.Module):
    """Two heads on one body, combined by a function."""

    def __init__(self, combined: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = nn.Linear(INPUTS, FEATURES)
        self.one = nn.Linear(FEATURES, CLASSES)
        self.other = nn.Sequential(nn.LayerNorm(FEATURES), nn.Linear(FEATURES, CLASSES))
        self.combined = combined

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.body(inputs).relu()
        return self.combined(self.one(features), self.other(features))


class Twins(nn.Module):
    """Two equal heads, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(INPUTS, 2), nn.Linear(INPUTS, 2)
        self.two.load_state_dict(self.one.state_dict())

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.one(inputs) + self.two(inputs)
        return outputs / 2


MLP = mlp()
ALIKE = nn.Sequential(*(nn.Linear(6, 6) for _ in range(30)), nn.Softmax(1))
GROWING = nn.Sequential(*(nn.Linear(width, width + 1) for width in range(6, 36)), nn.Softmax(1))
MEAN = Bodies(lambda one, other: (one + other) / 2)


@pytest.mark.parametrize(
    ("model", "head", "message"),
    [
        (MLP, "fc", r"'fc' is no layer of the model.*'0' \(6 -> 5\), '2' \(5 -> 3\)"),
        (MLP, "1", r"`head` = '1' is of type ReLU, not nn\.Linear, nor a 1x1 convolution.*'2' \(5 -> 3\)"),
        (MLP, MLP[1], r"`head` is of type ReLU, not nn\.Linear, nor a 1x1 convolution"),
        (MLP, nn.Linear(5, 3), r"no part of the model.*'2' \(5 -> 3\)"),
        (MEAN, "", r"`head` = '' is of type Bodies and holds 3 layers: name one\."),
        (MEAN, MEAN, "`head` is of type Bodies and holds 3 layers"),
        (nn.Sequential(nn.ReLU()), None, r"no nn\.Linear layer and no 1x1 convolution.*fit_features"),
        (
            Answering(lambda logits: logits.softmax(1)),
            None,
            r'softmax.*`head="fc"`.*\'body\.0\' \(6 -> 5\), \'fc\' \(5 -> 3\)',
        ),
        (
            Answering(lambda logits: (logits, logits.mean(1))),
            None,
            (
                r"neither a tensor nor holds `\.logits`: it is a tuple \(0: a tensor of shape \(8, 3\), 1: a tensor of "
                r"shape \(8,\)\)\. .*`logits=0`, say\. .*'fc' \(5 -> 3\)"
            ),
        ),
        (Twins(), None, r"2 layers have the model's output.*'one', 'two'.*head="),
        (ALIKE, None, r"^(?!.*'9').*\(the last ones\).*'29'.*`head=\"29\"`"),
        (GROWING, None, r"^(?!.*'9').*`head=\"29\"`.*\(the last ones\).*'29'"),
        (
            MEAN,
            None,
            (
                r"2 layers have as many rows as the logits, and the logits are the mean of what they make: 'one' "
                r"\(5 -> 3\), 'other\.1' \(5 -> 3\)\. Choose one with `head=\"one\"` or `head=\"other\.1\"`: "
                r".*own logits.*torch\.cat.* / 2"
            ),
        ),
        (Bodies(torch.add), None, r"and the model may combine them: .*own logits, not of the model's\.$"),
    ],
)
def test_where_there_is_no_head_the_layers_are_told(model: nn.Module, head: str | nn.Module, message: str) -> None:
    with unchanged(model, "a refusal"), pytest.raises(HeadNotFoundError, match=message):
        find_head(model, batch(), head=head)


def test_what_the_answer_says_of_a_mean_of_two_heads_is_so() -> None:
    sides, weights, biases = [], [], []
    for name in ("one", "other"):
        with head_stream(MEAN, [batch()], head=name) as stream:
            sides += [features for features, _, _ in stream.batches]
            weights.append(stream.head.weight)
            biases.append(MEAN.get_parameter(f"{stream.head.name}.bias").detach())
    weight, bias = torch.cat(weights, dim=1) / 2, torch.stack(biases).mean(0)
    torch.testing.assert_close(linear(torch.cat(sides, 1), weight, bias), MEAN(batch()).detach())


@pytest.mark.parametrize("layer", [nn.Linear, lambda inputs, outputs: nn.Conv2d(inputs, outputs, 1)])
def test_zero_initialised_heads_are_told_apart(layer: Callable[[int, int], nn.Module]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary, self.main = layer(INPUTS, 2), layer(INPUTS, 2)
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.main(inputs)
            self.auxiliary(inputs)
            return outputs if outputs.ndim == 2 else outputs.mean((2, 3))

    inputs = batch() if layer is nn.Linear else batch()[:, :, None, None].expand(-1, -1, 4, 4)
    assert find_head(Two(), inputs).name == "main"


@pytest.mark.parametrize(
    "after",
    [lambda logits: logits.div_(10), lambda logits: logits.relu_(), lambda logits: logits.softmax(1)],
    ids=["temperature", "relu", "softmax"],
)
def test_an_output_that_is_changed_is_not_the_heads(after: Callable[[Tensor], Tensor]) -> None:
    found = find_head(Answering(after), batch(), head="fc")
    assert (found.name, found.is_output) == ("fc", False)


@pytest.mark.parametrize("head", [None, nn.Linear(INPUTS, CLASSES)])
def test_a_model_that_is_its_head(head: nn.Module | None) -> None:
    model = head or nn.Linear(INPUTS, CLASSES)
    found = find_head(model, batch(), head=head)
    assert (found.name, found.label) == ("", "the model itself")
    assert found.module is model


class Shared(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(INPUTS, CLASSES)
        self.head = self.classifier

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(inputs)
        return outputs


@pytest.mark.parametrize("head", [None, "classifier", "head"])
def test_a_layer_under_two_names_answers_to_each(head: str | None) -> None:
    model = Shared()
    assert find_head(model, batch(), head=head).module is model.classifier


def test_another_threads_forward_is_not_ours() -> None:
    class Busy(nn.Module):
        """While it runs for one caller, it serves another."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()
            self.is_busy = False

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.inner(inputs)
            if not self.is_busy:
                self.is_busy = True
                other = Thread(target=self, args=(batch(2, seed=9),))
                other.start()
                other.join()
                self.is_busy = False
            return outputs

    assert find_head(Busy(), batch()).name == "inner.2"
