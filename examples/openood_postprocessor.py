"""OPNP as a postprocessor of OpenOOD: what its evaluator does with it, here without the evaluator.

    python -m examples.openood_postprocessor

Where OpenOOD is installed, the postprocessor goes to its evaluator as it is:

    from openood.evaluation_api import Evaluator
    from opnp.adapters.openood import OPNPPostprocessor

    Evaluator(net, id_name="cifar10", postprocessor=OPNPPostprocessor()).eval_ood()

As it is, the postprocessor fuses scores and has nothing to search for. With ratios it is the paper's method, whose
ratios a sweep tries. The data are those of `examples.tabular_digits`.
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from examples.tabular_digits import classifier, rows
from opnp import auroc
from opnp.adapters.openood import OPNPPostprocessor

__all__ = ["Net", "main", "run"]


class Net(nn.Module):
    """A classifier with what OpenOOD's networks have: `return_feature` and `get_fc`."""

    def __init__(self, model: nn.Sequential) -> None:
        """Take body and head of a classifier."""
        super().__init__()
        self.body = model[:-1]
        self.fc: nn.Module = model[-1]

    def forward(self, inputs: Tensor, *, return_feature: bool = False) -> Any:  # noqa: ANN401  # one tensor or two
        """Return the logits, or logits and features."""
        features = self.body(inputs)
        logits = self.fc(features)
        return (logits, features) if return_feature else logits

    def get_fc(self) -> tuple[object, object]:
        """Return weight and bias of the last layer as arrays."""
        weight, bias = self.fc.parameters()
        return weight.detach().cpu().numpy(), bias.detach().cpu().numpy()


def run(*, seed: int = 0) -> dict[str, float]:
    """Return the AUROC of the fusion and of each setting of the paper's method on rows of unseen classes."""
    split, classes = rows(seed=seed)
    net = Net(classifier(split, classes=classes, seed=seed))

    def judged(postprocessor: OPNPPostprocessor) -> float:
        inside, outside = (
            torch.from_numpy(postprocessor.inference(net, _batches(inputs), False)[1])  # noqa: FBT003  # OpenOOD's order
            for inputs in (split.test[0], split.ood["unseen_classes"])
        )
        return auroc(-inside, -outside)  # confidence is larger for ID

    fusion = OPNPPostprocessor()
    section = {"postprocessor_args": {"w_min": 0.0}, "postprocessor_sweep": {"w_min_list": [0.0, 0.3, 0.5]}}
    paper = OPNPPostprocessor({"postprocessor": section})
    for postprocessor in (fusion, paper):
        postprocessor.setup(net, {"train": _batches(*split.train)}, {})
    found = {"fusion": judged(fusion)}
    for value in paper.args_dict["w_min_list"]:
        paper.set_hyperparam([value])
        found[f"w_min={value:g}"] = judged(paper)
    return found


def main() -> None:
    """Print the AUROC of each setting."""
    for name, value in run().items():
        sys.stdout.write(f"{name}: AUROC {value:.4f}\n")


def _batches(inputs: Tensor, labels: Tensor | None = None) -> list[dict[str, Tensor]]:
    labels = torch.full((len(inputs),), -1) if labels is None else labels
    return [{"data": data, "label": label} for data, label in zip(inputs.split(256), labels.split(256), strict=True)]


if __name__ == "__main__":
    main()
