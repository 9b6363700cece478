"""Many settings in one go: the same scores as one at a time, in whatever order and however far apart."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from opnp import ASHS, OPNP, SCALE, Ratios, ReAct, Settings
from opnp.core import NeuronReading, Scope, ScoreName, Shaping, score_logits
from opnp.detector import sweeping
from opnp.detector.fit_pass import FitSum
from opnp.detector.sweeping import swept
from opnp.errors import NonFiniteError, OptionError, RatioError
from opnp.fitted import FittedState
from tests.unit.detector.detector_world import features as detector_features
from tests.unit.detector.detector_world import fused

PLAIN = Settings(ratios=Ratios(), shaping=None, precision="float64")


def fitted_head(*, bias: bool = True) -> tuple[FittedState, Tensor]:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(500, 24, generator=generator).relu()
    weight = torch.randn(7, 24, generator=generator)
    shift = torch.randn(7, generator=generator) if bias else None
    counting = dataclasses.replace(PLAIN, shaping=ReAct(0.9))
    state = FitSum.of([(features, None)], weight, shift, counting).fitted()
    return state.with_settings(PLAIN), torch.randn(300, 24, generator=generator).relu()


SCOPES: tuple[Scope, ...] = ("layer", "class")
READINGS: tuple[NeuronReading, ...] = ("gradient", "aggregate")
SHAPINGS: tuple[tuple[Shaping | None, ScoreName], ...] = ((None, "energy"), (ASHS(0.5), "msp"), (ReAct(), "gen"))


def many_settings() -> list[Settings]:
    ratios = [
        Ratios(*values) for values in itertools.product((0.0, 0.05, 0.5), (0.0, 0.05), (0.0, 0.1, 0.4, 0.6), (0.0, 0.2))
    ]
    return [
        dataclasses.replace(PLAIN, ratios=each, scope=scope, neuron=neuron, shaping=shaping, score=score)
        for each, scope, neuron, (shaping, score) in itertools.product(ratios, SCOPES, READINGS, SHAPINGS)
    ]


def read(logits: Tensor, settings: Settings) -> tuple[Tensor, ...]:
    return score_logits(logits, score=settings.score, temperature=settings.temperature), logits.argmax(1)


def assert_as_one_at_a_time(fitted: FittedState, settings: Sequence[Settings], features: Tensor) -> None:
    seen = []
    for place, (scores, answers) in swept(fitted, settings, features, read):
        pruned = fitted.with_settings(settings[place]).pruned
        torch.testing.assert_close(scores, pruned.scores(features), rtol=1e-9, atol=1e-9)
        best = pruned.logits(features).topk(2)
        is_clear = best.values[:, 0] - best.values[:, 1] > 1e-9  # rows of zeros tie without a bias
        assert answers[is_clear].equal(best.indices[is_clear, 0])
        seen.append(place)
    assert sorted(seen) == list(range(len(settings)))


@pytest.mark.filterwarnings("ignore::opnp.errors.RatioWarning")
@pytest.mark.parametrize("bias", [True, False])
def test_every_setting_scores_as_it_does_by_itself(bias: bool) -> None:
    fitted, features = fitted_head(bias=bias)
    settings = many_settings()
    order = torch.randperm(len(settings), generator=torch.Generator().manual_seed(1)).tolist()
    assert_as_one_at_a_time(fitted, [settings[place] for place in order], features)


@pytest.mark.filterwarnings("ignore::opnp.errors.RatioWarning")
@pytest.mark.parametrize("limits", [("_LOGITS", 7 * 32), ("_VALUES", 300 * 5), ("_UPDATES", 2), ("_SPARSE", 0.5)])
def test_blocks_groups_and_shortcuts_change_nothing(limits: tuple[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, *limits)
    fitted, features = fitted_head()
    assert_as_one_at_a_time(fitted, many_settings()[::7], features)


@pytest.mark.filterwarnings("ignore::opnp.errors.RatioWarning")
def test_a_curve_over_a_neuron_ratio_takes_one_whole_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that began anew each time would take one a setting."""
    calls: list[int] = []
    whole = torch.mm

    def counted(one: Tensor, other: Tensor, *, out: Tensor) -> Tensor:
        calls.append(len(other))
        return whole(one, other, out=out)

    monkeypatch.setattr(torch, "mm", counted)
    fitted, features = fitted_head()
    settings = [dataclasses.replace(PLAIN, ratios=Ratios(o_min=share / 24)) for share in range(20)]
    assert len(list(swept(fitted, settings, features, read))) == 20
    assert len(calls) == 1


def test_ratios_that_leave_nothing_are_refused() -> None:
    fitted, features = fitted_head()
    settings = [PLAIN, dataclasses.replace(PLAIN, ratios=Ratios(o_min=0.6, o_max=0.398))]
    with pytest.raises(RatioError, match="at least one must be left"):
        list(swept(fitted, settings, features, read))


@pytest.mark.filterwarnings("ignore::opnp.errors.RatioWarning")
def test_a_detector_sweeps_ratios_over_features() -> None:
    fitted, features = fitted_head()
    detector = OPNP(ratios=Ratios(), shaping=None, precision="float64")
    detector.fit_features(features, weight=fitted.weight, bias=fitted.bias)
    wanted = [Ratios(w_min=0.3), Ratios(), Ratios(o_max=0.2, w_max=0.1)]
    scores = detector.sweep_features(features, wanted)
    assert scores.shape == (3, len(features))
    for row, ratios in zip(scores, wanted, strict=True):
        torch.testing.assert_close(row, detector.with_ratios(ratios).score_features(features), rtol=1e-12, atol=1e-12)


def test_a_fusion_sweeps_the_ratios_of_its_pruned_head() -> None:
    detector, probe = fused(), detector_features(50, seed=1)
    wanted = [Ratios(w_min=0.5), Ratios(), Ratios(o_max=0.2, w_max=0.1)]
    scores = detector.sweep_features(probe, wanted)
    assert scores.dtype == torch.float32
    for row, ratios in zip(scores, wanted, strict=True):
        alone = detector.with_ratios(ratios)
        assert alone.settings.shaping == SCALE(0.85)
        torch.testing.assert_close(row, alone.score_features(probe), rtol=1e-5, atol=1e-5)
    assert detector.settings.is_fusion


@pytest.mark.filterwarnings("ignore::opnp.errors.RatioWarning")
def test_a_huge_feature_leaves_no_trace_once_it_is_pruned() -> None:
    """In float32 its column would leave its rounding behind when it is subtracted again."""
    fitted, features = fitted_head()
    features[:, 3] = 1e6
    detector = OPNP(ratios=Ratios(), shaping=None, neuron="aggregate")
    detector.fit_features(features, weight=fitted.weight, bias=fitted.bias)
    wanted = [Ratios(), Ratios(o_max=1 / 24), Ratios(o_max=2 / 24)]
    for row, ratios in zip(detector.sweep_features(features, wanted), wanted, strict=True):
        torch.testing.assert_close(row, detector.with_ratios(ratios).score_features(features), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ratios", [[], Ratios(), ["auto"]])
def test_what_is_no_list_of_ratios_is_refused(ratios: Any) -> None:
    fitted, features = fitted_head()
    detector = OPNP(ratios=Ratios(), shaping=None).fit_features(features, weight=fitted.weight, bias=None)
    with pytest.raises(OptionError, match="`ratios` must be a list"):
        detector.sweep_features(features, ratios)


def test_overflow_is_told() -> None:
    fitted, features = fitted_head()
    huge = dataclasses.replace(fitted, weight=fitted.weight.double() * 1e308)
    with pytest.raises(NonFiniteError, match="of the pruned head"):
        list(swept(huge, [PLAIN], features * 1e3, read))
