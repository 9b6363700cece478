"""What is told of labels on real models: nothing of right ones, and whatever contradicts the model."""

import warnings
from functools import cache

import pytest
import torch
from torch import Tensor

from opnp import OPNP, Ratios
from opnp.data import FeatureShardWriter, open_features, read_features, read_head
from opnp.errors import LabelWarning
from tests.real.locations import DATA, needs_data

pytestmark = [pytest.mark.real, needs_data]

MODELS = sorted(path.name for path in (DATA / "features").glob("*")) if DATA.is_dir() else []
MOST = 3000


@cache
def samples(model: str, name: str) -> tuple[Tensor, Tensor]:
    """Return features and labels of random samples."""
    found = read_features(DATA / "features" / model / f"{name}.safetensors")
    assert found.labels is not None
    order = torch.randperm(len(found.features), generator=torch.Generator().manual_seed(0))[:MOST]
    return found.features[order], found.labels[order].long()


@pytest.mark.parametrize("samples_kept", [100, MOST])
@pytest.mark.parametrize("model", MODELS)
def test_right_labels_are_told_nothing_of_and_others_are(
    tmp_path_factory: pytest.TempPathFactory, model: str, samples_kept: int
) -> None:
    head = read_head(DATA / "features" / model / "head.safetensors")
    classes = len(head.weight)

    def fitted(change: Tensor) -> OPNP:
        sources = []
        for name in ("train", "test"):
            folder = tmp_path_factory.mktemp(name) / "shards"
            features, labels = (each[:samples_kept] for each in samples(model, name))
            with FeatureShardWriter(folder) as writer:
                writer.write(features, change[labels])
            sources.append(open_features(folder))
        detector = OPNP(ratios=Ratios(w_min=0.3))
        return detector.fit_features(sources[0], weight=head.weight, bias=head.bias, validation=sources[1])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accuracy = fitted(torch.arange(classes)).id_accuracy
    assert min(accuracy.values()) > 0.5
    with pytest.warns(LabelWarning, match="not above chance|another order") as told:
        wrong = fitted(torch.arange(classes).roll(1)).id_accuracy
    assert len(told) == 2
    assert max(wrong.values()) < 0.2
