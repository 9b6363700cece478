"""The tie between a detector and the user's model: what is an input, and a head that is no longer that of the fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader, TensorDataset

from opnp import OPNP, Ratios
from opnp.errors import EmptyDataError, HeadMismatchError, InputTypeError, NotFittedError, PrecisionWarning
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

PAPER = Ratios(w_min=0.3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (TensorDataset(features(4)), r"got a TensorDataset.*`DataLoader\(dataset, batch_size=64\)`"),
        ([features(4)] * 3, r"a list of 3 that look like several.*`iter\(batches\)`"),
        ((features(4), features(4)), "a tuple of 2 that look like several"),
        ([features(4), [features(4), torch.zeros(4)]], "look like several"),
    ],
)
def test_several_batches_or_inputs_are_no_batch(given: Any, message: str) -> None:
    detector = OPNP(ratios=PAPER).fit(model(), loader())
    with pytest.raises(InputTypeError, match=message):
        detector.score(given)
    assert detector.score((features(4), torch.zeros(4, dtype=torch.int64))).shape == (4,)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_loader_is_answered_in_its_order(kind: str) -> None:
    detector = made(kind).fit(model(), loader(20), validation=loader(5, seed=1))
    rows = features(50, seed=2)
    data = DataLoader(TensorDataset(rows, torch.zeros(50, dtype=torch.int64)), batch_size=16)
    verdict, why = detector.verdict(data), detector.explain(data)
    assert why.members == detector.explained
    batches = [detector.verdict(batch) for batch in data]
    for name, values in verdict._asdict().items():
        assert torch.equal(values, torch.cat([getattr(each, name) for each in batches])), name
    assert torch.equal(detector.score(data), verdict.score)
    assert torch.equal(detector.predict(batch for batch in data), verdict.is_ood)
    assert torch.equal(detector.p_value(iter(rows.split(7))), verdict.p_value)
    assert torch.allclose(why.share, torch.cat([detector.explain(batch).share for batch in data]))


def test_what_is_no_loader_of_batches_is_refused() -> None:
    detector = OPNP(ratios=PAPER).fit(model(), loader())
    with pytest.raises(EmptyDataError, match="yields no batch"):
        detector.score(iter([]))
    with pytest.raises(InputTypeError, match="A batch must be a tensor"):
        detector.score(iter(["text"]))
    with pytest.raises(InputTypeError, match="got a DataLoader"):
        detector.features(DataLoader(TensorDataset(features(4))))
    net = detector._linked().model
    assert not [hook for module in net.modules() for hook in module._forward_pre_hooks]


def test_inputs_need_a_model() -> None:
    with pytest.raises(NotFittedError, match=r"This detector has no model.*`\*_features`"):
        fitted().score(features())


# ------------------------------------------------------------------------------------------------------ changed heads
def trained(net: nn.Sequential) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(features()).sum().backward()
    optimizer.step()


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "in place": torch.no_grad()(lambda net: head_of(net).weight.mul_(2)),
    "bias": lambda net: head_of(net).bias.data.add_(1),
    "new data": lambda net: setattr(head_of(net).weight, "data", 2 * weight()),
    "new parameter": lambda net: setattr(head_of(net), "weight", nn.Parameter(2 * weight())),
    "trained": trained,
    "other layer": lambda net: net.append(nn.Linear(FEATURES, CLASSES)).pop(1),
    "dtype": nn.Sequential.double,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_changed_since_the_fit_is_noticed_and_one_that_is_back_is_welcome(
    kind: str, change: Callable[[nn.Sequential], object]
) -> None:
    net = model()
    head, detector = net[1], made(kind).fit(net, loader())
    before = detector.score(features())
    change(net)
    with pytest.raises(HeadMismatchError, match=r"head `1` is not the one this detector was fitted on.*Fit again"):
        detector.score(features())
    with pytest.raises(HeadMismatchError):
        detector.calibrate(loader(seed=1))
    net[1] = head.float()
    head.load_state_dict({"weight": weight(), "bias": bias()})
    assert torch.equal(detector.score(features()), before)


def test_a_normalised_head_changed_since_the_fit_is_noticed() -> None:
    net = model()
    head = weight_norm(head_of(net))
    detector = OPNP(ratios=PAPER).fit(net, loader())
    detector.score(features())
    head.get_parameter("parametrizations.weight.original0").data.mul_(2)
    with pytest.raises(HeadMismatchError):
        detector.score(features())


class Tied(nn.Module):
    """A model whose head has the weight of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(CLASSES, FEATURES)
        self.out = nn.Linear(FEATURES, CLASSES, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        outputs: Tensor = self.out(self.embedding(ids))
        return outputs


def test_a_tied_head_keeps_working() -> None:
    net, ids = Tied(), torch.arange(20).reshape(10, 2) % CLASSES
    before = net.out.weight.detach().clone()
    assert OPNP(ratios=PAPER).fit(net, [ids]).score(ids).shape == (10,)
    assert net.out.weight is net.embedding.weight
    assert torch.equal(net.out.weight, before)


# ------------------------------------------------------------------------------------------------ models of saved ones
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_that_head_is_tied_to_it(tmp_path: Path, kind: str) -> None:
    made(kind).fit(model(), loader()).save(tmp_path / "detector")
    loaded = OPNP.load(tmp_path / "detector", model=nn.DataParallel(model()))
    assert torch.equal(loaded.score(features()), loaded.score_features(features()))
    assert loaded.score(features()[0]).shape == ()


class Twins(nn.Module):
    """A model with two equal layers."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", model()[1])
        self.add_module("1", model()[1])

    def forward(self, inputs: Tensor) -> Tensor:
        first, second = (self.get_submodule(name)(inputs / (int(name) + 1)) for name in ("0", "1"))
        both: Tensor = first + second
        return both


@pytest.mark.parametrize("name", ["1", "0"])
def test_of_equal_layers_the_one_of_that_name_is_taken(tmp_path: Path, name: str) -> None:
    OPNP(ratios=PAPER).fit(Twins(), loader(), head=name).save(tmp_path / "detector")
    loaded = OPNP.load(tmp_path / "detector", model=Twins())
    assert torch.equal(loaded.score(features()), loaded.score_features(features() / (int(name) + 1)))


@pytest.mark.parametrize("change", [CHANGES["bias"], CHANGES["dtype"], lambda net: net.pop(1)], ids=range(3))
def test_a_model_with_another_head_is_refused(change: Callable[[nn.Sequential], object]) -> None:
    other = model()
    change(other)
    with pytest.raises(HeadMismatchError, match=r"fitted on a head with digest [0-9a-f]{12}"):
        fitted().attach(other)


def test_a_head_that_was_rounded_meanwhile_is_watched_as_any_other() -> None:
    """Its own values count from then on, those of the bias too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body, head, inputs = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3), torch.randn(60, 4)
    model = nn.Sequential(body, head)
    detector = OPNP(ratios=Ratios()).fit(model, inputs.split(20))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter.half())
    with pytest.warns(PrecisionWarning, match="The head, `1`, has the weights"):
        detector.attach(model)
    torch.testing.assert_close(detector.score(inputs), detector.score_features(body(inputs)), rtol=1e-2, atol=1e-2)
    with torch.no_grad():
        head.bias.add_(5)
    with pytest.raises(HeadMismatchError, match="have changed since"):
        detector.score(inputs)
    with torch.no_grad():
        head.weight.mul_(1.001)
    with pytest.raises(HeadMismatchError, match="other weights"):
        detector.attach(model)
