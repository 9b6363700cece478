"""pytorch-ood's own grid search and benchmark, run with the detector that is made for them."""

from itertools import product
from typing import Any

import pytest
import torch
from pytorch_ood.api import BenchmarkInfo, Paper, Task
from pytorch_ood.benchmark import Benchmark
from pytorch_ood.detector import DICE, MaxSoftmax
from pytorch_ood.utils import GridSearch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset

from opnp import OPNP, Ratios, auroc, fpr_at_tpr
from opnp.adapters.pytorch_ood import OPNPDetector
from tests.contract.snapshot import unchanged
from tests.unit.adapters.encoder_world import Net, inputs_and_labels

WIDE = 64
SPACE: dict[str, list[Any]] = {"w_min": [0.0, 0.2, 0.5, 0.8], "o_max": [0.0, 0.25], "scope": ["layer", "class"]}
TRAIN = inputs_and_labels(200, seed=0)
ID = inputs_and_labels(150, seed=1)
NEAR, FAR = (inputs_and_labels(150, seed=2 + index, shift=shift)[0] for index, shift in enumerate((0.2, -0.6)))


def pairs(inputs: Tensor, labels: Tensor | None = None) -> Dataset[tuple[Tensor, ...]]:
    """Return a data set; labels of OOD inputs are -1, as pytorch-ood has it."""
    return TensorDataset(inputs, torch.full((len(inputs),), -1) if labels is None else labels)


def mixed(ood: Tensor) -> Dataset[tuple[Tensor, ...]]:
    return ConcatDataset([pairs(*ID), pairs(ood)])


class SmallBenchmark(Benchmark):  # type: ignore[misc]  # the package ships no types
    """Two OOD sets of random images."""

    info = BenchmarkInfo(paper=Paper("None", "none", 2026, "none"), tasks={Task.CLASSIFICATION})
    ood_names = ("near", "far")

    def train_set(self) -> Dataset[tuple[Tensor, ...]]:
        return pairs(*TRAIN)

    def test_sets(self, known: bool = True, unknown: bool = True) -> list[Dataset[tuple[Tensor, ...]]]:
        return [mixed(ood) for ood in (NEAR, FAR)]


def reference(net: Net, ratios: Ratios, scope: str = "layer") -> tuple[Tensor, Tensor, Tensor]:
    """Return the scores of ID, near and far by the detector of this project, on the model itself."""
    detector = OPNP(ratios=ratios, scope=scope, shaping=None)  # type: ignore[arg-type]  # one of two words
    detector.fit(net, [TRAIN], head="fc")
    return detector.score(ID[0]), detector.score(NEAR), detector.score(FAR)


def search(detector: OPNPDetector, **options: object) -> GridSearch:
    fit, validation = (DataLoader(data, batch_size=50) for data in (pairs(*TRAIN), mixed(NEAR)))
    return GridSearch(detector, fit, validation, hyperparameter_space=SPACE, **options)


@pytest.mark.parametrize(("metric", "is_higher_better"), [("AUROC", True), ("FPR95TPR", False)])
def test_grid_search_tries_every_setting_and_leaves_the_best(metric: str, is_higher_better: bool) -> None:
    net = Net().eval()  # pytorch-ood takes features in the mode that it finds
    detector = OPNPDetector(net.features, net.fc)
    grid = search(detector, metric_name=metric, higher_is_better=is_higher_better)
    with unchanged(net, "the grid search"), torch.random.fork_rng(devices=[]):  # a `DataLoader` draws a seed
        best = grid.run()
    expected = {}
    for w_min, o_max, scope in product(*SPACE.values()):
        inside, near, _ = reference(net, Ratios(w_min=w_min, o_max=o_max), scope)
        # Their FPR has OOD as the positive class.
        expected[w_min, o_max, scope] = (
            auroc(inside, near) if metric == "AUROC" else fpr_at_tpr(inside, near, positive="ood")
        )
    found = {tuple(each["params"].values()): each["score"] for each in grid.results_}
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(set(found.values())) > len(found) // 2
    chosen = (max if is_higher_better else min)(expected, key=lambda key: expected[key])
    assert tuple(best.values()) == chosen
    assert detector.get_hyperparameters() == best
    kept = OPNP(ratios=Ratios(w_min=chosen[0], o_max=chosen[1]), scope=chosen[2], shaping=None).fit(
        net, [TRAIN], head="fc"
    )
    assert detector.opnp.masks.kept.equal(kept.masks.kept)


def test_the_benchmark_reports_what_the_detector_scores() -> None:
    net = Net().eval()
    benchmark = SmallBenchmark()
    training = DataLoader(benchmark.train_set(), batch_size=50)
    detector = OPNPDetector(net.features, net.fc, w_min=0.5)
    dice = DICE(net.features, net.fc.weight, net.fc.bias, p=0.5)
    with unchanged(net, "fitting and the benchmark"), torch.random.fork_rng(devices=[]):  # as above
        for each in (detector, dice):
            each.fit(training)
        rows = benchmark.evaluate([detector, dice, MaxSoftmax(net)], loader_kwargs={"batch_size": 64}, cache=True)
    ours = {row["Dataset"]: row for row in rows if row["Detector"] == "OPNPDetector"}
    assert {row["Detector"] for row in rows} == {"OPNPDetector", "DICE", "MaxSoftmax"}
    inside, *outside = reference(net, Ratios(w_min=0.5))
    for name, scores in zip(benchmark.ood_names, outside, strict=True):
        assert ours[name]["AUROC"] == pytest.approx(auroc(inside, scores), abs=1e-6)
        assert ours[name]["FPR95TPR"] == pytest.approx(fpr_at_tpr(inside, scores, positive="ood"), abs=1e-6)
    before = [row["AUROC"] for row in ours.values()]
    detector.set_hyperparameters(w_min=0.0, o_max=0.5)
    after = benchmark.evaluate(detector, loader_kwargs={"batch_size": 64}, cache=True)
    assert [row["AUROC"] for row in after] != before
    again = reference(net, Ratios(o_max=0.5))
    assert [row["AUROC"] for row in after] == pytest.approx([auroc(again[0], each) for each in again[1:]], abs=1e-6)
