"""A model card in Markdown: what a detector is, how it was made, what it promises, and what it does not."""

import json
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version

import torch

from opnp.detector.false_alarms import FalseAlarms
from opnp.detector.link import head_digest
from opnp.detector.settings import Settings
from opnp.detector.state import State
from opnp.detector.tuning import Tuning

__all__ = ["card_text"]

_SCORES = {
    "energy": "energy, -T logsumexp(f / T)",
    "msp": "minus the largest softmax probability",
    "max_logit": "minus the largest logit",
    "entropy": "entropy of the softmax",
    "gen": "generalised entropy (GEN)",
}
_LIMITS = """
- The share of known inputs flagged holds for inputs like the calibration samples. After a change of the data, such as
  another camera, season or mixture of the classes, calibrate again.
- It is an average over all known inputs: within one class, or one group of inputs, more or fewer may be flagged.
- No share of unknown inputs found is promised. It depends on what they are: unknown inputs that look like known ones
  are found less often than noise is. Measure it on data of your own.
- Inputs made to deceive the detector can deceive it.
- The detector leaves the classifier's answer as it is, and says nothing of whether that answer is right.
- An exported graph rounds in another order: its scores differ by up to 1e-5 of the largest, and an input that lies
  closer than that to the threshold may be judged otherwise.
- In an exported module an input whose features are not finite has the score NaN, and is flagged.
""".strip()


def card_text(state: State, *, inputs: Mapping[str, object] | None = None) -> str:
    """Return the model card of a fitted detector.

    Args:
        state: The detector.
        inputs: What is known of the preparation of inputs, as JSON values.

    Returns:
        Markdown, ending in a newline.

    """
    sections = {
        "Out-of-distribution detector": _purpose(state),
        "What it is made of": _table(_settings(state)),
        "How the settings were chosen": _choice(state),
        "Data": _table(_data(state)),
        "Calibration": _promise(state),
        "Inputs": "" if inputs is None else f"```json\n{json.dumps(dict(inputs), indent=2, sort_keys=True)}\n```",
        "Limits": _LIMITS,
        "Versions": _table({"opnp": version("opnp"), "torch": torch.__version__, "Python": platform.python_version()}),
    }
    parts = [
        f"{'#' if place == 0 else '##'} {title}\n\n{text}\n"
        for place, (title, text) in enumerate(sections.items())
        if text
    ]
    return "\n".join(parts)


def _purpose(state: State) -> str:
    classes, features = state.fitted.weight.shape
    name = f" `{state.head_name}`" if state.head_name else ""
    return (
        f"For a classifier of {classes} classes: it gives each input a score (larger = further from what the "
        f"classifier was trained on), a p-value (small = out of distribution) and a verdict. The method is optimal "
        f"parameter and neuron pruning (OPNP, NeurIPS 2023): of the last layer{name}, with {features} features, the "
        f"weights and neurons that the energy is least and most sensitive to are left out for the score. The "
        f"classifier's answers come from the last layer as it was.\n\n"
        f"Digest of the last layer (SHA-256 of its dtype, shape, weight and bias): "
        f"`{head_digest(state.fitted.weight, state.fitted.bias)}`"
    )


def _settings(state: State) -> dict[str, object]:
    settings, masks = state.scorer.settings, state.scorer.masks
    ratios = settings.fixed_ratios
    weights, neurons = int((~masks.weight).sum()), int((~masks.neuron).sum())
    return {
        "Score": _SCORES[settings.score],
        "Temperature": f"{settings.temperature:g}",
        "Least sensitive weights removed": f"{ratios.w_min:g}",
        "Most sensitive weights removed": f"{ratios.w_max:g}",
        "Least sensitive neurons removed": f"{ratios.o_min:g}",
        "Most sensitive neurons removed": f"{ratios.o_max:g}",
        "Removed in all": f"{weights} of {masks.weight.numel()} weights, {neurons} of {masks.neuron.numel()} neurons",
        "Weights ranked within": settings.scope,
        "Neuron sensitivity": settings.neuron,
        "Shaping of the features": _shaping(settings),
        "Precision": settings.precision,
    }


def _shaping(settings: Settings) -> str:
    shaping = settings.fixed_shaping
    return "none" if shaping is None else f"{type(shaping).__name__} at quantile {shaping.quantile:g}"


def _choice(state: State) -> str:
    tuning = state.tuning
    if tuning is None:
        return "They were given; nothing was chosen on data."
    plain, chosen = tuning.energy, tuning.chosen
    against = "held-out ID classes" if len(chosen.holdout) > 1 else "OOD validation samples"
    text = (
        f"Among {tuning.tried} settings, on {tuning.samples} {tuning.source} samples "
        f"{'with their labels' if tuning.is_labelled else 'labelled by the classifier itself'}; the plain energy "
        f"without pruning was one of them."
    )
    rows = [
        ("", "Plain energy", "Chosen", "Difference"),
        ("---", "---:", "---:", "---:"),
        (f"AUROC against {against}", *_pair(plain.mean_holdout, chosen.mean_holdout)),
        ("AUROC of telling wrong answers from right ones", *_pair(plain.failure, chosen.failure)),
        ("Accuracy lost by the pruned head (not used for answers)", *_pair(plain.loss, chosen.loss)),
    ]
    return f"{text}\n\n{_lines(rows)}\n\n{_gain(tuning)}"


def _gain(tuning: Tuning) -> str:
    if tuning.chosen.settings == tuning.energy.settings:
        return "No setting was better than the plain energy, so nothing is pruned."
    spread = f", standard deviation {tuning.spread:.4f} over the draws" if len(tuning.chosen.holdout) > 1 else ""
    return (
        f"Gain in AUROC over the plain energy: {tuning.gain:+.4f}{spread}. It was measured on the samples that the "
        f"setting was chosen on."
    )


def _pair(before: float, after: float) -> tuple[str, str, str]:
    return f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}"


def _data(state: State) -> dict[str, object]:
    calibration = state.calibration
    return {
        "Training samples": state.fitted.sensitivity.count,
        "Calibration samples": 0 if calibration is None else len(calibration.scores),
    }


def _promise(state: State) -> str:
    calibration = state.calibration
    if calibration is None:
        return "It is not calibrated: it gives scores, and neither p-values nor verdicts."
    alarms = FalseAlarms.at(len(calibration.scores), keep=calibration.keep)
    low, high = alarms.range()
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
        f"{_reuse(state.tuning)}"
    )


def _reuse(tuning: Tuning | None) -> str:
    if tuning is None or tuning.source != "validation":
        return ""
    return (
        f" The settings were chosen on {tuning.samples} validation samples: where the calibration samples are the same "
        f"ones, both statements hold approximately. Other samples to calibrate on make them exact."
    )


def _table(facts: Mapping[str, object]) -> str:
    return _lines([("", ""), ("---", "---"), *((name, str(value)) for name, value in facts.items())])


def _lines(rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
