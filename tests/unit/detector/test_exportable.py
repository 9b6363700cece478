import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opnp.core import ASHS, SCALE, SCORE_NAMES, ReAct, ScoreName, Shaping, score_logits, shaped
from opnp.detector.exportable import exportable_score, exportable_shaping
from opnp.errors import NonFiniteError


@given(
    seed=st.integers(0, 1000),
    size=st.sampled_from([0.01, 1.0, 30.0, 1e4]),
    temperature=st.sampled_from([0.5, 1.0, 1000.0, 1e6]),
    score=st.sampled_from(SCORE_NAMES),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_scores_are_those_of_the_core(
    seed: int, size: float, temperature: float, score: ScoreName, dtype: torch.dtype
) -> None:
    logits = size * torch.randn(7, 130, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    found = exportable_score(logits, score=score, temperature=temperature)
    expected = score_logits(logits, score=score, temperature=temperature)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@given(
    seed=st.integers(0, 1000),
    quantile=st.floats(0.01, 0.99),
    kind=st.sampled_from([ReAct, ASHS, SCALE]),
    width=st.integers(1, 40),
    size=st.sampled_from([1e-3, 1.0, 1e15]),
)
def test_shapings_are_those_of_the_core(
    seed: int, quantile: float, kind: type[ReAct | ASHS | SCALE], width: int, size: float
) -> None:
    features = size * torch.randn(9, width, generator=torch.Generator().manual_seed(seed)).relu()
    features[0] = 0
    features[1] = size  # ties
    shaping = kind(quantile)
    found = exportable_shaping(features, shaping, threshold=0.5 * size)
    expected = shaped(features, shaping, threshold=0.5 * size)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shaping", [ASHS(0.5), SCALE(0.5)])
@pytest.mark.parametrize("size", [1e37, 3e38])
def test_what_the_core_refuses_as_too_large_is_not_finite(shaping: Shaping, size: float) -> None:
    features = torch.full((1, 40), size)
    with pytest.raises(NonFiniteError, match="small enough to be shaped"):
        shaped(features, shaping)
    assert not bool(exportable_shaping(features, shaping, threshold=None).isfinite().any())


@pytest.mark.parametrize("shaping", [None, ReAct()])
def test_without_shaping_or_threshold_the_features_stay(shaping: Shaping | None) -> None:
    features = torch.randn(2, 3)
    assert exportable_shaping(features, shaping, threshold=None) is features
