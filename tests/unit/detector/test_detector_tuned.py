"""Ratios chosen on OOD validation data: what is found, what is told of it, and on which samples."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP, SCALE, Ratios, Settings, Tuning, auroc
from opnp.detector.tuning import FEWEST_TUNED
from opnp.errors import CalibrationError, EmptyDataError, OptionError
from tests.unit.detector.detector_world import bias, features, loader, model, weight

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


@pytest.mark.parametrize("seed", range(3))
def test_disturbed_neurons_are_found_and_pruned(seed: int) -> None:
    world = disturbed_world(seed=seed)
    detector, plain = world.fitted(), world.fitted().with_ratios(Ratios())
    pruned = set((~detector.masks.neuron).nonzero().flatten().tolist())
    assert set(DISTURBED) <= pruned
    assert len(pruned) <= 5
    assert world.auroc(plain) < 0.75
    assert world.auroc(detector) > 0.97
    assert tuning_of(detector).gain == pytest.approx(world.auroc(detector) - world.auroc(plain), abs=0.06)


@pytest.mark.parametrize("seed", range(3))
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
    world = disturbed_world()
    detector = world.fitted(shaping=SCALE(0.85), score="max_logit", temperature=2.0, precision="float64")
    settings = detector.settings
    assert (settings.shaping, settings.score, settings.temperature) == (SCALE(0.85), "max_logit", 2.0)
    assert settings.precision == "float64"
    assert detector.members == ("opnp",)
    tuning = tuning_of(detector)
    (_, known), (_, unknown) = halves(world.known[:400]), halves(world.unknown[:300])
    plain = OPNP(temperature=2.0, precision="float64")
    plain.fit_features(world.known[1000:], weight=world.weight, bias=None)
    energy = auroc(plain.score_features(known), plain.score_features(unknown))
    assert tuning.energy_auroc == pytest.approx(energy, abs=1e-6)
    assert tuning.auroc == pytest.approx(
        auroc(detector.score_features(known), detector.score_features(unknown)), abs=1e-6
    )


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


def test_tuning_again_on_other_data_chooses_again() -> None:
    detector = OPNP(ratios="tuned")
    chosen = []
    for world in (disturbed_world(), spurious_world(), disturbed_world()):
        detector.fit_features(
            world.known[1000:],
            weight=world.weight,
            bias=None,
            validation=world.known[:400],
            validation_ood=world.unknown[:300],
        )
        chosen.append(detector.tuning)
    assert chosen[0] == chosen[2] != chosen[1]


def test_a_tuned_detector_is_saved_and_loaded(tmp_path: Path) -> None:
    world = disturbed_world()
    detector = world.fitted()
    detector.save(tmp_path / "detector")
    loaded = OPNP.load(tmp_path / "detector")
    assert loaded.tuning == detector.tuning
    assert loaded.settings == detector.settings == tuning_of(detector).settings
    for one, other in zip(
        loaded.verdict_features(world.unknown), detector.verdict_features(world.unknown), strict=True
    ):
        assert torch.equal(one, other)
    # What was chosen is given from now on: to fit again needs no OOD data.
    loaded.fit_features(world.known[1000:], weight=world.weight, bias=None)
    assert torch.equal(loaded.masks.kept, detector.masks.kept)
    assert loaded.tuning is None


def test_other_ratios_are_not_those_that_were_tuned() -> None:
    detector = disturbed_world().fitted().with_ratios(Ratios(w_min=0.3))
    assert detector.tuning is None
    assert not detector.is_calibrated


@pytest.mark.parametrize("missing", [("validation",), ("validation_ood",), ("validation", "validation_ood")])
def test_missing_samples_are_refused(missing: tuple[str, ...]) -> None:
    given: dict[str, Any] = {"validation": features(50, seed=1), "validation_ood": features(50, seed=2)}
    by_loader: dict[str, Any] = {"validation": loader(seed=1), "validation_ood": loader(seed=2)}
    for name in missing:
        given.pop(name)
        by_loader.pop(name)
    detector, message = OPNP(ratios="tuned"), r'`ratios="tuned"` needs `validation` and `validation_ood`'
    with pytest.raises(OptionError, match=message):
        detector.fit_features(features(), weight=weight(), bias=bias(), **given)
    with pytest.raises(OptionError, match=message):
        detector.fit(model(), loader(), **by_loader)
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


def test_the_same_data_give_the_same_choice() -> None:
    one, other = disturbed_world().fitted(), disturbed_world().fitted()
    assert one.tuning == other.tuning
    assert torch.equal(one.calibration_scores, other.calibration_scores)


def test_a_model_stays_as_it_is() -> None:
    net = nn.Sequential(nn.Dropout(0.5), *model()).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    OPNP(ratios="tuned").fit(net, loader(), validation=loader(seed=1), validation_ood=loader(seed=2))
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())
