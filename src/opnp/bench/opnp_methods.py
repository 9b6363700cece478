"""The rows that opnp computes: fixed ratios as a reference, and the detector as it is used."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast

from torch import Tensor
from torch.nn.functional import linear

from opnp.bench.bench_record import Group, Split
from opnp.bench.feature_folder import ModelData
from opnp.bench.methods import Method, Part
from opnp.bench.splitting import IdSplit
from opnp.core import NeuronReading, ReAct, ScoreName, ValueHistogram, shaped
from opnp.detector import OPNP, Ratios

__all__ = [
    "PRODUCT",
    "PRUNED_RATIOS",
    "FittedOpnp",
    "fixed_opnp",
    "product_methods",
    "ratios_label",
    "reference_methods",
]

PRODUCT = "OPNP()"
"""Name of the row of the detector as it is used."""

PRUNED_RATIOS = Ratios(w_min=0.3)
"""The ratios of the pruned head that the baselines are combined with."""

_ROWS = 8192
_PAPER = "Chen et al., NeurIPS 2023; the ratios are fixed, tuned to nothing"
_REFERENCE: tuple[tuple[str, Ratios, NeuronReading, ScoreName], ...] = (
    ("MSP", Ratios(), "gradient", "msp"),
    ("Energy", Ratios(), "gradient", "energy"),
    ("OPP", Ratios(w_min=0.8), "gradient", "energy"),
    ("OPP", Ratios(w_max=0.005), "gradient", "energy"),
    ("ONP", Ratios(o_min=0.5), "gradient", "energy"),
    ("ONP", Ratios(o_min=0.5), "aggregate", "energy"),
    ("ONP", Ratios(o_max=0.05), "aggregate", "energy"),
    ("OPNP-fixed", Ratios(w_min=0.7, w_max=0.001, o_min=0.3, o_max=0.003), "gradient", "energy"),
)


@dataclass(frozen=True, eq=False, slots=True)
class FittedOpnp:
    """A fitted detector, asked for its logits as well as its scores.

    Attributes:
        detector: The detector.
        threshold: Threshold of ReAct in units of the features; None for other shapings.

    """

    detector: OPNP
    threshold: float | None

    @classmethod
    def from_detector(cls, detector: OPNP, training: Tensor) -> "FittedOpnp":
        """Return a fitted detector with the threshold that its shaping takes from the training features."""
        shaping = detector.settings.fixed_shaping
        if not isinstance(shaping, ReAct):
            return cls(detector, None)
        histogram = ValueHistogram.zeros()
        for block in training.split(_ROWS):
            histogram = histogram + ValueHistogram.from_values(block)
        return cls(detector, histogram.quantile(shaping.quantile))

    @property
    def chosen(self) -> Mapping[str, object]:
        """The detector's settings, and how they were chosen where they are automatic."""
        tuning = self.detector.tuning
        if tuning is None:
            return self.detector.settings.to_json()
        return self.detector.settings.to_json() | {
            "tuning": {
                "samples": tuning.samples,
                "source": tuning.source,
                "tried": tuning.tried,
                "holdout_gain": tuning.gain,
                "holdout_spread": tuning.spread,
            },
        }

    def output(self, part: Part) -> tuple[Tensor, Tensor]:
        """Return scores and the pruned head's logits, float64."""
        head, features = self.detector.pruned_head, part.features
        inputs = shaped(features.double(), self.detector.settings.fixed_shaping, threshold=self.threshold)
        logits = linear(inputs, head.weight.double(), None if head.bias is None else head.bias.double())
        return self.detector.score_features(features).double(), logits


def ratios_label(ratios: Ratios, *, neuron: NeuronReading = "gradient") -> str:
    """Return the paper's name for what the ratios prune, with the ratios.

    Example:
        >>> ratios_label(Ratios(w_min=0.8)), ratios_label(Ratios(o_max=0.05), neuron="aggregate")
        ('OPP rho_w_min=0.8', 'ONP aggregate rho_o_max=0.05')
        >>> ratios_label(Ratios(w_min=0.7, w_max=0.001, o_min=0.3, o_max=0.003))
        'OPNP gradient 0.7/0.001/0.3/0.003'

    """
    values = asdict(ratios)
    shares = [f"rho_{name}={value:g}" for name, value in values.items() if value > 0]
    if ratios.o_min == 0 and ratios.o_max == 0:
        return " ".join(["OPP", *shares]) if shares else "no pruning"
    if ratios.w_min == 0 and ratios.w_max == 0:
        return " ".join(["ONP", neuron, *shares])
    return f"OPNP {neuron} " + "/".join(f"{value:g}" for value in values.values())


def fixed_opnp(
    model: ModelData, *, ratios: Ratios, neuron: NeuronReading = "gradient", score: ScoreName = "energy"
) -> OPNP:
    """Return a detector with these ratios and no shaping, fitted in float64."""
    detector = OPNP(ratios=ratios, neuron=neuron, score=score, shaping=None, precision="float64")
    return detector.fit_features(model.train.features, weight=model.head.weight, bias=model.head.bias)


def reference_methods(pruned: Ratios = PRUNED_RATIOS) -> list[Method]:
    """Return the rows at fixed ratios: the reference figures', and the head that baselines are combined with."""
    rows = list(_REFERENCE)
    if all(pruned != ratios for _, ratios, _, _ in rows):
        family = ratios_label(pruned).split()[0].replace("OPNP", "OPNP-fixed")
        rows.append((family, pruned, "gradient", "energy"))
    return [_fixed(*row) for row in rows]


def product_methods() -> list[Method]:
    """Return the detector as it is used, on its own choice of ratios, beside the energy on the same samples."""
    return [
        _fixed("Energy-rest", Ratios(), "gradient", "energy", group="product", split="rest"),
        _automatic("OPNP", is_shaped=True),
        _automatic("OPNP-ratios", is_shaped=False),
    ]


def _fixed(
    family: str,
    ratios: Ratios,
    neuron: NeuronReading,
    score: ScoreName,
    *,
    group: Group = "reference",
    split: Split = "test",
) -> Method:
    is_pruned = ratios != Ratios()
    name = ratios_label(ratios, neuron=neuron) if is_pruned else "MSP" if score == "msp" else "Energy"

    def fit(model: ModelData, _: IdSplit) -> FittedOpnp:
        return FittedOpnp(fixed_opnp(model, ratios=ratios, neuron=neuron, score=score), None)

    return Method(
        name=name if split == "test" else f"{name}, rest of test",
        family=family,
        group=group,
        source="opnp",
        citation=_PAPER if is_pruned else "the score alone, no pruning",
        settings={"ratios": asdict(ratios), "neuron": neuron, "score": score},
        split=split,
        fit=fit,
    )


def _automatic(family: str, *, is_shaped: bool) -> Method:
    def fit(model: ModelData, split: IdSplit) -> FittedOpnp:
        detector = OPNP() if is_shaped else OPNP(shaping=None)
        held_out = split.validation_set(model)
        detector.fit_features(
            model.train.features,
            weight=model.head.weight,
            bias=model.head.bias,
            labels=model.train.labels,
            validation=(held_out.features, held_out.labels),
        )
        return FittedOpnp.from_detector(detector, model.train.features)

    settings = {"ratios": "auto", "shaping": "auto" if is_shaped else None}
    return Method(
        name=PRODUCT if is_shaped else "OPNP(shaping=None)",
        family=family,
        group="product",
        source="opnp",
        citation="chosen from training and held-out ID samples, without OOD data",
        settings=cast("Mapping[str, object]", settings),
        split="rest",
        fit=fit,
    )
