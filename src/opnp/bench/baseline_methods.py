"""The rows that pytorch-ood computes: baselines at their published settings, alone and on opnp's pruned head."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

from opnp.adapters import PytorchOodBaseline
from opnp.bench.feature_folder import ModelData
from opnp.bench.methods import Method, Part
from opnp.bench.opnp_methods import PRUNED_RATIOS, fixed_opnp, ratios_label
from opnp.bench.published import PublishedSetting
from opnp.bench.splitting import IdSplit
from opnp.detector import Ratios

__all__ = ["COMBINED_METHODS", "baseline_methods", "combination_methods"]

COMBINED_METHODS = ("MSP", "MaxLogit", "Energy", "Entropy", "GEN", "ReAct", "ASH-S", "SCALE")
"""The baselines that read logits or shape features, so that opnp's head can stand after the features."""

_ALSO_OURS = ("MSP", "Energy")
"""Rows of these names are computed by opnp itself; pytorch-ood's carry its name."""


@dataclass(frozen=True, eq=False, slots=True)
class _FittedBaseline:
    baseline: PytorchOodBaseline
    chosen: Mapping[str, object]

    def output(self, part: Part) -> tuple[Tensor, Tensor | None]:
        return self.baseline.output(part.features)


def baseline_methods(settings: Iterable[PublishedSetting]) -> list[Method]:
    """Return baselines at published settings, in their order."""
    return [_baseline(setting) for setting in settings]


def combination_methods(settings: Iterable[PublishedSetting], pruned: Ratios = PRUNED_RATIOS) -> list[Method]:
    """Return those baselines that are in `COMBINED_METHODS`, on the head that these ratios prune."""
    return [_combination(setting, pruned) for setting in settings if setting.method in COMBINED_METHODS]


def _baseline(setting: PublishedSetting) -> Method:
    def fit(model: ModelData, _: IdSplit) -> _FittedBaseline:
        head = model.head
        baseline = PytorchOodBaseline(setting.method, weight=head.weight, bias=head.bias, settings=setting.settings)
        return _FittedBaseline(baseline.fit(model.train.features, model.train.labels), setting.settings)

    is_ours = setting.method in _ALSO_OURS
    return Method(
        name=f"{setting.label} (pytorch-ood)" if is_ours else setting.label,
        family=f"{setting.method}-pytorch-ood" if is_ours else setting.method,
        group="baseline",
        source="pytorch-ood",
        citation=setting.citation,
        settings=setting.settings,
        split="test",
        fit=fit,
    )


def _combination(setting: PublishedSetting, pruned: Ratios) -> Method:
    settings: dict[str, object] = {**setting.settings, "ratios": asdict(pruned)}

    def fit(model: ModelData, _: IdSplit) -> _FittedBaseline:
        head = fixed_opnp(model, ratios=pruned).pruned_head
        baseline = PytorchOodBaseline(setting.method, weight=head.weight, bias=head.bias, settings=setting.settings)
        return _FittedBaseline(baseline.fit(model.train.features, model.train.labels), settings)

    return Method(
        name=f"{setting.label} + {ratios_label(pruned)}",
        family=f"{setting.method}-pruned",
        group="combination",
        source="pytorch-ood",
        citation=setting.citation,
        settings=settings,
        split="test",
        fit=fit,
    )
