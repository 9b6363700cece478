"""Devices without float64: a stand-in for Apple's, which claims to be ``mps`` and refuses every float64 result."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from opnp import OPNP, Ratios
from opnp.core.sensitivity import with_float64
from tests.unit.detector.detector_world import bias, features, head_of, loader, model, weight

DEVICE = torch.device("mps")


class AppleTensor(Tensor):
    """A tensor in memory that says it is on an Apple device, and holds no float64."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.device.__get__:
            return DEVICE
        if func is Tensor.detach_:  # a parameter here is a view, which torch detaches in no place
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            plain = tree_map(lambda value: value.as_subclass(Tensor) if isinstance(value, Tensor) else value, args)
            found = func(*plain, **kwargs or {})
        if func is Tensor.cpu or (func is Tensor.to and torch.device("cpu") in args[1:]):
            return found
        return tree_map(lambda value: as_apple(value) if isinstance(value, Tensor) else value, found)


class AppleMode(TorchFunctionMode):
    """Within it tensors can be moved to the device, and made there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        is_there = kwargs.get("device") == DEVICE
        if is_there:
            kwargs.pop("device")
        rest = [value for value in args if not (isinstance(value, torch.device) and value == DEVICE)]
        found = func(*rest, **kwargs)
        return as_apple(found) if is_there or len(rest) < len(args) else found


def as_apple(tensor: Tensor) -> Tensor:
    """Return a tensor as the stand-in, or raise as torch does on such a device."""
    if tensor.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
    return tensor.as_subclass(AppleTensor)


class OnApple(nn.Module):
    """A model that is there."""

    def __init__(self) -> None:
        super().__init__()
        self.head = head = head_of(model())
        head.weight = nn.Parameter(as_apple(head.weight.detach().clone()), requires_grad=False)
        head.bias = nn.Parameter(as_apple(head.bias.detach().clone()), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        made: Tensor = self.head(inputs.relu())
        return made


def test_the_stand_in_has_no_float64() -> None:
    tensor = as_apple(torch.ones(2))
    assert tensor.device == DEVICE
    assert type(tensor + 1) is AppleTensor
    with pytest.raises(TypeError, match="doesn't support float64"):
        tensor.double()
    assert type(with_float64(tensor)) is Tensor
    assert with_float64(tensor).double().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("ratios", [None, Ratios(w_min=0.3)], ids=["fusion", "paper"])
def test_sums_and_scores_are_those_of_the_cpu(ratios: Ratios | None) -> None:
    net, same = OnApple(), nn.Sequential(nn.ReLU(), model()[-1])
    batches = [batch[0] if isinstance(batch, list | tuple) else batch for batch in loader(20)]
    inputs = features(30, seed=3)
    with AppleMode():
        detector = OPNP(ratios=ratios).fit(net, batches).calibrate(batches[:5], keep=0.5)
        wanted = OPNP(ratios=ratios).fit(same, batches).calibrate(batches[:5], keep=0.5)
        for found, exact in zip(detector.verdict(inputs), wanted.verdict(inputs), strict=True):
            assert type(found) is Tensor
            assert torch.equal(found, exact)
        logits, score, p_value = detector.to_module()(inputs)
        assert type(logits) is AppleTensor
        assert torch.equal(score, wanted.score(inputs))
        assert torch.equal(p_value, wanted.p_value(inputs))
        rows = inputs.relu()
        assert torch.equal(detector.score_features(as_apple(rows)), wanted.score_features(rows))
        again = OPNP(ratios=ratios).fit_features(
            as_apple(features(300)),
            weight=net.head.weight,
            bias=net.head.bias,
            validation=as_apple(features(100, seed=1)),
        )
        there = OPNP(ratios=ratios).fit_features(
            features(300), weight=weight(), bias=bias(), validation=features(100, seed=1)
        )
        assert torch.equal(again.score_features(as_apple(rows)), there.score_features(rows))
