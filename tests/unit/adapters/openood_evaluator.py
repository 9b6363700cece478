"""A small evaluator that asks of a postprocessor what OpenOOD's evaluator asks, in the same order.

It sets up, searches for hyper-parameters where that is wanted, goes through the loaders, and stores scores as arrays
and the postprocessor as a pickle. Loaders yield mappings with ``data``, ``label`` and more.
"""

import pickle
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opnp import auroc

__all__ = ["Batches", "Evaluator", "batches"]

Batches = list[dict[str, Any]]


def batches(inputs: Tensor, labels: Tensor | None = None, *, size: int = 16) -> Batches:
    """Return batches as OpenOOD's data sets give them; OOD labels are whatever their data set says."""
    labels = torch.arange(len(inputs)) if labels is None else labels
    parts = zip(inputs.split(size), labels.split(size), strict=True)
    return [{"index": index, "data": data, "label": label} for index, (data, label) in enumerate(parts)]


class Evaluator:
    """Sets up, searches and evaluates.

    Args:
        net: The classifier.
        loaders: ``id`` with ``train``, ``val`` and ``test``; ``ood`` with ``val``, and sets under ``near`` and ``far``.
        postprocessor: The postprocessor.

    Attributes:
        trials: AUROC by hyper-parameters, where they were searched for.

    """

    def __init__(self, net: nn.Module, loaders: Mapping[str, Mapping[str, Any]], postprocessor: Any) -> None:
        self.net, self.loaders, self.postprocessor = net, loaders, postprocessor
        self.trials: dict[tuple[object, ...], float] = {}
        postprocessor.setup(net, loaders["id"], loaders["ood"])
        if postprocessor.APS_mode and not postprocessor.hyperparam_search_done:
            self.search()

    def search(self) -> None:
        """Try every combination, the first name changing fastest, and keep the first of the best."""
        values: Sequence[Iterable[object]] = list(self.postprocessor.args_dict.values())
        for combination in (list(reversed(each)) for each in product(*reversed(values))):
            self.postprocessor.set_hyperparam(combination)
            confidences = [self.inferred(self.loaders[kind]["val"])[1] for kind in ("id", "ood")]
            self.trials[tuple(combination)] = self.auroc(*confidences)
        best = max(self.trials, key=self.trials.__getitem__)
        self.postprocessor.set_hyperparam(list(best))
        self.postprocessor.hyperparam_search_done = True

    def evaluated(self, folder: Path) -> dict[str, float]:
        """Return the AUROC of every OOD set, with scores and postprocessor stored in `folder`."""
        scores = {"id": self.inferred(self.loaders["id"]["test"])}
        for split in ("near", "far"):
            for name, loader in self.loaders["ood"][split].items():
                predicted, confidence, label = self.inferred(loader)
                scores[name] = predicted, confidence, -np.ones_like(label)
        for name, (predicted, confidence, label) in scores.items():
            np.savez(folder / name, pred=predicted, conf=confidence, label=label)
        (folder / "postprocessor.pkl").write_bytes(pickle.dumps(self.postprocessor, pickle.HIGHEST_PROTOCOL))
        inside = scores.pop("id")[1]
        return {name: self.auroc(inside, confidence) for name, (_, confidence, _) in scores.items()}

    def inferred(self, loader: Batches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what the postprocessor infers, progress given by position."""
        found = self.postprocessor.inference(self.net, loader, False)
        predicted, confidence, label = found
        assert len(predicted) == len(confidence) == len(label) == sum(len(batch["data"]) for batch in loader)
        assert predicted.dtype.kind == label.dtype.kind == "i"
        return found  # type: ignore[no-any-return]  # the postprocessor is duck-typed

    @staticmethod
    def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
        """Return the AUROC of confidences, which are larger for ID."""
        return auroc(-torch.from_numpy(inside), -torch.from_numpy(outside))
