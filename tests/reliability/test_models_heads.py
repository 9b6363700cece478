"""Heads of every kind: scores are those of a slow computation, or the message says what to do instead."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from opnp import OPNP, Ratios
from opnp.errors import HeadMismatchError, HeadNotFoundError, InputTypeError, NonFiniteError, ShapeError
from tests.reliability import models_adapted as adapted
from tests.reliability import models_heads as heads
from tests.reliability.models_world import Case, Net, built, check_refused, check_right, images, untouched
from tests.tried import Tried

pytestmark = pytest.mark.reliability

_SELF = "the model's output, of shape"

RIGHT = (
    Case(Net),
    Case(heads.tied_to_another_layer, "two"),
    Case(heads.tasks_in_a_tuple, "one", choice={"logits": 0}),
    Case(heads.tasks_in_a_mapping, "one", choice={"logits": "colour"}),
    Case(heads.auxiliary_in_training, "one"),
    Case(heads.auxiliary_always, "one"),
    Case(adapted.parametrized_weight_and_bias),
    Case(adapted.older_weight_norm),
    Case(adapted.older_spectral_norm),
    Case(adapted.spectral_norm, tolerance=1e-4),
    Case(adapted.pruned_by_its_owner),
    Case(heads.no_bias),
    Case(adapted.quantised_body),
    Case(adapted.lora_merged, "base_model.model.fc.base_layer"),
    Case(adapted.lora_merged_and_unloaded),
    Case(adapted.lora_on_the_body, "base_model.model.fc"),
    Case(adapted.lora_with_a_trained_head, "base_model.model.fc.modules_to_save.default"),
    Case(heads.temperature_after, choice={"head": "fc"}),
    Case(heads.softmax_after, choice={"head": "fc"}),
    Case(heads.layer_norm_after, choice={"head": "fc"}),
    Case(heads.one_subtracted_in_place, choice={"head": "fc"}),
    Case(heads.head_in_other_words),
    Case(heads.noisy_in_training),
    Case(heads.weight_as_a_buffer),
    Case(heads.lazy_head_that_ran),
    Case(heads.inside_sequentials, "1.1"),
    Case(heads.inside_a_list, "heads.1"),
    Case(heads.inside_a_mapping, "heads.b"),
    Case(heads.equal_heads, "two", choice={"head": "two"}),
    Case(heads.forward_replaced_by_the_same, is_copied=False),
    Case(heads.frozen),
)

_NONE = HeadNotFoundError
REFUSED = (
    Case(heads.shared_by_two_outputs, error=_NONE, message=r"is a tuple .*`logits=0`, say"),
    Case(heads.shared_by_two_outputs, error=_NONE, message=r"`fc` ran 2 times", choice={"logits": 0}),
    Case(heads.shared_and_the_first_is_returned, error=_NONE, message=r"`fc` ran 2 times .* must run once.*`head=`"),
    Case(heads.shared_and_the_last_is_returned, error=_NONE, message=r"`fc` ran 2 times .* must run once.*`head=`"),
    Case(heads.shared_and_averaged, error=_NONE, message=r"`fc` .* ran 2 times .*combine.*`fit_features`"),
    Case(heads.tied_to_a_layer_before_it, "fc.4"),
    Case(heads.tasks_in_a_mapping, error=_NONE, message=r'is a dict \("shape": .*\(16, 7\).*Say where'),
    Case(adapted.quantised, error=_NONE, message=r"other kinds, as .*quantised .*: .*'fc' \(Linear\).*made from"),
    Case(adapted.lora_on_the_head, error=_NONE, message=r"sum of .* adapter .*Merge .*`model\.merge_adapter\(\)`"),
    Case(adapted.dora_on_the_head, error=_NONE, message=r"sum of .* adapter .*Merge .*`model\.merge_adapter\(\)`"),
    *(
        Case(build, error=_NONE, message=r"No nn\.Linear has .*follows the head \(a softmax.*`head=\"fc\"`")
        for build in (
            heads.temperature_after,
            heads.softmax_after,
            heads.log_softmax_after,
            heads.sigmoid_after,
            heads.layer_norm_after,
            heads.one_subtracted_in_place,
        )
    ),
    Case(heads.cosine_head, error=_NONE, message=r"`fc` is a Linear with a forward of its own.*`fit_features`"),
    Case(heads.scaled_head, error=_NONE, message=r"`fc` is a Linear with a forward of its own.*`fit_features`"),
    Case(heads.noisy_always, error=_NONE, message=r"a forward of its own", own=("random numbers",)),
    Case(heads.weight_of_integers, error=InputTypeError, message=r"weight of the head `fc` must be of fl.*torch\.int8"),
    Case(heads.bilinear_head, error=_NONE, message=r"No nn\.Linear has.*nothing to prune.*'body\.1' \(192 -> 12\)"),
    Case(heads.lazy_head, error=_NONE, message=r"lazy layers that were never run.*Run it once first"),
    Case(heads.functional_head, error=_NONE, message=r"`fc` .* was never called: .*functional\.linear.*Call the layer"),
    Case(heads.functional_head, error=_NONE, message=r"`fc` ran 0 times", choice={"head": "fc"}),
    Case(heads.functional_head_of_a_parameter, error=_NONE, message=r"No nn\.Linear has.*nothing to prune"),
    Case(heads.equal_heads, error=_NONE, message=r"2 layers have .*'one', 'two'. Choose one with `head=\"two\"`"),
    Case(heads.one_output, error=ShapeError, message=r"`fc` has one output: .*torch\.cat\(\[-w, w\]\) / 2`"),
    Case(heads.one_output_squeezed, error=ShapeError, message=r"`fc` has one output: .*torch\.cat\(\[-w, w\]\) / 2`"),
    Case(heads.hook_that_scales, error=_NONE, message=r"logits are not what its head `fc` makes.*hook.*Take the hook"),
    Case(heads.weight_not_a_number, error=NonFiniteError, message=r"`weight` of the head `fc` must be finite, got 1 N"),
    Case(heads.bias_infinite, error=NonFiniteError, message=r"`bias` of the head `fc` must be finite"),
    Case(heads.weight_sparse, error=InputTypeError, message=r"`fc` is sparse .*must be dense.*to_dense\(\)"),
    Case(
        heads.complex_head, error=InputTypeError, message=r"head `2` must be of floating-point numbers, got torch\.co"
    ),
)


@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.name)
def test_scores_are_those_of_a_slow_computation(case: Case, tmp_path: Path, tried: Tried) -> None:
    tried("models", "heads of unusual kinds, by every way to a score")
    check_right(case, tmp_path)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_a_refusal_says_what_to_do(case: Case, tmp_path: Path, tried: Tried) -> None:
    tried("models", "heads of unusual kinds, by every way to a score")
    if case.error is None:
        check_right(case, tmp_path)
    else:
        check_refused(case, tmp_path)


def _scaled(name: str) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        model.get_parameter(name).data.mul_(2)

    return change


@pytest.mark.parametrize(
    ("build", "change"),
    [
        (adapted.older_weight_norm, _scaled("fc.weight_g")),
        (adapted.older_spectral_norm, lambda model: model.get_parameter("fc.weight_orig").data[0].mul_(2)),
        (adapted.pruned_by_its_owner, _scaled("fc.weight_orig")),
        (adapted.pruned_by_its_owner, _scaled("fc.bias_orig")),
        (adapted.pruned_by_its_owner, lambda model: prune.random_unstructured(model.fc, "weight", amount=0.5)),
        (adapted.lora_merged, lambda model: model.unmerge_adapter()),
    ],
    ids=["weight norm", "spectral norm", "pruned weight", "pruned bias", "pruned further", "unmerged adapter"],
)
def test_a_head_that_is_computed_from_changed_parameters_is_noticed_before_it_runs(
    build: Callable[[], nn.Module], change: Callable[..., object], tried: Tried
) -> None:
    tried("models", "heads changed after the fit")
    model = built(build)
    detector = OPNP(ratios=Ratios(w_min=0.25), shaping=None).fit(model, images("train"))
    change(model)
    with pytest.raises(HeadMismatchError, match="its weights have changed since"):
        detector.score(images("probe")[0])


@pytest.mark.parametrize("build", [adapted.older_weight_norm, adapted.older_spectral_norm, adapted.pruned_by_its_owner])
def test_a_detector_is_loaded_for_a_model_whose_weights_were_loaded_and_that_has_not_run(
    build: Callable[[], nn.Module], tmp_path: Path, tried: Tried
) -> None:
    tried("models", "models with loaded weights that have not run yet")
    model, other = built(build), build()
    detector = OPNP(ratios=Ratios(w_min=0.25), shaping=None).fit(model, images("train"))
    detector.save(tmp_path / "detector.safetensors")
    other.load_state_dict(model.state_dict())
    loaded = OPNP.load(tmp_path / "detector.safetensors", other)
    scores: Tensor = loaded.score(images("probe")[0])
    torch.testing.assert_close(scores, detector.score(images("probe")[0]))


def test_masks_of_the_owner_stay(tried: Tried) -> None:
    tried("models", "models that their owner has pruned")
    model = built(adapted.pruned_by_its_owner)
    mask, hooks = model.get_buffer("fc.weight_mask").clone(), list(model.get_submodule("fc")._forward_pre_hooks)
    with untouched(model):
        detector = OPNP(ratios=Ratios(w_min=0.25), shaping=None).fit(model, images("train"))
        detector.score(images("probe")[0])
    assert torch.equal(model.get_buffer("fc.weight_mask"), mask)
    assert list(model.get_submodule("fc")._forward_pre_hooks) == hooks
    assert not bool(detector.pruned_head.weight[mask == 0].any())
