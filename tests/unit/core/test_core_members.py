"""Members of the fusion and the sums they need: degenerate features and heads, extreme values and errors."""

import math

import pytest
import torch
from torch import Tensor

from opnp.core import moments as moments_module
from opnp.core.kept_rows import KeptRows, row_hashes
from opnp.core.members import (
    ClassGaussian,
    PrincipalSpace,
    boundary_weights,
    fdbd_score,
    mahalanobis_score,
    nci_score,
    norm_score,
    relative_mahalanobis_score,
    vim_score,
)
from opnp.core.moments import LARGEST_WIDTH, FeatureMoments, directions
from opnp.core.scores import energy_rows, energy_score
from opnp.core.shaping import ASHS, SCALE, ReAct, ash_s, react, scale, shaped_rows
from opnp.errors import EmptyDataError, OptionError, ShapeError

CLASSES, WIDTH = 4, 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT, TRAINING, FRESH = normal(CLASSES, WIDTH), normal(80, WIDTH, seed=1) + 0.5, normal(9, WIDTH, seed=2)


def summed(features: Tensor, *, weight: Tensor = WEIGHT) -> FeatureMoments:
    empty = FeatureMoments.zeros(classes=len(weight), features=features.shape[1])
    return empty.add_(features, (features.double() @ weight.T).argmax(1))


def space_of(features: Tensor, *, weight: Tensor = WEIGHT) -> PrincipalSpace:
    return PrincipalSpace.from_moments(
        summed(features, weight=weight), weight=weight, bias=None, features=features, logits=features @ weight.T
    )


def test_empty_sums_are_zeros() -> None:
    empty = FeatureMoments.zeros(classes=2, features=3)
    assert empty.count == 0
    assert empty.product is not None
    assert empty.direction_product is not None
    assert empty.product.shape == empty.direction_product.shape == (3, 3)
    assert tuple(empty.class_direction.shape) == (2, 3)
    assert empty.class_count.tolist() == [0, 0]
    assert empty.class_count.dtype == torch.int64
    for tensor in (empty.feature, empty.product, empty.direction_product, empty.class_direction):
        assert tensor.dtype == torch.float64
        assert not bool(tensor.any())
    assert FeatureMoments.zeros(classes=2, features=3, device="meta").feature.device.type == "meta"
    assert FeatureMoments.zeros(classes=2, features=3, device="meta").class_count.device.type == "meta"


def test_features_that_require_a_gradient_are_summed_without_it() -> None:
    assert not summed(TRAINING.clone().requires_grad_()).feature.requires_grad


def test_products_of_too_many_features_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LARGEST_WIDTH == 8192
    held = summed(TRAINING)
    monkeypatch.setattr(moments_module, "LARGEST_WIDTH", WIDTH)
    assert summed(TRAINING).product is not None
    monkeypatch.setattr(moments_module, "LARGEST_WIDTH", WIDTH - 1)
    wide = summed(TRAINING)
    for moments in (wide, wide + wide, wide + held, held + wide):
        assert moments.product is None
        assert moments.direction_product is None
        assert moments.count in {80, 160}
        again = FeatureMoments.from_tensors(moments.to_tensors(), count=3)
        assert again.count == 3
        assert set(again.to_tensors()) == set(moments.to_tensors()) == {"feature", "class_direction", "class_count"}
        with pytest.raises(OptionError, match=r"^it needs a covariance of 6 features, and at most 8192 are held$"):
            ClassGaussian.from_moments(moments)
        with pytest.raises(OptionError, match=r"^it needs a covariance of 6 features, and at most 8192 are held$"):
            PrincipalSpace.from_moments(
                moments, weight=WEIGHT, bias=None, features=TRAINING, logits=TRAINING @ WEIGHT.T
            )
    assert (wide + wide).feature.equal(2 * held.feature)


def test_sums_come_back_from_their_tensors() -> None:
    moments = summed(TRAINING)
    tensors = moments.to_tensors()
    assert list(tensors) == ["feature", "product", "direction_product", "class_direction", "class_count"]
    again = FeatureMoments.from_tensors(tensors, count=80)
    assert all(tensor is tensors[name] for name, tensor in again.to_tensors().items())
    for name in ("feature", "class_direction", "class_count"):
        with pytest.raises(KeyError, match=name):
            FeatureMoments.from_tensors({key: tensors[key] for key in tensors if key != name}, count=80)


def test_sums_of_different_heads_are_not_merged() -> None:
    one, other = (FeatureMoments.zeros(classes=classes, features=3) for classes in (2, 4))
    with pytest.raises(ShapeError, match=r"\(classes, features\) is \(2, 3\) on the left and \(4, 3\) on the right\.$"):
        _ = one + other
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = one + 1


def test_without_a_sample_there_is_no_gaussian_and_no_subspace() -> None:
    empty = FeatureMoments.zeros(classes=CLASSES, features=WIDTH)
    with pytest.raises(EmptyDataError, match=r"^no sample was summed$"):
        ClassGaussian.from_moments(empty)
    with pytest.raises(EmptyDataError, match=r"^no sample was summed$"):
        PrincipalSpace.from_moments(empty, weight=WEIGHT, bias=None, features=TRAINING, logits=TRAINING @ WEIGHT.T)


@pytest.mark.parametrize(
    "features", [torch.zeros(50, WIDTH).double(), torch.full((50, WIDTH), 0.3).double(), TRAINING[:1].repeat(50, 1)]
)
@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_constant_features_have_no_gaussian_and_no_residual(features: Tensor, factor: float) -> None:
    with pytest.raises(EmptyDataError, match=r"^the directions of the features do not vary$"):
        ClassGaussian.from_moments(summed(features * factor))
    with pytest.raises(EmptyDataError, match=r"^all features lie in the principal subspace of 3 dimensions$"):
        space_of(features * factor)


def test_features_of_one_direction_have_no_gaussian() -> None:
    with pytest.raises(EmptyDataError, match="do not vary"):
        ClassGaussian.from_moments(summed(TRAINING[:1] * torch.arange(1, 41).double()[:, None]))


def test_features_of_low_rank_have_a_gaussian_and_no_residual() -> None:
    flat = normal(200, 2, seed=3) @ normal(2, WIDTH, seed=4)
    gaussian = ClassGaussian.from_moments(summed(flat), is_relative=True)
    assert bool(mahalanobis_score(flat, gaussian).isfinite().all())
    assert bool(relative_mahalanobis_score(flat, gaussian).isfinite().all())
    assert mahalanobis_score(FRESH, gaussian).min() > mahalanobis_score(flat, gaussian).median()
    with pytest.raises(EmptyDataError, match="all features lie in the principal subspace"):
        space_of(flat)
    assert space_of(normal(200, 4, seed=3) @ normal(4, WIDTH, seed=4)).alpha > 0


def test_a_residual_without_rows_is_refused() -> None:
    with pytest.raises(EmptyDataError, match="all features lie in the principal subspace of 3 dimensions"):
        PrincipalSpace.from_moments(
            summed(TRAINING), weight=WEIGHT, bias=None, features=TRAINING[:0], logits=TRAINING[:0] @ WEIGHT.T
        )


def test_classes_without_a_sample_have_no_mean() -> None:
    weight = torch.cat([WEIGHT, torch.zeros(3, WIDTH).double() - 0.0])
    moments = FeatureMoments.zeros(classes=7, features=WIDTH).add_(TRAINING, (TRAINING @ WEIGHT.T).argmax(1))
    gaussian = ClassGaussian.from_moments(moments)
    assert len(gaussian.means) == CLASSES < len(weight)
    expected = ClassGaussian.from_moments(summed(TRAINING))
    torch.testing.assert_close(gaussian.means, expected.means, rtol=1e-12, atol=1e-12)
    assert gaussian.background is None


def test_the_relative_distance_needs_a_background() -> None:
    gaussian = ClassGaussian.from_moments(summed(TRAINING))
    with pytest.raises(OptionError, match="hold no background: build them with `is_relative=True`"):
        relative_mahalanobis_score(FRESH, gaussian)


def test_the_parts_are_float64_whatever_the_features() -> None:
    gaussian = ClassGaussian.from_moments(summed(TRAINING.half()), is_relative=True)
    space = PrincipalSpace.from_moments(
        summed(TRAINING.half()),
        weight=WEIGHT.float(),
        bias=torch.ones(CLASSES),
        features=TRAINING.float(),
        logits=TRAINING.float() @ WEIGHT.float().T,
    )
    assert gaussian.background is not None
    for tensor in (gaussian.center, gaussian.whitening, gaussian.means, gaussian.background, space.origin, space.basis):
        assert tensor.dtype == torch.float64


def test_at_the_origin_all_logits_are_equal() -> None:
    bias = normal(CLASSES, seed=5)
    space = PrincipalSpace.from_moments(
        summed(TRAINING), weight=WEIGHT, bias=bias, features=TRAINING, logits=TRAINING @ WEIGHT.T + bias
    )
    torch.testing.assert_close(WEIGHT @ space.origin + bias, torch.zeros(CLASSES).double(), rtol=0, atol=1e-12)


def test_a_head_whose_rows_are_all_equal_has_no_boundary() -> None:
    head = WEIGHT[:1].repeat(3, 1)
    logits = FRESH @ head.T
    assert not bool(boundary_weights(head).any())
    assert bool(fdbd_score(FRESH, logits, weight=head, mean=TRAINING.mean(0)).isnan().all())
    one_class = fdbd_score(FRESH, logits[:, :1], weight=head[:1], mean=TRAINING.mean(0))
    assert bool(one_class.isnan().all())
    assert bool(nci_score(FRESH, logits, weight=head, mean=TRAINING.mean(0)).isfinite().all())
    assert bool(space_of(TRAINING, weight=head).origin.isfinite().all())


def test_rows_of_the_head_are_told_apart_to_a_millionth_of_their_length() -> None:
    step = torch.tensor([0.0, 1.0])
    apart = torch.stack([torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]) + 2e-6 * step]).double()
    assert boundary_weights(apart)[0, 1].item() == pytest.approx(5e5, rel=1e-3)
    near = torch.stack([torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]) + 1e-6 * step]).double()
    assert not bool(boundary_weights(near).any())


@pytest.mark.parametrize("factor", [1e-18, 1.0, 1e18])
def test_boundary_weights_keep_their_dtype_and_scale(factor: float) -> None:
    found = boundary_weights(WEIGHT.float() * factor)
    assert found.dtype == torch.float32
    expected = boundary_weights(WEIGHT) / factor
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_what_is_divided_by_zero_is_nan_or_infinite_and_leaves_other_rows_alone() -> None:
    mean = TRAINING.mean(0)
    features = torch.cat([mean[None], torch.zeros(1, WIDTH), FRESH])
    logits = features @ WEIGHT.T
    for score in (fdbd_score, nci_score):
        found = score(features, logits, weight=WEIGHT, mean=mean)
        assert not math.isfinite(found[0].item())
        torch.testing.assert_close(
            found[2:], score(FRESH, FRESH @ WEIGHT.T, weight=WEIGHT, mean=mean), rtol=1e-12, atol=0
        )
    assert nci_score(features, logits, weight=WEIGHT, mean=mean)[0].isnan()
    norms = norm_score(features, typical=2.0)
    assert norms[1].item() == math.inf
    assert norms[2:].equal(norm_score(FRESH, typical=2.0))


def test_a_row_of_zeros_has_the_direction_zero() -> None:
    features = torch.cat([torch.zeros(1, WIDTH), FRESH])
    assert directions(features)[0].tolist() == [0.0] * WIDTH
    assert directions(FRESH[:0]).shape == (0, WIDTH)
    gaussian = ClassGaussian.from_moments(summed(torch.cat([torch.zeros(3, WIDTH), TRAINING])))
    assert bool(mahalanobis_score(features, gaussian).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_huge_and_tiny_features_keep_their_directions(factor: float, dtype: torch.dtype) -> None:
    moments, scaled = summed(TRAINING), summed(TRAINING.to(dtype) * factor)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(scaled.class_direction, moments.class_direction, rtol=tolerance, atol=tolerance)
    gaussian = ClassGaussian.from_moments(moments)
    torch.testing.assert_close(
        mahalanobis_score(FRESH * factor, ClassGaussian.from_moments(scaled)),
        mahalanobis_score(FRESH, gaussian),
        rtol=1e-4,
        atol=1e-4,
    )
    typical = TRAINING.norm(dim=1).median().item()
    expected = norm_score(FRESH, typical=typical)
    found = norm_score(FRESH.to(dtype) * factor, typical=typical * factor)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    assert bool((norm_score(FRESH.to(dtype) * factor, typical=typical) > 1e29).all())

    scaled_space = space_of(TRAINING * factor)
    assert scaled_space.alpha == pytest.approx(space_of(TRAINING).alpha, rel=1e-9)
    huge = FRESH.to(dtype) * factor
    space = PrincipalSpace(scaled_space.origin.to(dtype), scaled_space.basis.to(dtype), scaled_space.alpha)
    assert not bool(vim_score(huge, huge @ WEIGHT.to(dtype).T, space).isnan().any())


def test_a_guard_of_infinite_features_is_not_finite() -> None:
    features = torch.tensor([[math.inf, 1.0], [math.nan, 1.0], [3.0, 4.0]])
    assert norm_score(features, typical=5.0).isfinite().tolist() == [False, False, True]


def test_no_row_has_no_score() -> None:
    none, gaussian, space = FRESH[:0], ClassGaussian.from_moments(summed(TRAINING)), space_of(TRAINING)
    logits, mean = none @ WEIGHT.T, TRAINING.mean(0)
    for found in (
        fdbd_score(none, logits, weight=WEIGHT, mean=mean),
        nci_score(none, logits, weight=WEIGHT, mean=mean),
        mahalanobis_score(none, gaussian),
        vim_score(none, logits, space),
        norm_score(none, typical=1.0),
    ):
        assert tuple(found.shape) == (0,)
    assert summed(none).count == 0


def test_more_ood_has_the_larger_score() -> None:
    """Features on a class mean, and features of the opposite direction."""
    middle = 6 * WEIGHT[:1] / WEIGHT[:1].norm()
    training = middle + 0.3 * normal(300, WIDTH, seed=6)
    moments, mean = summed(training), torch.zeros(WIDTH).double()
    inside, outside = middle + 0.01, middle.roll(1, 1) * torch.tensor([1.0, -1] * 3)
    rows = torch.cat([inside, outside])
    logits = rows @ WEIGHT.T
    gaussian, space = ClassGaussian.from_moments(moments), space_of(training)
    for found in (
        fdbd_score(rows, logits, weight=WEIGHT, mean=mean),
        nci_score(rows, logits, weight=WEIGHT, mean=mean),
        mahalanobis_score(rows, gaussian),
        vim_score(rows, logits, space),
        norm_score(rows * torch.tensor([[1.0], [4.0]]), typical=6.0),
    ):
        assert found[0] < found[1]


def test_a_sample_of_rows_keeps_to_its_limit() -> None:
    kept = KeptRows.empty(3, features=2)
    assert len(kept) == 0
    assert tuple(kept.smallest(2).shape) == tuple(kept.others(0).shape) == (0, 2)
    assert tuple(kept.add_(torch.zeros(0, 2)).shape) == (0, 2)
    rows = torch.arange(20.0).reshape(10, 2)
    displaced = kept.add_(rows)
    assert (len(kept), len(displaced)) == (3, 7)
    assert kept.smallest(1).tolist() == [rows[row_hashes(rows).argmin()].tolist()]
    again = kept.add_(rows)
    assert (len(kept), len(again)) == (3, 10)
    meta = KeptRows.empty(3, features=2, device="meta")
    assert meta.rows.device.type == meta.hashes.device.type == "meta"


@pytest.mark.parametrize("of_sample", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_rows_that_are_not_kept_have_the_dtype_they_came_in(
    of_sample: torch.dtype, dtype: torch.dtype, expected: torch.dtype
) -> None:
    kept, rows = KeptRows.empty(3, features=2, dtype=of_sample), normal(30, 2).to(dtype).requires_grad_()
    passed = [kept.add_(part) for part in rows.split(5)]
    assert {part.dtype for part in passed} == {expected}
    assert not any(part.requires_grad for part in passed)
    assert kept.rows.dtype == of_sample
    assert KeptRows.empty(3, features=2).rows.dtype == torch.float32
    together = torch.cat([*passed, kept.smallest(3).to(expected)]).double()
    tolerance = 0.0 if of_sample == torch.float64 else 1e-7
    torch.testing.assert_close(
        together.sort(0).values, rows.detach().double().sort(0).values, rtol=tolerance, atol=tolerance
    )


def test_rows_equal_to_the_last_kept_do_not_enter() -> None:
    kept, row = KeptRows.empty(2, features=2), torch.tensor([[1.0, 2.0]])
    assert len(kept.add_(row.repeat(2, 1))) == 0
    assert len(kept.add_(row)) == 1


def test_rows_that_differ_in_place_or_in_a_bit_have_different_hashes() -> None:
    rows = torch.eye(50).repeat(2, 1)
    rows[50:] *= 1 + torch.finfo(torch.float32).eps
    rows = torch.cat([rows, torch.zeros(1, 50), -torch.eye(50)])
    assert row_hashes(rows).unique().numel() == 151


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.0])
def test_the_energy_of_rows_is_the_energy(temperature: float) -> None:
    logits = 5 * normal(30, CLASSES, seed=7)
    kept = logits.clone()
    assert energy_rows(logits, temperature=temperature).equal(energy_score(logits, temperature=temperature))
    assert logits.equal(kept)
    assert energy_rows(torch.tensor([[math.inf, 0.0], [0.0, -math.inf]])).isnan().tolist() == [True, False]


def test_shaped_rows_are_those_of_each_shaping() -> None:
    features = normal(20, 21, seed=8).abs()
    assert shaped_rows(features, None) is features
    assert shaped_rows(features, ReAct(), threshold=0.7).equal(react(features, threshold=0.7))
    assert shaped_rows(features, SCALE(0.6)).equal(scale(features, quantile=0.6))
    assert shaped_rows(features, ASHS(0.6)).equal(ash_s(features, quantile=0.6))
    assert shaped_rows(features.half(), SCALE(0.6)).dtype == torch.float32
    zeros = torch.zeros(2, 5)
    assert shaped_rows(zeros, SCALE()).equal(zeros)
    assert shaped_rows(zeros, ASHS()).equal(zeros)
    assert shaped_rows(-features, SCALE(0.6)).equal(-features)
    assert not bool(shaped_rows(torch.full((1, 5), 3e38), SCALE()).isfinite().all())
