"""What `OPNP()` is worth on real models: against every published single setting, and on inputs that must be flagged."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from opnp import OPNP, auroc
from opnp.core import flagged_rank, is_flagged
from tests.real.locations import DATA, needs_data
from tests.reliability.guarantees_world import require_beta_binomial
from tests.tried import Tried

pytestmark = [pytest.mark.real, needs_data]

RECORD = Path(__file__).parents[2] / "docs" / "records" / "panel.json"
MODELS = sorted(path.name for path in (DATA / "features").glob("*")) if DATA.is_dir() else []


def read(model: str, name: str) -> Tensor:
    return load_file(DATA / "features" / model / f"{name}.safetensors")["features"]


@cache
def fitted(model: str, dtype: torch.dtype = torch.float16) -> OPNP:
    head = load_file(DATA / "features" / model / "head.safetensors")
    return OPNP().fit_features(read(model, "train").to(dtype), weight=head["weight"], bias=head["bias"])


def mean_auroc(model: str, dtype: torch.dtype = torch.float16) -> float:
    """Return the AUROC in %, mean over the OOD sets, on all of the ID test samples."""
    detector = fitted(model, dtype)
    inside = detector.score_features(read(model, "test").to(dtype))
    sets = sorted(path.stem for path in (DATA / "features" / model).glob("ood_*"))
    found = [auroc(inside, detector.score_features(read(model, name).to(dtype))) for name in sets]
    return 100 * sum(found) / len(found)


def test_the_record_of_the_panel_holds_what_is_promised() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    row, rows = record["rows"]["OPNP()"], record["rows"]
    assert sorted(row["auroc"]) == MODELS
    assert sum(each["kind"] == "single" for each in rows.values()) == 26
    assert record["splits"] == 10
    assert row["mean_regret"] <= 0.4
    assert row["worst_regret"] <= 1.7
    assert row["mean_auroc"] >= 94.76 - 0.1  # the best fused row of the study that the panel started from
    assert max(row["mean_regret_by_split"]) - min(row["mean_regret_by_split"]) <= 0.2
    assert row["mean_regret"] <= min(each["mean_regret"] for each in rows.values() if each["kind"] == "single")


@pytest.mark.parametrize("model", MODELS)
def test_the_detector_is_worth_what_the_record_says(model: str) -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert mean_auroc(model) == pytest.approx(record["rows"]["OPNP()"]["auroc"][model], abs=0.4)  # of parts of the test
    assert fitted(model).left_out == {}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_features_of_half_precision_cost_next_to_nothing(model: str) -> None:
    """Other rows give the scales, as their bits are others: of few training samples that is another small sample."""
    tolerance = 0.1 if len(read(model, "train")) > 10_000 else 0.6
    assert mean_auroc(model, torch.bfloat16) == pytest.approx(mean_auroc(model, torch.float32), abs=tolerance)


@pytest.mark.parametrize("samples", [400, pytest.param(650, marks=pytest.mark.long)])
@pytest.mark.parametrize("model", MODELS)
def test_features_that_no_input_gives_are_flagged(model: str, samples: int, tried: Tried) -> None:
    tried("inputs", "kinds of features that no input gives, on a real model", 6)
    generator = torch.Generator().manual_seed(0)
    test = read(model, "test").float()
    test = test[torch.randperm(len(test), generator=generator)]
    detector = fitted(model).calibrate_features(test[:samples])
    known, training = test[samples : samples + 2000], read(model, "train").float()
    signs = torch.randint(0, 2, known.shape, generator=generator) * 2 - 1
    strange = {
        "times 10": 10 * known,
        "times 100": 100 * known,
        "times 0.1": 0.1 * known,
        "negated": -known,
        "zero": torch.zeros_like(known),
        "20 standard deviations away": known + 20 * training.std(0) * signs,
    }
    shares = {name: float(detector.predict_features(rows).double().mean()) for name, rows in strange.items()}
    assert min(shares.values()) >= 0.98, shares
    assert float(detector.predict_features(known).double().mean()) < 0.1


@pytest.mark.parametrize("samples", [20, 2000])
@pytest.mark.parametrize("model", ["densenet_cifar10", pytest.param("densenet_cifar100", marks=pytest.mark.long)])
def test_the_share_of_real_inputs_flagged_is_beta_binomial(model: str, samples: int, tried: Tried) -> None:
    """2000 draws of calibration samples from real scores; 1000 others are judged by each."""
    tried("guarantees", "draws of calibration samples from real scores", 2000)
    scores = fitted(model).score_features(read(model, "test"))
    generator = torch.Generator().manual_seed(samples)
    flagged = torch.empty(2000, dtype=torch.int64)
    for draw in range(len(flagged)):
        order = torch.randperm(len(scores), generator=generator)
        known, others = scores[order[:samples]], scores[order[samples : samples + 1000]]
        flagged[draw] = is_flagged(others, known, keep=0.95).sum()
    require_beta_binomial(flagged, of=1000, samples=samples, rank=flagged_rank(samples, keep=0.95))
