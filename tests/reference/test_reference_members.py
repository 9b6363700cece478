"""Members of the fusion, the sums they need and the fused score against loops, explicit inverses and Python numbers."""

import math
import struct
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from opnp.core import MEMBERS, Panel, fused_score, member_scores, member_shares, tail_scales, tail_units
from opnp.core.kept_rows import KeptRows, row_hashes
from opnp.core.members import (
    ClassGaussian,
    PrincipalSpace,
    boundary_weights,
)
from opnp.core.moments import FeatureMoments
from tests.reference.test_reference_scores import loop_energy, loop_gen
from tests.reference.test_reference_shaping import loop_ash_s, loop_react, loop_scale

WORD, GOLDEN = 1 << 64, 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class World:
    """A head, training features and features to score, all float64."""

    weight: Tensor
    bias: Tensor | None
    training: Tensor
    fresh: Tensor

    def logits(self, features: Tensor) -> Tensor:
        products = features @ self.weight.T
        return products if self.bias is None else products + self.bias

    @property
    def predicted(self) -> list[int]:
        return self.logits(self.training).argmax(1).tolist()

    @property
    def moments(self) -> FeatureMoments:
        classes, features = self.weight.shape
        empty = FeatureMoments.zeros(classes=classes, features=features)
        return empty.add_(self.training, torch.tensor(self.predicted))

    @property
    def mean(self) -> Tensor:
        return self.training.mean(0)


def drawn(
    seed: int,
    *,
    classes: int,
    width: int,
    samples: int,
    has_bias: bool = True,
    is_signed: bool = True,
    is_odd: str = "",
) -> World:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight, bias = normal(classes, width), normal(classes)
    training, fresh = normal(samples, width) + 0.3, 2 * normal(6, width)
    if not is_signed:
        training, fresh = training.clamp_min(0), fresh.clamp_min(0)
    if is_odd == "double rows":
        weight[-1], weight[1] = weight[0], weight[0]
    if is_odd == "class without a sample":
        weight[2], bias[2] = 0, -100
    return World(weight, bias if has_bias else None, training, fresh)


WORLDS = {
    "more features than classes": drawn(0, classes=4, width=9, samples=60),
    "more classes than features": drawn(1, classes=11, width=5, samples=60),
    "as many": drawn(2, classes=6, width=6, samples=60),
    "no bias": drawn(3, classes=4, width=9, samples=60, has_bias=False),
    "no bias, more classes": drawn(4, classes=11, width=5, samples=60, has_bias=False),
    "features of a ReLU": drawn(5, classes=4, width=9, samples=60, is_signed=False),
    "double rows": drawn(6, classes=5, width=8, samples=50, is_odd="double rows"),
    "double rows, more classes": drawn(7, classes=11, width=5, samples=60, is_odd="double rows"),
    "class without a sample": drawn(8, classes=4, width=7, samples=60, is_odd="class without a sample"),
    "few samples": drawn(9, classes=3, width=9, samples=4),
    "just many samples": drawn(10, classes=3, width=5, samples=100),
    "nearly many samples": drawn(11, classes=3, width=5, samples=99),
    "two classes, two features": drawn(12, classes=2, width=2, samples=30),
}
each_world = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


def close(found: Tensor, expected: Tensor | list[float], *, absolute: float = 1e-12) -> None:
    wanted = expected if isinstance(expected, Tensor) else torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=absolute)


def direction(row: Tensor) -> Tensor:
    length = math.sqrt(math.fsum(value * value for value in row.tolist()))
    return row / length if length > 0 else row


def first_largest(row: Tensor) -> int:
    values = row.tolist()
    return values.index(max(values))


def loop_fdbd(row: Tensor, logits: Tensor, weight: Tensor, mean: Tensor) -> float:
    predicted, distances = first_largest(logits), []
    for rival in range(len(weight)):
        apart = math.dist(weight[predicted].tolist(), weight[rival].tolist())
        if apart > 0:
            distances.append(float(logits[predicted] - logits[rival]) / apart)
    return -math.fsum(distances) / len(distances) / math.dist(row.tolist(), mean.tolist())


def loop_nci(row: Tensor, logits: Tensor, weight: Tensor, mean: Tensor) -> float:
    centred = [value - middle for value, middle in zip(row.tolist(), mean.tolist(), strict=True)]
    along = math.fsum(w * value for w, value in zip(weight[first_largest(logits)].tolist(), centred, strict=True))
    return -along / math.hypot(*centred)


def loop_norm(row: Tensor, typical: float) -> float:
    ratio = math.hypot(*row.tolist()) / typical
    return max(ratio, 1 / ratio)


def shrunk(covariance: Tensor, samples: int) -> Tensor:
    width = len(covariance)
    share = 0.01 if samples >= 20 * width else min(1.0, width / (2 * samples))
    return (1 - share) * covariance + share * covariance.diagonal().mean() * torch.eye(width, dtype=torch.float64)


def loop_gaussian(world: World) -> tuple[Tensor, dict[int, Tensor], Tensor, Tensor]:
    """The mean of all directions, the shrunk means of classes, and the two inverse covariances."""
    rows = [direction(row) for row in world.training]
    center = torch.stack(rows).mean(0)
    means = {}
    for label in set(world.predicted):
        mine = [row for row, of in zip(rows, world.predicted, strict=True) if of == label]
        means[label] = (2 * center + sum(mine, torch.zeros_like(center))) / (2 + len(mine))
    within, whole = torch.zeros(len(center), len(center)).double(), torch.zeros(len(center), len(center)).double()
    for row, label in zip(rows, world.predicted, strict=True):
        within += torch.outer(row - means[label], row - means[label]) / len(rows)
        whole += torch.outer(row - center, row - center) / len(rows)
    inverses = [torch.linalg.inv(shrunk(covariance, len(rows))) for covariance in (within, whole)]
    return center, means, inverses[0], inverses[1]


def loop_mahalanobis(row: Tensor, means: dict[int, Tensor], inverse: Tensor) -> float:
    away = [direction(row) - mean for mean in means.values()]
    return min(float(one @ inverse @ one) for one in away)


def loop_space(world: World, held_out: Tensor) -> tuple[Tensor, Tensor, float]:
    """Origin, the projector on what is left outside the principal subspace, and alpha."""
    width = world.training.shape[1]
    bias = np.zeros(len(world.weight)) if world.bias is None else world.bias.numpy()
    origin = torch.from_numpy(-np.linalg.pinv(world.weight.numpy()) @ bias)
    around = torch.zeros(width, width, dtype=torch.float64)
    for row in world.training:
        around += torch.outer(row - origin, row - origin) / len(world.training)
    values, vectors = np.linalg.eigh(around.numpy())
    smallest = np.argsort(values)[: width - min(100, width // 2)]
    outside = torch.from_numpy(vectors[:, smallest] @ vectors[:, smallest].T)
    residuals = [math.hypot(*(outside @ (row - origin)).tolist()) for row in held_out]
    largest = [max(row.tolist()) for row in world.logits(held_out)]
    return origin, outside, abs(math.fsum(largest)) / math.fsum(residuals)


def loop_vim(row: Tensor, logits: Tensor, space: tuple[Tensor, Tensor, float]) -> float:
    origin, outside, alpha = space
    return alpha * math.hypot(*(outside @ (row - origin)).tolist()) + loop_energy(logits.tolist())


def mixed(value: int) -> int:
    """The finaliser of splitmix64."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % WORD
    return value ^ (value >> 31)


def loop_hash(row: list[float], copies: int = 0) -> int:
    total = 0xBF58476D1CE4E5B9
    for place, value in enumerate(row, start=1):
        factor = mixed(place * GOLDEN % WORD) | 1
        total += struct.unpack("<i", struct.pack("<f", value + 0.0))[0] * factor
    return mixed((mixed(total % WORD) + copies * GOLDEN) % WORD) % (1 << 62)


def loop_hashes(rows: list[list[float]]) -> list[int]:
    seen: dict[tuple[float, ...], int] = {}
    found = []
    for row in rows:
        key = tuple(struct.unpack("<f", struct.pack("<f", value + 0.0))[0] + 0.0 for value in row)
        found.append(loop_hash(row, seen.get(key, 0)))
        seen[key] = seen.get(key, 0) + 1
    return found


@each_world
def test_moments_are_sums_over_rows(world: World) -> None:
    classes, width = world.weight.shape
    product, products_of_directions = torch.zeros(width, width).double(), torch.zeros(width, width).double()
    by_class = torch.zeros(classes, width, dtype=torch.float64)
    for row, label in zip(world.training, world.predicted, strict=True):
        z = direction(row)
        product += torch.outer(row, row)
        products_of_directions += torch.outer(z, z)
        by_class[label] += z
    moments = world.moments
    assert moments.product is not None
    assert moments.direction_product is not None
    assert moments.count == len(world.training)
    close(moments.feature, [math.fsum(column) for column in world.training.T.tolist()])
    close(moments.product, product)
    close(moments.direction_product, products_of_directions)
    close(moments.class_direction, by_class)
    assert moments.class_count.tolist() == [world.predicted.count(label) for label in range(classes)]


@each_world
def test_boundary_weights_are_one_over_distances(world: World) -> None:
    rows = world.weight.tolist()
    distances = [[math.dist(one, other) for other in rows] for one in rows]
    expected = [[1 / apart if apart > 0 else 0.0 for apart in row] for row in distances]
    close(boundary_weights(world.weight), torch.tensor(expected, dtype=torch.float64))
    labels = torch.tensor([1, 0, 1])
    close(boundary_weights(world.weight, labels), boundary_weights(world.weight)[labels])


@each_world
def test_gaussians(world: World) -> None:
    gaussian = ClassGaussian.from_moments(world.moments, is_relative=True)
    center, means, inverse, background = loop_gaussian(world)
    assert gaussian.background is not None
    close(gaussian.center, center)
    close(torch.linalg.inv(gaussian.whitening @ gaussian.whitening.T), torch.linalg.inv(inverse), absolute=1e-10)
    close(gaussian.background @ gaussian.background.T, background, absolute=1e-8)
    assert len(gaussian.means) == len(means)


@each_world
def test_principal_spaces(world: World) -> None:
    held_out = world.fresh[:4] + 0.1
    space = PrincipalSpace.from_moments(
        world.moments, weight=world.weight, bias=world.bias, features=held_out, logits=world.logits(held_out)
    )
    origin, outside, alpha = loop_space(world, held_out)
    width = len(origin)
    close(space.origin, origin, absolute=1e-9)
    close(torch.eye(width, dtype=torch.float64) - space.basis @ space.basis.T, outside, absolute=1e-9)
    assert space.alpha == pytest.approx(alpha, rel=1e-8)


@each_world
def test_every_member_of_the_panel(world: World) -> None:
    held_out, fresh, mean = world.fresh[:4] + 0.1, world.fresh, world.mean
    pruned = torch.where(world.weight.abs() < 0.2, 0.0, world.weight)
    panel = Panel(
        weight=world.weight,
        bias=world.bias,
        pruned_weight=pruned,
        mean=mean,
        react_threshold=0.8,
        typical_norm=3.0,
        gaussian=ClassGaussian.from_moments(world.moments, is_relative=True),
        space=PrincipalSpace.from_moments(
            world.moments, weight=world.weight, bias=world.bias, features=held_out, logits=world.logits(held_out)
        ),
    )
    center, means, inverse, background = loop_gaussian(world)
    space = loop_space(world, held_out)
    pruned_world = World(pruned, world.bias, world.training, fresh)

    def expected(name: str, row: Tensor) -> float:
        logits, z = world.logits(row), direction(row) - center
        distance = loop_mahalanobis(row, means, inverse)
        values = row.tolist()
        of_react, of_scale, of_ash_s = map(
            row.new_tensor, (loop_react(values, 0.8), loop_scale(values, 0.85), loop_ash_s(values, 0.9))
        )
        return {
            "gen": lambda: loop_gen(logits.tolist()),
            "energy": lambda: loop_energy(logits.tolist()),
            "react": lambda: loop_energy(world.logits(of_react).tolist()),
            "scale": lambda: loop_energy(world.logits(of_scale).tolist()),
            "ash_s": lambda: loop_energy(world.logits(of_ash_s).tolist()),
            "fdbd": lambda: loop_fdbd(row, logits, world.weight, mean),
            "nci": lambda: loop_nci(row, logits, world.weight, mean),
            "mahalanobis": lambda: distance,
            "relative_mahalanobis": lambda: distance - float(z @ background @ z),
            "vim": lambda: loop_vim(row, logits, space),
            "opnp": lambda: loop_energy(pruned_world.logits(of_scale).tolist()),
            "opnp_gen": lambda: loop_gen(pruned_world.logits(row).tolist()),
            "norm": lambda: loop_norm(row, 3.0),
        }[name]()

    wanted = torch.tensor([[expected(name, row) for name in MEMBERS] for row in fresh], dtype=torch.float64)
    close(member_scores(fresh, panel, MEMBERS), wanted, absolute=1e-9)
    close(member_scores(fresh, panel.with_boundaries(), MEMBERS), wanted, absolute=1e-9)


def test_row_hashes_are_those_of_pure_python() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1030, 7, generator=generator) * torch.tensor([1e-30, 1, 1e30, 1, 1e-42, 1, 1])
    features[3], features[4] = 0.0, -0.0
    assert row_hashes(features).tolist() == loop_hashes(features.tolist())
    halves = features[:20].clamp(-9, 9)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert row_hashes(halves.to(dtype)).tolist() == loop_hashes(halves.to(dtype).tolist())


def test_kept_rows_are_the_first_by_hash() -> None:
    rows = torch.randn(90, 3, generator=torch.Generator().manual_seed(1))
    kept = KeptRows.empty(17, features=3)
    for part in rows.split(20):
        kept.add_(part)
    expected = sorted(rows.tolist(), key=loop_hash)[:17]
    assert kept.smallest(17).tolist() == expected
    assert kept.smallest(5).tolist() == expected[:5]
    assert kept.others(5).tolist() == expected[5:]


def loop_quantile(values: list[float], level: float) -> float:
    ordered = sorted(value if math.isfinite(value) else math.inf for value in values)
    place = level * (len(ordered) - 1)
    below = math.floor(place)
    return ordered[below] + (place - below) * (ordered[math.ceil(place)] - ordered[below])


@pytest.mark.parametrize("samples", [1, 2, 20, 333])
def test_tail_scales_and_units(samples: int) -> None:
    scores = torch.randn(samples, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 7 - 3
    if samples > 200:
        scores[:3, 1] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    columns = scores.T.tolist()
    expected = [[loop_quantile(column, level) for column in columns] for level in (0.5, 0.95)]
    scales = tail_scales(scores)
    close(scales, torch.tensor(expected, dtype=torch.float64))
    if samples > 1:
        units = [
            [
                (value - middle) / (tail - middle) if math.isfinite(value) else math.inf
                for value, middle, tail in zip(row, *expected, strict=True)
            ]
            for row in scores.tolist()
        ]
        close(tail_units(scores, scales), torch.tensor(units, dtype=torch.float64))


def test_fused_scores_and_shares() -> None:
    units = torch.randn(40, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 4
    expected = [math.log(math.fsum(math.exp(value) for value in row)) for row in units.tolist()]
    close(fused_score(units), expected)
    shares = [[math.exp(value - whole) for value in row] for row, whole in zip(units.tolist(), expected, strict=True)]
    close(member_shares(units), torch.tensor(shares, dtype=torch.float64))


def test_subspaces_of_many_features_have_100_and_256_dimensions() -> None:
    widths = {1: 0, 2: 1, 9: 4, 199: 99, 200: 100, 201: 100, 999: 100, 1000: 256}
    for width, dimension in widths.items():
        world = drawn(13, classes=3, width=width, samples=4)
        space = PrincipalSpace.from_moments(
            world.moments,
            weight=world.weight,
            bias=None,
            features=world.fresh,
            logits=world.fresh @ world.weight.T,
        )
        assert tuple(space.basis.shape) == (width, dimension)
        close(space.basis.T @ space.basis, torch.eye(dimension, dtype=torch.float64))
