"""The compact head: the logits of the pruned head from the columns that are left."""

import io

import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP, CompactHead, Ratios
from opnp.core import Masks
from opnp.errors import NotFittedError, ShapeError
from tests.unit.detector.detector_world import CLASSES, FEATURES, bias, features, fitted, weight

RATIOS = [
    Ratios(),
    Ratios(w_min=0.3),
    Ratios(o_min=0.3, o_max=0.2),
    Ratios(w_min=0.3, w_max=0.1, o_min=0.3, o_max=0.3),
    Ratios(o_min=0.9),
]


@pytest.mark.parametrize("ratios", RATIOS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_logits_are_those_of_the_pruned_head(ratios: Ratios, *, has_bias: bool) -> None:
    detector = OPNP(ratios=ratios)
    detector.fit_features(features().double(), weight=weight().double(), bias=bias().double() if has_bias else None)
    inputs = features(30, seed=1).double()
    compact, head = detector.compact_head(), detector.pruned_head
    torch.testing.assert_close(compact(inputs), head(inputs), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(compact(inputs[0]), head(inputs[0]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(compact(inputs.view(5, 6, -1)), head(inputs.view(5, 6, -1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ratios", RATIOS)
def test_the_columns_of_pruned_neurons_are_gone(ratios: Ratios) -> None:
    detector = fitted(ratios)
    compact, head = detector.compact_head(), detector.pruned_head
    kept = [index for index in range(FEATURES) if bool(head.weight[:, index].any())]
    assert compact.index.tolist() == kept
    assert compact.index.dtype == torch.int64
    assert len(kept) <= int(detector.masks.neuron.sum())
    assert type(compact.head) is nn.Linear
    assert (compact.head.in_features, compact.head.out_features) == (len(kept), CLASSES)
    assert torch.equal(compact.head.weight, head.weight[:, kept])
    assert torch.equal(compact.head.bias, bias())
    assert not compact.head.weight.requires_grad
    assert not compact.head.bias.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_that_of_the_head(dtype: torch.dtype) -> None:
    detector = OPNP(ratios=Ratios(o_min=0.5))
    detector.fit_features(features(), weight=weight().to(dtype), bias=bias().to(dtype))
    compact = detector.compact_head()
    assert compact.head.weight.dtype == compact.head.bias.dtype == dtype
    assert compact(features().to(dtype)).dtype == dtype


def test_nothing_but_the_bias_is_left() -> None:
    masks = Masks(torch.zeros(2, 3, dtype=torch.bool), torch.ones(3, dtype=torch.bool))
    compact = CompactHead.from_head(nn.Linear(3, 2), masks)
    assert compact.index.tolist() == []
    assert torch.equal(compact(torch.ones(4, 3)), compact.head.bias.expand(4, -1))


def test_it_shares_no_memory_and_is_a_module_like_any_other() -> None:
    detector = fitted(Ratios(o_min=0.5))
    inputs = features(5, seed=1)
    compact = detector.compact_head()
    before = compact(inputs)
    compact.head.weight.fill_(7.0)
    again = detector.compact_head()
    assert torch.equal(again(inputs), before)
    buffer = io.BytesIO()
    torch.save(again.state_dict(), buffer)
    buffer.seek(0)
    compact.load_state_dict(torch.load(buffer))
    assert torch.equal(compact(inputs), before)
    assert list(compact.state_dict()) == ["index", "head.weight", "head.bias"]
    assert compact.double().index.dtype == torch.int64
    assert repr(compact).startswith(f"CompactHead(\n  reads 6 of {FEATURES} features\n  (head): Linear(in_features=6")


def test_it_stands_in_for_the_head_of_a_model() -> None:
    detector = fitted(Ratios(o_min=0.3))
    model = nn.Sequential(nn.ReLU(), detector.compact_head())
    inputs = features(5, seed=1)
    torch.testing.assert_close(model(inputs), detector.pruned_head(inputs))
    exported = torch.export.export(model, (inputs,)).module()
    assert torch.equal(exported(inputs), model(inputs))


@pytest.mark.parametrize("wrong", [torch.ones(2, FEATURES - 6), torch.ones(2, FEATURES + 1), torch.ones(())])
def test_features_of_another_width_are_refused(wrong: Tensor) -> None:
    with pytest.raises(ShapeError, match=rf"must have shape \(\.\.\., {FEATURES}\), got .* go to `\.head`"):
        fitted(Ratios(o_min=0.5)).compact_head()(wrong)


def test_there_is_none_before_the_fit() -> None:
    with pytest.raises(NotFittedError, match="has seen no data"):
        OPNP().compact_head()
