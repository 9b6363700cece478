"""The record of a sweep. No times in it."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from msgspec.structs import replace

from opnp.values.bench import JudgedModel, Outcome
from opnp.values.figures import HeadFigures
from opnp.values.reading import Record, Share, Value, one_value
from opnp.values.settings import NeuronReading, Scope, ScoreName

__all__ = ["SweepBase", "SweepCurve", "SweepPoint", "SweepRecord", "SweepSettings", "SweptModel", "Varied"]

Varied = float | int | str
"""A value of what a curve varies."""


class SweepBase(Value, frozen=True):
    """What temperature, training samples and scores are varied at.

    Attributes:
        w_min: Share of the weights with the smallest sensitivity removed, in [0, 1).
        w_max: Share of the weights with the largest sensitivity removed.
        o_min: Share of the neurons with the smallest sensitivity removed.
        o_max: Share of the neurons with the largest sensitivity removed.
        scope: What the weights are ranked within: ``layer`` or ``class``.
        neuron: Reading of the neuron sensitivity: ``gradient`` or ``aggregate``.

    """

    w_min: float
    w_max: float
    o_min: float
    o_max: float
    scope: Scope
    neuron: NeuronReading


class SweepSettings(SweepBase, frozen=True):
    """Everything that decides the scores of a point; the first attributes are those of `SweepBase`.

    Attributes:
        temperature: Temperature of sensitivities and score.
        score: What is read off the pruned head's logits.
        training_samples: Rows of ``train`` that the sensitivities were taken from.
        seed: Seed of the draw of these rows; None where they are all there are.

    """

    temperature: float
    score: ScoreName
    training_samples: int
    seed: int | None


class SweepCurve(Value, frozen=True):
    """What a curve is.

    Attributes:
        name: Name, unique in a record.
        family: Name of the curves that belong together.
        title: What is tried, in words.
        varies: Names of what differs from point to point: one, or two for a grid.

    """

    name: str
    family: str
    title: str
    varies: tuple[str, ...]


class SweepPoint(Outcome, frozen=True):
    """One setting on one model; further attributes are those of `Outcome`.

    Attributes:
        curve: Name of the curve that it lies on.
        varied: What the curve varies, and its value here.
        settings: Every setting.
        pruned_weights: Entries that the weight ratios remove.
        pruned_neurons: Columns that the neuron ratios remove.
        removed_share: Share of the head's entries that both remove together.
        mask_digest: SHA-256 of what stays of the head: points with equal digests score with equal heads.
        head: The pruned head's figures by itself, or None without labels. The product answers with the original head.

    """

    curve: str
    varied: Mapping[str, Varied]
    settings: SweepSettings
    pruned_weights: int | None = None
    pruned_neurons: int | None = None
    removed_share: Share | None = None
    mask_digest: str | None = None
    head: HeadFigures | None = None

    def labels(self, varies: Sequence[str]) -> tuple[str, ...]:
        """Return the values of what is varied as text, in the order of the names in `varies`.

        Example:
            >>> settings = SweepSettings(0.3, 0.0, 0.0, 0.0, "layer", "gradient", 1.0, "energy", 25000, None)
            >>> SweepPoint("w_min", {"w_min": 0.30}, settings, status="ok").labels(["w_min"])
            ('0.3',)

        """
        values = [self.varied[name] for name in varies]
        return tuple(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


class SweptModel(JudgedModel, frozen=True):
    """Every curve on one model; the first attributes are those of `JudgedModel`.

    Attributes:
        energy: The energy of the original head, on no curve: what every point is to be compared with.
        points: The points, curve after curve, each in the order of its curve.

    """

    energy: SweepPoint
    points: tuple[SweepPoint, ...]

    def curve(self, name: str) -> tuple[SweepPoint, ...]:
        """Return the points of one curve, in its order.

        Raises:
            KeyError: If there is none of this name.

        """
        found = tuple(point for point in self.points if point.curve == name)
        if not found:
            raise KeyError(name)
        return found


class SweepRecord(Record, frozen=True):
    """A sweep with what is needed to make it again.

    Attributes:
        seed: Seed of the first draw of training samples; the others count up from it.
        base: Ratios, scope and reading that temperature, training samples and scores are varied at.
        calibration_bins: Bins of confidence that the calibration errors are taken over.
        versions: Versions of the packages that the figures depend on.
        curves: What was varied.
        models: Results by model.

    Example:
        >>> base = SweepBase(0.3, 0.0, 0.1, 0.0, "layer", "gradient")
        >>> record = SweepRecord(seed=0, base=base, calibration_bins=15, versions={}, curves=(), models=())
        >>> SweepRecord.from_json(record.to_json()) == record
        True

    """

    record_version: ClassVar[int] = 1
    subject: ClassVar[str] = "a sweep"
    remedy: ClassVar[str] = ": run the sweep again"

    seed: int
    base: SweepBase
    calibration_bins: int
    versions: Mapping[str, str]
    curves: tuple[SweepCurve, ...]
    models: tuple[SweptModel, ...]

    @classmethod
    def joined(cls, records: Sequence[Self]) -> Self:
        """Return the records of several runs as one, their models in the order of the records.

        Raises:
            DataFileError: If they were not made with the same options.

        """
        for name in ("seed", "base", "calibration_bins", "versions", "curves"):
            one_value([getattr(each, name) for each in records], what=name)
        return replace(records[0], models=tuple(model for each in records for model in each.models))
