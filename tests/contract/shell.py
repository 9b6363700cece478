"""What is tested as one thing: a detector behind whatever interface, in a shell of few verbs.

A shell is made with ratios, or is that of a fusion; it is fitted on the world of the contract, and asked. It speaks in
images of that world and answers with tensors, in the sign of the interface itself. Verbs that an interface has no word
for are not written; then `lacks` says why, and `test_subjects_table` compares the two.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios, Verdict
from opnp.core import Precision, Sensitivity
from opnp.errors import NotFittedError
from tests.contract import world
from tests.contract.model_checks import lived_in
from tests.contract.snapshot import snapshot
from tests.contract.world import batches, classifier

__all__ = [
    "ABILITIES",
    "KEEP",
    "NO_RATIOS",
    "OTHER",
    "RATIOS",
    "Fused",
    "LackingError",
    "Shell",
    "body_of",
    "class_labels",
    "features",
    "fresh",
    "head_of",
    "known",
    "plain",
    "strange",
]

KEEP = 0.9
RATIOS = Ratios(w_min=0.3, o_min=0.1)
OTHER = Ratios(w_min=0.55, w_max=0.05, o_max=0.2)

NO_RATIOS = "the fusion and the pruned head alone take a pass each, so that ratios need another fit"

ABILITIES: Mapping[str, tuple[str, ...]] = {
    "agreement": (),
    "calibration": ("calibrated_on",),
    "classes": ("classes",),
    "copies": ("copied",),
    "files": ("sent", "received"),
    "labels": ("labelled_scores",),
    "model": ("running_model",),
    "modes": ("switch_to_training",),
    "nan": (),
    "p-values": ("p_values",),
    "parameters": ("parameters",),
    "ratios": ("set_ratios",),
    "refit": ("refit",),
    "sums": ("sensitivity",),
    "threads": (),
    "unfitted": (),
    "verdicts": ("verdicts",),
}
"""What an interface may have beside `fit`, `scores` and `state`: names, and the verbs that say so."""


class LackingError(Exception):
    """A verb that the interface has no word for."""


class Shell:
    """One interface on one model.

    Attributes:
        plural: What the table of the long tests calls it.
        covers: Public names that it stands for, with their modules.
        lacks: Abilities that it has not, and why.
        sign: 1 where larger scores mean more OOD, -1 where the interface means more ID.
        is_fusion: Whether scores are fused; otherwise it is the paper's method.
        tolerance: How far a score S may lie from that of `OPNP`, in units of 1 + |S|.
        cutting: How far it may lie from that of the same input in other batches, in the same units.
        concurrency: How far it may lie from that of the same input asked alone, where several ask at once.
        shared: Facts of the process that a library below it changes where several ask at once, and why.
        on_empty: What is documented of no inputs: an error, or None for no answers.
        on_nan: What is documented of NaN: an error; ``"flagged"`` for the score NaN, the least p-value and a verdict
            of OOD; or ``"passed on"`` for the score NaN.
        unfitted: The error where nothing was fitted.
        errors: Errors of a model that are to come through.

    """

    plural: ClassVar[str]
    covers: ClassVar[tuple[str, ...]] = ()
    lacks: ClassVar[Mapping[str, str]] = {}
    sign: ClassVar[int] = 1
    is_fusion: ClassVar[bool] = False
    tolerance: ClassVar[float] = 0.0
    cutting: ClassVar[float] = 1e-6
    concurrency: ClassVar[float] = 0.0
    shared: ClassVar[Mapping[str, str]] = {}
    on_empty: ClassVar[type[Exception] | None] = None
    on_nan: ClassVar[type[Exception] | str] = ValueError
    unfitted: ClassVar[type[Exception]] = NotFittedError
    errors: ClassVar[tuple[type[BaseException], ...]] = (RuntimeError, KeyboardInterrupt)

    def __init__(self, ratios: Ratios | None = None, *, precision: Precision = "float32") -> None:
        """Take a model that was in use: in mixed modes, with gradients and hooks."""
        self.ratios = RATIOS if ratios is None and not self.is_fusion else ratios
        self.precision: Precision = precision
        self.model = lived_in(classifier())

    @property
    def options(self) -> dict[str, Any]:
        """The options of `OPNP`."""
        return {**({} if self.is_fusion else {"ratios": self.ratios}), "precision": self.precision}

    def fit(self, training: Tensor | None = None, held_out: Tensor | None = None) -> Self:
        """Make it ready on images it shall know, those of the world if none are given."""
        raise NotImplementedError

    def scores(self, inputs: Tensor) -> Tensor:
        """Return the scores of images, in the interface's own sign."""
        raise NotImplementedError

    def state(self) -> bytes:
        """Return all that was fitted, as bytes."""
        raise NotImplementedError

    def owned(self) -> dict[str, object]:
        """Return every fact about what the user handed in, and about the process."""
        return snapshot(self.model)

    def expected(self, inputs: Tensor) -> Verdict:
        """Return what `OPNP` itself says, fitted apart on another copy of the model."""
        return plain(self.ratios, self.precision, is_fusion=self.is_fusion).verdict(inputs)

    def concurrent_scores(self, parts: list[Tensor]) -> list[Tensor]:
        """Return the scores of several batches that are asked at the same time."""
        with ThreadPoolExecutor(4) as threads:
            return list(threads.map(self.scores, parts))

    def verdicts(self, inputs: Tensor) -> Tensor:
        """Return whether images are flagged."""
        self._lacking(inputs)

    def p_values(self, inputs: Tensor) -> Tensor:
        """Return p-values."""
        self._lacking(inputs)

    def classes(self, inputs: Tensor) -> Tensor:
        """Return the predicted classes."""
        self._lacking(inputs)

    def labelled_scores(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the scores of images that come with labels."""
        self._lacking(inputs, labels)

    def calibrated_on(self) -> Tensor:
        """Return the images that it was calibrated on."""
        self._lacking()

    def refit(self, training: Tensor, held_out: Tensor) -> None:
        """Fit the same object again."""
        self._lacking(training, held_out)

    def set_ratios(self, ratios: Ratios) -> None:
        """Answer by other ratios from now on."""
        self._lacking(ratios)

    def copied(self) -> "Shell":
        """Return a shell of a copy, as the interface makes copies."""
        self._lacking()

    def parameters(self) -> object:
        """Return the parameters as the interface shows them."""
        self._lacking()

    def running_model(self) -> nn.Module:
        """Return the module that runs when images are scored."""
        self._lacking()

    def switch_to_training(self) -> None:
        """Put whatever runs into training mode, as a user may."""
        self._lacking()

    def sensitivity(self) -> Sensitivity:
        """Return the sensitivities."""
        self._lacking()

    def sent(self, folder: Path) -> None:
        """Write what another process needs to score."""
        self._lacking(folder)

    @classmethod
    def received(cls, folder: Path) -> "Shell":
        """Return a shell from what `sent` wrote."""
        raise LackingError(cls.__name__, folder)

    def _lacking(self, *arguments: Any) -> NoReturn:
        raise LackingError(type(self).__name__, len(arguments))


class Fused(Shell):
    """What all interfaces to a fusion have in common; ratios are None until others are set.

    Each score is a difference of two float32 scores in units of a small spread, which rounds more than the scores do.
    """

    is_fusion = True
    cutting = 1e-5


def _rounded(images: Tensor) -> Tensor:
    """Return images whose values are whole numbers of 255ths, as those in files are."""
    return (images * 255).round().to(torch.uint8).float() / 255


@cache
def known() -> Tensor:
    """Return the training images of the world."""
    return _rounded(world.training())


@cache
def fresh() -> Tensor:
    """Return the images of the world to calibrate on."""
    return _rounded(world.held_out())


@cache
def strange() -> Tensor:
    """Return the images of the world that are out of distribution."""
    return _rounded(world.outside())


def class_labels(inputs: Tensor) -> Tensor:
    """Return the classes of images of the world that is known."""
    return torch.arange(len(inputs)) % 4


def head_of(model: nn.Module) -> nn.Linear:
    """Return the head."""
    head = model.get_submodule(world.HEAD)
    assert isinstance(head, nn.Linear)
    return head


def body_of(model: nn.Module) -> nn.Sequential:
    """Return all layers but the head, which stay those of the model."""
    return nn.Sequential(*(layer for name, layer in model.named_children() if name != world.HEAD))


@cache
def _quiet() -> nn.Module:
    return body_of(classifier())


def features(inputs: Tensor) -> Tensor:
    """Return what the head takes in for images, shape ``(batch, features)``."""
    body = _quiet()
    with torch.no_grad():
        parts = [body(batch.clone()) for batch in batches(inputs, 256)]
    return torch.cat(parts)


@cache
def plain(ratios: Ratios | None, precision: Precision, *, is_fusion: bool = False) -> OPNP:
    """Return the detector that the others are held against; ratios that a fusion is given later."""
    detector = OPNP(ratios=None if is_fusion else ratios, precision=precision).fit(classifier(), batches(known()))
    if is_fusion and ratios is not None:
        detector = detector.with_ratios(ratios)
    return detector.calibrate(batches(fresh()), keep=KEEP)
