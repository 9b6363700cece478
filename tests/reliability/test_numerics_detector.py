"""The whole chain on extreme features and heads: right to rounding, and the same numbers from the same data."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp import OPNP, Ratios
from opnp.core import SCORE_NAMES, NeuronReading, Precision, Scope, ScoreName
from opnp.errors import EmptyDataError, NonFiniteError
from tests.reliability.numerics_world import (
    DTYPES,
    EXACT,
    TEMPERATURES,
    Head,
    Sensitivities,
    exact_logits,
    exact_score,
    exact_sensitivities,
    heads,
)
from tests.tried import Tried

RATIOS = Ratios(w_min=0.3, w_max=0.05, o_min=0.2, o_max=0.2)
REMEDIES = r"Look for broken inputs"
QUICK = {
    (torch.float32, 0.01),
    (torch.float32, 1e6),
    (torch.float16, 1.0),
    (torch.bfloat16, 3.0),
    (torch.float64, 0.01),
}


def rounding(dtype: torch.dtype) -> float:
    """Return what sensitivities may be off by, relatively."""
    return 1e-11 if dtype == torch.float64 else 1e-5


def require_mask(kept: Sequence[bool], exact: Sequence[Any], low: float, high: float, slack: float) -> None:
    """Compare a mask with that of the exact values, which may differ at entries as near the cut as rounding alone."""
    order = sorted(range(len(exact)), key=exact.__getitem__)
    bottom, top = round(low * len(order)), round(high * len(order))
    assert kept.count(False) == bottom + top
    cuts = [exact[order[bottom - 1]], exact[order[-top]]]
    removed = {*order[:bottom], *order[len(order) - top :]}
    for place, value in enumerate(exact):
        if (not kept[place]) != (place in removed):
            assert any(abs(value - cut) <= slack * cut for cut in cuts), (place, float(value), [*map(float, cuts)])


def require_masks(detector: OPNP, exact: Sensitivities, slack: float) -> None:
    """Compare the mask of the weights and that of the neurons, in the detector's reading."""
    of_weights = [value for row in exact.weight for value in row]
    require_mask(detector.masks.weight.flatten().tolist(), of_weights, RATIOS.w_min, RATIOS.w_max, slack)
    neurons = exact.aggregate
    if detector.settings.neuron == "gradient":
        neurons = exact.gradient
        if any(value < 1e-4 * terms for value, terms in zip(neurons, exact.terms, strict=True)):
            return  # rounding is much of a sum whose terms cancel
    require_mask(detector.masks.neuron.tolist(), neurons, RATIOS.o_min, RATIOS.o_max, 20 * slack)


def require_answers(detector: OPNP, head: Head) -> None:
    """Compare scores, classes, p-values and verdicts."""
    verdict = detector.verdict_features(head.features)
    unit = torch.finfo(torch.float64 if head.features.dtype == torch.float64 else torch.float32).eps
    pruned = detector.pruned_head.weight.double()
    sizes = (linear(head.features.double().abs(), head.weight.double().abs()) + head.bias.double().abs()).amax(1)
    original = exact_logits(head.features, head.weight, head.bias)
    calibration = detector.calibration_scores.tolist()
    for place, logits in enumerate(exact_logits(head.features, pruned, head.bias)):
        score = float(verdict.score[place])
        exact = exact_score(logits, "energy", detector.settings.temperature)
        constant = detector.settings.temperature * 2 * torch.finfo(verdict.score.dtype).eps
        allowed = 16 * unit * float(sizes[place]) + 4 * constant + 4 * unit * abs(exact)
        assert abs(EXACT.mpf(score) - exact) <= allowed
        chosen = int(verdict.predicted_class[place])
        assert max(original[place]) - original[place][chosen] <= 16 * unit * float(sizes[place])
        rank = 1 + sum(other >= score for other in calibration)
        assert float(verdict.p_value[place]) == rank / (len(calibration) + 1)
        assert bool(verdict.is_ood[place]) is (rank * 20 <= len(calibration) + 1)


def is_held(exact: Sensitivities, temperature: float, dtype: torch.dtype) -> bool:
    """Return whether products of the dtype can hold every sensitivity: float32 between temperatures 0.1 and 1000."""
    least = 1e-36 if dtype != torch.float64 and 0.1 <= temperature <= 1000 else 1e-290
    values = [*(value for row in exact.weight for value in row), *exact.terms]
    return not any(0 < value < least for value in values)


def fitted_or_refused(
    head: Head, temperature: float, precision: Precision, neuron: NeuronReading
) -> OPNP | NonFiniteError:
    """Return the detector, calibrated on what it was fitted on, or the error that it raised instead."""
    detector = OPNP(ratios=RATIOS, temperature=temperature, shaping=None, precision=precision, neuron=neuron)
    try:
        detector.fit_features(head.features, weight=head.weight, bias=head.bias)
        return detector.calibrate_features(head.features)
    except NonFiniteError as error:
        return error


@pytest.mark.filterwarnings("ignore::opnp.errors.RatioWarning")  # of cuts among what underflowed
@pytest.mark.parametrize(
    ("dtype", "temperature"),
    [
        pytest.param(dtype, temperature, marks=() if (dtype, temperature) in QUICK else pytest.mark.long)
        for dtype in DTYPES
        for temperature in TEMPERATURES
    ],
)
@pytest.mark.parametrize("neuron", ["gradient", pytest.param("aggregate", marks=pytest.mark.long)])
def test_the_chain_is_exact_or_says_what_to_do(
    tried: Tried, dtype: torch.dtype, temperature: float, neuron: NeuronReading
) -> None:
    tried("numerics", "extreme heads fitted, pruned, calibrated and asked", len(heads()))
    refused = []
    for name, case in heads().items():
        head = case.to(dtype)
        wide = [part.double() for part in (head.features, head.weight, head.bias)]
        logits = linear(*wide)
        exact = exact_sensitivities(head.features, logits, head.weight, temperature)
        detector = fitted_or_refused(head, temperature, "float64" if dtype == torch.float64 else "float32", neuron)
        if not isinstance(detector, OPNP):
            assert re.search(REMEDIES, str(detector)), name
            assert max(float(part.abs().max()) for part in (logits, *wide)) > 1e30
            refused.append(name)
            continue
        try:
            # Logits of float32 are off by their rounding, which a low temperature multiplies.
            shift = float(linear(wide[0].abs(), wide[1].abs(), wide[2].abs()).max()) / temperature
            unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
            slack = rounding(dtype) + 16 * unit * shift
            if slack < 0.01 and is_held(exact, temperature, dtype):
                require_masks(detector, exact, slack)
            require_answers(detector, head)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    assert "plain" not in refused or temperature == 0.01
    assert len(refused) < len(heads()) / 2 or temperature == 0.01


def require_fused_answers(detector: OPNP, features: Tensor) -> None:
    """Compare fused scores, shares, p-values and verdicts with those that the members' scores give at 50 digits."""
    state, verdict, why = detector._fitted(), detector.verdict_features(features), detector.explain_features(features)
    assert state.scales is not None
    assert why.members[: len(detector.members)] == detector.members
    assert not bool(verdict.score.isnan().any())
    medians, tails = ([EXACT.mpf(value) for value in row] for row in state.scales.tolist())
    calibration = detector.calibration_scores.tolist()
    members = state.member_scores(features, state.fused).double()
    for place, row in enumerate(members.tolist()):
        score, shares = float(verdict.score[place]), why.share[place].tolist()
        rank = 1 + sum(other >= score for other in calibration)
        assert float(verdict.p_value[place]) == rank / (len(calibration) + 1)
        assert bool(verdict.is_ood[place]) is (rank * 20 <= len(calibration) + 1)
        assert sum(shares) == pytest.approx(1.0, rel=1e-9)
        if not all(math.isfinite(value) for value in row):
            assert score == math.inf
            assert rank - 1 == calibration.count(math.inf)
            continue
        units = [
            (EXACT.mpf(value) - median) / (tail - median)
            for value, median, tail in zip(row, medians, tails, strict=True)
        ]
        exact = max(units) + EXACT.log(EXACT.fsum(EXACT.exp(unit - max(units)) for unit in units))
        largest = max(abs(unit) for unit in units)
        assert abs(EXACT.mpf(score) - exact) <= 1e-12 * (1 + largest)
        for share, unit in zip(shares, units, strict=False):  # the pruned head is told of where it is not fused
            assert abs(EXACT.mpf(share) - EXACT.exp(unit - exact)) <= 1e-9 * (1 + largest)


@pytest.mark.reliability
@pytest.mark.filterwarnings("ignore::opnp.errors.MemberWarning")  # of members that such features leave nothing of
@pytest.mark.filterwarnings("ignore::opnp.errors.RatioWarning")  # of cuts among what underflowed
@pytest.mark.parametrize("dtype", [*DTYPES[:2], *(pytest.param(dtype, marks=pytest.mark.long) for dtype in DTYPES[2:])])
def test_a_fusion_of_extreme_heads_is_exact_or_says_what_to_do(tried: Tried, dtype: torch.dtype) -> None:
    tried("numerics", "fusions of extreme heads fitted, calibrated and asked", len(heads()))
    generator = torch.Generator().manual_seed(8)
    fused, refused = [], {}
    for name, case in heads().items():
        noise = 1 + 0.1 * torch.rand(5, *case.features.shape, generator=generator, dtype=torch.float64)
        head = Head((case.features * noise).flatten(0, 1), case.weight, case.bias).to(dtype)
        detector = OPNP(precision="float64" if dtype == torch.float64 else "float32")
        try:
            detector.fit_features(head.features, weight=head.weight, bias=head.bias)
            detector.calibrate_features(head.features)
        except (EmptyDataError, NonFiniteError) as error:
            refused[name] = str(error)
            continue
        fused.append(name)
        require_fused_answers(detector, head.features)
        require_fused_answers(detector, torch.cat([head.features[:3] * 0.0, head.features[:3] / 1e3]))
    for name, message in refused.items():
        assert re.search(r"Look for broken inputs|or give `ratios`|Scale the features down", message), name
    assert "plain" in fused
    assert len(fused) >= 12, refused


@pytest.mark.reliability
@pytest.mark.parametrize("scope", ["layer", "class"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_low_temperatures_that_float64_holds_rank_as_they_should(
    tried: Tried, precision: Precision, scope: Scope
) -> None:
    """At T = 0.01 float32 says that all but one probability of most samples are 0; the order is there all the same."""
    generator = torch.Generator().manual_seed(3)
    features, weight = torch.rand(200, 30, generator=generator), torch.randn(5, 30, generator=generator) * 0.1
    bias = torch.tensor([2.5, 0.0, 0.0, 0.0, 0.0])
    logits = linear(features, weight, bias)
    tried("numerics", "masks at T = 0.01 compared with exact ones")
    assert int((torch.softmax(logits / 0.01, 1).T @ features == 0).sum()) >= 30
    ratios = Ratios(w_min=0.1)
    detector = OPNP(ratios=ratios, temperature=0.01, scope=scope, shaping=None, precision=precision)
    kept = detector.fit_features(features, weight=weight, bias=bias).masks.weight
    wide = linear(features.double(), weight.double(), bias.double())
    exact = exact_sensitivities(features, wide, weight, 0.01).weight
    rankings = list(zip(kept.tolist(), exact, strict=True))
    if scope == "layer":
        rankings = [(kept.flatten().tolist(), [value for row in exact for value in row])]
    for row, values in rankings:
        order = sorted(range(len(row)), key=values.__getitem__)
        assert [place for place in order if not row[place]] == order[: round(0.1 * len(row))]


@pytest.mark.reliability
def test_copies_and_dead_features_keep_index_order_at_any_temperature(tried: Tried) -> None:
    """Ties on paper are no loss: the first of equals count as the smaller."""
    tried("numerics", "masks of tied sensitivities", 3)
    features = torch.rand(40, 1, generator=torch.Generator().manual_seed(5)).expand(40, 8).contiguous()
    features[:, 5:] = 0.0
    weight = torch.ones(3, 8)
    for temperature in (0.01, 1.0, 1e6):
        detector = OPNP(ratios=Ratios(w_min=0.5, o_min=0.5), temperature=temperature, shaping=None, neuron="aggregate")
        masks = detector.fit_features(features, weight=weight, bias=None).masks
        assert masks.neuron.tolist() == [False] + [True] * 4 + [False] * 3
        expected = torch.tensor([[False] * 3 + [True] * 2 + [False] * 3] + [[True] * 5 + [False] * 3] * 2)
        assert torch.equal(masks.weight, expected)


@pytest.mark.reliability
@pytest.mark.parametrize("score", SCORE_NAMES)
def test_at_a_high_temperature_every_way_to_a_score_gives_the_same_bits(tried: Tried, score: ScoreName) -> None:
    """In float32 the energies, or entropies, of all inputs would be equal but for their rounding."""
    tried("numerics", "ways to a score compared at T = 1e4", 3)
    features, model = torch.rand(60, 8, generator=torch.Generator().manual_seed(6)), torch.nn.Linear(8, 5)
    detector = OPNP(ratios=Ratios(w_min=0.2), temperature=1e4, score=score, shaping=None).fit(model, [features])
    detector.calibrate([features])
    scores = detector.score_features(features)
    assert len(scores.unique()) == 60
    assert torch.equal(scores.double().sort().values, detector.calibration_scores)
    swept = detector.sweep_features(features, [Ratios(w_min=0.2)])[0]
    assert swept.dtype == scores.dtype
    torch.testing.assert_close(swept, scores, rtol=1e-6, atol=1e-6)
    _, exported, p_values = detector.to_module()(features)
    assert torch.equal(exported, scores)
    assert torch.equal(p_values, detector.p_value_features(features))


GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(1500, 96, generator=GENERATOR).relu()
FEATURES[:, 90:] = FEATURES[:, :6]  # copies
FEATURES[:, 40] = 0.0
WEIGHT = torch.randn(20, 96, generator=GENERATOR) * 0.02
WEIGHT[:, 90:] = WEIGHT[:, :6]
BIAS = torch.randn(20, generator=GENERATOR)

Kind = tuple[float | None, Precision]
"""Temperature, None of the fusion, and precision."""
FUSIONS: list[Kind] = [(None, "float32"), (None, "float64")]
PAPERS: list[Kind] = [(0.01, "float32"), (1.0, "float64"), (0.01, "float64"), (1.0, "float32"), (1e6, "float32")]


def fitted(kind: Kind, *, batch_size: int = 8192, rows: Tensor | None = None, device: str = "cpu") -> OPNP:
    """Return the detector of the data above."""
    temperature, precision = kind
    features = (FEATURES if rows is None else FEATURES[rows]).to(device)
    detector = OPNP(precision=precision)
    if temperature is not None:
        detector = OPNP(ratios=RATIOS, temperature=temperature, shaping=None, precision=precision)
    detector.fit_features(features, weight=WEIGHT.to(device), bias=BIAS.to(device), batch_size=batch_size)
    return detector.calibrate_features(FEATURES[:100].to(device))


def require_alike(one: OPNP, other: OPNP, kind: Kind) -> None:
    """Compare masks: equal in float64, and in float32 but for entries as near the cut as 1e-6 of it.

    The rounding of logits is multiplied by a low temperature. Of a fusion scores are compared, to 1e-5.
    """
    temperature, precision = kind
    if precision == "float64":
        assert torch.equal(one.masks.kept.cpu(), other.masks.kept.cpu())
    if temperature is None:
        assert (one.members, one.left_out, one.samples) == (other.members, other.left_out, other.samples)
        left, right = (
            found.score_features(FEATURES[:200].to(found.sensitivity.weight.device)) for found in (one, other)
        )
        torch.testing.assert_close(left.cpu(), right.cpu(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.calibration_scores, other.calibration_scores, rtol=1e-5, atol=1e-5)
        return
    allowed = (1e-6 if precision == "float32" else 1e-11) * max(1.0, 0.2 / temperature)
    for name, of, ratios, slack, floor in (
        ("weight", "weight", (RATIOS.w_min, RATIOS.w_max), allowed, 0.0),
        ("neuron", "neuron_gradient", (RATIOS.o_min, RATIOS.o_max), 40 * allowed, 1e-14),
    ):
        values, others = (getattr(found.sensitivity, of).flatten().cpu() for found in (one, other))
        torch.testing.assert_close(values, others, rtol=slack, atol=floor)
        is_other = (getattr(one.masks, name).cpu() ^ getattr(other.masks, name).cpu()).flatten()
        order = values.sort().values
        cuts = order[[round(ratios[0] * len(order)) - 1, len(order) - round(ratios[1] * len(order))]]
        assert all(bool(((value - cuts).abs() <= slack * cuts).any()) for value in values[is_other])


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "kind",
    [
        *(pytest.param(kind, marks=pytest.mark.reliability) for kind in (PAPERS[0], FUSIONS[0])),
        *(pytest.param(kind, marks=pytest.mark.long) for kind in (*PAPERS[1:], FUSIONS[1])),
    ],
)
def test_threads_and_runs(tried: Tried, kind: Kind) -> None:
    tried("numerics", "fits repeated with 1, 2 and 4 threads", 6)
    first = fitted(kind)
    for number in (1, 2, 4):
        with threads(number):
            one, again = (fitted(kind) for _ in range(2))
            for name in ("weight", "neuron_gradient", "neuron_aggregate"):
                assert torch.equal(getattr(one.sensitivity, name), getattr(again.sensitivity, name))
            assert torch.equal(one.calibration_scores, again.calibration_scores)
            for left, right in zip(*(each.verdict_features(FEATURES[:200]) for each in (one, again)), strict=True):
                assert torch.equal(left, right)
        require_alike(first, one, kind)


@pytest.mark.reliability
@pytest.mark.parametrize("kind", [*PAPERS, (1e6, "float64"), *FUSIONS])
def test_batches_and_orders_of_rows(tried: Tried, kind: Kind) -> None:
    tried("numerics", "fits with the data cut or ordered otherwise", 5)
    first = fitted(kind)
    order = torch.randperm(len(FEATURES), generator=torch.Generator().manual_seed(1))
    for batch_size, rows in ((37, None), (1024, None), (1500, None), (8192, order), (501, order)):
        require_alike(first, fitted(kind, batch_size=batch_size, rows=rows), kind)


@pytest.mark.reliability
@pytest.mark.parametrize("kind", [(1.0, "float32"), (1.0, "float64"), *FUSIONS])
def test_the_score_of_an_input_does_not_depend_on_its_batch(tried: Tried, kind: Kind) -> None:
    tried("numerics", "inputs scored alone and in batches", 200)
    detector = fitted(kind)
    whole = detector.score_features(FEATURES[:200])
    alone = torch.cat([detector.score_features(FEATURES[place : place + 1]) for place in range(200)])
    if kind[0] is None:
        allowed = 1e-5 if kind[1] == "float32" else 1e-12
        torch.testing.assert_close(alone, whole, rtol=allowed, atol=allowed)
        return
    sizes = (FEATURES[:200].abs() @ WEIGHT.abs().T + BIAS.abs()).amax(1)
    assert bool(((whole - alone).abs() <= 8 * torch.finfo(whole.dtype).eps * sizes).all())


@pytest.mark.reliability
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_of_half_precision_is_fitted_by_what_its_features_say(tried: Tried, dtype: torch.dtype) -> None:
    """Its own logits keep 8 or 11 bits. They are taken again in float32, as they are from cached features."""
    tried("numerics", "models in half precision fitted, beside the same features in float64")
    generator = torch.Generator().manual_seed(2)
    head = nn.Linear(32, 6)
    model = nn.Sequential(nn.Identity(), head).to(dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(6, 32, generator=generator))
    inputs = torch.randn(300, 32, generator=generator).relu().to(dtype) * 4
    detector, exact = (OPNP(ratios=RATIOS, shaping=None) for _ in range(2))
    detector.fit(model, inputs.split(64))
    exact.fit_features(inputs.double(), weight=head.weight.detach().double(), bias=head.bias.detach().double())
    torch.testing.assert_close(detector.sensitivity.weight, exact.sensitivity.weight, rtol=2e-4, atol=0)
    assert torch.equal(detector.masks.kept, exact.masks.kept)


@pytest.mark.gpu
@pytest.mark.reliability
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a CUDA device with the processor")
@pytest.mark.parametrize("kind", [*PAPERS, *FUSIONS])
def test_processor_and_accelerator_agree(tried: Tried, kind: Kind) -> None:
    tried("numerics", "fits on a CUDA device beside the processor's")
    here, there = (fitted(kind, device=device) for device in ("cpu", "cuda"))
    require_alike(here, there, kind)
    verdict = there.verdict_features(FEATURES[:200].cuda())
    assert {part.device.type for part in (verdict.predicted_class, verdict.score, verdict.is_ood)} == {"cuda"}
    left, right = here.explain_features(FEATURES[:50]), there.explain_features(FEATURES[:50].cuda())
    torch.testing.assert_close(right.share.cpu(), left.share, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(right.p_value.cpu(), left.p_value, rtol=0, atol=1.01 / 101)
