"""What every detector answers: the same in every way of asking, and larger scores for what it does not know."""

import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios, ReAct, auroc, energy_score
from opnp.core import Sensitivity, neuron_mask, weight_mask
from opnp.core.shaping import shaped
from opnp.errors import NotCalibratedError, NotFittedError
from tests.contract.model_checks import Make, fitted
from tests.contract.world import HEAD, batches, classifier, features_of, held_out, outside, training

__all__ = [
    "check_answers_are_plain_tensors",
    "check_determinism",
    "check_explanations",
    "check_inputs_and_features_agree",
    "check_saved_detector_answers_alike",
    "check_sign",
    "check_single_inputs",
    "check_uncalibrated",
    "check_unfitted",
    "check_verdicts",
    "check_with_ratios",
]


def check_sign(make: Make) -> None:
    detector = fitted(make)
    assert auroc(detector.score(held_out()), detector.score(outside())) > 0.9, "larger scores must mean more OOD"
    inside, strange = (features_of(classifier(), inputs) for inputs in (held_out(), outside()))
    assert auroc(detector.score_features(inside), detector.score_features(strange)) > 0.9, "features: wrong sign"
    assert detector.predict(outside()).float().mean() > 0.5, "verdicts: wrong sign"
    assert detector.p_value(outside()).mean() < detector.p_value(held_out()).mean(), "p-values: wrong sign"


def check_determinism(make: Make) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = fitted(make)
        torch.manual_seed(2)
        other = fitted(make)
    _assert_same_state(one, other)
    for detector in (other, one):
        assert torch.equal(detector.score(outside()), one.score(outside())), "the same question, another answer"


def check_saved_detector_answers_alike(make: Make) -> None:
    model = classifier()
    features = features_of(model, outside())
    uncalibrated = make().fit(model, batches(training()))
    from_features = make().fit_features(features, weight=_head(model).weight, bias=_head(model).bias)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "detector.safetensors"
        for detector in (uncalibrated, fitted(make, model), from_features):
            detector.save(path)
            content = path.read_bytes()
            alone, tied = type(detector).load(path), type(detector).load(path, model=classifier())
            for loaded in (alone, tied):
                _assert_same_state(detector, loaded)
                assert torch.equal(loaded.score_features(features), detector.score_features(features)), "load: scores"
                other = Ratios(w_min=0.4, o_min=0.2)
                assert torch.equal(
                    loaded.with_ratios(other).score_features(features),
                    detector.with_ratios(other).score_features(features),
                ), "load: with_ratios"
                if detector.is_calibrated:
                    _assert_same(loaded.verdict_features(features), detector.verdict_features(features), "load")
                    why, expected = loaded.explain_features(features), detector.explain_features(features)
                    _assert_same(why[1:], expected[1:], "explanations of what was loaded")
            same = alone if detector is from_features else tied
            same.save(path)
            assert path.read_bytes() == content, "a loaded detector saves other bytes"
            assert _raises(NotFittedError, lambda: alone.score(outside())), "load without a model must not score inputs"  # noqa: B023  # called at once
            if detector is not from_features:
                assert torch.equal(tied.score(outside()), detector.score(outside())), "load with a model: scores"


def check_unfitted(make: Make) -> None:
    detector, inputs, features = make(), outside(), torch.ones(2, 16)
    assert not detector.is_fitted
    assert not detector.is_calibrated
    for name in ("score", "p_value", "predict", "verdict", "explain"):
        assert _raises(NotFittedError, lambda: getattr(detector, name)(inputs)), name  # noqa: B023  # called at once
        assert _raises(NotFittedError, lambda: getattr(detector, f"{name}_features")(features)), name  # noqa: B023  # as above
    held = ("members", "left_out", "samples", "sensitivity", "masks", "pruned_head")
    for name in (*held, "threshold", "keep", "calibration_scores"):
        assert _raises(NotFittedError, lambda: getattr(detector, name)), name  # noqa: B023  # as above
    calls: dict[str, Callable[[], object]] = {
        "classify_features": lambda: detector.classify_features(features),
        "calibrate": lambda: detector.calibrate([inputs]),
        "calibrate_features": lambda: detector.calibrate_features(features),
        "with_ratios": lambda: detector.with_ratios(Ratios()),
        "save": lambda: detector.save("never written"),
    }
    for name, call in calls.items():
        assert _raises(NotFittedError, call), name


def check_uncalibrated(make: Make) -> None:
    model = classifier()
    detector = make().fit(model, batches(training()))
    features = features_of(model, outside())
    assert detector.is_fitted
    assert not detector.is_calibrated
    assert bool(torch.isfinite(detector.score(outside())).all()), "score must work without calibration"
    assert bool(torch.isfinite(detector.score_features(features)).all())
    for name in ("p_value", "predict", "verdict", "explain"):
        assert _raises(NotCalibratedError, lambda: getattr(detector, name)(outside())), name  # noqa: B023  # called at once
        assert _raises(NotCalibratedError, lambda: getattr(detector, f"{name}_features")(features)), name  # noqa: B023  # as above
    for name in ("threshold", "keep", "calibration_scores"):
        assert _raises(NotCalibratedError, lambda: getattr(detector, name)), name  # noqa: B023  # as above


def check_inputs_and_features_agree(make: Make) -> None:
    model = classifier()
    from_model = fitted(make, model)
    known = torch.cat([features_of(model, batch) for batch in batches(training())])
    fresh = torch.cat([features_of(model, batch) for batch in batches(held_out())])
    from_features = make().fit_features(known, weight=_head(model).weight, bias=_head(model).bias)
    from_features.calibrate_features(fresh, keep=0.9)
    for name in ("weight", "neuron_gradient", "neuron_aggregate"):
        one, other = (getattr(detector.sensitivity, name) for detector in (from_model, from_features))
        assert torch.allclose(one, other, rtol=1e-6, atol=0), f"sensitivity {name} of inputs and features"
    assert from_model.sensitivity.count == from_features.sensitivity.count
    assert from_model.samples == from_features.samples == len(training())
    _assert_same(from_model.masks, from_features.masks, "masks of inputs and features")
    strange = features_of(model, outside())
    for name in ("score", "p_value", "predict"):
        one, other = getattr(from_model, name)(outside()), getattr(from_features, f"{name}_features")(strange)
        assert torch.equal(one, other), f"{name} of inputs and features"
    _assert_same(from_model.verdict(outside()), from_features.verdict_features(strange), "verdict")
    _assert_same(from_model.explain(outside())[1:], from_features.explain_features(strange)[1:], "explanation")
    with torch.no_grad():
        classes = model(outside()).argmax(1)
    assert torch.equal(from_model.verdict(outside()).predicted_class, classes), "the predicted class is the model's own"


def check_answers_are_plain_tensors(make: Make) -> None:
    model = classifier()
    detector = fitted(make, model)
    inputs = outside().clone().requires_grad_()
    features = features_of(model, outside()).requires_grad_()
    answers: list[Tensor] = [detector.score(inputs), detector.p_value(inputs), detector.predict(inputs)]
    answers += [detector.score_features(features), detector.p_value_features(features)]
    answers += [*detector.verdict(inputs), *detector.verdict_features(features), detector.classify_features(features)]
    answers += [*detector.explain(inputs)[1:], *detector.explain_features(features)[1:]]
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


def check_with_ratios(make: Make) -> None:
    model = classifier()
    detector = fitted(make, model)
    before, seen = detector.score(outside()), list[Tensor]()
    for ratios in (Ratios(w_min=0.5), Ratios(w_min=0.25, o_min=0.25), Ratios(w_max=0.1), Ratios(o_max=0.25)):
        changed = detector.with_ratios(ratios)
        assert changed.settings.ratios == ratios
        assert not changed.is_calibrated, "calibration belongs to the scores of one setting"
        assert changed.members == ("opnp",), "ratios belong to the pruned head alone"
        assert changed.settings == replace(detector.settings, members=None, ratios=ratios), "another setting changed"
        _assert_is_the_pruned_head(changed, features_of(model, outside()))
        if not detector.settings.is_fusion:  # whose sums lack the rows that give its scales
            anew = type(detector).from_settings(changed.settings).fit(model, batches(training()))
            _assert_same(changed.masks, anew.masks, f"masks of {ratios}")
            assert torch.equal(changed.score(outside()), anew.score(outside())), f"scores of {ratios}"
        assert torch.equal(changed.pruned_head.weight == 0, ~changed.masks.kept), f"pruned head of {ratios}"
        assert not any(torch.equal(changed.score(outside()), other) for other in seen), "a sweep that changes nothing"
        seen.append(changed.score(outside()))
    assert torch.equal(detector.score(outside()), before), "with_ratios changed the detector it came from"
    assert detector.is_calibrated


def check_explanations(make: Make) -> None:
    detector = fitted(make)
    inputs = torch.cat([held_out(), outside()])
    members, p_values, shares = detector.explain(inputs)
    assert set(members) == {*detector.members, "opnp"}, "the fused scores and the pruned head are spoken of"
    assert p_values.shape == shares.shape == (len(inputs), len(members))
    assert p_values.dtype == shares.dtype == torch.float64
    samples = len(held_out())
    assert bool(((p_values >= 1 / (samples + 1)) & (p_values <= 1)).all())
    assert torch.allclose(shares.sum(1), torch.ones(len(inputs), dtype=torch.float64)), "shares must sum to 1"
    assert bool((shares[:, [name not in detector.members for name in members]] == 0).all())
    as_calibrated = torch.cat([detector.explain(batch).p_value for batch in batches(held_out())])  # to the bit
    ranks = (as_calibrated * (samples + 1)).round().sort(0).values
    counted = torch.arange(2, samples + 2, dtype=torch.float64)[:, None]  # of calibration samples themselves
    assert bool((ranks >= counted).all()), "p-values of members must be ranks, and ties raise them"
    assert float((ranks == counted).double().mean()) > 0.9, "p-values of members must be ranks among the calibration"
    strange, known = p_values[samples:].amin(1).mean(), p_values[:samples].amin(1).mean()
    assert strange < known, "what is strange must look strange to some member"
    if not detector.settings.is_fusion:
        assert torch.equal(p_values[:, 0], detector.p_value(inputs)), "alone, the pruned head decides"
        assert bool((shares == 1).all())


def check_verdicts(make: Make) -> None:
    detector = fitted(make)
    inputs = torch.cat([held_out(), outside()])
    predicted_class, scores, p_values, flags = detector.verdict(inputs)
    samples = len(held_out())
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
    assert detector.keep == 0.9


def check_single_inputs(make: Make) -> None:
    model = classifier()
    detector = fitted(make, model)
    one, features = outside()[0], features_of(model, outside()[:1])[0]
    for name in ("score", "p_value", "predict"):
        for asked, single in ((name, one), (f"{name}_features", features)):
            answer = getattr(detector, asked)(single)
            assert answer.shape == (), f"{asked} of one input"
            assert torch.equal(answer, getattr(detector, asked)(single[None])[0]), f"{asked}: one input, batch of one"
    for answer, batched in zip(detector.verdict(one), detector.verdict(one[None]), strict=True):
        assert answer.shape == ()
        assert torch.equal(answer, batched[0])
    for answer, batched in zip(detector.explain(one)[1:], detector.explain(one[None])[1:], strict=True):
        assert answer.ndim == 1
        assert torch.equal(answer, batched[0])


def _assert_is_the_pruned_head(detector: OPNP, features: Tensor) -> None:
    """Assert that masks follow from the sensitivities, and that energies are those of what they leave."""
    settings, sensitivity = detector.settings, detector.sensitivity
    ratios = settings.ratios
    weight = weight_mask(sensitivity.weight, lowest=ratios.w_min, highest=ratios.w_max, scope=settings.scope)
    neuron = neuron_mask(sensitivity.neuron(settings.neuron), lowest=ratios.o_min, highest=ratios.o_max)
    _assert_same(detector.masks, (weight, neuron), f"masks of {ratios}")
    if settings.score != "energy" or isinstance(settings.shaping, ReAct):
        return  # their formulas have tests of their own
    found = detector.score_features(features)
    logits = detector.pruned_head.to(found)(shaped(features.to(found), settings.shaping, threshold=None))
    wanted = energy_score(logits, temperature=settings.temperature)
    assert torch.allclose(found, wanted.to(found), rtol=1e-5), f"scores of {ratios}"


def _head(model: nn.Module) -> nn.Linear:
    head = model.get_submodule(HEAD)
    assert isinstance(head, nn.Linear)
    return head


def _assert_same(one: tuple[Tensor, ...], other: tuple[Tensor, ...], what: str) -> None:
    assert len(one) == len(other)
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


def _raises(error: type[Exception], call: Callable[[], object]) -> bool:
    try:
        call()
    except error:
        return True
    return False
