"""Logits that must be the head's own where they are used, how many samples there are, and inputs by keyword."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios
from opnp.errors import HeadNotFoundError, ShapeError
from opnp.model import find_head, head_stream, sensitivity
from opnp.model.head import OwnLogits
from tests.contract.snapshot import unchanged
from tests.unit.model.tiny_models import CLASSES, FEATURES, INPUTS, Answering, batch, batches, mlp


def _fitted(model: nn.Module, loader: object) -> OPNP:
    return OPNP(ratios=Ratios(), shaping=None).fit(model, loader)  # type: ignore[arg-type]  # an iterable


def test_logits_that_are_clamped_are_refused_where_they_are_used_alone() -> None:
    model = Answering(lambda logits: logits.clamp(-30, 30))
    far = 100 * batch(seed=5)
    detector, plain = _fitted(model, batches()), _fitted(mlp(), batches())
    with unchanged(model, "a score of what is clamped"):
        assert torch.equal(detector.score(far), plain.score(far))
        detector.calibrate([far] * 4, keep=0.9)
        detector.verdict(far)
    message = r"logits are not what its head `fc` makes.*clamps or masks.*`logits=lambda"
    with pytest.raises(HeadNotFoundError, match=message):
        _fitted(model, [batch(), far])


def test_the_first_batch_is_compared_whole_and_later_ones_in_eight_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    head, rows = find_head(model, batch()), []
    made = torch.nn.functional.linear

    def counted(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows.append(len(features))
        return made(features, weight, bias)

    monkeypatch.setattr("opnp.model.head.linear", counted)
    own, features = OwnLogits(head), batch(100, width=FEATURES)
    logits = made(features, head.weight, head.bias)
    for count in (100, 100, 5):
        own.require(features[:count], logits[:count])
    assert rows == [100, 8, 5]
    for row in (0, 99):
        wrong = logits.clone()
        wrong[row] += 100
        with pytest.raises(HeadNotFoundError, match="in 1 of 8 rows"):
            own.require(features, wrong)
    wrong = logits.clone()
    wrong[37] += 100
    with pytest.raises(HeadNotFoundError, match="in 1 of 100 rows"):
        OwnLogits(head).require(features, wrong)


class Pooled(nn.Module):
    """Several inputs make one sample: a bag of them, or ten crops of one image."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.inner, self.size = mlp(), size

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.inner[2](self.inner[:2](x).unflatten(0, (-1, self.size)).mean(1))
        return outputs


@pytest.mark.parametrize(("size", "samples"), [(30, 1), (10, 8)])
def test_bags_and_crops_are_taken_with_labels_or_as_a_mapping(size: int, samples: int) -> None:
    model, labels = Pooled(size), torch.arange(samples) % CLASSES
    bags = [batch(size * samples, seed=seed) for seed in range(3)]
    detector, named = _fitted(model, [(bag, labels) for bag in bags]), _fitted(model, [{"x": bag} for bag in bags])
    assert detector.sensitivity.count == 3 * samples
    assert torch.equal(detector.sensitivity.weight, named.sensitivity.weight)
    expected = -model(bags[0]).logsumexp(1).detach()
    for inputs in ((bags[0], labels), {"x": bags[0]}):
        torch.testing.assert_close(detector.score(inputs), expected)
    message = rf"received {samples} rows for a batch of {size * samples} inputs.*`{{\"x\": bag}}`.*`\(bag, labels\)`"
    for refused in (lambda: _fitted(model, bags), lambda: detector.score(bags[0])):
        with pytest.raises(ShapeError, match=message):
            refused()


class ByKeyword(nn.Linear):
    """A linear layer whose input has another name."""

    def forward(self, x: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        assert x is not None
        return super().forward(x if mask is None else x * mask)


class Calling(nn.Module):
    """A body, and a head called as the test says."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.fc, self.call = mlp()[:2], ByKeyword(FEATURES, CLASSES), call
        self.fc.load_state_dict(mlp()[2].state_dict())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.call(self.fc, self.body(inputs))


def test_a_head_that_is_given_its_input_by_another_keyword_is_read() -> None:
    model = Calling(lambda head, features: head(x=features))
    assert find_head(model, batch()).name == "fc"
    with head_stream(model, batches()) as found, head_stream(mlp(), batches()) as expected:
        for one, other in zip(found.batches, expected.batches, strict=True):
            assert torch.equal(one[0], other[0])
    assert torch.equal(sensitivity(model, batches())["fc"].weight, sensitivity(mlp(), batches())["2"].weight)
    masked = Calling(lambda head, features: head(x=features, mask=torch.ones(FEATURES)))
    with unchanged(masked, "a refusal"), pytest.raises(HeadNotFoundError, match=r"2 tensors, all by keyword \(x, mask"):
        find_head(masked, batch(width=INPUTS))
