"""Sums of features and kept rows: their parts, dtypes, widths, and what cannot be merged."""

from typing import Any

import pytest
import torch
from torch import Tensor

from opnp.core import ClassGaussian, FeatureMoments, PrincipalSpace
from opnp.core import moments as moments_module
from opnp.core.kept_rows import KeptRows, row_hashes
from opnp.core.moments import LARGEST_WIDTH
from opnp.errors import OptionError, ShapeError

CLASSES, WIDTH = 4, 6
PARTS = ["feature", "product", "direction_product", "class_direction", "class_count"]
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(CLASSES, WIDTH, generator=GENERATOR, dtype=torch.float64)
TRAINING = torch.randn(80, WIDTH, generator=GENERATOR, dtype=torch.float64) + 0.5


def summed(features: Tensor) -> FeatureMoments:
    empty = FeatureMoments.zeros(classes=CLASSES, features=WIDTH)
    return empty.add_(features, (features.double() @ WEIGHT.T).argmax(1))


def test_sums_come_back_from_their_tensors() -> None:
    moments = summed(TRAINING.clone().requires_grad_())
    tensors = moments.to_tensors()
    assert list(tensors) == PARTS
    assert [tensor.dtype for tensor in tensors.values()] == [torch.float64] * 4 + [torch.int64]
    assert not any(tensor.requires_grad for tensor in tensors.values())
    again = FeatureMoments.from_tensors(tensors, count=80)
    assert (again.count, moments.count) == (80, 80)
    assert all(tensor is tensors[name] for name, tensor in again.to_tensors().items())
    for name in ("feature", "class_direction", "class_count"):
        with pytest.raises(KeyError, match=name):
            FeatureMoments.from_tensors({key: tensors[key] for key in tensors if key != name}, count=80)
    there = FeatureMoments.zeros(classes=2, features=3, device="meta")
    assert {tensor.device.type for tensor in there.to_tensors().values()} == {"meta"}


def test_products_of_too_many_features_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LARGEST_WIDTH == 8192
    held = summed(TRAINING)
    monkeypatch.setattr(moments_module, "LARGEST_WIDTH", WIDTH)
    assert list(summed(TRAINING).to_tensors()) == PARTS
    monkeypatch.setattr(moments_module, "LARGEST_WIDTH", WIDTH - 1)
    wide = summed(TRAINING)
    for moments in (wide, wide + wide, wide + held, held + wide):
        assert set(moments.to_tensors()) == {"feature", "class_direction", "class_count"}
        assert set(FeatureMoments.from_tensors(moments.to_tensors(), count=3).to_tensors()) == set(moments.to_tensors())
    head: Any = {"weight": WEIGHT, "bias": None, "features": TRAINING, "logits": TRAINING @ WEIGHT.T}
    for ask in (lambda: ClassGaussian.from_moments(wide), lambda: PrincipalSpace.from_moments(wide, **head)):
        with pytest.raises(OptionError, match=r"^it needs a covariance of 6 features, and at most 8192 are held$"):
            ask()


def test_sums_of_different_heads_are_not_merged() -> None:
    one, other = (FeatureMoments.zeros(classes=classes, features=3) for classes in (2, 4))
    with pytest.raises(ShapeError, match=r"\(classes, features\) is \(2, 3\) on the left and \(4, 3\) on the right\.$"):
        _ = one + other
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = one + 1


@pytest.mark.parametrize("of_sample", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_that_are_not_kept_have_at_least_float32(of_sample: torch.dtype, dtype: torch.dtype) -> None:
    kept, rows = KeptRows.empty(3, features=WIDTH, dtype=of_sample), TRAINING[:30].to(dtype).requires_grad_()
    passed = [kept.add_(part) for part in rows.split(5)]
    expected = torch.promote_types(dtype, torch.float32)
    assert {part.dtype for part in passed} == {expected}
    assert not any(part.requires_grad for part in passed)
    assert kept.rows.dtype == of_sample
    together = torch.cat([*passed, kept.smallest(3).to(expected)]).double()
    torch.testing.assert_close(together.sort(0).values, rows.detach().double().sort(0).values, rtol=1e-7, atol=1e-7)


def test_a_sample_keeps_to_its_limit_and_takes_no_row_equal_to_its_last() -> None:
    kept, row = KeptRows.empty(2, features=2), torch.tensor([[1.0, 2.0]])
    assert tuple(kept.smallest(2).shape) == tuple(kept.others(0).shape) == tuple(kept.add_(row[:0]).shape) == (0, 2)
    assert len(kept.add_(row.repeat(2, 1))) == 0
    assert kept.add_(row).equal(row)
    assert KeptRows.empty(3, features=2, device="meta").hashes.device.type == "meta"


def test_rows_that_differ_in_place_or_in_a_bit_have_different_hashes() -> None:
    rows = torch.eye(50).repeat(2, 1)
    rows[50:] *= 1 + torch.finfo(torch.float32).eps
    rows = torch.cat([rows, torch.zeros(1, 50), -torch.eye(50)])
    assert row_hashes(rows).unique().numel() == 151
