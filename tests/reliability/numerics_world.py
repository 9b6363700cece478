"""The method over real numbers: every quantity at 50 digits, element by element, and rows of extreme floats to try."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mpmath  # type: ignore[import-untyped]  # it ships no types
import torch
from hypothesis import strategies as st
from torch import Tensor

from opnp.core import ScoreName

EXACT = mpmath.mp.clone()
EXACT.dps = 50

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TEMPERATURES = (0.01, 0.5, 1.0, 3.0, 1000.0, 1e6)

Number = Any
"""A number of mpmath, which has no types."""


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """Mean absolute gradients over real numbers.

    Attributes:
        weight: For each weight, by class and feature.
        gradient: For each neuron.
        aggregate: For each neuron.
        terms: For each neuron, mean of sum_i p_i |W_ij|: what the terms of its gradient are as large as.

    """

    weight: list[list[Number]]
    gradient: list[Number]
    aggregate: list[Number]
    terms: list[Number]


@dataclass(frozen=True, eq=False, slots=True)
class Head:
    """Features and a head to try.

    Attributes:
        features: Shape ``(batch, features)``.
        weight: Shape ``(classes, features)``.
        bias: Shape ``(classes,)``.

    """

    features: Tensor
    weight: Tensor
    bias: Tensor

    def to(self, dtype: torch.dtype) -> "Head":
        """Return the same in another dtype, what overflows in it cut to its largest number."""
        largest = torch.finfo(dtype).max
        return Head(*(part.clamp(-largest, largest).to(dtype) for part in (self.features, self.weight, self.bias)))


def numbers(values: Sequence[float]) -> list[Number]:
    """Return floats as the real numbers that they are."""
    return [EXACT.mpf(value) for value in values]


def exact_logits(features: Tensor, weight: Tensor, bias: Tensor) -> list[list[Number]]:
    """Return W h + b for each row."""
    rows, heads_, offsets = (
        [numbers(row) for row in features.tolist()],
        [numbers(row) for row in weight.tolist()],
        numbers(bias.tolist()),
    )
    return [
        [
            EXACT.fsum(w * h for w, h in zip(of_class, row, strict=True)) + offset
            for of_class, offset in zip(heads_, offsets, strict=True)
        ]
        for row in rows
    ]


def exact_probabilities(logits: Sequence[Number], temperature: float) -> list[Number]:
    """Return softmax(f / T)."""
    largest, scale = max(logits), EXACT.mpf(temperature)
    powers = [EXACT.exp((logit - largest) / scale) for logit in logits]
    whole = EXACT.fsum(powers)
    return [power / whole for power in powers]


def exact_gen_terms(logits: Sequence[Number], temperature: float) -> list[Number]:
    """Return (p (1 - p))^0.1 of the 100 largest probabilities."""
    shares = exact_probabilities(logits, temperature)
    rests = [EXACT.fsum(shares[:place] + shares[place + 1 :]) for place in range(len(shares))]
    largest = sorted(zip(shares, rests, strict=True), reverse=True)[:100]
    return [(share * rest) ** (EXACT.mpf(1) / 10) for share, rest in largest]


def exact_score(logits: Sequence[Number], name: ScoreName, temperature: float) -> Number:
    """Return a score of one row of logits."""
    shares, scale = exact_probabilities(logits, temperature), EXACT.mpf(temperature)
    match name:
        case "energy":
            return -max(logits) + scale * EXACT.log(max(shares))
        case "msp":
            return -max(shares)
        case "max_logit":
            return -max(logits)
        case "entropy":
            # log p from the logits: at 50 digits a share of 1 - 1e-80 is 1.
            rest = EXACT.fsum(sorted(shares)[:-1])
            whole = EXACT.log1p(rest / max(shares))
            return whole - EXACT.fsum(
                share * (logit - max(logits)) / scale for share, logit in zip(shares, logits, strict=True)
            )
        case "gen":
            return EXACT.fsum(exact_gen_terms(logits, temperature))


def exact_sensitivities(features: Tensor, logits: Tensor, weight: Tensor, temperature: float) -> Sensitivities:
    """Return the sensitivities by double loops: means over samples of |dE / dW_ij| and |dE / dh_j|."""
    rows, head = [numbers(row) for row in features.tolist()], [numbers(row) for row in weight.tolist()]
    shares = [exact_probabilities(numbers(row), temperature) for row in logits.tolist()]
    classes, width, count = range(len(head)), range(len(rows[0])), len(rows)

    def mean(values: Sequence[Number]) -> Number:
        return EXACT.fsum(values) / count

    of_weights = [[mean([p[i] * abs(h[j]) for p, h in zip(shares, rows, strict=True)]) for j in width] for i in classes]
    return Sensitivities(
        weight=of_weights,
        gradient=[mean([abs(EXACT.fsum(p[i] * head[i][j] for i in classes)) for p in shares]) for j in width],
        aggregate=[EXACT.fsum(of_weights[i][j] for i in classes) / len(head) for j in width],
        terms=[mean([EXACT.fsum(p[i] * abs(head[i][j]) for i in classes) for p in shares]) for j in width],
    )


def relative_error(found: float, exact: Number) -> float:
    """Return how far a number is from the exact one, relative to that; 0 if they are equal, infinite for NaN."""
    if not math.isfinite(found):
        return math.inf
    difference = abs(EXACT.mpf(found) - exact)
    return 0.0 if difference == 0 else float(difference / abs(exact)) if exact else math.inf


def extreme_floats(*, lowest: int = -38, highest: int = 38) -> st.SearchStrategy[float]:
    """Floats of any magnitude between powers of ten, with zeros of both signs, and what float32 calls denormal."""
    magnitudes = st.builds(
        lambda mantissa, exponent, sign: sign * mantissa * 10.0**exponent,
        st.floats(1.0, 9.875, width=32),
        st.integers(lowest, highest - 1),
        st.sampled_from([-1.0, 1.0]),
    )
    special = [0.0, -0.0, 1.0, -1.0, 1e4, -1e4, 65504.0, 70000.0, 1e-30, 1e30, 1e-45, 1e-40]
    return magnitudes | st.sampled_from([value for value in special if abs(value) <= 10.0**highest])


@st.composite
def extreme_rows(draw: st.DrawFn, *, rows: int, width: int, highest: int = 38) -> Tensor:
    """A float64 matrix of extreme floats, of one magnitude or of all, with ties."""
    floats = extreme_floats(highest=highest)
    if draw(st.booleans()):
        floats |= st.sampled_from(draw(st.lists(floats, min_size=1, max_size=2)))
    if draw(st.booleans()):
        size = draw(st.sampled_from([1e-30, 1.0, 30.0, 1e4]))
        floats = st.floats(-1.0, 1.0, width=32).map(lambda value: size * value)
    entries = draw(st.lists(floats, min_size=rows * width, max_size=rows * width))
    return torch.tensor(entries, dtype=torch.float64).view(rows, width)


def heads() -> dict[str, Head]:
    """Features and heads that hurt, by what they are; float64, 24 samples, 4 classes, 6 features."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features, weight, bias = normal(24, 6).relu() + 0.01, normal(4, 6), normal(4)
    large, both, dead, copies, column = (features.clone() for _ in range(5))
    both[:, ::2] *= 1e-30
    both[:, 1::2] *= 1e30
    dead[:, [1, 4]] = 0.0
    copies[:, 3:] = copies[:, :3]
    copied = weight.clone()
    copied[:, 3:] = copied[:, :3]
    constant = weight.clone()
    constant[:, 2] = 0.5
    sparse = weight.masked_fill(torch.rand(weight.shape, generator=generator) < 0.5, 0.0)
    centred = weight - weight.mean(0)
    negative_zero = dead.clone()
    negative_zero[:, 1] = -0.0
    found = {
        "plain": (features, weight, bias),
        "logits of 1e4": (features * 1e4, weight, bias),
        "logits of -1e4": (features, weight, bias - 1e4),
        "features of 1e-30": (features * 1e-30, weight, bias * 0.1),
        "features of 1e30": (features * 1e30, weight, bias),
        "features of 1e-30 beside 1e30": (both, weight, bias),
        "features of 1e-30 beside 1e30 that speak alike": (both, weight * torch.tensor([1e30, 1e-30] * 3), bias),
        "logits above 65504": (large * 3e4, weight * 10, bias),
        "denormal features": (features * 1e-40, weight, bias * 0.1),
        "features of zero": (features * 0.0, weight, bias),
        "features and bias of zero": (features * 0.0, weight, bias * 0.0),
        "one class that dominates": (features, weight, bias + torch.tensor([200.0, 0.0, 0.0, 0.0])),
        "huge bias": (features, weight, bias + torch.tensor([1e4, 0.0, -1e4, 1e4])),
        "dead features": (dead, weight, bias),
        "dead features of either sign": (negative_zero, weight, bias),
        "copies": (copies, copied, bias),
        "a constant column": (column, constant, bias),
        "weights of zero": (features, sparse, bias),
        "no weights": (features, weight * 0.0, bias),
        "columns that sum to zero": (features * 1e-6, centred, bias * 0.0),
        "small weights": (features, weight * 1e-30, bias * 0.1),
        "samples alike": (features[:1].expand(24, 6).contiguous(), weight, bias),
    }
    return {name: Head(*parts) for name, parts in found.items()}
