"""Models of unusual kinds on the command line: scores are those of the library, or one line says why there are none."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from opnp import OPNP, Ratios
from tests.in_process import Opnp
from tests.reliability import models_adapted, models_forwards, models_heads, models_wrapped
from tests.reliability.models_world import built, image_sets
from tests.tried import Tried
from tests.unit.bench.image_world import OPTIONS

pytestmark = pytest.mark.reliability


def _arguments(build: Callable[[], torch.nn.Module], folder: Path) -> list[object]:
    image_sets(folder)
    name = f"{build.__module__}:{build.__name__}"
    data = ("--data", folder / "train.safetensors", "--validation", folder / "test.safetensors", "--batch-size", 16)
    return ["fit", "--model", name, *OPTIONS, *data, "--rho-w-min", 0.25, "--out", folder / "detector.safetensors"]


@pytest.mark.parametrize(
    "build",
    [
        models_adapted.lora_merged,
        models_adapted.older_weight_norm,
        models_adapted.pruned_by_its_owner,
        models_adapted.spectral_norm,
        models_forwards.features_written_to_after_the_head,
        models_forwards.head_of_float32_on_bfloat16,
        models_wrapped.compiled,
    ],
)
def test_a_model_of_an_unusual_kind_is_fitted(
    build: Callable[[], torch.nn.Module], opnp: Opnp, tmp_path: Path, tried: Tried
) -> None:
    tried("models", "models of unusual kinds on the command line")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        code, _, err = opnp(*_arguments(build, tmp_path))
    assert code == 0, err
    loaded = OPNP.load(tmp_path / "detector.safetensors")
    sets = image_sets(tmp_path)
    right = OPNP(ratios=Ratios(w_min=0.25)).fit(
        built(build), sets["train"].batches(16), validation=sets["test"].batches(16)
    )
    assert torch.equal(loaded.sensitivity.weight, right.sensitivity.weight)
    assert torch.equal(loaded.calibration_scores, right.calibration_scores)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (models_adapted.lora_on_the_head, "Merge the adapter into its layer first"),
        (models_heads.shared_and_averaged, "ran 2 times in one forward pass"),
        (models_heads.lazy_head, "lazy layers that were never run"),
        (models_adapted.quantised, "Give the model that it was made from"),
        (models_heads.hook_that_scales, "a hook on the layer changes its output"),
        (models_forwards.all_float16, "`model.to(torch.float32)`"),
        (models_forwards.on_the_meta_device, "on the meta device"),
        (models_forwards.needs_a_second_argument, "mapping from names of arguments to tensors"),
        (models_forwards.drops_a_sample, "received 15 rows for a batch of 16 inputs"),
        (models_wrapped.scripted, "Give the model that it was made from"),
    ],
)
def test_a_model_that_is_refused_is_so_in_one_line(
    build: Callable[[], torch.nn.Module], words: str, opnp: Opnp, tmp_path: Path, tried: Tried
) -> None:
    tried("models", "models of unusual kinds on the command line")
    code, out, err = opnp(*_arguments(build, tmp_path))
    assert (code, out) == (2, "")
    assert words in " ".join(err.split()), err
    assert "Traceback" not in err
    assert not (tmp_path / "detector.safetensors").exists()


def test_a_model_with_random_numbers_is_told(opnp: Opnp, tmp_path: Path, tried: Tried) -> None:
    tried("models", "models of unusual kinds on the command line")
    with torch.random.fork_rng(devices=[]):
        code, _, err = opnp(*_arguments(models_forwards.functional_dropout, tmp_path))
    assert code == 0, err
    assert "draws random numbers in eval mode" in " ".join(err.split())
