"""A model card in Markdown: what a detector is, how it was made, what it promises, and what it does not."""

import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import torch

from opnp import __version__
from opnp.core.conformal import flagged_rank
from opnp.core.members import PANEL, PRUNED_HEAD
from opnp.fitted import Calibration, FittedState, Ratios

__all__ = ["FalseAlarms", "card_text"]

_SCORES = {
    "energy": "energy, -T logsumexp(f / T)",
    "msp": "minus the largest softmax probability",
    "max_logit": "minus the largest logit",
    "entropy": "entropy of the softmax",
    "gen": "generalised entropy (GEN)",
}
_MEMBERS = {
    "gen": "GEN: generalised entropy of the softmax",
    "energy": "Energy",
    "react": "ReAct: energy of clipped features",
    "scale": "SCALE: energy of scaled features",
    "ash_s": "ASH-S: energy of shaped features",
    "fdbd": "fDBD: distance to the decision boundaries",
    "nci": "NCI: length along the predicted class's weight",
    "mahalanobis": "Mahalanobis++: distance of the direction to the nearest class mean",
    "relative_mahalanobis": "Relative Mahalanobis++: that, less the distance to the mean of all",
    "vim": "ViM: residual outside the principal subspace, and energy",
    "opnp": "OPNP: energy of the pruned head, under SCALE",
    "opnp_gen": "GEN of the pruned head",
    "norm": "Norm guard: how much longer or shorter the features are than usual",
}
_LIMITS = """
- The share of known inputs flagged holds for inputs like the calibration samples. After a change of the data, such as
  another camera, season or mixture of the classes, calibrate again.
- {average}
- No share of unknown inputs found is promised. It depends on what they are: unknown inputs that look like known ones
  are found less often than noise is. Measure it on data of your own.
- Inputs made to deceive the detector can deceive it.
- The detector leaves the classifier's answer as it is, and says nothing of whether that answer is right.
- An exported graph rounds in another order. It was written once its scores of one batch lay within the tolerance that
  was asked for. Scores of other inputs differ by more where the 95 % quantile of a member lies close to its median, and
  an input that lies as close to the threshold may be judged otherwise.
- In an exported module an input whose features are not finite has the score NaN, and is flagged.
""".strip()
_AVERAGE = {
    False: "It is an average over all known inputs: within one class, or one group of inputs, more or fewer may be "
    "flagged.",
    True: "It holds for the inputs predicted as each class, and together for those of the pooled classes. Among inputs "
    "of other groups, or of one true class, more or fewer may be flagged.",
}
"""What the share is an average over, by whether the calibration is by class."""
_STEPS = 40


def card_text(state: FittedState, *, inputs: Mapping[str, object] | None = None) -> str:
    """Return the model card of a fitted detector.

    Args:
        state: The detector.
        inputs: What is known of the preparation of inputs, as JSON values.

    Returns:
        Markdown, ending in a newline.

    """
    calibrated = 0 if state.calibration is None else len(state.calibration.scores)
    is_by_class = state.calibration is not None and bool(state.calibration.groups)
    sections = {
        "Out-of-distribution detector": _purpose(state),
        "What it is made of": _made_of(state),
        "How the settings were chosen": _choice(state),
        "Data": _table({"Training samples": state.samples, "Calibration samples": calibrated}),
        "Calibration": _promise(state),
        "Inputs": "" if inputs is None else f"```json\n{json.dumps(dict(inputs), indent=2, sort_keys=True)}\n```",
        "Limits": _LIMITS.format(average=_AVERAGE[is_by_class]),
        "Versions": _table({"opnp": __version__, "torch": torch.__version__, "Python": platform.python_version()}),
    }
    parts = [
        f"{'#' if place == 0 else '##'} {title}\n\n{text}\n"
        for place, (title, text) in enumerate(sections.items())
        if text
    ]
    return "\n".join(parts)


def _purpose(state: FittedState) -> str:
    classes, features = state.weight.shape
    name = f" `{state.head_name}`" if state.head_name else ""
    if state.panel is not None and len(state.fused) == 1:
        made = "The score is that of one member, in units of its tail on training samples."
    elif state.panel is not None:
        made = (
            f"It fuses {len(state.fused)} scores of different mechanism, each in units of its own tail on training "
            f"samples: the logarithm of the sum of their exponentials."
        )
    elif state.settings.ratios == Ratios():
        made = f"The score is that of the last layer's logits: {_SCORES[state.settings.score]}."
    else:
        made = (
            "The method is optimal parameter and neuron pruning (OPNP, NeurIPS 2023): the weights and neurons of the "
            "last layer that the energy is least and most sensitive to are left out for the score."
        )
    return (
        f"For a classifier of {classes} classes: it gives each input a score (larger = further from what the "
        f"classifier was trained on), a p-value (small = out of distribution) and a verdict, from the {features} "
        f"features that its last layer{name} gets. {made} The classifier's answers come from the last layer as it "
        f"was.\n\n"
        f"Digest of the last layer (SHA-256 of its dtype, shape, weight and bias): "
        f"`{state.head_digest}`"
    )


def _made_of(state: FittedState) -> str:
    if state.panel is None or state.scales is None:
        return _table(_settings(state))
    rows = [("Score", "Median", "95 % quantile"), ("---", "---:", "---:")]
    columns = zip(state.fused, state.scales.T.tolist(), strict=True)
    rows += [(_MEMBERS[name], f"{low:.6g}", f"{high:.6g}") for name, (low, high) in columns]
    text = f"{_lines(rows)}\n\nMedian and quantile are those of {state.kept} training samples kept out of every sum."
    if state.left_out:
        reasons = "\n".join(f"- {_MEMBERS[name]}: {reason}" for name, reason in state.left_out.items())
        text += f"\n\nLeft out:\n\n{reasons}"
    if PRUNED_HEAD in state.fused:
        text += f"\n\nThe pruned head:\n\n{_table(_settings(state))}"
    return text


def _settings(state: FittedState) -> dict[str, object]:
    settings, masks = state.settings, state.pruned.masks
    ratios, shaping = settings.ratios, settings.shaping
    weights, neurons = int((~masks.weight).sum()), int((~masks.neuron).sum())
    pruning = {
        "Least sensitive weights removed": f"{ratios.w_min:g}",
        "Most sensitive weights removed": f"{ratios.w_max:g}",
        "Least sensitive neurons removed": f"{ratios.o_min:g}",
        "Most sensitive neurons removed": f"{ratios.o_max:g}",
        "Removed in all": f"{weights} of {masks.weight.numel()} weights, {neurons} of {masks.neuron.numel()} neurons",
        "Weights ranked within": settings.scope,
        "Neuron sensitivity": settings.neuron,
    }
    return {
        "Score": _SCORES[settings.score],
        "Temperature": f"{settings.temperature:g}",
        **(pruning if ratios != Ratios() else {}),
        "Shaping of the features": "none" if shaping is None else f"{type(shaping).__name__} at {shaping.quantile:g}",
        "Precision": settings.precision,
    }


def _choice(state: FittedState) -> str:
    tuning = state.tuning
    if tuning is None:
        chosen = "The default panel was set on other models." if state.settings.members == PANEL else "They were given."
        return f"{chosen} Nothing was chosen on this model's data."
    return (
        f"By OOD validation data: {tuning.tried} settings were tried on {tuning.searched[0]} known and "
        f"{tuning.searched[1]} OOD samples. On {tuning.unsearched[0]} and {tuning.unsearched[1]} others the AUROC is "
        f"{tuning.auroc:.4f}, and that of the plain energy {tuning.energy_auroc:.4f}: a gain of {tuning.gain:+.4f} on "
        f"that kind of OOD data."
    )


def _promise(state: FittedState) -> str:
    calibration = state.calibration
    if calibration is None:
        return "It is not calibrated: it gives scores, and neither p-values nor verdicts."
    if calibration.groups:
        return _promise_by_class(state, calibration)
    alarms = FalseAlarms.at(len(calibration.scores), keep=calibration.keep)
    low, high = alarms.range()
    reuse = "" if state.tuning is None else " It was calibrated on known samples that the search did not see."
    facts = {
        "Share of known inputs to keep": f"{calibration.keep:g}",
        "Threshold: flagged is a score above": repr(calibration.threshold),
        "Expected share of known inputs flagged": f"{alarms.rank}/{alarms.samples + 1} = {alarms.expected:.6g}",
        "For 95 % of calibration sets it lies between": f"{low:.4g} and {high:.4g}",
        "Smallest p-value": f"1/{alarms.samples + 1}",
    }
    return (
        f"{_table(facts)}\n\nThe expected share is exact where known inputs and calibration samples are exchangeable "
        f"and no two scores are equal, and a bound from above where some are. This one calibration set is more or less "
        f"lucky: the range is that of the Beta({alarms.rank}, {alarms.samples + 1 - alarms.rank}) distribution."
        f"{reuse}"
    )


def _promise_by_class(state: FittedState, calibration: Calibration) -> str:
    names = None if state.origin is None else state.origin.class_names
    rows = [("Group", "Predicted classes", "Samples", "Threshold", "Expected share flagged"), ("---",) * 5]
    for group in calibration.groups:
        alarms = FalseAlarms.at(group.samples, keep=calibration.keep)
        classes = ", ".join(str(label) if names is None else names[label].replace("|", "/") for label in group.classes)
        rows.append((group.name, classes, str(group.samples), repr(group.threshold), f"{alarms.expected:.6g}"))
    reuse = "" if state.tuning is None else " It was calibrated on known samples that the search did not see."
    return (
        f"Share of known inputs to keep: {calibration.keep:g}, among the inputs predicted as each class.\n\n"
        f"{_lines(rows)}\n\nEach input is compared with the samples of the group of its predicted class, and flagged "
        f"above its threshold. Classes that too few samples were predicted as are one pooled group. The expected "
        f"share is exact where known inputs and calibration samples are exchangeable and no two scores are equal, and "
        f"a bound from above where some are.{reuse}"
    )


def _table(facts: Mapping[str, object]) -> str:
    return _lines([("", ""), ("---", "---"), *((name, str(value)) for name, value in facts.items())])


def _lines(rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """The share of known inputs that a calibrated detector flags.

    A new ID score exceeds the threshold, the k-th smallest of n calibration scores, with a probability that depends on
    the calibration set. Where no two scores are equal it has the distribution Beta(r, n + 1 - r), r being the flagged
    rank n + 1 - k; its mean r / (n + 1) is the share of known inputs flagged on average over calibration sets.

    Attributes:
        samples: Number n of calibration samples.
        rank: The flagged rank r.

    Example:
        >>> alarms = FalseAlarms.at(999, keep=0.95)
        >>> alarms.expected
        0.05
        >>> [round(bound, 4) for bound in alarms.range()]
        [0.0374, 0.0643]

    References:
        Vovk, "Conditional validity of inductive conformal predictors", Machine Learning 2013, for the distribution.

    """

    samples: int
    rank: int

    @classmethod
    def at(cls, samples: int, *, keep: float) -> Self:
        """Return the false alarms of a detector calibrated on so many samples.

        Raises:
            OptionError: If `keep` lies outside (0, 1).
            CalibrationError: If there are too few samples for this `keep`.

        """
        return cls(samples=samples, rank=flagged_rank(samples, keep=keep))

    @property
    def expected(self) -> float:
        """Share of known inputs flagged, in expectation over calibration sets: r / (n + 1)."""
        return self.rank / (self.samples + 1)

    def range(self, *, share: float = 0.95) -> tuple[float, float]:
        """Return the bounds between which the share flagged lies for the central `share` of calibration sets."""
        counts = torch.arange(self.rank, self.samples + 1, dtype=torch.float64, device="cpu")
        others = self.samples - counts
        ways = math.lgamma(self.samples + 1) - torch.lgamma(counts + 1) - torch.lgamma(others + 1)

        def distribution(value: float) -> float:
            """Return P(Beta(r, n + 1 - r) <= value), which is P(Binomial(n, value) >= r)."""
            return float((ways + counts * math.log(value) + others * math.log1p(-value)).exp().sum())

        tail = (1 - share) / 2
        return _crossing(distribution, tail), _crossing(distribution, 1 - tail)


def _crossing(rising: Callable[[float], float], level: float) -> float:
    """Return where in (0, 1) a rising function comes to a level, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < level else (low, middle)
    return (low + high) / 2
