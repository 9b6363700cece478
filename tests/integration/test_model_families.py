"""One test for every family of classifiers: the head is found or clearly refused, and OPNP works on what is found."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp import OPNP, PANEL, Ratios
from opnp.errors import HeadNotFoundError, MemberWarning, ShapeError
from opnp.export import exported_program, write_onnx
from opnp.export.files import arguments
from opnp.model import Inputs, find_head, head_stream, logits_of, run_model
from tests.contract.snapshot import unchanged
from tests.integration.model_families import CLASSES, FAMILIES, Family
from tests.tried import Tried

AS_ONNX = ("timm resnetv2_50", "transformers Bert", "network in network")
"""Families that are written as ONNX too: one of each kind of head and of inputs, as each takes seconds."""
EXPORTED = (
    *("network in network", "parametrized head", "softmax after the head", "tuple of outputs", "dict of outputs"),
    *("timm deit_tiny_distilled_patch16_224", "transformers Roberta", "torchvision swin"),
)
"""One of each kind of head, inputs and answers; to export all of them takes minutes."""
LARGE = (
    *("googlenet", "inception", "mnasnet", "shufflenet"),
    *("dla46_c", "ghostnet_050", "mobilenetv3_small_050", "mobilenetv4_conv_small_035", "starnet_s1"),
)
"""Many layers before a head like that of others: each takes seconds."""


def of(families: Iterable[Family], *, quick: Callable[[Family], bool]) -> pytest.MarkDecorator:
    """Run a test for families, for those that are not quick in ``make test-long`` alone."""
    return pytest.mark.parametrize(
        "family",
        [pytest.param(each, marks=[] if quick(each) else [pytest.mark.long], id=each.name) for each in families],
    )


@of(FAMILIES, quick=lambda family: family.name.partition(" ")[2] not in LARGE)
def test_a_family_goes_all_the_way(family: Family, tmp_path: Path, tried: Tried) -> None:
    tried("models", "families of models, fitted, scored and saved")
    model = family.model()
    if family.refusal is not None:
        check_is_refused(family, model)
    if family.head is None:
        return
    with unchanged(model, f"OPNP on {family.name}"):
        check_head(family, model)
        detector = fitted(family, model)
        check_scores(family, model, detector)
        check_is_saved(family, model, detector, tmp_path / "detector.safetensors")
        fusion = fused(family, model)
        check_fusion(family, model, fusion)
        check_is_saved(family, model, fusion, tmp_path / "fusion.safetensors")


def check_is_refused(family: Family, model: nn.Module) -> None:
    with (
        unchanged(model, f"refusing {family.name}"),
        pytest.raises((HeadNotFoundError, ShapeError), match=str(family.refusal)),
    ):
        OPNP(ratios=Ratios(w_min=0.25)).fit(model, [family.inputs(4, 0)])


def check_head(family: Family, model: nn.Module) -> None:
    """Check that the head that is found makes the logits of the features, as a linear layer does."""
    found = find_head(model, family.inputs(4, 0), **family.choice)
    assert (found.name, found.is_output) == (family.head, family.is_output)
    features, logits = features_of(family, model, family.inputs(4, 1))
    assert logits.shape == (4, CLASSES)
    torch.testing.assert_close(linear(features, found.weight, found.bias), logits, rtol=1e-4, atol=1e-4)


def features_of(family: Family, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
    with head_stream(model, [inputs], **family.choice) as stream:
        ((features, logits, _),) = stream.batches
    return features, logits


def fitted(family: Family, model: nn.Module) -> OPNP:
    detector = OPNP(ratios=Ratios(w_min=0.7), shaping=None)
    return detector.fit(model, [family.inputs(4, seed) for seed in range(2)], **family.choice)


def fused(family: Family, model: nn.Module) -> OPNP:
    batches = [family.inputs(20, seed) for seed in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MemberWarning)  # a random network may give features that lie in a subspace
        detector = OPNP().fit(model, batches, **family.choice)
    return detector.calibrate([family.inputs(20, 30)])


def check_fusion(family: Family, model: nn.Module, detector: OPNP) -> None:
    """Check that scores are fused of all members but few, and answer for inputs and features alike."""
    assert {*detector.members, *detector.left_out} == set(PANEL)
    assert len(detector.members) >= len(PANEL) - 2, detector.left_out
    inputs = family.inputs(3, 7)
    scores = detector.score(inputs)
    assert (scores.shape, scores.dtype) == ((3,), torch.float64)
    assert float(scores.std()) > 1e-3, "scores do not spread, so that equal ones mean little"
    features, logits = features_of(family, model, inputs)
    torch.testing.assert_close(detector.score_features(features), scores)
    assert torch.equal(detector.verdict(inputs).predicted_class, logits.argmax(1))
    strange = detector.score_features(torch.stack([100 * features[0], 0 * features[0]]))
    assert float(strange.min()) > float(scores.max()), "features that are scaled or vanish must stand out"


def check_scores(family: Family, model: nn.Module, detector: OPNP) -> None:
    inputs = family.inputs(3, 7)
    scores = detector.score(inputs)
    assert scores.shape == (3,)
    assert float(scores.std()) > 1e-3, "scores do not spread, so that equal ones mean little"
    assert not torch.allclose(scores, plain(detector, inputs)), "nothing was pruned"
    features, _ = features_of(family, model, inputs)
    torch.testing.assert_close(detector.score_features(features), scores)
    if family.is_output:
        with torch.no_grad():
            answer = run_model(model.eval(), inputs, device=None)
        model.train()
        logits = logits_of(answer, family.choice.get("logits"))
        assert logits is not None
        torch.testing.assert_close(plain(detector, inputs), -logits.flatten(1).logsumexp(1), rtol=1e-4, atol=1e-4)


def plain(detector: OPNP, inputs: Inputs) -> Tensor:
    """Return the scores of the head without pruning."""
    return detector.with_ratios(Ratios()).score(inputs)


def check_is_saved(family: Family, model: nn.Module, detector: OPNP, path: Path) -> None:
    detector.save(path)
    loaded = OPNP.load(path, model)
    inputs = family.inputs(3, 7)
    assert torch.equal(loaded.score(inputs), detector.score(inputs))


@of([each for each in FAMILIES if each.head is not None], quick=lambda family: family.name in EXPORTED)
def test_the_exported_program_takes_another_batch_size_and_gives_the_numbers(
    family: Family, tmp_path: Path, tried: Tried
) -> None:
    tried("models", "families of models, exported and run beside torch")
    detector = fitted(family, family.model())
    module = detector.calibrate([family.inputs(9, 5)], keep=0.5).to_module()
    example, inputs = family.inputs(2, 8), family.inputs(3, 7)
    args, named = arguments(module, inputs)
    _, score, p_value, is_ood = exported_program(module, example).module()(*args, **named)
    torch.testing.assert_close(score, detector.score(inputs), rtol=0, atol=1e-5 * float(score.abs().max()))
    assert torch.equal(p_value, module.judge.p_value(score))
    assert torch.equal(is_ood, module.judge.is_ood(score))
    if family.name in AS_ONNX:
        path = tmp_path / "detector.onnx"
        write_onnx(path, detector.to_module(), example)  # which compares with torch, at other batch sizes too
        assert path.stat().st_size > 0


@pytest.mark.parametrize("spread", [0.0, 1e-3], ids=["equal", "nearly equal"])
def test_norms_that_hardly_differ_behind_a_layer_norm_still_guard(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features = nn.functional.normalize(torch.randn(500, 12, generator=generator), dim=1)
    features *= 1 + spread * torch.randn(500, 1, generator=generator)
    weight = torch.randn(5, 12, generator=generator)
    detector = OPNP().fit_features(features[:400], weight=weight, bias=None)
    detector.calibrate_features(features[400:])
    assert detector.members == PANEL
    for factor in (0.5, 3.0, -3.0, 0.0):
        assert bool(detector.predict_features(factor * features[:50]).all()), factor
    rounded = detector.score_features(features[:50] * (1 + 1e-6))
    torch.testing.assert_close(rounded, detector.score_features(features[:50]), rtol=0, atol=2e-4)


def test_the_head_of_volo_for_tokens_is_refused_with_the_reason() -> None:
    (volo,) = (family for family in FAMILIES if family.name == "timm volo")
    model = volo.model()
    with unchanged(model, "refusing"), pytest.raises(ShapeError, match=r"`aux_head` .*every token.*fit_features"):
        OPNP(ratios=Ratios()).fit(model, [volo.inputs(4, 0)], head="aux_head")


def test_there_are_families_of_every_kind() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    for origin in ("torchvision", "timm", "transformers"):
        assert sum(name.startswith(f"{origin} ") for name in names) >= 12
