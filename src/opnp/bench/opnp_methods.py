"""The rows that opnp computes: fixed ratios as a reference, and the detector as it is used."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor
from torch.nn.functional import linear

from opnp.bench.bench_record import Group, Split
from opnp.bench.feature_folder import ModelData
from opnp.bench.methods import Method, Part
from opnp.bench.splitting import IdSplit
from opnp.core import PANEL, NeuronReading, ScoreName
from opnp.detector import OPNP, Ratios

__all__ = [
    "PRODUCT",
    "PRUNED_RATIOS",
    "FittedOpnp",
    "fixed_opnp",
    "member_label",
    "product_methods",
    "ratios_label",
    "reference_methods",
]

PRODUCT = "OPNP()"
"""Name of the row of the detector as it is used."""

PRUNED_RATIOS = Ratios(w_min=0.3)
"""The ratios of the pruned head that the baselines are combined with."""

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
    """A fitted detector without shaping, or a fusion, asked for the logits that it scores as well as for its scores.

    Attributes:
        detector: The detector.

    """

    detector: OPNP

    @property
    def chosen(self) -> Mapping[str, object]:
        """The detector's settings, and which of its members are left out."""
        left_out = dict(self.detector.left_out)
        return self.detector.settings.to_json() | ({"left_out": left_out} if left_out else {})

    def output(self, part: Part) -> tuple[Tensor, Tensor | None]:
        """Return scores and the pruned head's logits, float64; a fusion is read off no one head, and has none."""
        scores = self.detector.score_features(part.features).double()
        if self.detector.settings.is_fusion:
            return scores, None
        head, rows = self.detector.pruned_head, part.features.double()
        return scores, linear(rows, head.weight.double(), None if head.bias is None else head.bias.double())


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
    detector = OPNP(ratios=ratios, neuron=neuron, score=score, precision="float64")
    return detector.fit_features(model.train.features, weight=model.head.weight, bias=model.head.bias)


def reference_methods(pruned: Ratios = PRUNED_RATIOS) -> list[Method]:
    """Return the rows at fixed ratios: the reference figures', and the head that baselines are combined with."""
    rows = list(_REFERENCE)
    if all(pruned != ratios for _, ratios, _, _ in rows):
        family = ratios_label(pruned).split()[0].replace("OPNP", "OPNP-fixed")
        rows.append((family, pruned, "gradient", "energy"))
    return [_fixed(*row) for row in rows]


def product_methods() -> list[Method]:
    """Return the detector as it is used and each of its members by itself, beside the energy on the same samples."""
    return [
        _fixed("Energy-rest", Ratios(), "gradient", "energy", group="product", split="rest"),
        _fusion(PRODUCT, "OPNP", members=PANEL),
        *(_fusion(member_label(name), "OPNP-members", members=(name,)) for name in PANEL),
    ]


def member_label(name: str) -> str:
    """Return the name of the row of a member by itself.

    Example:
        >>> member_label("vim")
        'vim alone'

    """
    return f"{name} alone"


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
        return FittedOpnp(fixed_opnp(model, ratios=ratios, neuron=neuron, score=score))

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


def _fusion(name: str, family: str, *, members: tuple[str, ...]) -> Method:
    def fit(model: ModelData, split: IdSplit) -> FittedOpnp:
        detector = OPNP(members=members)
        detector.fit_features(model.train.features, weight=model.head.weight, bias=model.head.bias)
        if name == PRODUCT:  # a gallery of it shows its verdicts
            detector.calibrate_features(model.test.features[split.validation])
        return FittedOpnp(detector)

    return Method(
        name=name,
        family=family,
        group="product",
        source="opnp",
        citation="from training samples alone, without OOD data and without tuning",
        settings={"members": list(members)},
        split="rest",
        fit=fit,
    )
