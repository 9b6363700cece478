"""What a detector of the library promises beside that: of verdicts, explanations, other ratios, and failures."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios, ReAct, energy_score
from opnp.core import Masks, Sensitivity, neuron_mask, weight_mask
from opnp.core.shaping import shaped
from opnp.errors import NotCalibratedError, NotFittedError
from tests.contract.checks import check, raised
from tests.contract.library_shells import Inputs
from tests.contract.shell import KEEP, Shell, ready
from tests.contract.snapshot import unchanged
from tests.contract.world import HEAD, batches, classifier, features, fresh, head_of, known, lived_in, strange

__all__: list[str] = []

ASKED = ("p_value", "predict", "verdict", "explain")


def new(kind: type[Shell]) -> OPNP:
    """Return the detector of a shell, not fitted."""
    shell = kind()
    assert isinstance(shell, Inputs)
    return shell.detector


def fitted(kind: type[Shell], model: nn.Module) -> OPNP:
    """Return a detector fitted and calibrated on the world."""
    return new(kind).fit(model, batches(known())).calibrate(batches(fresh()), keep=KEEP)


def from_features(kind: type[Shell]) -> OPNP:
    """Return one fitted on the features of the world, taken in the same batches."""
    rows, held_out = (torch.cat(list(map(features, batches(inputs)))) for inputs in (known(), fresh()))
    head = head_of(classifier())
    detector = new(kind).fit_features(rows, weight=head.weight, bias=head.bias)
    return detector.calibrate_features(held_out, keep=KEEP)


def asked(kind: type[Shell]) -> OPNP:
    """Return a fitted detector for questions that must not change it."""
    shell = ready(kind)
    assert isinstance(shell, Inputs)
    return shell.detector


def _assert_same(one: tuple[Tensor, ...], other: tuple[Tensor, ...], what: str) -> None:
    for number, (left, right) in enumerate(zip(one, other, strict=True)):
        assert torch.equal(left, right), f"{what}: item {number} differs"


def _assert_same_state(one: OPNP, other: OPNP) -> None:
    for item in fields(Sensitivity):
        left, right = getattr(one.sensitivity, item.name), getattr(other.sensitivity, item.name)
        same = torch.equal(left, right) if isinstance(left, Tensor) else left == right
        assert same, f"sensitivity {item.name} differs"
    _assert_same(one.masks, other.masks, "masks")
    assert one.settings == other.settings
    assert (one.members, dict(one.left_out), one.samples) == (other.members, dict(other.left_out), other.samples)
    assert one.is_calibrated == other.is_calibrated
    if one.is_calibrated:
        assert (one.threshold, one.keep) == (other.threshold, other.keep)
        assert torch.equal(one.calibration_scores, other.calibration_scores)


@check(is_of_detectors=True, is_of_settings=True)
def check_saved_detector_answers_alike(kind: type[Shell]) -> None:
    rows, other = features(strange()), Ratios(w_min=0.4, o_min=0.2)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "detector.safetensors"
        for detector in (new(kind).fit(classifier(), batches(known())), asked(kind), from_features(kind)):
            detector.save(path)
            content = path.read_bytes()
            alone, tied = type(detector).load(path), type(detector).load(path, model=classifier())
            for loaded in (alone, tied):
                _assert_same_state(detector, loaded)
                assert torch.equal(loaded.score_features(rows), detector.score_features(rows)), "load: scores"
                changed, wanted = (each.with_ratios(other).score_features(rows) for each in (loaded, detector))
                assert torch.equal(changed, wanted), "load: with_ratios"
                if detector.is_calibrated:
                    _assert_same(loaded.verdict_features(rows), detector.verdict_features(rows), "load")
                    why, expected = loaded.explain_features(rows), detector.explain_features(rows)
                    _assert_same(why[1:], expected[1:], "explanations of what was loaded")
            assert raised(partial(alone.score, strange()), NotFittedError), "load without a model must not score inputs"
            is_of_model = not raised(partial(detector.score, strange()), NotFittedError)
            if is_of_model:
                assert torch.equal(tied.score(strange()), detector.score(strange())), "load with a model: scores"
            (tied if is_of_model else alone).save(path)
            assert path.read_bytes() == content, "a loaded detector saves other bytes"


@check(is_of_detectors=True)
def check_what_is_missing_is_told(kind: type[Shell]) -> None:
    detector, inputs, rows = new(kind), strange(), features(strange())
    assert not detector.is_fitted
    assert not detector.is_calibrated
    calls: dict[str, Callable[[], object]] = {
        "score": lambda: detector.score(inputs),
        "score_features": lambda: detector.score_features(rows),
        "classify_features": lambda: detector.classify_features(rows),
        "calibrate": lambda: detector.calibrate([inputs]),
        "calibrate_features": lambda: detector.calibrate_features(rows),
        "with_ratios": lambda: detector.with_ratios(Ratios()),
        "with_tuned_ratios": lambda: detector.with_tuned_ratios(rows, rows),
        "save": lambda: detector.save("never written"),
    }
    for name in ("members", "left_out", "samples", "sensitivity", "masks", "pruned_head"):
        calls[name] = partial(getattr, detector, name)
    judging: dict[str, Callable[[], object]] = {}
    for name in ASKED:
        judging[name] = partial(getattr(detector, name), inputs)
        judging[f"{name}_features"] = partial(getattr(detector, f"{name}_features"), rows)
    for name in ("threshold", "keep", "calibration_scores"):
        judging[name] = partial(getattr, detector, name)
    for name, call in (calls | judging).items():
        assert raised(call, NotFittedError), f"{name} of what was never fitted"
    detector.fit(classifier(), batches(known()))
    assert detector.is_fitted
    assert not detector.is_calibrated
    assert bool(torch.isfinite(detector.score(inputs)).all()), "score must work without calibration"
    assert bool(torch.isfinite(detector.score_features(rows)).all())
    for name, call in judging.items():
        assert raised(call, NotCalibratedError), f"{name} of what was never calibrated"


@check(is_of_detectors=True, is_of_settings=True)
def check_inputs_and_features_agree(kind: type[Shell]) -> None:
    by_inputs, by_features, rows = asked(kind), from_features(kind), features(strange())
    for name in ("weight", "neuron_gradient", "neuron_aggregate"):
        one, other = (getattr(detector.sensitivity, name) for detector in (by_inputs, by_features))
        assert torch.allclose(one, other, rtol=1e-6, atol=0), f"sensitivity {name} of inputs and features"
    assert by_inputs.sensitivity.count == by_features.sensitivity.count
    assert by_inputs.samples == by_features.samples == len(known())
    _assert_same(by_inputs.masks, by_features.masks, "masks of inputs and features")
    for name in ("score", "p_value", "predict"):
        one, other = getattr(by_inputs, name)(strange()), getattr(by_features, f"{name}_features")(rows)
        assert torch.equal(one, other), f"{name} of inputs and features"
    _assert_same(by_inputs.verdict(strange()), by_features.verdict_features(rows), "verdict")
    _assert_same(by_inputs.explain(strange())[1:], by_features.explain_features(rows)[1:], "explanation")


@check(is_of_detectors=True, is_of_settings=True)
def check_answers_are_plain_tensors(kind: type[Shell]) -> None:
    detector, inputs = asked(kind), strange().clone().requires_grad_()
    rows = features(strange()).requires_grad_()
    answers: list[Tensor] = [detector.score(inputs), detector.p_value(inputs), detector.predict(inputs)]
    answers += [detector.score_features(rows), detector.p_value_features(rows)]
    answers += [*detector.verdict(inputs), *detector.verdict_features(rows), detector.classify_features(rows)]
    answers += [*detector.explain(inputs)[1:], *detector.explain_features(rows)[1:]]
    answers += [*detector.masks, detector.calibration_scores, detector.sensitivity.weight]
    answers += [detector.sensitivity.neuron_gradient, detector.sensitivity.neuron_aggregate]
    answers += list(detector.pruned_head.parameters())
    for number, answer in enumerate(answers):
        assert isinstance(answer, Tensor)
        assert not answer.requires_grad, f"answer {number} is part of a graph"
        assert answer.grad_fn is None, f"answer {number} is part of a graph"
        assert not answer.is_inference(), f"answer {number} is an inference tensor"
    assert inputs.grad is None
    trained = detector.pruned_head.requires_grad_()
    trained(torch.ones(2, 16, requires_grad=True)).sum().backward()
    assert trained.weight.grad is not None


@check(is_of_detectors=True, is_of_settings=True)
def check_with_ratios(kind: type[Shell]) -> None:
    model, rows = classifier(), features(strange())
    detector = fitted(kind, model)
    before, seen = detector.score(strange()), list[Tensor]()
    for ratios in (Ratios(w_min=0.5), Ratios(w_min=0.25, o_min=0.25), Ratios(w_max=0.1), Ratios(o_max=0.25)):
        changed = detector.with_ratios(ratios)
        assert not changed.is_calibrated, "calibration belongs to the scores of one setting"
        assert changed.members == ("opnp",), "ratios belong to the pruned head alone"
        assert changed.settings == replace(detector.settings, members=None, ratios=ratios), "another setting changed"
        _assert_is_the_pruned_head(changed, rows)
        if not detector.settings.is_fusion:  # whose sums lack the rows that give its scales
            anew = type(detector).from_settings(changed.settings).fit(model, batches(known()))
            _assert_same(changed.masks, anew.masks, f"masks of {ratios}")
            assert torch.equal(changed.score(strange()), anew.score(strange())), f"scores of {ratios}"
        assert torch.equal(changed.pruned_head.weight == 0, ~changed.masks.kept), f"pruned head of {ratios}"
        assert not any(torch.equal(changed.score(strange()), other) for other in seen), "a sweep that changes nothing"
        seen.append(changed.score(strange()))
    assert torch.equal(detector.score(strange()), before), "with_ratios changed the detector it came from"
    assert detector.is_calibrated


def _assert_is_the_pruned_head(detector: OPNP, rows: Tensor) -> None:
    """Assert that masks follow from the sensitivities, and that energies are those of what they leave."""
    settings, sensitivity = detector.settings, detector.sensitivity
    ratios = settings.ratios
    weight = weight_mask(sensitivity.weight, lowest=ratios.w_min, highest=ratios.w_max, scope=settings.scope)
    neuron = neuron_mask(sensitivity.neuron(settings.neuron), lowest=ratios.o_min, highest=ratios.o_max)
    _assert_same(detector.masks, (weight, neuron), f"masks of {ratios}")
    if settings.score != "energy" or isinstance(settings.shaping, ReAct):
        return  # their formulas have tests of their own
    found = detector.score_features(rows)
    logits = detector.pruned_head.to(found)(shaped(rows.to(found), settings.shaping, threshold=None))
    wanted = energy_score(logits, temperature=settings.temperature)
    assert torch.allclose(found, wanted.to(found), rtol=1e-5), f"scores of {ratios}"


@check(is_of_detectors=True, is_of_settings=True)
def check_explanations(kind: type[Shell]) -> None:
    detector, inputs, samples = asked(kind), torch.cat([fresh(), strange()]), len(fresh())
    members, p_values, shares = detector.explain(inputs)
    assert set(members) == {*detector.members, "opnp"}, "the fused scores and the pruned head are spoken of"
    assert p_values.shape == shares.shape == (len(inputs), len(members))
    assert p_values.dtype == shares.dtype == torch.float64
    assert bool(((p_values >= 1 / (samples + 1)) & (p_values <= 1)).all())
    assert torch.allclose(shares.sum(1), torch.ones(len(inputs), dtype=torch.float64)), "shares must sum to 1"
    assert bool((shares[:, [name not in detector.members for name in members]] == 0).all())
    as_calibrated = torch.cat([detector.explain(batch).p_value for batch in batches(fresh())])  # to the bit
    ranks = (as_calibrated * (samples + 1)).round().sort(0).values
    counted = torch.arange(2, samples + 2, dtype=torch.float64)[:, None]  # of calibration samples themselves
    assert bool((ranks >= counted).all()), "p-values of members must be ranks, and ties raise them"
    assert float((ranks == counted).double().mean()) > 0.9, "p-values of members must be ranks among the calibration"
    smallest = p_values.amin(1)
    assert smallest[samples:].mean() < smallest[:samples].mean(), "what is strange must look strange to some member"
    if not detector.settings.is_fusion:
        assert torch.equal(p_values[:, 0], detector.p_value(inputs)), "alone, the pruned head decides"
        assert bool((shares == 1).all())


@check(is_of_detectors=True, is_of_settings=True)
def check_verdicts(kind: type[Shell]) -> None:
    detector, inputs, samples = asked(kind), torch.cat([fresh(), strange()]), len(fresh())
    predicted_class, scores, p_values, flags = detector.verdict(inputs)
    assert predicted_class.dtype == torch.int64
    assert (p_values.dtype, flags.dtype) == (torch.float64, torch.bool)
    wide = detector.settings.precision == "float64" or detector.settings.is_fusion
    assert scores.dtype == (torch.float64 if wide else torch.float32)
    assert all(item.shape == (len(inputs),) for item in (predicted_class, scores, p_values, flags))
    assert torch.equal(detector.score(inputs), scores)
    assert torch.equal(detector.p_value(inputs), p_values)
    assert torch.equal(detector.predict(inputs), flags)
    ranks = torch.tensor([1 + sum(int(c >= s) for c in detector.calibration_scores.tolist()) for s in scores.tolist()])
    assert torch.equal(p_values, ranks.double() / (samples + 1)), "p-values by their definition"
    assert torch.equal(flags, ranks <= (samples + 1) // 10), "verdict by integer rank at keep=0.9"
    assert torch.equal(flags, scores.double() > detector.threshold), "verdict by threshold"
    assert detector.keep == KEEP
    assert flags[samples:].double().mean() > 0.5, "verdicts: wrong sign"


@check(is_of_detectors=True, is_of_settings=True)
def check_single_inputs(kind: type[Shell]) -> None:
    detector, one, row = asked(kind), strange()[0], features(strange()[:1])[0]
    for name in ("score", "p_value", "predict"):
        for question, single in ((name, one), (f"{name}_features", row)):
            answer = getattr(detector, question)(single)
            assert answer.shape == (), f"{question} of one input"
            assert torch.equal(answer, getattr(detector, question)(single[None])[0]), f"{question}: a batch of one"
    verdict, why = detector.verdict(one), detector.explain(one)[1:]
    assert {answer.shape for answer in verdict} == {()}
    _assert_same(verdict, tuple(answer[0] for answer in detector.verdict(one[None])), "verdict of one input")
    _assert_same(why, tuple(answer[0] for answer in detector.explain(one[None])[1:]), "explanation of one input")


@check(is_of_detectors=True)
def check_every_call_changes_nothing(kind: type[Shell]) -> None:
    model, inputs = lived_in(classifier()), fresh()[:8]
    detector = fitted(kind, model)
    with unchanged(model, "fit with validation and a named head"):
        detector.fit(model, batches(known()), head=HEAD, validation=batches(fresh()))
    for name in ("score", *ASKED):
        for given in (inputs, inputs[0]):
            with unchanged(model, name):
                getattr(detector, name)(given)
    with unchanged(model, "pruned_head of other ratios"):
        other = detector.with_ratios(Ratios(w_min=0.5, o_max=0.1))
        other.score(inputs)
        other.pruned_head.weight.add_(1.0)
    with unchanged(model, "save and load"), tempfile.TemporaryDirectory() as folder:
        detector.save(Path(folder) / "detector")
        type(detector).load(Path(folder) / "detector", model=model).score(inputs)


class _Fragile(nn.Module):
    """Fails in its forward pass number `left`, after its layers have run."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.left = 0
        self.error = ArithmeticError("inside the model")
        self.training = False

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.inner(inputs)
        self.left -= 1
        if self.left == 0:
            raise self.error
        return outputs


def _broken_loader(error: BaseException) -> Iterator[Tensor]:
    yield from batches(known())[:2]
    raise error


def _fails(call: Callable[[], object], model: nn.Module, error: BaseException, doing: str) -> None:
    """Assert that `call` passes `error` on and leaves the model as it was."""
    with unchanged(model, f"{type(error).__name__} in {doing}"):
        found = raised(call, BaseException)
    if found is not None and found is not error:
        raise found
    assert found is error, f"{type(error).__name__} in {doing} was swallowed"


@check(is_of_detectors=True)
def check_failures_change_nothing(kind: type[Shell]) -> None:
    for error in (ValueError("broken sample"), KeyboardInterrupt(), SystemExit(3), RuntimeError("worker died")):
        model = lived_in(classifier())
        detector = new(kind)
        _fails(partial(detector.fit, model, _broken_loader(error)), model, error, "fit")
        assert not detector.is_fitted, "a failed fit left the detector fitted"
        detector = fitted(kind, model)
        before = detector.score(strange())
        calls: dict[str, Callable[[], object]] = {
            "fit again": partial(detector.fit, model, _broken_loader(error)),
            "validation": partial(detector.fit, model, batches(known()), validation=_broken_loader(error)),
            "calibrate": partial(detector.calibrate, _broken_loader(error)),
        }
        for doing, call in calls.items():
            _fails(call, model, error, doing)
            assert detector.is_calibrated, f"a failure in {doing} cost the calibration"
            assert torch.equal(detector.score(strange()), before), f"a failure in {doing} changed the scores"
    fragile = _Fragile(lived_in(classifier()))
    for forward in range(1, 4):  # as many as there are batches
        fragile.left = forward
        fit: Callable[..., Any] = new(kind).fit
        _fails(partial(fit, fragile, batches(known()[:96])), fragile, fragile.error, f"forward {forward}")
    detector = fitted(kind, fragile)
    for name in ("score", *ASKED):
        fragile.left = 1
        _fails(partial(getattr(detector, name), strange()), fragile, fragile.error, name)


@check(is_of_detectors=True)
def check_two_detectors_get_along(kind: type[Shell]) -> None:
    model = lived_in(classifier())
    alone = fitted(kind, classifier()).score(strange())
    first = fitted(kind, model)
    second = new(kind).fit(model, batches(strange(), 16))  # other sensitivities, whatever rounds how
    second_scores = second.score(strange())
    assert torch.equal(first.score(strange()), alone), "a second detector on the model changes the first"

    def interleaved(inputs: Tensor) -> Iterator[Tensor]:
        for batch in batches(inputs):
            assert torch.equal(second.score(strange()), second_scores), "a detector answers otherwise inside a pass"
            yield batch

    with unchanged(model, "a pass inside a pass"):
        third = new(kind).fit(model, interleaved(known()), validation=interleaved(fresh()))
    expected = new(kind).fit(classifier(), batches(known()), validation=batches(fresh())).score(strange())
    assert torch.equal(third.score(strange()), expected), "scoring inside another detector's pass changes that pass"


_SAMPLES, _FEATURES, _CLASSES = 300, 24, 7


@check(is_of_detectors=True, is_of_settings=True)
def check_cutting_does_not_matter(kind: type[Shell]) -> None:
    """Assert equal masks in float64, and in float32 masks that differ within 1e-6 relative of the cut alone."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.rand(_SAMPLES, _FEATURES, generator=generator) * 3
    inputs[:, 5] = inputs[:, 4]  # a tie on paper, which the order of summation must not break
    inputs[:, 6] = 0.0
    model = nn.Sequential(nn.ReLU(), nn.utils.skip_init(nn.Linear, _FEATURES, _CLASSES))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 3
    whole = new(kind).fit(model, [inputs])
    exact = whole.settings.precision == "float64"
    shuffled = torch.randperm(_SAMPLES, generator=generator)
    for size, order in ((37, torch.arange(_SAMPLES)), (64, torch.arange(_SAMPLES).flip(0)), (299, shuffled)):
        cut = new(kind).fit(model, inputs[order].split(size))
        assert cut.samples == _SAMPLES, "every sample counts once"
        assert cut.sensitivity.count == whole.sensitivity.count, "another number of rows gives the scales"
        assert cut.members == whole.members, "other scores are fused"
        for name in ("weight", "neuron_gradient", "neuron_aggregate"):
            one, other = getattr(whole.sensitivity, name), getattr(cut.sensitivity, name)
            assert torch.allclose(one, other, rtol=1e-12 if exact else 1e-6, atol=0), f"{name}, batches of {size}"
        if exact:
            _assert_same(whole.masks, cut.masks, f"masks of batches of {size}")
        else:
            _assert_differ_at_the_cut_alone(whole, cut)


def _assert_differ_at_the_cut_alone(whole: OPNP, cut: OPNP) -> None:
    settings = whole.settings
    weight, ratios = whole.sensitivity.weight, settings.ratios
    rankings = weight if settings.scope == "class" else weight.reshape(1, -1)
    neurons = whole.sensitivity.neuron(settings.neuron)[None]
    one, other = whole.masks, cut.masks
    flipped = Masks(one.weight != other.weight, one.neuron != other.neuron)
    _assert_near(rankings, flipped.weight.reshape(rankings.shape), ratios.w_min, ratios.w_max)
    _assert_near(neurons, flipped.neuron[None], ratios.o_min, ratios.o_max)


def _assert_near(rankings: Tensor, flipped: Tensor, lowest: float, highest: float) -> None:
    entries = rankings.shape[1]
    for ranking, is_flipped in zip(rankings, flipped, strict=True):
        ordered = ranking.sort().values
        cuts = [round(lowest * entries), entries - round(highest * entries)]
        edges = torch.stack([ordered[index] for cut in cuts for index in (cut - 1, cut) if 0 <= index < entries])
        for value in ranking[is_flipped]:
            assert bool(((value - edges).abs() <= 1e-6 * edges).any()), "a mask differs away from the cut"
