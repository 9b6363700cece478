"""The record of a sweep: plain values that become JSON and come back. Standard library only, no times in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from opnp.bench.bench_record import DataSource, DetectionFigures, Nearness, Status
from opnp.bench.record_json import record_of, record_text
from opnp.files.typed_json import Share

__all__ = [
    "SWEEP_RECORD_VERSION",
    "HeadFigures",
    "SweepBase",
    "SweepCurve",
    "SweepPoint",
    "SweepRecord",
    "SweepSettings",
    "SweptModel",
    "Varied",
]

SWEEP_RECORD_VERSION = 1

Varied = float | int | str
"""A value of what a curve varies."""


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """Everything that decides the scores of a point.

    Attributes:
        w_min: Share of the weights with the smallest sensitivity removed, in [0, 1).
        w_max: Share of the weights with the largest sensitivity removed.
        o_min: Share of the neurons with the smallest sensitivity removed.
        o_max: Share of the neurons with the largest sensitivity removed.
        scope: What the weights are ranked within: ``layer`` or ``class``.
        neuron: Reading of the neuron sensitivity: ``gradient`` or ``aggregate``.
        temperature: Temperature of sensitivities and score.
        score: What is read off the pruned head's logits.
        training_samples: Rows of ``train`` that the sensitivities were taken from.
        seed: Seed of the draw of these rows; None where they are all there are.

    """

    w_min: float
    w_max: float
    o_min: float
    o_max: float
    scope: Literal["layer", "class"]
    neuron: Literal["gradient", "aggregate"]
    temperature: float
    score: Literal["energy", "msp", "max_logit", "entropy", "gen"]
    training_samples: int
    seed: int | None


@dataclass(frozen=True, slots=True)
class SweepBase:
    """What temperature, training samples and scores are varied at; the attributes are those of `SweepSettings`."""

    w_min: float
    w_max: float
    o_min: float
    o_max: float
    scope: Literal["layer", "class"]
    neuron: Literal["gradient", "aggregate"]


@dataclass(frozen=True, slots=True)
class HeadFigures:
    """How well a head by itself answers on the ID test samples.

    Attributes:
        accuracy: Share of right answers, in [0, 1].
        ece: Expected calibration error of its softmax at temperature 1, in [0, 1].

    """

    accuracy: Share
    ece: Share


@dataclass(frozen=True, slots=True)
class SweepCurve:
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


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One setting on one model.

    Attributes:
        curve: Name of the curve that it lies on.
        varied: What the curve varies, and its value here.
        settings: Every setting.
        status: ``ok``, or ``failed`` where there are no figures.
        reason: Why it failed; empty where it did not.
        notes: Warnings that were issued.
        pruned_weights: Entries that the weight ratios remove.
        pruned_neurons: Columns that the neuron ratios remove.
        removed_share: Share of the head's entries that both remove together.
        mask_digest: SHA-256 of what stays of the head: points with equal digests score with equal heads.
        detection: Figures by OOD set.
        mean: Mean of the figures over all OOD sets.
        near: Mean over the near sets, or None if there are none.
        far: Mean over the far sets, or None if there are none.
        head: The pruned head's figures by itself, or None without labels. The product answers with the original head.

    """

    curve: str
    varied: Mapping[str, Varied]
    settings: SweepSettings
    status: Status
    reason: str = ""
    notes: tuple[str, ...] = ()
    pruned_weights: int | None = None
    pruned_neurons: int | None = None
    removed_share: Share | None = None
    mask_digest: str | None = None
    detection: Mapping[str, DetectionFigures] | None = None
    mean: DetectionFigures | None = None
    near: DetectionFigures | None = None
    far: DetectionFigures | None = None
    head: HeadFigures | None = None

    def labels(self, varies: Sequence[str]) -> tuple[str, ...]:
        """Return the values of what is varied as text, in the order of the names in `varies`.

        Example:
            >>> settings = SweepSettings(0.3, 0.0, 0.0, 0.0, "layer", "gradient", 1.0, "energy", 25000, None)
            >>> SweepPoint("w_min", {"w_min": 0.30}, settings, "ok").labels(["w_min"])
            ('0.3',)

        """
        values = [self.varied[name] for name in varies]
        return tuple(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


@dataclass(frozen=True, slots=True)
class SweptModel:
    """Every curve on one model.

    Attributes:
        model: Name of the model.
        classes: Rows of its head.
        features: Columns of its head.
        data: Files by name: ``head``, ``train``, ``test`` and ``ood_*``.
        nearness: ``near`` or ``far`` by name of the OOD set.
        energy: The energy of the original head, on no curve: what every point is to be compared with.
        points: The points, curve after curve, each in the order of its curve.

    """

    model: str
    classes: int
    features: int
    data: Mapping[str, DataSource]
    nearness: Mapping[str, Nearness]
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


@dataclass(frozen=True, slots=True)
class SweepRecord:
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

    seed: int
    base: SweepBase
    calibration_bins: int
    versions: Mapping[str, str]
    curves: tuple[SweepCurve, ...]
    models: tuple[SweptModel, ...]

    def to_json(self) -> str:
        """Return the record as JSON, keys sorted, numbers in full: equal records give equal text.

        Raises:
            ValueError: If a figure is NaN or infinite.

        """
        return record_text(self, version=SWEEP_RECORD_VERSION)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the record that `to_json` wrote.

        Raises:
            DataFileError: If it is none, or of another version.

        """
        again = ": run the sweep again"
        return record_of(text, cls, version=SWEEP_RECORD_VERSION, title="a sweep", again=again)
