"""The pruned head, other ratios from the same sensitivities, and the tie to the model's own head."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from opnp import OPNP, Ratios
from opnp.errors import HeadMismatchError, OptionError, RatioError
from tests.unit.detector.detector_world import (
    CLASSES,
    FEATURES,
    KINDS,
    bias,
    features,
    fitted,
    head_of,
    loader,
    made,
    model,
    weight,
)


def test_the_pruned_head_is_a_plain_linear_layer() -> None:
    detector = fitted(Ratios(w_min=0.3, o_max=0.2))
    head = detector.pruned_head
    assert type(head) is nn.Linear
    assert (head.in_features, head.out_features) == (FEATURES, CLASSES)
    assert torch.equal(head.weight, weight().masked_fill(~detector.masks.kept, 0.0))
    assert torch.equal(head.bias, bias())
    assert not head.weight.requires_grad
    assert not head.bias.requires_grad
    assert not head._forward_pre_hooks
    assert list(head.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_pruned_head_has_the_dtype_of_the_original(dtype: torch.dtype) -> None:
    detector = OPNP(ratios=Ratios(w_min=0.3))
    detector.fit_features(features(), weight=weight().to(dtype), bias=bias().to(dtype))
    assert detector.pruned_head.weight.dtype == detector.pruned_head.bias.dtype == dtype


def test_the_pruned_head_can_be_trained() -> None:
    head = fitted().pruned_head
    inputs = features(3).requires_grad_()
    head(inputs).sum().backward()
    assert inputs.grad is not None
    assert torch.allclose(inputs.grad, head.weight.sum(0).expand(3, -1))
    head.requires_grad_()
    head(features(3)).logsumexp(1).sum().backward()
    assert head.weight.grad is not None


def test_the_pruned_head_shares_no_memory() -> None:
    given_weight, given_bias, net = weight(), bias(), model()
    from_features = OPNP(ratios=Ratios()).fit_features(features(), weight=given_weight, bias=given_bias)
    from_model = OPNP(ratios=Ratios()).fit(net, loader())
    for detector in (from_features, from_model):
        before = detector.score_features(features(seed=1))
        head = detector.pruned_head
        head.weight.fill_(7.0)
        head.bias.fill_(7.0)
        assert torch.equal(detector.score_features(features(seed=1)), before)
        assert torch.equal(detector.pruned_head.weight, weight())
    assert torch.equal(given_weight, weight())
    assert torch.equal(head_of(net).weight, weight())
    given_weight.zero_()
    given_bias.zero_()
    assert torch.equal(from_features.pruned_head.weight, weight())
    assert torch.equal(from_features.score_features(features(seed=1)), before)


@pytest.mark.parametrize("neuron", ["gradient", "aggregate"])
@pytest.mark.parametrize("scope", ["layer", "class"])
def test_with_ratios_is_a_fit_with_those_ratios(neuron: str, scope: str) -> None:
    ratios = Ratios(w_min=0.25, w_max=0.1, o_min=0.2, o_max=0.1)
    changed = fitted(Ratios()).with_ratios(ratios, neuron=neuron, scope=scope)  # type: ignore[arg-type]  # names from above
    anew = OPNP(ratios=ratios, neuron=neuron, scope=scope)  # type: ignore[arg-type]  # as above
    anew.fit_features(features(), weight=weight(), bias=bias())
    assert torch.equal(changed.masks.weight, anew.masks.weight)
    assert torch.equal(changed.masks.neuron, anew.masks.neuron)
    assert torch.equal(changed.score_features(features(seed=1)), anew.score_features(features(seed=1)))
    assert (changed.settings.neuron, changed.settings.scope) == (neuron, scope)


def test_a_sweep_changes_masks_and_scores_at_every_step() -> None:
    detector = fitted(Ratios())
    sweep = [detector.with_ratios(Ratios(w_min=share)) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    counts = [int((~item.masks.weight).sum()) for item in sweep]
    assert counts == [round(share * 48) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    scores = torch.stack([item.score_features(features(seed=1)) for item in sweep])
    assert len(scores.unique(dim=0)) == 5
    again = [item.score_features(features(seed=1)) for item in sweep]
    assert torch.equal(torch.stack(again), scores), "one setting of a sweep changed another"


def test_with_ratios_reads_no_data() -> None:
    net = model()
    calls: list[int] = []
    net.register_forward_pre_hook(lambda _module, _args: calls.append(1))
    detector = OPNP(ratios=Ratios()).fit(net, loader())
    calls.clear()
    changed = detector.with_ratios(Ratios(w_min=0.5))
    assert not calls
    assert changed.sensitivity is detector.sensitivity
    changed.score(features())
    assert calls


def test_with_ratios_keeps_what_was_not_asked_to_change() -> None:
    detector = OPNP(ratios=Ratios(), neuron="aggregate", scope="class", temperature=2.0, score="msp")
    detector.fit_features(features(), weight=weight(), bias=bias(), validation=features(40, seed=1))
    changed = detector.with_ratios(Ratios(w_min=0.5))
    kept = changed.settings
    assert (kept.neuron, kept.scope, kept.temperature, kept.score) == ("aggregate", "class", 2.0, "msp")
    assert detector.is_calibrated
    assert not changed.is_calibrated
    assert changed.calibrate_features(features(40, seed=1)).is_calibrated


def test_with_ratios_refuses_what_it_cannot_do() -> None:
    with pytest.raises(OptionError, match=r"`ratios` must be a Ratios"):
        fitted().with_ratios(0.3)  # type: ignore[arg-type]  # the test
    with pytest.raises(OptionError, match="`neuron` must be one of"):
        fitted().with_ratios(Ratios(), neuron="max")  # type: ignore[arg-type]  # the test
    with pytest.raises(RatioError, match="at least one must be left"):
        fitted().with_ratios(Ratios(o_min=0.49, o_max=0.5))


def scaled_in_place(net: nn.Sequential) -> None:
    with torch.no_grad():
        head_of(net).weight.mul_(2)


def scaled_data(net: nn.Sequential) -> None:
    head_of(net).weight.data.mul_(2)


def new_data(net: nn.Sequential) -> None:
    head_of(net).weight.data = head_of(net).weight.data * 2


def new_parameter(net: nn.Sequential) -> None:
    head_of(net).weight = nn.Parameter(head_of(net).weight.detach() * 2)


def other_bias(net: nn.Sequential) -> None:
    head_of(net).bias.data[0] += 1


def loaded_state(net: nn.Sequential) -> None:
    head_of(net).load_state_dict({"weight": 2 * weight(), "bias": bias()})


def trained(net: nn.Sequential) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(features()).sum().backward()
    optimizer.step()


def other_dtype(net: nn.Sequential) -> None:
    net.double()


def other_layer(net: nn.Sequential) -> None:
    net[1] = nn.Linear(FEATURES, CLASSES)


@pytest.mark.parametrize(
    "change",
    [
        scaled_in_place,
        scaled_data,
        new_data,
        new_parameter,
        other_bias,
        loaded_state,
        trained,
        other_dtype,
        other_layer,
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_changed_since_the_fit_is_noticed(kind: str, change: Callable[[nn.Sequential], None]) -> None:
    net = model()
    detector = made(kind).fit(net, loader())
    detector.score(features())
    change(net)
    with pytest.raises(HeadMismatchError, match=r"head `1` is not the one this detector was fitted on.*Fit again"):
        detector.score(features())
    with pytest.raises(HeadMismatchError):
        detector.calibrate(loader(seed=1))


def test_a_normalised_head_changed_since_the_fit_is_noticed() -> None:
    net = model()
    head = head_of(net)
    weight_norm(head)
    scale = head.get_parameter("parametrizations.weight.original0")
    detector = OPNP(ratios=Ratios(w_min=0.3)).fit(net, loader())
    detector.score(features())
    for _ in range(5):
        scale.data.mul_(2)
        with pytest.raises(HeadMismatchError):
            detector.score(features())


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_is_back_is_welcome(kind: str) -> None:
    net = model()
    detector = made(kind).fit(net, loader())
    before = detector.score(features())
    scaled_in_place(net)
    with pytest.raises(HeadMismatchError):
        detector.score(features())
    head_of(net).load_state_dict({"weight": weight(), "bias": bias()})
    assert torch.equal(detector.score(features()), before)


def test_a_body_changed_since_the_fit_is_the_owners_affair() -> None:
    body = nn.Linear(FEATURES, FEATURES)
    net = nn.Sequential(body, *model())
    detector = OPNP(ratios=Ratios()).fit(net, loader())
    before = detector.score(features())
    body.weight.data.mul_(2)
    assert not torch.equal(detector.score(features()), before)


def test_a_tied_head_keeps_working() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.EmbeddingBag(CLASSES, FEATURES)
            self.out = nn.Linear(FEATURES, CLASSES, bias=False)
            self.out.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            outputs: Tensor = self.out(self.embedding(ids))
            return outputs

    net = Tied()
    before = net.out.weight.detach().clone()
    ids = torch.arange(20).reshape(10, 2) % CLASSES
    detector = OPNP(ratios=Ratios(w_min=0.3)).fit(net, [ids])
    assert detector.score(ids).shape == (10,)
    assert net.out.weight is net.embedding.weight
    assert torch.equal(net.out.weight, before)
