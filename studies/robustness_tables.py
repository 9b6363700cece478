"""Tables of the results page on spread, sides, fewer data, labels and wrong answers, each from records alone."""

import statistics
from collections.abc import Mapping, Sequence

from opnp.core import PANEL
from opnp.values.bench import PRODUCT as FUSED
from studies.result_tables import Values, table

__all__ = [
    "caught_table",
    "chosen_table",
    "failure_means",
    "failures_table",
    "flagged_table",
    "labels_table",
    "side_regrets",
    "side_regrets_table",
    "sides_table",
    "spread_table",
    "training_table",
]

_BESIDE = ("fDBD", "ViM", "SCALE 0.85", "GEN", "Mahalanobis++", "ReAct 0.95", "MSP", "Energy")
"""The single settings that stand beside the fusion: those of its members, MSP and the energy."""

_SCORES = (FUSED, "MSP", "MaxLogit", "Energy", *PANEL)
_COLUMNS = {
    "AUROC, near": ("near", "auroc"),
    "AUROC, far": ("far", "auroc"),
    "FPR95, ID positive": ("all", "fpr95"),
    "FPR95, OOD positive": ("all", "fpr95_ood_positive"),
}
"""Side and figure of the regrets, by title."""


def spread_table(record: Values) -> str:
    """Return mean and deviation over the splits of three figures, for `OPNP()`, the best single setting and energy."""
    rows = []
    for model, each in record["models"].items():
        best = _best_single(each["methods"], "all", "auroc")
        for name in dict.fromkeys((FUSED, best, "Energy")):
            figures = each["methods"][name]["all"]
            shown = [_deviating(figures[figure]) for figure in ("auroc", "fpr95", "fpr95_ood_positive")]
            rows.append([model if name == FUSED else "", f"{name}, the best of 26" if name == best else name, *shown])
    return table(["model", "method", "AUROC", "FPR95, ID positive", "FPR95, OOD positive"], rows)


def sides_table(record: Values) -> str:
    """Return the AUROC, near and far, of `OPNP()`, of the single setting that is best on that side, and of the energy.

    Models without a near set have no such cells.
    """
    rows = []
    for model, each in record["models"].items():
        cells = [model]
        for side in ("near", "far"):
            names = [FUSED, _best_single(each["methods"], side, "auroc"), "Energy"] if each[side] else []
            found = [_deviating(each["methods"][name][side]["auroc"]) for name in names]
            cells += [found[0], f"{found[1]} {names[1]}", found[2]] if found else ["", "", ""]
        rows.append(cells)
    names = ["`OPNP()`", "best of 26", "energy"]
    return table(["model", *(f"{name}, {side}" for side in ("near", "far") for name in names)], rows)


def side_regrets(record: Values, method: str) -> dict[str, list[float]]:
    """Return the regrets of a method over the models, by side and figure: each against the single setting best by it.

    Models without a near set have no regret there.
    """
    found = {}
    for title, (side, figure) in _COLUMNS.items():
        judged = [each["methods"] for each in record["models"].values() if side == "all" or each[side]]
        best = [_worth(methods, _best_single(methods, side, figure), side, figure) for methods in judged]
        own = [_worth(methods, method, side, figure) for methods in judged]
        found[title] = [max(0.0, top - value) for top, value in zip(best, own, strict=True)]
    return found


def side_regrets_table(record: Values) -> str:
    """Return mean and worst regret by side and figure."""
    rows = [
        [name, *(f"{statistics.fmean(each):.2f} / {max(each):.2f}" for each in side_regrets(record, name).values())]
        for name in (FUSED, *_BESIDE)
    ]
    return table(["method, mean / worst regret", *_COLUMNS], rows)


def _best_single(methods: Mapping[str, Values], side: str, figure: str) -> str:
    return max((name for name in methods if name != FUSED), key=lambda name: _worth(methods, name, side, figure))


def _worth(methods: Mapping[str, Values], name: str, side: str, figure: str) -> float:
    """Return a figure such that more is better."""
    value: float = methods[name][side][figure][0]
    return value if figure == "auroc" else -value


def _deviating(pair: Sequence[float]) -> str:
    return f"{pair[0]:.2f} ± {pair[1]:.2f}"


def chosen_table(record: Values) -> str:
    """Return what a choice on all other models is worth on the model left out, by what is chosen."""
    rows = [
        [
            what,
            str(len({each["chosen"] for each in found["models"].values()})),
            f"{found['mean']:.2f}",
            f"{found['worst']:.2f}",
        ]
        for what, found in record["left_out"].items()
    ]
    return table(["what is chosen", "different choices", "mean regret", "worst regret"], rows)


def training_table(record: Values, models: Sequence[str]) -> str:
    """Return AUROC by share of the training samples, of `OPNP()` and of its best member on the same samples."""
    found = {model: record["models"][model]["training"] for model in models}
    rows = []
    for share in next(iter(found.values())):
        of_share = [each[share] for each in found.values()]
        fused = [each["auroc"] for each in of_share]
        best = [max(each["members"].values()) for each in of_share]
        rows.append([f"{share}: samples", *(str(each["samples"]) for each in of_share), ""])
        rows.append(
            [f"{share}: `OPNP()`", *map(_ranging, fused), f"{statistics.fmean(mean for mean, _, _ in fused):.2f}"]
        )
        rows.append([f"{share}: best member", *(f"{value:.2f}" for value in best), f"{statistics.fmean(best):.2f}"])
    return table(["training samples", *models, "mean"], rows)


def flagged_table(record: Values, models: Sequence[str]) -> str:
    """Return the share of ID samples that is flagged, by number of held-out samples, with the range over draws."""
    return _held_out_table(record, models, "flagged")


def caught_table(record: Values, models: Sequence[str]) -> str:
    """Return the share of OOD samples that is flagged, mean over the OOD sets, with the range over draws."""
    return _held_out_table(record, models, "caught")


def _held_out_table(record: Values, models: Sequence[str], what: str) -> str:
    found = [record["models"][model]["held_out"] for model in models]
    rows = [
        [count, f"{found[0][count]['expected']:.2f}", *(_ranging(each[count][what], digits=1) for each in found)]
        for count in found[0]
    ]
    return table(["held-out samples", "ID flagged, exact", *models], rows)


def labels_table(record: Values, models: Sequence[str]) -> str:
    """Return the AUROC with Mahalanobis++ by the predicted class, by the labels, and without it."""
    found = [record["models"][model]["labels"] for model in models]
    names = {"by prediction": "`OPNP()`", "by label": "Mahalanobis++ by label", "without": "without Mahalanobis++"}
    rows = [
        [shown, *(f"{each[name]:.2f}" for each in found), f"{statistics.fmean(each[name] for each in found):.2f}"]
        for name, shown in names.items()
    ]
    return table(["classes", *models, "mean"], rows)


def failure_means(record: Values) -> dict[str, float]:
    """Return the AUROC of each score against wrong answers, mean over the models whose fusion has it."""
    found = [each["failures"]["auroc"] for each in record["models"].values()]
    return {name: statistics.fmean(each[name] for each in found if name in each) for name in _SCORES}


def failures_table(record: Values) -> str:
    """Return accuracy and ECE of each model, and the AUROC of each score against its wrong answers; then means."""
    found = {model: each["failures"] for model, each in record["models"].items()}
    rows = [
        [
            model,
            f"{each['accuracy']:.2f}",
            f"{each['ece']:.2f}",
            str(each["wrong"]),
            *(f"{each['auroc'][name]:.2f}" if name in each["auroc"] else "" for name in _SCORES),
        ]
        for model, each in found.items()
    ]
    rows.append(["mean", "", "", "", *(f"{value:.2f}" for value in failure_means(record).values())])
    return table(["model", "accuracy", "ECE", "wrong answers", *_SCORES], rows)


def _ranging(values: Sequence[float], *, digits: int = 2) -> str:
    """Return a mean with its range, or the mean alone where there is none."""
    mean, low, high = values
    return f"{mean:.{digits}f}" if low == high else f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
