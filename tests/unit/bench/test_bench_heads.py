"""Caching the features of models whose head is a 1x1 convolution."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp.data import InputSet, read_features, read_head
from tests.contract.snapshot import unchanged
from tests.unit.bench.image_world import CLASSES, cached, image_sets, write_images

WIDTH = 12


class Answering(nn.Module):
    """A body, a head that is a convolution, and pooling before or after it."""

    def __init__(self, *, is_pooled_after: bool) -> None:
        super().__init__()
        pool, flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.body = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.ReLU(), *([] if is_pooled_after else [pool]))
        self.head = nn.Conv2d(WIDTH, CLASSES, 1)
        self.after = nn.Sequential(*([pool] if is_pooled_after else []), flat)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.after(self.head(self.body(inputs)))
        return logits


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, InputSet]:
    found = image_sets(write_images(tmp_path / "images", rows=50))
    return {name: found[name] for name in ("test", "ood_noise")}


@pytest.mark.parametrize("is_pooled_after", [False, True], ids=["pooled before", "pooled after"])
@pytest.mark.parametrize(
    "options",
    [{}, {"amp": "bf16"}, {"is_channels_last": True}],
    ids=str,
)
def test_features_and_head_give_the_models_logits(
    tmp_path: Path,
    sets: dict[str, InputSet],
    options: dict[str, object],
    *,
    is_pooled_after: bool,
) -> None:
    torch.manual_seed(0)
    model = Answering(is_pooled_after=is_pooled_after)
    with unchanged(model, "caching"):
        report = cached(model, sets, tmp_path / "out", dtype=torch.float32, is_odin_wanted=False, **options)
    assert report.source.head == "head"
    head, features = read_head(tmp_path / "out" / "head.safetensors"), read_features(tmp_path / "out/test.safetensors")
    assert head.weight.shape == (CLASSES, WIDTH)
    with torch.no_grad():
        logits = torch.cat([model(inputs) for inputs, _ in sets["test"].batches(16)])
    tolerance = 0.05 if "amp" in options else 1e-5
    found = linear(features.features, head.weight, head.bias)
    torch.testing.assert_close(found, logits, rtol=tolerance, atol=tolerance)
