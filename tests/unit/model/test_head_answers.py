"""What is said of models without a single linear head, and heads that are linear layers in disguise."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from opnp import OPNP, Ratios
from opnp.errors import HeadNotFoundError, ShapeError
from opnp.model import find_head, head_stream, sensitivity
from tests.contract.snapshot import unchanged
from tests.unit.model.tiny_models import CLASSES, FEATURES, INPUTS, Answering, batch, mlp


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


def test_two_heads_that_the_model_combines_are_listed() -> None:
    mean = (
        r"2 layers have as many rows as the logits, and the logits are the mean of what they make: 'one' \(5 -> 3\), "
    )
    mean += (
        r"'other\.1' \(5 -> 3\)\. Choose one with `head=\"one\"` or `head=\"other\.1\"`: .*own logits.*torch\.cat.* / 2"
    )
    with pytest.raises(HeadNotFoundError, match=mean):
        find_head(Bodies(lambda one, other: (one + other) / 2), batch())
    with pytest.raises(HeadNotFoundError, match=r"and the model may combine them: .*own logits, not of the model's\.$"):
        find_head(Bodies(lambda one, other: one + other), batch())


def test_what_the_answer_says_of_a_mean_of_two_heads_is_so() -> None:
    model = Bodies(lambda one, other: (one + other) / 2)
    sides, weights, biases = [], [], []
    for name in ("one", "other.1"):
        with head_stream(model, [batch()], head=name) as stream:
            sides += [features for features, _, _ in stream.batches]
            weights.append(stream.head.weight)
            biases.append(model.get_parameter(f"{name}.bias").detach())
    weight, bias = torch.cat(weights, dim=1) / 2, torch.stack(biases).mean(0)
    torch.testing.assert_close(linear(torch.cat(sides, 1), weight, bias), model(batch()).detach())


def test_a_module_that_holds_one_layer_stands_for_it() -> None:
    model = Bodies(torch.add)
    for head in ("other", model.other, "other.1"):
        assert find_head(model, batch(), head=head).name == "other.1"
    with pytest.raises(HeadNotFoundError, match=r"`head` = '' is of type Bodies and holds 3 layers: name one\."):
        find_head(model, batch(), head="")
    with pytest.raises(HeadNotFoundError, match=r"`head` is of type Bodies and holds 3 layers"):
        find_head(model, batch(), head=model)


class Tokens(nn.Module):
    """A head on every token, of which one is read."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.score, self.read = nn.Linear(INPUTS, CLASSES), read

    def forward(self, inputs: Tensor) -> Tensor:
        return self.read(self.score(inputs))


def test_a_head_on_every_token_says_so() -> None:
    inputs = batch(12).reshape(4, 3, INPUTS)
    last, mean = Tokens(lambda logits: logits[:, -1]), Tokens(lambda logits: logits.mean(1))
    answer = r"`score` received features of shape \(4, 3, 6\): it runs on every token.*one token of each sequence.*"
    with pytest.raises(HeadNotFoundError, match=answer + r"GPT-2 and Llama.*`fit_features`"):
        find_head(last, inputs)
    with pytest.raises(HeadNotFoundError, match=r"every token.*pool them as the model does.*`fit_features`") as caught:
        find_head(mean, inputs)
    assert "one token of each sequence" not in str(caught.value)
    for model in (last, mean):
        with (
            pytest.raises(ShapeError, match=r"The head `score` received .* every token"),
            head_stream(model, [inputs], head="score"),
        ):
            pass


class Cosine(nn.Linear):
    """Logits that are no linear function of the features."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as nn.Linear has it
        return linear(normalize(input), normalize(self.weight), self.bias)


class InOtherWords(nn.Linear):
    """What nn.Linear does."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as above
        outputs: Tensor = input @ self.weight.T + self.bias
        return outputs


def test_a_head_with_a_forward_of_its_own_must_do_what_a_linear_layer_does() -> None:
    model = Answering()
    model.fc = Cosine(FEATURES, CLASSES)
    for head in (None, "fc"):
        with pytest.raises(HeadNotFoundError, match=r"`fc` is a Cosine with a forward of its own: .*`fit_features`"):
            find_head(model, batch(), head=head)
    model.fc = InOtherWords(FEATURES, CLASSES)
    assert find_head(model, batch()).name == "fc"


@pytest.mark.parametrize("parametrization", [weight_norm, spectral_norm, orthogonal])
def test_a_parametrized_head_is_read_as_it_is_in_eval_mode(
    parametrization: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    model = mlp()
    parametrization(model[2])
    model.train()  # in which spectral_norm writes to its buffers whenever its weight is read
    with unchanged(model, "a parametrized head"):
        detector = OPNP(ratios=Ratios(w_min=0.2), shaping=None).fit(model, [batch()])
        scores = detector.score(batch(seed=1))
        detector.save(tmp_path / "detector.safetensors")
        loaded = OPNP.load(tmp_path / "detector.safetensors", model)
        assert torch.equal(loaded.score(batch(seed=1)), scores)
        found = find_head(model, batch())
        assert found.is_output
        assert not found.weight.requires_grad
    expected = -model.eval()(batch(seed=1)).logsumexp(1)
    torch.testing.assert_close(detector.with_ratios(Ratios()).score(batch(seed=1)), expected.detach())


def test_the_sensitivity_of_a_parametrized_layer_leaves_its_buffers() -> None:
    model = mlp()
    spectral_norm(model[2])
    model.train()
    with unchanged(model, "sensitivity of a parametrized layer"):
        found = sensitivity(model, [batch()], layers=["2"])
        detector = OPNP(ratios=Ratios(), shaping=None).fit(model, [batch()])
    torch.testing.assert_close(found["2"].weight, detector.sensitivity.weight)
