"""The ODIN row: scores that were computed with the model and its images, and stored beside the features."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from opnp.adapters import ODIN_EPS, ODIN_TEMPERATURE
from opnp.bench.feature_folder import ModelData
from opnp.bench.methods import Method, Part
from opnp.bench.odin_file import OdinScores
from opnp.bench.splitting import IdSplit
from opnp.errors import DataFileError

__all__ = ["odin_method"]


@dataclass(frozen=True, eq=False, slots=True)
class _StoredOdin:
    scores: Mapping[str, Tensor]
    chosen: Mapping[str, object]

    def output(self, part: Part) -> tuple[Tensor, None]:
        return self.scores[part.name][part.rows], None


def odin_method(odin: OdinScores | None) -> Method:
    """Return the row; it is offered where scores, or the reason why there are none, stand beside the features."""
    settings = {"temperature": ODIN_TEMPERATURE, "eps": ODIN_EPS}
    return Method(
        name=f"ODIN temperature={ODIN_TEMPERATURE:g} eps={ODIN_EPS:g}",
        family="ODIN",
        group="baseline",
        source="pytorch-ood",
        citation="Liang, Li and Srikant, ICLR 2018",
        settings=settings if odin is None else odin.settings,
        split="test",
        fit=_fit,
        is_stored=True,
        is_offered=odin is not None,
    )


def _fit(model: ModelData, _: IdSplit) -> _StoredOdin:
    odin = model.odin
    if odin is None:
        raise DataFileError(
            "ODIN takes gradients with respect to images, and there are features alone: run the benchmark with "
            "`--model`, or cache the features with `opnp cache`, which computes it.",
        )
    if odin.reason:
        raise DataFileError(odin.reason)
    names = ["test", *(f"ood_{name}" for name in model.ood)]
    valid = odin.valid_for({name: model.sources[name].sha256 for name in names})
    stale = [name for name in names if name not in valid]
    if stale:
        raise DataFileError(
            f"There are no scores of ODIN that belong to the features of {', '.join(stale)}: cache them again.",
        )
    return _StoredOdin(valid, odin.settings)
