"""What the examples of texts and tables share: detectors side by side on one classifier, a table, and a record."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from opnp import OPNP, SCALE, Ratios, ReAct, auroc, fpr_at_tpr

__all__ = ["Comparison", "Result", "Split", "compared", "trained"]

KEEP = 0.95
"""Share of ID inputs that the verdicts keep."""

_ROWS = 512


@dataclass(frozen=True, eq=False, slots=True)
class Split:
    """Inputs, shape ``(samples, columns)``, with class indices, shape ``(samples,)``.

    Attributes:
        train: What the classifier is trained and the detectors are fitted on.
        validation: Held-out ID inputs: verdicts are calibrated on them.
        test: Other held-out ID inputs, to judge by.
        ood: OOD inputs by name, to judge by. Nothing is chosen by them.

    """

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    ood: Mapping[str, Tensor]

    def double(self) -> "Split":
        """Return the split with inputs in float64."""
        train, validation, test = (
            (inputs.double(), labels) for inputs, labels in (self.train, self.validation, self.test)
        )
        return Split(train, validation, test, {name: inputs.double() for name, inputs in self.ood.items()})

    @property
    def counts(self) -> dict[str, int]:
        """Samples by name of the set."""
        inside = {"train": self.train, "validation": self.validation, "test": self.test}
        outside = {f"ood_{name}": len(inputs) for name, inputs in self.ood.items()}
        return {name: len(labels) for name, (_, labels) in inside.items()} | outside


@dataclass(frozen=True, slots=True)
class Result:
    """One detector on one OOD set.

    Attributes:
        seed: Seed of the split and of the training.
        method: The detector.
        ood: Name of the OOD set.
        fpr95: Share of the OOD inputs that pass where 95 % of ID pass (ID positive).
        auroc: AUROC.
        flagged_id: Share of ID test inputs that its verdict calls OOD; 0.05 is what was asked for.
        scored_by: The scores that are fused, or what the detector does to features and head.

    """

    seed: int
    method: str
    ood: str
    fpr95: float
    auroc: float
    flagged_id: float
    scored_by: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All detectors on all OOD sets and seeds.

    Attributes:
        title: ID against OOD, in words.
        counts: Samples by name of the set, of the first seed.
        accuracy: Accuracy of the classifier on the ID test inputs, by seed.
        results: One entry for each seed, method and OOD set.

    """

    title: str
    counts: Mapping[str, int]
    accuracy: Sequence[float]
    results: Sequence[Result]

    def mean(self, method: str, ood: str, figure: str) -> float:
        """Return the mean over the seeds of ``"fpr95"``, ``"auroc"`` or ``"flagged_id"``."""
        return statistics.fmean(getattr(each, figure) for each in self._of(method) if each.ood == ood)

    def table(self) -> str:
        """Return the means over the seeds as a table, FPR95 / AUROC in percent, and below it what OPNP scores by."""
        methods = list(dict.fromkeys(each.method for each in self.results))
        sets = list(dict.fromkeys(each.ood for each in self.results))
        heading = (
            f"{self.title}. Accuracy {100 * statistics.fmean(self.accuracy):.1f} %; means over "
            f"{len(self.accuracy)} seeds; FPR95 (ID positive) / AUROC in %."
        )
        lines = [heading, "", self._line("method", sets, f"ID flagged at keep={KEEP:g}")]
        for method in methods:
            pairs = [f"{self._percent(method, ood, 'fpr95')} / {self._percent(method, ood, 'auroc')}" for ood in sets]
            lines.append(self._line(method, pairs, self._percent(method, sets[0], "flagged_id")))
        lines.append("")
        found = dict.fromkeys((each.method, each.seed, each.scored_by) for each in self.results)
        lines += [f"{method}, seed {seed}: {what}" for method, seed, what in found if method.startswith("OPNP")]
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        versions = {name: version(name) for name in ("opnp", "torch", "scikit-learn")}
        path.write_text(
            json.dumps({**asdict(self), "keep": KEEP, "versions": versions}, indent=2) + "\n", encoding="utf-8"
        )

    def _of(self, method: str) -> list[Result]:
        return [each for each in self.results if each.method == method]

    def _line(self, method: str, cells: Sequence[str], flagged: str) -> str:
        return " | ".join([method.ljust(20), *(cell.center(16) for cell in cells), flagged])

    def _percent(self, method: str, ood: str, figure: str) -> str:
        return f"{100 * self.mean(method, ood, figure):.2f}"


def detectors() -> dict[str, OPNP]:
    """Return the detectors by name: single scores, the paper's pruning, and the fusion. Nothing is tuned."""
    return {
        "Energy": OPNP(ratios=Ratios()),
        "MSP": OPNP(score="msp"),
        "ReAct 0.9": OPNP(shaping=ReAct(0.9)),
        "SCALE 0.85": OPNP(shaping=SCALE(0.85)),
        "OPNP w_min=0.3": OPNP(ratios=Ratios(w_min=0.3)),
        "OPNP()": OPNP(),
    }


def compared(model: nn.Module, split: Split, *, seed: int) -> list[Result]:
    """Return what each detector makes of a trained classifier."""
    results = []
    for method, detector in detectors().items():
        detector.fit(model, _batches(*split.train), validation=_batches(*split.validation), keep=KEEP)
        verdict = detector.verdict(split.test[0])
        settings = detector.settings
        pruned = f"{settings.ratios}, {settings.shaping}, {settings.score}"
        for name, inputs in split.ood.items():
            scores = detector.score(inputs)
            results.append(
                Result(
                    seed=seed,
                    method=method,
                    ood=name,
                    fpr95=fpr_at_tpr(verdict.score, scores),
                    auroc=auroc(verdict.score, scores),
                    flagged_id=float(verdict.is_ood.double().mean()),
                    scored_by=", ".join(detector.members) if settings.is_fusion else pruned,
                )
            )
    return results


def trained(
    split: Split, *, classes: int, width: int, epochs: int, batch: int, rate: float, dropout: float, seed: int
) -> nn.Sequential:
    """Return a perceptron with one hidden layer, in the dtype of the inputs; the random state is left as it was."""
    inputs, labels = split.train
    linear = partial(nn.Linear, dtype=inputs.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(linear(inputs.shape[1], width), nn.ReLU(), nn.Dropout(dropout), linear(width, classes))
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
        steps = epochs * -(-len(inputs) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(inputs)).split(batch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def accuracy_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return the share of inputs that the classifier gets right."""
    with torch.no_grad():
        return float((model(inputs).argmax(1) == labels).double().mean())


def _batches(inputs: Tensor, labels: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    return list(zip(inputs.split(_ROWS), labels.split(_ROWS), strict=True))
