"""Finding the head in models of many kinds, without changing them."""

from collections.abc import Callable
from threading import Thread

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from opnp.errors import HeadNotFoundError, ShapeError
from opnp.model import find_head, linear_layers, unwrapped
from tests.contract.snapshot import unchanged
from tests.unit.model.tiny_models import CLASSES, FEATURES, INPUTS, Answering, WithLogits, batch, compiled, mlp


def test_the_head_is_found() -> None:
    model = mlp()
    with unchanged(model, "find_head"):
        found = find_head(model, batch())
    assert (found.name, found.is_output, found.label) == ("2", True, "`2`")
    assert found.module is model[2]


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
def test_the_head_is_found_behind_every_kind_of_output(after: Callable[[Tensor], object]) -> None:
    assert find_head(Answering(after), batch()).name == "fc"


def test_the_head_by_module_and_by_name() -> None:
    model = mlp()
    for head in (model[2], "2"):
        found = find_head(model, batch(), head=head)
        assert (found.name, found.is_output) == ("2", True)
        assert found.module is model[2]
    found = find_head(model, batch(), head="0")
    assert (found.name, found.is_output) == ("0", False)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("fc", r"'fc' is no layer of the model.*'0' \(6 -> 5\), '2' \(5 -> 3\)"),
        ("1", r"'1' is of type ReLU, not nn\.Linear.*'2' \(5 -> 3\)"),
        (nn.Linear(5, 3), r"no part of the model.*'2' \(5 -> 3\)"),
    ],
    ids=["unknown name", "wrong type", "foreign module"],
)
def test_a_wrong_head_lists_the_right_ones(head: str | nn.Module, reason: str) -> None:
    with pytest.raises(HeadNotFoundError, match=reason):
        find_head(mlp(), batch(), head=head)


def test_a_module_of_the_wrong_type_is_named_by_its_type() -> None:
    model = mlp()
    with pytest.raises(HeadNotFoundError, match=r"`head` is of type ReLU, not nn\.Linear, nor a 1x1 convolution"):
        find_head(model, batch(), head=model[1])


def test_a_model_without_linear_layers() -> None:
    with pytest.raises(HeadNotFoundError, match=r"no nn\.Linear layer and no 1x1 convolution.*fit_features"):
        find_head(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), torch.ones(1, 1, 3, 3))


def test_a_softmax_behind_the_head_lists_the_candidates() -> None:
    model = Answering(lambda logits: logits.softmax(1))
    with pytest.raises(HeadNotFoundError, match=r'softmax.*`head="fc"`.*\'body\.0\' \(6 -> 5\), \'fc\' \(5 -> 3\)'):
        find_head(model, batch())
    found = find_head(model, batch(), head="fc")
    assert (found.name, found.is_output) == ("fc", False)


def test_an_output_without_logits_says_so() -> None:
    with pytest.raises(
        HeadNotFoundError,
        match=r"neither a tensor nor holds `\.logits`: it is a tuple \(0: a tensor of shape \(8, 3\), 1: a tensor of "
        r"shape \(8,\)\)\. .*`logits=0`, say\. .*'fc' \(5 -> 3\)",
    ):
        find_head(Answering(lambda logits: (logits, logits.mean(1))), batch())


def test_a_long_list_of_candidates_is_cut() -> None:
    alike = nn.Sequential(*(nn.Linear(2, 2) for _ in range(30)), nn.Softmax(1))
    growing = nn.Sequential(*(nn.Linear(width, width + 1) for width in range(2, 32)), nn.Softmax(1))
    for model in (alike, growing):
        with pytest.raises(HeadNotFoundError, match=r"\(the last ones\)") as caught:
            find_head(model, torch.ones(1, 2))
        assert "'29'" in str(caught.value)
        assert '`head="29"`' in str(caught.value)
        assert "'9'" not in str(caught.value)


def test_several_matching_layers_are_listed() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(INPUTS, 2), nn.Linear(INPUTS, 2)
            self.two.load_state_dict(self.one.state_dict())

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.one(inputs) + self.two(inputs)
            return outputs / 2

    with pytest.raises(HeadNotFoundError, match=r"2 layers have the model's output.*'one', 'two'.*head="):
        find_head(Twins(), batch())
    assert find_head(Twins(), batch(), head="one").name == "one"


def test_zero_initialised_heads_are_told_apart() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary, self.main = nn.Linear(INPUTS, 2), nn.Linear(INPUTS, 2)
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.main(inputs)
            self.auxiliary(inputs)
            return outputs

    assert find_head(Two(), batch()).name == "main"


@pytest.mark.parametrize(
    "after",
    [lambda logits: logits.div_(10), lambda logits: logits.add_(1), lambda logits: logits.relu_()],
    ids=["temperature", "offset", "relu"],
)
def test_an_output_changed_in_place_is_not_the_heads(after: Callable[[Tensor], Tensor]) -> None:
    found = find_head(Answering(after), batch(), head="fc")
    assert not found.is_output, "logits are taken for the head's that are not"


def test_a_model_that_is_its_head() -> None:
    model = nn.Linear(INPUTS, CLASSES)
    for head in (None, model):
        found = find_head(model, batch(), head=head)
        assert (found.name, found.label) == ("", "the model itself")
        assert found.module is model


def test_a_head_without_bias() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(INPUTS, 2, bias=False))
    assert find_head(model, batch()).module.bias is None


def test_a_head_with_one_output_says_what_to_do() -> None:
    with pytest.raises(ShapeError, match=r"head `0` has one output.*torch\.cat"):
        find_head(nn.Sequential(nn.Linear(INPUTS, 1)), batch())


def test_a_weight_normalised_head() -> None:
    model = mlp()
    weight_norm(model[2])
    assert find_head(model, batch()).name == "2"
    assert find_head(model, batch(), head="2").is_output


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


def test_linear_layers_by_name() -> None:
    assert list(linear_layers(mlp())) == ["0", "2"]
    assert list(linear_layers(Shared())) == ["classifier"]


def test_data_parallel_is_looked_through() -> None:
    inner = mlp()
    found = find_head(nn.DataParallel(inner), batch())
    assert found.name == "2"
    assert found.module is inner[2]


def test_a_compiled_model_is_looked_through() -> None:
    inner = mlp()
    model = nn.DataParallel(compiled(inner))
    assert unwrapped(model) is inner
    assert find_head(model, batch()).module is inner[2]


@pytest.mark.parametrize("head", [None, "2"])
def test_a_compiled_head_is_found(head: str | None) -> None:
    model = mlp()
    layer = model[2]
    model[2] = compiled(layer)
    assert find_head(model, batch(), head=head).module is layer
    assert find_head(model, batch(), head=model[2]).module is layer


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


def test_a_first_batch_that_is_not_finite_still_shows_the_head() -> None:
    model = Answering(lambda logits: logits.clone())
    assert find_head(model, torch.full((2, INPUTS), float("nan"))).name == "fc"


def test_features_are_counted_by_the_head_found() -> None:
    assert find_head(mlp(), batch()).module.in_features == FEATURES
