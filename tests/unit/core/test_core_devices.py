"""Tensors that claim to be on a CUDA device: whatever meets a tensor of another device raises, without a GPU."""

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from opnp.core import fusion, histogram, kept_rows, masks, members, moments, scores, sensitivity, shaping
from opnp.core.masks import Masks

CLASSES, FEATURES, ROWS = 5, 8, 40
CUDA = "cuda:0"


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Open the mode; what asks for a value, as checks do, gets one that lets it pass."""
    monkeypatch.setattr(Tensor, "__bool__", lambda _: False)
    monkeypatch.setattr(Tensor, "__int__", lambda _: 3)
    monkeypatch.setattr(Tensor, "__index__", lambda _: 3)
    monkeypatch.setattr(Tensor, "__float__", lambda _: 3.0)
    monkeypatch.setattr(Tensor, "item", lambda _: 3.0)
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: [0.0] * len(tensor))
    for module in (scores, sensitivity, members, moments, shaping, masks, histogram, kept_rows, fusion):
        for name in ("require_finite", "require_finite_sums", "require_class_indices", "warn_of_lost_order"):
            monkeypatch.setattr(module, name, lambda *_, **__: None, raising=False)
    monkeypatch.setattr(shaping, "_checked_shaped", shaping.shaped_rows)
    monkeypatch.setattr(members, "_whitening", lambda covariance, _: covariance)
    with warnings.catch_warnings(), FakeTensorMode(shape_env=ShapeEnv()) as mode:
        warnings.simplefilter("ignore")
        yield mode


def features() -> Tensor:
    """Return features that claim to be on the device."""
    return torch.empty(ROWS, FEATURES, device=CUDA)


def weight() -> Tensor:
    """Return a weight there."""
    return torch.empty(CLASSES, FEATURES, device=CUDA)


def logits() -> Tensor:
    """Return logits there."""
    return torch.empty(ROWS, CLASSES, device=CUDA)


def of_classes() -> moments.FeatureMoments:
    """Return moments of features there."""
    made = moments.FeatureMoments.zeros(classes=CLASSES, features=FEATURES, device=CUDA)
    return made.add_(features(), torch.empty(ROWS, dtype=torch.int64, device=CUDA))


def sums() -> sensitivity.SensitivitySum:
    """Return sums of sensitivities there."""
    return sensitivity.SensitivitySum.zeros(CLASSES, FEATURES, device=CUDA).add_(
        features(), logits(), weight(), temperature=1.0, precision="float32"
    )


def units() -> Tensor:
    """Return members' scores there, in units of their tails."""
    found = torch.empty(ROWS, 3, device=CUDA, dtype=torch.float64)
    return fusion.tail_units(found, fusion.tail_scales(found))


CALLS: dict[str, Callable[[], Tensor]] = {
    "energy": lambda: scores.energy_score(logits()),
    "MSP": lambda: scores.msp_score(logits()),
    "entropy": lambda: scores.entropy_score(logits()),
    "GEN": lambda: scores.gen_score(logits()),
    "sensitivity, merged": lambda: (sums() + sums()).mean().weight,
    "sensitivity of weights": lambda: sensitivity.weight_sensitivity(features(), logits()),
    "sensitivity of neurons": lambda: sensitivity.neuron_sensitivity(features(), logits(), weight=weight()),
    "mask of weights": lambda: masks.weight_mask(weight().abs(), lowest=0.3, highest=0.1),
    "mask by class": lambda: masks.weight_mask(weight().abs(), lowest=0.3, scope="class"),
    "pruned weight": lambda: masks.pruned_weight(
        weight(), Masks(weight=weight() > 0, neuron=torch.empty(FEATURES, dtype=torch.bool, device=CUDA))
    ),
    "ReAct": lambda: shaping.react(features(), threshold=1.0),
    "ASH-S": lambda: shaping.ash_s(features()),
    "SCALE": lambda: shaping.scale(features()),
    "fDBD": lambda: members.fdbd_score(features(), logits(), weight=weight(), mean=features()[0]),
    "NCI": lambda: members.nci_score(features(), logits(), weight=weight(), mean=features()[0]),
    "Mahalanobis++": lambda: members.mahalanobis_score(features(), members.ClassGaussian.from_moments(of_classes())),
    "relative Mahalanobis++": lambda: members.relative_mahalanobis_score(
        features(), members.ClassGaussian.from_moments(of_classes(), is_relative=True)
    ),
    "norm": lambda: members.norm_score(features(), typical=2.0),
    "hashes of rows": lambda: kept_rows.row_hashes(features()),
    "fused score": lambda: fusion.fused_score(units()),
    "shares": lambda: fusion.member_shares(units()),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_result_is_where_the_data_are(mode: FakeTensorMode, name: str) -> None:
    """No tensor is made on the CPU on the way, which a real device would refuse as this mode does."""
    assert CALLS[name]().device == torch.device(CUDA)


def test_the_mode_refuses_what_mixes_devices(mode: FakeTensorMode) -> None:
    """So that the test above can fail."""
    with pytest.raises(RuntimeError, match="device"):
        features() + torch.empty(ROWS, FEATURES)
