"""Members of the fusion and their panel: degenerate features and heads, extreme values and parts."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opnp.core import (
    MEMBERS,
    PANEL,
    ClassGaussian,
    FeatureMoments,
    Panel,
    PrincipalSpace,
    fdbd_score,
    mahalanobis_score,
    member_scores,
    nci_score,
    norm_score,
    relative_mahalanobis_score,
    vim_score,
)
from opnp.core import members as members_module
from opnp.core.members import PANEL_SHAPING, PRUNED_HEAD, REACT_QUANTILE, boundary_weights
from opnp.core.shaping import SCALE
from opnp.errors import EmptyDataError, OptionError

CLASSES, WIDTH = 5, 20


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT, TRAINING = normal(CLASSES, WIDTH, seed=0), normal(300, WIDTH, seed=1).clamp_min(0)
FRESH, MEAN = normal(40, WIDTH, seed=3).clamp_min(0), TRAINING.mean(0)


def summed(features: Tensor, weight: Tensor = WEIGHT) -> FeatureMoments:
    empty = FeatureMoments.zeros(classes=len(weight), features=features.shape[1])
    return empty.add_(features, (features.double() @ weight.T).argmax(1))


def space_of(features: Tensor, weight: Tensor = WEIGHT, bias: Tensor | None = None) -> PrincipalSpace:
    logits = nn.functional.linear(features, weight, bias)
    return PrincipalSpace.from_moments(
        summed(features, weight), weight=weight, bias=bias, features=features, logits=logits
    )


def drawn(*, has_bias: bool = True, is_relative: bool = True, is_bare: bool = False) -> Panel:
    bias = normal(CLASSES, seed=2) if has_bias else None
    return Panel(
        weight=WEIGHT,
        bias=bias,
        pruned_weight=torch.where(WEIGHT.abs() < 0.3, 0.0, WEIGHT),
        mean=MEAN,
        react_threshold=float(TRAINING.quantile(REACT_QUANTILE)),
        typical_norm=float(TRAINING.norm(dim=1).median()),
        gaussian=None if is_bare else ClassGaussian.from_moments(summed(TRAINING), is_relative=is_relative),
        space=None if is_bare else space_of(TRAINING, bias=bias),
    )


# ---------------------------------------------------------------------------------------------- what members need


def test_without_a_sample_there_is_no_gaussian_and_no_subspace() -> None:
    head: Any = {"weight": WEIGHT, "bias": None, "features": TRAINING, "logits": TRAINING @ WEIGHT.T}
    empty = FeatureMoments.zeros(classes=CLASSES, features=WIDTH)
    for ask in (lambda: ClassGaussian.from_moments(empty), lambda: PrincipalSpace.from_moments(empty, **head)):
        with pytest.raises(EmptyDataError, match=r"^no sample was summed$"):
            ask()
    head |= {"features": TRAINING[:0], "logits": TRAINING[:0] @ WEIGHT.T}
    with pytest.raises(EmptyDataError, match="all features lie in the principal subspace of 10 dimensions"):
        PrincipalSpace.from_moments(summed(TRAINING), **head)


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(
    ("features", "is_flat"),
    [
        (torch.zeros(50, WIDTH).double(), True),
        (TRAINING[:1].repeat(50, 1), True),
        (TRAINING[:1] * torch.arange(1, 41).double()[:, None], True),
        (normal(200, 2, seed=3) @ normal(2, WIDTH, seed=4), False),
    ],
    ids=["zeros", "constant", "one direction", "low rank"],
)
def test_features_that_do_not_vary_have_no_gaussian_and_no_residual(
    features: Tensor, is_flat: bool, factor: float
) -> None:
    if is_flat:
        with pytest.raises(EmptyDataError, match=r"^the directions of the features do not vary$"):
            ClassGaussian.from_moments(summed(features * factor))
    else:
        gaussian = ClassGaussian.from_moments(summed(features * factor), is_relative=True)
        assert bool(relative_mahalanobis_score(features, gaussian).isfinite().all())
        assert mahalanobis_score(FRESH, gaussian).min() > mahalanobis_score(features, gaussian).median()
    with pytest.raises(EmptyDataError, match=r"^all features lie in the principal subspace of 10 dimensions$"):
        space_of(features * factor)


def test_classes_without_a_sample_have_no_mean() -> None:
    moments = FeatureMoments.zeros(classes=7, features=WIDTH).add_(TRAINING, (TRAINING @ WEIGHT.T).argmax(1))
    gaussian, expected = ClassGaussian.from_moments(moments), ClassGaussian.from_moments(summed(TRAINING))
    torch.testing.assert_close(gaussian.means, expected.means, rtol=1e-12, atol=1e-12)
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


def test_a_head_whose_rows_are_all_equal_has_no_boundary() -> None:
    head = WEIGHT[:1].repeat(3, 1)
    logits = FRESH @ head.T
    assert not bool(boundary_weights(head).any())
    assert bool(fdbd_score(FRESH, logits, weight=head, mean=MEAN).isnan().all())
    assert bool(fdbd_score(FRESH, logits[:, :1], weight=head[:1], mean=MEAN).isnan().all())
    assert bool(nci_score(FRESH, logits, weight=head, mean=MEAN).isfinite().all())
    assert bool(space_of(TRAINING, weight=head).origin.isfinite().all())


@pytest.mark.parametrize(("step", "weight"), [(2e-6, 5e5), (1e-6, 0.0)])
def test_rows_of_the_head_are_told_apart_to_a_millionth_of_their_length(step: float, weight: float) -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, step]], dtype=torch.float64)
    assert boundary_weights(rows)[0, 1].item() == pytest.approx(weight, rel=1e-3)


# ------------------------------------------------------------------------------------------------- extreme features


@pytest.mark.parametrize("factor", [1e-18, 1.0, 1e18])
def test_boundary_weights_keep_their_dtype_and_scale(factor: float) -> None:
    found = boundary_weights(WEIGHT.float() * factor)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), boundary_weights(WEIGHT) / factor, rtol=1e-5, atol=0)


def test_what_is_divided_by_zero_is_not_finite_and_leaves_other_rows_alone() -> None:
    """The mean itself, a row of zeros, and rows that are not finite."""
    features = torch.cat([MEAN[None], torch.zeros(1, WIDTH), FRESH])
    for score in (fdbd_score, nci_score):
        found = score(features, features @ WEIGHT.T, weight=WEIGHT, mean=MEAN)
        assert not math.isfinite(found[0].item())
        expected = score(FRESH, FRESH @ WEIGHT.T, weight=WEIGHT, mean=MEAN)
        torch.testing.assert_close(found[2:], expected, rtol=1e-12, atol=0)
    assert norm_score(features, typical=2.0)[1].item() == math.inf
    assert norm_score(features, typical=2.0)[2:].equal(norm_score(FRESH, typical=2.0))
    broken = torch.tensor([[math.inf, 1.0], [math.nan, 1.0], [3.0, 4.0]])
    assert norm_score(broken, typical=5.0).isfinite().tolist() == [False, False, True]
    with_zeros = ClassGaussian.from_moments(summed(torch.cat([torch.zeros(3, WIDTH), TRAINING])))
    assert bool(mahalanobis_score(features, with_zeros).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_huge_and_tiny_features_keep_their_directions(factor: float, dtype: torch.dtype) -> None:
    huge, moments, scaled = FRESH.to(dtype) * factor, summed(TRAINING), summed(TRAINING.to(dtype) * factor)
    gaussian, expected = ClassGaussian.from_moments(scaled), ClassGaussian.from_moments(moments)
    found = mahalanobis_score(FRESH * factor, gaussian)
    torch.testing.assert_close(found, mahalanobis_score(FRESH, expected), rtol=1e-4, atol=1e-4)
    norms = norm_score(huge, typical=3.0 * factor)
    torch.testing.assert_close(norms.double(), norm_score(FRESH, typical=3.0), rtol=1e-5, atol=0)
    space = space_of(TRAINING * factor)
    assert space.alpha == pytest.approx(space_of(TRAINING).alpha, rel=1e-9)
    narrow = PrincipalSpace(space.origin.to(dtype), space.basis.to(dtype), space.alpha)
    assert not bool(vim_score(huge, huge @ WEIGHT.to(dtype).T, narrow).isnan().any())


# -------------------------------------------------------------------------------------------------------- the panel

PANELS: dict[str, Callable[[], Panel]] = {
    "all": lambda: drawn().with_boundaries(),
    "no boundaries": drawn,
    "no bias": lambda: drawn(has_bias=False),
    "no background": lambda: drawn(is_relative=False),
    "bare": lambda: drawn(is_bare=True, has_bias=False),
}
LACKING = {"no bias": {"bias"}, "no background": {"gaussian.background"}}
GAUSSIAN = {"gaussian.center", "gaussian.whitening", "gaussian.means", "gaussian.background"}
PARTS = {"weight", "pruned_weight", "mean", "bias", "space.origin", "space.basis"} | GAUSSIAN


def test_the_default_panel_is_of_members() -> None:
    assert PANEL == ("gen", "react", "fdbd", "mahalanobis", "vim", PRUNED_HEAD, "norm")
    assert set(PANEL) <= set(MEMBERS)
    assert ("opnp", 0.95, SCALE(0.85)) == (PRUNED_HEAD, REACT_QUANTILE, PANEL_SHAPING)


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_comes_back_from_its_parts_and_every_tensor_is_mapped(name: str) -> None:
    panel = PANELS[name]()
    tensors, numbers = panel.tensors(), panel.numbers()
    expected = {"weight", "pruned_weight", "mean"} if name == "bare" else PARTS - LACKING.get(name, set())
    assert set(tensors) == expected | ({"boundaries"} if name == "all" else set())
    assert set(numbers) == {"react_threshold", "typical_norm"} | (set() if name == "bare" else {"alpha"})
    again, mapped = Panel.from_parts(tensors, numbers), panel.mapped(lambda tensor: tensor.float())
    assert again.numbers() == mapped.numbers() == numbers
    assert list(again.tensors()) == list(mapped.tensors()) == list(tensors)
    assert all(tensor is tensors[part] for part, tensor in again.tensors().items())
    assert {tensor.dtype for tensor in mapped.tensors().values()} == {torch.float32}


@pytest.mark.parametrize("missing", ["weight", "pruned_weight", "mean", "gaussian.means", "space.origin", "alpha"])
def test_a_missing_part_is_a_key_error(missing: str) -> None:
    tensors, numbers = (
        {name: value for name, value in parts.items() if name != missing}
        for parts in (drawn().tensors(), drawn().numbers())
    )
    with pytest.raises(KeyError, match=missing):
        Panel.from_parts(tensors, numbers)  # type: ignore[arg-type]  # the first is of tensors


def test_boundaries_held_give_the_scores_of_boundaries_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    panel = drawn()
    found, expected = (member_scores(FRESH, each, ["fdbd"]) for each in (panel.with_boundaries(), panel))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert members_module._MOST_CLASSES == 2048
    monkeypatch.setattr(members_module, "_MOST_CLASSES", CLASSES - 1)
    assert panel.with_boundaries() is panel


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_member_gives_one_finite_score_a_row_in_the_order_asked(name: str, dtype: torch.dtype) -> None:
    features, panel = FRESH.to(dtype), drawn().mapped(lambda tensor: tensor.to(dtype))
    found = member_scores(features, panel, [name, "norm"])
    assert found.dtype == dtype
    assert bool(found.isfinite().all())
    every = member_scores(FRESH, drawn(), MEMBERS)
    places = [MEMBERS.index(name), MEMBERS.index("norm")]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found.double(), every[:, places], rtol=tolerance, atol=tolerance)
    assert sum(column.equal(every[:, places[0]]) for column in every.T) == 1  # no two members are one
    for rows in (0, 1):
        assert tuple(member_scores(features[:rows], panel, [name]).shape) == (rows, 1)
    assert features.equal(FRESH.to(dtype))


@pytest.mark.parametrize(
    ("name", "message"),
    [("odin", "odin"), ("mahalanobis", "gaussian"), ("relative_mahalanobis", "gaussian"), ("vim", "space")],
)
def test_members_that_are_unknown_or_lack_a_part_are_key_errors(name: str, message: str) -> None:
    with pytest.raises(KeyError, match=message):
        member_scores(FRESH, drawn(is_bare=True), ["gen", name])
