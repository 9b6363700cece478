"""The detector of the library itself in its several ways: inputs, features, saved and loaded, and its heads alone."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios, energy_score
from opnp.adapters.toolkits import bytes_of
from opnp.core import Sensitivity
from opnp.errors import EmptyDataError
from tests.contract.shell import KEEP, Fused, Shell, features, fresh, head_of, known
from tests.contract.world import batches

__all__ = [
    "FeatureWay",
    "FusedFeatureWay",
    "FusedInputWay",
    "FusedLoadedWay",
    "HeadShell",
    "InputWay",
    "LibraryShell",
    "LoadedWay",
    "PlainHeadShell",
    "load_model",
    "save_model",
]

_FEATURES_ONLY = "features are given, and no model runs"


class LibraryShell(Shell):
    """What all ways have in common."""

    made_of: ClassVar[type[OPNP]] = OPNP
    detector: OPNP

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]  # those of a shell
        self.detector = self.made_of(**self.options)

    def state(self) -> bytes:
        return bytes_of(self.detector)

    def calibrated_on(self) -> Tensor:
        return fresh()

    def refit(self, training: Tensor, held_out: Tensor) -> None:
        self.fit(training, held_out)

    def sensitivity(self) -> Sensitivity:
        return self.detector.sensitivity

    def parameters(self) -> object:
        return repr(self.detector.settings)


class InputWay(LibraryShell):
    """`OPNP` on inputs of the model."""

    plural = "detectors on inputs"
    covers = ("opnp.OPNP",)
    on_nan = ValueError

    def fit(self, training: Tensor | None = None, held_out: Tensor | None = None) -> Self:
        self.detector.fit(self.model, batches(known() if training is None else training))
        self.detector.calibrate(batches(fresh() if held_out is None else held_out), keep=KEEP)
        return self

    def scores(self, inputs: Tensor) -> Tensor:
        return self.detector.score(inputs)

    def verdicts(self, inputs: Tensor) -> Tensor:
        return self.detector.predict(inputs)

    def p_values(self, inputs: Tensor) -> Tensor:
        return self.detector.p_value(inputs)

    def classes(self, inputs: Tensor) -> Tensor:
        return self.detector.verdict(inputs).predicted_class

    def labelled_scores(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return self.detector.score((inputs, labels))

    def set_ratios(self, ratios: Ratios) -> None:
        self.ratios = ratios
        self.detector = self.detector.with_ratios(ratios).calibrate(batches(fresh()), keep=KEEP)

    def copied(self) -> Shell:
        with TemporaryDirectory() as folder:
            self.detector.save(Path(folder) / "detector")
            other = type(self)(self.ratios)
            other.detector = self.made_of.load(Path(folder) / "detector", model=other.model)
        return other

    def running_model(self) -> nn.Module:
        return self.model

    def switch_to_training(self) -> None:
        self.model.train()

    def sent(self, folder: Path) -> None:
        save_model(self.model, folder)
        self.detector.save(folder / "detector")

    @classmethod
    def received(cls, folder: Path) -> Shell:
        other = cls()
        load_model(other.model, folder)
        other.detector = cls.made_of.load(folder / "detector", model=other.model)
        return other


class LoadedWay(InputWay):
    """A detector that was saved and loaded before it answers."""

    plural = "saved and loaded detectors"
    covers = ("opnp.OPNP.load",)
    lacks: ClassVar = {
        "unfitted": "a detector that was never fitted cannot be saved, so that none is loaded",
    }

    def fit(self, training: Tensor | None = None, held_out: Tensor | None = None) -> Self:
        super().fit(training, held_out)
        with TemporaryDirectory() as folder:
            self.detector.save(Path(folder) / "detector")
            self.detector = self.made_of.load(Path(folder) / "detector", model=self.model)
        return self


class FeatureWay(LibraryShell):
    """`OPNP` on cached features."""

    plural = "detectors on cached features"
    covers = ("opnp.OPNP.fit_features",)
    on_empty = EmptyDataError
    lacks: ClassVar = {
        "labels": "`score_features` takes features alone",
        "model": _FEATURES_ONLY,
        "modes": _FEATURES_ONLY,
    }

    def fit(self, training: Tensor | None = None, held_out: Tensor | None = None) -> Self:
        head = head_of(self.model)
        rows = features(known() if training is None else training)
        self.detector.fit_features(rows, weight=head.weight, bias=head.bias)
        self.detector.calibrate_features(features(fresh() if held_out is None else held_out), keep=KEEP)
        return self

    def scores(self, inputs: Tensor) -> Tensor:
        return self.detector.score_features(features(inputs))

    def verdicts(self, inputs: Tensor) -> Tensor:
        return self.detector.predict_features(features(inputs))

    def p_values(self, inputs: Tensor) -> Tensor:
        return self.detector.p_value_features(features(inputs))

    def classes(self, inputs: Tensor) -> Tensor:
        return self.detector.classify_features(features(inputs))

    def set_ratios(self, ratios: Ratios) -> None:
        self.ratios = ratios
        self.detector = self.detector.with_ratios(ratios).calibrate_features(features(fresh()), keep=KEEP)

    def copied(self) -> Shell:
        other = type(self)(self.ratios)
        with TemporaryDirectory() as folder:
            self.detector.save(Path(folder) / "detector")
            other.detector = self.made_of.load(Path(folder) / "detector")
        return other

    def sent(self, folder: Path) -> None:
        self.detector.save(folder / "detector")

    @classmethod
    def received(cls, folder: Path) -> Shell:
        other = cls()
        other.detector = cls.made_of.load(folder / "detector")
        return other


class FusedInputWay(Fused, InputWay):
    """The fusion on inputs of the model."""

    plural = "fusions on inputs"


class FusedLoadedWay(Fused, LoadedWay):
    """A fusion that was saved and loaded before it answers."""

    plural = "saved and loaded fusions"


class FusedFeatureWay(Fused, FeatureWay):
    """The fusion on cached features."""

    plural = "fusions on cached features"


class HeadShell(Shell):
    """A pruned head alone, with the energy of its logits: the product that other software takes."""

    plural = "pruned heads"
    covers = ("opnp.export.module.CompactHead",)
    tolerance = 1e-6
    on_nan = "passed on"
    lacks: ClassVar = {
        "calibration": "a head gives logits, and has no threshold",
        "classes": "its classes are those of the pruned head, and no part of the contract",
        "files": "a module is saved by its state dict, as any other",
        "labels": "a head takes features alone",
        "model": _FEATURES_ONLY,
        "modes": _FEATURES_ONLY,
        "p-values": "a head gives logits",
        "parameters": "a head has weights, no options",
        "refit": "a head is made anew from a fitted detector",
        "sums": "a head holds no sensitivities",
        "verdicts": "a head gives logits",
    }
    is_compact: ClassVar[bool] = True

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]  # those of a shell
        self.detector = OPNP(**self.options)
        self.head: nn.Module | None = None

    def fit(self, training: Tensor | None = None, held_out: Tensor | None = None) -> Self:
        self.detector.fit(self.model, batches(known() if training is None else training))
        self.detector.calibrate(batches(fresh() if held_out is None else held_out), keep=KEEP)
        self.head = self._made()
        return self

    def scores(self, inputs: Tensor) -> Tensor:
        head = self.head or self._made()
        return energy_score(head(features(inputs)))

    def state(self) -> bytes:
        head = self.head or self._made()
        return b"".join(tensor.numpy().tobytes() for tensor in head.state_dict().values())

    def set_ratios(self, ratios: Ratios) -> None:
        self.ratios = ratios
        self.detector = self.detector.with_ratios(ratios)
        self.head = self._made()

    def copied(self) -> Shell:
        other = type(self)(self.ratios)
        other.head = copy.deepcopy(self.head)
        return other

    def _made(self) -> nn.Module:
        return self.detector.compact_head() if self.is_compact else self.detector.pruned_head


class PlainHeadShell(HeadShell):
    """The pruned head as a plain `nn.Linear`."""

    is_compact = False


def save_model(model: nn.Module, folder: Path) -> None:
    """Write the tensors of a model."""
    torch.save(model.state_dict(), folder / "model.pt")


def load_model(model: nn.Module, folder: Path) -> None:
    """Read the tensors of a model."""
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
