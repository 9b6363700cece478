"""What a benchmark needs of a method: a name, a fit, and scores with the logits they were read off."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from opnp.bench.bench_record import Group, Split
from opnp.bench.feature_folder import ModelData
from opnp.bench.splitting import IdSplit

__all__ = ["FittedMethod", "Method", "Part"]


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """Some rows of a set that are to be scored.

    Attributes:
        name: Name of the set: ``test`` or ``ood_*``.
        rows: Which rows of it, shape ``(samples,)``, int64.
        features: Their features, shape ``(samples, features)``.

    """

    name: str
    rows: Tensor
    features: Tensor


class FittedMethod(Protocol):
    """A method after its fit."""

    @property
    def chosen(self) -> Mapping[str, object]:
        """Hyper-parameters as JSON values."""

    def output(self, part: Part) -> tuple[Tensor, Tensor | None]:
        """Return scores, larger = more OOD, and the logits they were read off, or None."""


@dataclass(frozen=True, eq=False, slots=True)
class Method:
    """A row to be.

    Attributes:
        name: Name of the row.
        family: What `--methods` calls it; several rows may share one.
        group: Group of the row.
        source: Package that computes it.
        citation: Where the settings come from.
        settings: Hyper-parameters as asked for.
        split: ID samples to judge it by.
        fit: Makes it ready, from training data and, for `OPNP()`, the samples set aside for validation.
        is_stored: Whether the scores were computed beforehand, so that there is no time to measure.
        is_offered: Whether the row is there without being asked for by name.

    """

    name: str
    family: str
    group: Group
    source: str
    citation: str
    settings: Mapping[str, object]
    split: Split
    fit: Callable[[ModelData, IdSplit], FittedMethod]
    is_stored: bool = False
    is_offered: bool = True
