"""Ratios chosen on OOD validation data: what is found, on which samples it is told; and many settings in one go."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opnp import ASHS, OPNP, SCALE, Ratios, ReAct, Settings, Tuning, auroc
from opnp.core import NeuronReading, Scope, ScoreName, Shaping, score_logits
from opnp.detector import tuning
from opnp.detector.fit_pass import FitSum
from opnp.detector.tuning import FEWEST_TUNED, swept
from opnp.errors import CalibrationError, EmptyDataError, NonFiniteError, OptionError, RatioError
from opnp.fitted import FittedState
from tests.unit.detector.detector_world import bias, features, fused, loader, model, weight

CLASSES, BLOCK = 10, 6
DISTURBED = [5, 29, 47]
PLAIN = Settings()


@dataclass(frozen=True, eq=False)
class World:
    """A head and the data around it: each class is known by a block of features of its own; others have any."""

    weight: Tensor
    known: Tensor
    unknown: Tensor

    def fitted(self, **options: Any) -> OPNP:
        """Return a detector tuned on a part of the samples; the others are `tested`."""
        return OPNP(**{"ratios": "tuned", **options}).fit_features(
            self.known[1000:],
            weight=self.weight,
            bias=None,
            validation=self.known[:400],
            validation_ood=self.unknown[:300],
        )

    def auroc(self, detector: OPNP) -> float:
        """Return the AUROC on samples that no choice was made on."""
        return auroc(detector.score_features(self.known[400:1000]), detector.score_features(self.unknown[300:]))


def _drawn(*, seed: int, disturbed: list[int] | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.eye(CLASSES).repeat_interleave(BLOCK, dim=1)
    others = torch.stack([torch.randperm(CLASSES * BLOCK, generator=generator) < BLOCK for _ in range(8)]).float()
    found = []
    for patterns, rows in ((blocks, 2500), (others, 800)):
        pattern = patterns[torch.randint(len(patterns), (rows,), generator=generator)]
        noise = torch.randn(pattern.shape, generator=generator)
        made = (pattern * (1 + 0.3 * noise) + 0.05 * noise).relu()
        if disturbed:
            made[:, disturbed] = 8 * torch.rand(rows, len(disturbed), generator=generator)
        found.append(made)
    return found[0], found[1]


def disturbed_world(*, seed: int = 0) -> World:
    """Return a world with three large neurons that add the same to every logit, and hide what the others say."""
    own = torch.eye(CLASSES).repeat_interleave(BLOCK, dim=1)
    head = (1.2 * own).index_fill(1, torch.tensor(DISTURBED), 1.5)
    return World(head, *_drawn(seed=seed, disturbed=DISTURBED))


def spurious_world(*, seed: int = 0) -> World:
    """Return a world whose head has weights for features of other classes, which its own samples hardly feel."""
    own = torch.eye(CLASSES).repeat_interleave(BLOCK, dim=1)
    noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(seed + 50)).abs()
    return World(1.2 * own + 0.75 * noise * (1 - own), *_drawn(seed=seed))


def tuning_of(detector: OPNP) -> Tuning:
    assert detector.tuning is not None
    return detector.tuning


def halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the samples that are searched on, and the others: every second one in an order drawn by a fixed seed."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows[order[::2]], rows[order[1::2]]


@pytest.mark.parametrize("seed", range(2))
def test_disturbed_neurons_are_found_and_pruned(seed: int) -> None:
    world = disturbed_world(seed=seed)
    detector, plain = world.fitted(), world.fitted().with_ratios(Ratios())
    pruned = set((~detector.masks.neuron).nonzero().flatten().tolist())
    assert set(DISTURBED) <= pruned
    assert len(pruned) <= 5
    assert world.auroc(plain) < 0.75
    assert world.auroc(detector) > 0.97
    assert tuning_of(detector).gain == pytest.approx(world.auroc(detector) - world.auroc(plain), abs=0.06)


@pytest.mark.parametrize("seed", range(2))
def test_spurious_weights_are_found_and_pruned(seed: int) -> None:
    world = spurious_world(seed=seed)
    detector, plain = world.fitted(), world.fitted().with_ratios(Ratios())
    assert detector.settings.ratios.w_min >= 0.5
    own = world.weight == world.weight.amax(0)
    assert float((detector.pruned_head.weight == 0)[~own].float().mean()) > 0.5
    assert world.auroc(detector) > world.auroc(plain) + 0.1
    assert tuning_of(detector).gain > 0.1


def test_gain_is_told_on_samples_that_were_not_searched_and_those_calibrate() -> None:
    world = spurious_world()
    detector = world.fitted()
    tuning = tuning_of(detector)
    (_, known), (_, unknown) = halves(world.known[:400]), halves(world.unknown[:300])
    assert (tuning.searched, tuning.unsearched) == ((200, 150), (200, 150))
    assert tuning.settings == detector.settings
    energy = detector.with_ratios(Ratios())
    for found, scored in ((tuning.auroc, detector), (tuning.energy_auroc, energy)):
        assert found == pytest.approx(auroc(scored.score_features(known), scored.score_features(unknown)), abs=1e-4)
    assert tuning.gain == tuning.auroc - tuning.energy_auroc
    assert torch.equal(detector.calibration_scores, detector.score_features(known).double().sort().values)


def test_what_a_search_makes_of_chance_is_not_told_as_a_gain() -> None:
    """Where OOD samples are ID samples, the best of many settings looks better than it is on what was searched."""
    promised, told = [], []
    for seed in range(8):
        rows = features(400, seed=seed)
        detector = OPNP(ratios="tuned").fit_features(
            features(300, seed=50), weight=weight(), bias=bias(), validation=rows[:200], validation_ood=rows[200:]
        )
        searched = [halves(part)[0] for part in (rows[:200], rows[200:])]
        both = [auroc(*map(each.score_features, searched)) for each in (detector, detector.with_ratios(Ratios()))]
        promised.append(both[0] - both[1])
        told.append(tuning_of(detector).gain)
    assert min(promised) > 0.02
    assert sum(told) < 0.5 * sum(promised)


def test_nothing_is_pruned_where_the_energy_finds_all() -> None:
    known, unknown = -50 - features(60), 50 + features(60)
    plain = OPNP(ratios=Ratios()).fit_features(features(), weight=weight(), bias=bias())
    assert auroc(plain.score_features(known), plain.score_features(unknown)) == 1.0, "the case does not tell"
    detector = OPNP(ratios="tuned").fit_features(
        features(), weight=weight(), bias=bias(), validation=known, validation_ood=unknown
    )
    assert detector.settings == PLAIN
    assert tuning_of(detector).gain == 0.0
    assert tuning_of(detector).tried > 30
    assert torch.equal(detector.pruned_head.weight, weight())


def test_other_options_stay_as_they_were_given() -> None:
    given: dict[str, Any] = {"shaping": SCALE(0.85), "score": "max_logit", "temperature": 2.0, "precision": "float64"}
    world = disturbed_world()
    detector = world.fitted(**given)
    assert {name: getattr(detector.settings, name) for name in given} == given
    (_, known), (_, unknown) = halves(world.known[:400]), halves(world.unknown[:300])
    plain = OPNP(temperature=2.0, precision="float64")
    plain.fit_features(world.known[1000:], weight=world.weight, bias=None)
    for found, scored in ((tuning_of(detector).auroc, detector), (tuning_of(detector).energy_auroc, plain)):
        assert found == pytest.approx(auroc(scored.score_features(known), scored.score_features(unknown)), abs=1e-6)


def test_a_model_and_its_features_are_tuned_alike() -> None:
    by_model = OPNP(ratios="tuned").fit(
        model(), loader(), validation=loader(4, seed=1), validation_ood=[3 * batch for batch in loader(3, seed=2)]
    )
    by_features = OPNP(ratios="tuned").fit_features(
        features(),
        weight=weight(),
        bias=bias(),
        validation=features(80, seed=1),
        validation_ood=3 * features(60, seed=2),
    )
    assert by_model.tuning == by_features.tuning
    assert torch.equal(by_model.calibration_scores, by_features.calibration_scores)
    assert torch.equal(by_model.score(features(9)), by_features.score_features(features(9)))


def test_what_was_chosen_is_saved_and_given_from_then_on(tmp_path: Path) -> None:
    world = disturbed_world()
    detector = world.fitted()
    detector.save(tmp_path / "detector")
    loaded = OPNP.load(tmp_path / "detector")
    assert loaded.tuning == detector.tuning
    assert loaded.settings == detector.settings == tuning_of(detector).settings
    # To fit again needs no OOD data; and other ratios are not those that were tuned.
    loaded.fit_features(world.known[1000:], weight=world.weight, bias=None)
    assert torch.equal(loaded.masks.kept, detector.masks.kept)
    for other in (loaded, detector.with_ratios(Ratios(w_min=0.3))):
        assert other.tuning is None
        assert not other.is_calibrated


@pytest.mark.parametrize(
    ("ratios", "missing", "message"),
    [
        ("tuned", ("validation",), r'`ratios="tuned"` needs `validation` and `validation_ood`'),
        ("tuned", ("validation_ood",), r'`ratios="tuned"` needs `validation` and `validation_ood`'),
        ("tuned", ("validation", "validation_ood"), r'`ratios="tuned"` needs `validation` and `validation_ood`'),
        (None, (), r'`validation_ood` is for `ratios="tuned"` alone'),
        (Ratios(), (), r'`validation_ood` is for `ratios="tuned"` alone'),
    ],
)
def test_held_out_samples_that_are_missing_or_not_wanted_are_refused(
    ratios: Any, missing: tuple[str, ...], message: str
) -> None:
    detector, names = OPNP(ratios=ratios), {"validation", "validation_ood"}.difference(missing)
    held_out: dict[str, Any] = dict.fromkeys(names, features(50))
    with pytest.raises(OptionError, match=message):
        detector.fit_features(features(), weight=weight(), bias=bias(), **held_out)
    with pytest.raises(OptionError, match=message):
        detector.fit(model(), loader(), **held_out)
    assert not detector.is_fitted


@pytest.mark.parametrize("short", ["validation", "validation_ood"])
def test_too_few_samples_are_refused_and_just_enough_are_not(short: str) -> None:
    enough: dict[str, Any] = {"validation": features(40, seed=1), "validation_ood": 2 * features(40, seed=2)}
    detector = OPNP(ratios="tuned")
    few = enough | {short: enough[short][: FEWEST_TUNED - 1]}
    with pytest.raises(EmptyDataError, match=rf"at least 40 samples in `{short}` to be tuned on, got 39: half of them"):
        detector.fit_features(features(), weight=weight(), bias=bias(), **few)
    assert not detector.is_fitted
    detector.fit_features(features(), weight=weight(), bias=bias(), **enough)
    assert len(detector.calibration_scores) == 20
    with pytest.raises(CalibrationError, match=r"keep=0\.99 needs at least 99 calibration samples, got 20"):
        detector.fit_features(features(), weight=weight(), bias=bias(), keep=0.99, **enough)
    assert detector.keep == 0.95


def test_of_a_small_head_only_ratios_that_leave_something_are_tried() -> None:
    """Of two weights a class, most shares round to nothing or leave nothing; none of that is told."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(300, 2, generator=generator)
    detector = OPNP(ratios="tuned").fit_features(
        rows, weight=torch.eye(2), bias=None, validation=rows[:80], validation_ood=rows[80:160] / 3
    )
    assert bool(detector.masks.kept.any())
    assert tuning_of(detector).tried > 5


# ------------------------------------------------------------------------------------------- many settings in one go
EXACT = Settings(ratios=Ratios(), shaping=None, precision="float64")


def fitted_head(*, bias: bool = True) -> tuple[FittedState, Tensor]:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(500, 24, generator=generator).relu()
    weight = torch.randn(7, 24, generator=generator)
    shift = torch.randn(7, generator=generator) if bias else None
    counting = dataclasses.replace(EXACT, shaping=ReAct(0.9))
    state = FitSum.of([(features, None)], weight, shift, counting).fitted()
    return state.with_settings(EXACT), torch.randn(300, 24, generator=generator).relu()


SCOPES: tuple[Scope, ...] = ("layer", "class")
READINGS: tuple[NeuronReading, ...] = ("gradient", "aggregate")
SHAPINGS: tuple[tuple[Shaping | None, ScoreName], ...] = ((None, "energy"), (ASHS(0.5), "msp"), (ReAct(), "gen"))


def many_settings() -> list[Settings]:
    ratios = [
        Ratios(*values) for values in itertools.product((0.0, 0.05, 0.5), (0.0, 0.05), (0.0, 0.1, 0.4, 0.6), (0.0, 0.2))
    ]
    return [
        dataclasses.replace(EXACT, ratios=each, scope=scope, neuron=neuron, shaping=shaping, score=score)
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
    monkeypatch.setattr(tuning, *limits)
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
    settings = [dataclasses.replace(EXACT, ratios=Ratios(o_min=share / 24)) for share in range(20)]
    assert len(list(swept(fitted, settings, features, read))) == 20
    assert len(calls) == 1


def test_ratios_that_leave_nothing_and_overflow_are_refused() -> None:
    fitted, features = fitted_head()
    settings = [EXACT, dataclasses.replace(EXACT, ratios=Ratios(o_min=0.6, o_max=0.398))]
    with pytest.raises(RatioError, match="at least one must be left"):
        list(swept(fitted, settings, features, read))
    huge = dataclasses.replace(fitted, weight=fitted.weight.double() * 1e308)
    with pytest.raises(NonFiniteError, match="of the pruned head"):
        list(swept(huge, [EXACT], features * 1e3, read))


@pytest.mark.parametrize("options", [{}, {"precision": "float64", "score": "gen"}], ids=["fusion", "paper"])
def test_a_detector_sweeps_the_ratios_of_its_pruned_head(options: dict[str, Any]) -> None:
    detector, probe = fused(**options), features(50, seed=1)
    wanted = [Ratios(w_min=0.5), Ratios(), Ratios(o_max=0.2, w_max=0.1)]
    scores = detector.sweep_features(probe, wanted)
    assert scores.dtype == (torch.float64 if options else torch.float32)
    allowed = 1e-12 if options else 1e-5
    for row, ratios in zip(scores, wanted, strict=True):
        alone = detector.with_ratios(ratios).score_features(probe)
        torch.testing.assert_close(row, alone, rtol=allowed, atol=allowed)


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


def test_ratios_are_tuned_again_from_the_same_sensitivities() -> None:
    world = spurious_world()
    held_out = world.known[:400], world.unknown[:300]
    start = OPNP(ratios=Ratios(w_min=0.3), shaping=None).fit_features(
        world.known[1000:], weight=world.weight, bias=None
    )
    fresh = world.fitted(neuron="aggregate", shaping=None)
    again = start.with_tuned_ratios(*held_out, neuron="aggregate")
    assert (again.settings, again.tuning) == (fresh.settings, fresh.tuning)
    assert torch.equal(again.calibration_scores, fresh.calibration_scores)
    assert start.settings.ratios == Ratios(w_min=0.3)
    weights, neurons = (start.with_tuned_ratios(*held_out, parts=[part]) for part in ("weights", "neurons"))
    assert weights.settings.ratios.o_min == weights.settings.ratios.o_max == 0
    assert neurons.settings.ratios.w_min == neurons.settings.ratios.w_max == 0
    assert tuning_of(weights).tried < tuning_of(again).tried
    layer = start.with_tuned_ratios(*held_out, scope="layer", neuron="gradient", parts=["weights"])
    assert tuning_of(layer).tried < tuning_of(weights).tried
    with pytest.raises(EmptyDataError, match="at least 40 samples in `validation_ood`"):
        start.with_tuned_ratios(world.known[:400], world.unknown[:30])
