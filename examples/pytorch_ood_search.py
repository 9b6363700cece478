"""OPNP in pytorch-ood: its grid search chooses the ratios, and its metrics judge them and the fusion.

    python -m examples.pytorch_ood_search

The data are those of `examples.tabular_digits`: seven known classes of digits. Ratios are chosen by shuffled columns,
and judged by rows of three classes that neither the classifier nor the search has seen. No pruning is among the
candidates, and on a table with so few classes it is what the search chooses. Without ratios the detector fuses scores,
and needs no OOD samples at all.
"""

import sys

import torch
from pytorch_ood.metrics import OODMetrics
from pytorch_ood.utils import GridSearch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from examples.tabular_digits import classifier, rows
from opnp.adapters.pytorch_ood import OPNPDetector

__all__ = ["main", "run"]


def run(*, seed: int = 0) -> dict[str, object]:
    """Return the ratios that were chosen, their AUROC in the search, and figures on the unseen classes of both.

    The FPR95 is pytorch-ood's: OOD is the positive class.
    """
    split, classes = rows(seed=seed)
    model = classifier(split, classes=classes, seed=seed)
    encoder, head = model[:-1], model[-1]
    if not isinstance(head, nn.Linear):
        raise TypeError(head)
    detector = OPNPDetector(encoder, head)
    search = GridSearch(
        detector,
        fit_loader=_loader(*split.train),
        val_loader=_loader(*_mixed(*split.validation, split.ood["shuffled_columns"])),
        hyperparameter_space={"w_min": [0.0, 0.3, 0.5, 0.8], "o_max": [0.0, 0.05]},
    )
    chosen = search.run()
    fusion = OPNPDetector(encoder, head).fit(_loader(*split.train))
    test = _loader(*_mixed(*split.test, split.ood["unseen_classes"]))
    return {
        "chosen": chosen,
        "validation": search.best_score_,
        "test": _figures(detector, test),
        "fusion": _figures(fusion, test),
    }


def main() -> None:
    """Print what was chosen, and what it is worth."""
    found = run()
    sys.stdout.write(f"chosen: {found['chosen']}, AUROC in the search: {found['validation']:.4f}\n")
    sys.stdout.write(f"on unseen classes: {found['test']}\n")
    sys.stdout.write(f"the fusion on them: {found['fusion']}\n")


def _figures(detector: OPNPDetector, loader: DataLoader[tuple[Tensor, ...]]) -> object:
    metrics = OODMetrics()
    for inputs, labels in loader:
        metrics.update(detector.predict(inputs), labels)
    return metrics.compute()


def _mixed(inputs: Tensor, labels: Tensor, ood: Tensor) -> tuple[Tensor, Tensor]:
    """Return ID and OOD inputs; labels of OOD inputs are -1."""
    return torch.cat([inputs, ood]), torch.cat([labels, torch.full((len(ood),), -1)])


def _loader(inputs: Tensor, labels: Tensor) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(inputs, labels), batch_size=256)


if __name__ == "__main__":
    main()
