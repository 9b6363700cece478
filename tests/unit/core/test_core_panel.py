"""The panel: its parts by name, its members in order, its precision, and its graph as an exported program."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from opnp.core import MEMBERS, PANEL, Panel, fused_score, member_scores, tail_scales, tail_units
from opnp.core import members as panel_module
from opnp.core.members import PRUNED_HEAD, REACT_QUANTILE, ClassGaussian, PrincipalSpace, boundary_weights
from opnp.core.moments import FeatureMoments

CLASSES, WIDTH = 5, 20


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(*, has_bias: bool = True, is_relative: bool = True, is_bare: bool = False) -> Panel:
    weight, training = normal(CLASSES, WIDTH, seed=0), normal(300, WIDTH, seed=1).clamp_min(0)
    bias = normal(CLASSES, seed=2) if has_bias else None
    logits = nn.functional.linear(training, weight, bias)
    moments = FeatureMoments.zeros(classes=CLASSES, features=WIDTH).add_(training, logits.argmax(1))
    space = PrincipalSpace.from_moments(moments, weight=weight, bias=bias, features=training, logits=logits)
    return Panel(
        weight=weight,
        bias=bias,
        pruned_weight=torch.where(weight.abs() < 0.3, 0.0, weight),
        mean=training.mean(0),
        react_threshold=float(training.quantile(REACT_QUANTILE)),
        typical_norm=float(training.norm(dim=1).median()),
        gaussian=None if is_bare else ClassGaussian.from_moments(moments, is_relative=is_relative),
        space=None if is_bare else space,
    )


FRESH = normal(40, WIDTH, seed=3).clamp_min(0)
PANELS: dict[str, Callable[[], Panel]] = {
    "all": lambda: drawn().with_boundaries(),
    "no boundaries": drawn,
    "no bias": lambda: drawn(has_bias=False),
    "no background": lambda: drawn(is_relative=False),
    "bare": lambda: drawn(is_bare=True),
}
each_panel = pytest.mark.parametrize("panel", [make() for make in PANELS.values()], ids=PANELS)


def test_the_default_panel_is_of_members() -> None:
    assert PANEL == ("gen", "react", "fdbd", "mahalanobis", "vim", "opnp", "norm")
    assert PRUNED_HEAD in PANEL
    assert set(PANEL) <= set(MEMBERS)
    assert len(set(MEMBERS)) == len(MEMBERS)
    assert REACT_QUANTILE == 0.95


@each_panel
def test_a_panel_comes_back_from_its_parts(panel: Panel) -> None:
    tensors, numbers = panel.tensors(), panel.numbers()
    again = Panel.from_parts(tensors, numbers)
    assert again.numbers() == numbers
    assert list(again.tensors()) == list(tensors)
    assert all(tensor is tensors[name] for name, tensor in again.tensors().items())
    for name in ("bias", "gaussian", "space", "boundaries"):
        assert (getattr(again, name) is None) == (getattr(panel, name) is None)
    names = [name for name in MEMBERS if can_score(panel, name)]
    assert member_scores(FRESH, again, names).equal(member_scores(FRESH, panel, names))


def can_score(panel: Panel, name: str) -> bool:
    if name == "relative_mahalanobis":
        return panel.gaussian is not None and panel.gaussian.background is not None
    return {"mahalanobis": panel.gaussian, "vim": panel.space}.get(name, panel) is not None


def test_parts_are_named_after_their_places() -> None:
    assert set(PANELS["all"]().tensors()) == {
        "weight",
        "bias",
        "pruned_weight",
        "mean",
        "boundaries",
        "gaussian.center",
        "gaussian.whitening",
        "gaussian.means",
        "gaussian.background",
        "space.origin",
        "space.basis",
    }
    assert set(drawn(is_bare=True, has_bias=False).tensors()) == {"weight", "pruned_weight", "mean"}
    assert set(drawn().numbers()) == {"react_threshold", "typical_norm", "alpha"}
    assert set(drawn(is_bare=True).numbers()) == {"react_threshold", "typical_norm"}


@pytest.mark.parametrize("missing", ["weight", "pruned_weight", "mean", "gaussian.means", "space.origin", "alpha"])
def test_a_missing_part_is_a_key_error(missing: str) -> None:
    panel = drawn()
    tensors = {name: tensor for name, tensor in panel.tensors().items() if name != missing}
    numbers = {name: number for name, number in panel.numbers().items() if name != missing}
    with pytest.raises(KeyError, match=missing):
        Panel.from_parts(tensors, numbers)


@each_panel
def test_every_tensor_is_mapped(panel: Panel) -> None:
    mapped = panel.mapped(lambda tensor: tensor.float())
    assert {tensor.dtype for tensor in panel.tensors().values()} == {torch.float64}
    assert {tensor.dtype for tensor in mapped.tensors().values()} == {torch.float32}
    assert list(mapped.tensors()) == list(panel.tensors())
    assert mapped.numbers() == panel.numbers()


def test_boundaries_held_give_the_scores_of_boundaries_computed() -> None:
    panel = drawn()
    held = panel.with_boundaries()
    assert panel.boundaries is None
    assert held.boundaries is not None
    assert held.boundaries.equal(boundary_weights(panel.weight))
    found, expected = (member_scores(FRESH, each, ["fdbd"]) for each in (held, panel))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_boundaries_of_too_many_classes_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    assert panel_module._MOST_CLASSES == 2048
    panel = drawn()
    monkeypatch.setattr(panel_module, "_MOST_CLASSES", CLASSES - 1)
    assert panel.with_boundaries() is panel
    monkeypatch.setattr(panel_module, "_MOST_CLASSES", CLASSES)
    assert panel.with_boundaries().boundaries is not None


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_member_gives_one_finite_score_a_row(name: str, dtype: torch.dtype) -> None:
    panel = drawn().mapped(lambda tensor: tensor.to(dtype))
    found = member_scores(FRESH.to(dtype), panel, [name])
    assert tuple(found.shape) == (40, 1)
    assert found.dtype == dtype
    assert bool(found.isfinite().all())
    expected = member_scores(FRESH, drawn(), [name])
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    for rows in (0, 1):
        assert tuple(member_scores(FRESH[:rows].to(dtype), panel, [name]).shape) == (rows, 1)


@pytest.mark.parametrize("members", [PANEL, MEMBERS, MEMBERS[::-1], ("norm", "gen", "norm")])
def test_members_stand_in_the_order_asked(members: tuple[str, ...]) -> None:
    panel = drawn().with_boundaries()
    found = member_scores(FRESH, panel, members)
    assert tuple(found.shape) == (40, len(members))
    for place, name in enumerate(members):
        assert found[:, place].equal(member_scores(FRESH, panel, [name])[:, 0])


def test_the_features_are_left_as_they_are() -> None:
    features = FRESH.clone()
    member_scores(features, drawn(), MEMBERS)
    assert features.equal(FRESH)


def test_members_that_are_unknown_or_lack_a_part_are_key_errors() -> None:
    panel = drawn(is_bare=True)
    for name, message in {
        "odin": "odin",
        "mahalanobis": "gaussian",
        "relative_mahalanobis": "gaussian",
        "vim": "space",
    }.items():
        with pytest.raises(KeyError, match=message):
            member_scores(FRESH, panel, ["gen", name])


def test_pruning_and_shaping_tell_members_apart() -> None:
    scores = member_scores(FRESH, drawn(), MEMBERS)
    for one in range(len(MEMBERS)):
        for other in range(one):
            assert not scores[:, one].equal(scores[:, other]), (MEMBERS[one], MEMBERS[other])
    panel = drawn()
    assert panel.logits(FRESH).equal(nn.functional.linear(FRESH, panel.weight, panel.bias))
    assert panel.pruned_logits(FRESH).equal(nn.functional.linear(FRESH, panel.pruned_weight, panel.bias))


class Fusion(nn.Module):
    """What an exported program holds."""

    def __init__(self, panel: Panel, members: tuple[str, ...], scales: Tensor) -> None:
        super().__init__()
        self.names, self.numbers, self.members = list(panel.tensors()), panel.numbers(), members
        for place, tensor in enumerate(panel.tensors().values()):
            self.register_buffer(f"part_{place}", tensor)
        self.register_buffer("scales", scales)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        parts = {name: self.get_buffer(f"part_{place}") for place, name in enumerate(self.names)}
        panel = Panel.from_parts(parts, self.numbers)
        scores = member_scores(features, panel, self.members)
        return scores, fused_score(tail_units(scores, self.get_buffer("scales")))


@pytest.mark.parametrize(("members", "is_held"), [(PANEL, True), (MEMBERS, False)])
def test_the_fusion_is_one_graph_for_any_batch(members: tuple[str, ...], is_held: bool) -> None:
    panel = drawn().with_boundaries() if is_held else drawn()
    module = Fusion(panel, members, tail_scales(member_scores(normal(90, WIDTH, seed=4).clamp_min(0), panel, members)))
    axes = {"features": {0: torch.export.Dim("batch", min=1, max=4096)}}
    program = torch.export.export(module, (FRESH[:3],), dynamic_shapes=axes, strict=False).module()
    for rows in (1, 2, 40):
        for found, expected in zip(program(FRESH[:rows]), module(FRESH[:rows]), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    zeros = torch.zeros(2, WIDTH, dtype=torch.float64)
    assert bool(program(zeros)[1].isposinf().all())
    assert bool(module(zeros)[1].isposinf().all())
