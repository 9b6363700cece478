"""pytorch-ood's grid search on real features finds the ratios, and the AUROC, that a sweep of our own finds."""

from itertools import product

import pytest
import torch
from pytorch_ood.metrics import AUROC
from pytorch_ood.utils import GridSearch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from opnp import OPNP, Ratios, auroc
from opnp.adapters.pytorch_ood import OPNPDetector
from opnp.bench.features import ModelData, read_feature_folder
from tests.real.locations import DATA, needs_data

pytestmark = [pytest.mark.real, pytest.mark.slow, needs_data]

SPACE = {"w_min": [0.0, 0.3, 0.5, 0.7, 0.8, 0.9], "o_max": [0.0, 0.05]}
CANDIDATES = [Ratios(w_min=w_min, o_max=o_max) for w_min, o_max in product(*SPACE.values())]


def rows(features: Tensor, count: int) -> Tensor:
    """Return evenly spread rows."""
    return features[torch.linspace(0, len(features) - 1, count).long()].float()


@pytest.mark.parametrize("name", ["densenet_cifar10", "densenet_cifar100"])
def test_grid_search_finds_what_an_own_sweep_finds(name: str) -> None:
    data: ModelData = read_feature_folder(DATA / "features" / name)
    training, inside = rows(data.train.features, 5000), rows(data.test.features, 2000)
    outside = torch.cat([rows(features, 500) for features in data.ood.values()])
    weight, bias = data.head.weight, data.head.bias

    validation = TensorDataset(
        torch.cat([inside, outside]), torch.cat([torch.zeros(len(inside)), -torch.ones(len(outside))]).long()
    )
    detector = OPNPDetector(nn.Identity(), w=weight, b=bias, w_min=0.0)
    training_set = TensorDataset(training, torch.zeros(len(training), dtype=torch.int64))
    grid = GridSearch(
        detector,
        DataLoader(training_set, batch_size=1000),
        DataLoader(validation, batch_size=1000),
        hyperparameter_space=SPACE,
    )
    best = grid.run()

    own = OPNP(ratios=Ratios()).fit_features(training, weight=weight, bias=bias)
    one_by_one, by_their_metric = [], []
    features, labels = validation.tensors
    for ratios in CANDIDATES:
        scores = own.with_ratios(ratios).score_features(features)
        one_by_one.append(auroc(scores[: len(inside)], scores[len(inside) :]))
        by_their_metric.append(AUROC().update(scores, labels).compute()["AUROC"])
    place = max(range(len(CANDIDATES)), key=one_by_one.__getitem__)
    assert Ratios(**best) == CANDIDATES[place]
    assert [each["score"] for each in grid.results_] == by_their_metric
    assert grid.best_score_ == by_their_metric[place]
    assert grid.best_score_ == pytest.approx(one_by_one[place], abs=1e-12, rel=0)  # sums in another order
    assert len(set(one_by_one)) == len(CANDIDATES)
    assert detector.opnp.masks.kept.equal(own.with_ratios(CANDIDATES[place]).masks.kept)

    swept = own.sweep_features(features, CANDIDATES)
    in_one_go = [auroc(scores[: len(inside)], scores[len(inside) :]) for scores in swept]
    assert in_one_go == pytest.approx(one_by_one, abs=1e-6)
    assert max(range(len(CANDIDATES)), key=in_one_go.__getitem__) == place
