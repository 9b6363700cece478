"""What is tested as one thing: a detector behind whatever interface, in a shell of few verbs; and tables of all shells.

A shell is made with ratios, or is that of a fusion; it is fitted on the world of the contract, and asked. It speaks in
images of that world and answers with tensors, in the sign of the interface itself. Verbs that an interface has no word
for are not written; then `lacks` says why, and `test_contract` compares the two.
"""

import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NoReturn, Self, TypeVar

import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios, Verdict
from opnp.adapters.toolkits import bytes_of
from opnp.core import Precision, Sensitivity
from opnp.errors import NotFittedError
from tests.contract.snapshot import snapshot
from tests.contract.world import batches, classifier, fresh, known, lived_in

__all__ = [
    "ABILITIES",
    "BROKEN",
    "KEEP",
    "NO_RATIOS",
    "OTHER",
    "SETTING",
    "SUBJECTS",
    "Fused",
    "Holder",
    "Pickled",
    "Shell",
    "breaks",
    "load_model",
    "plain",
    "ready",
    "save_model",
    "subject",
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
        given: Options of `OPNP` that it is made with beside ratios and precision.
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
    given: ClassVar[Mapping[str, Any]] = {}
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
        return {**({} if self.is_fusion else {"ratios": self.ratios}), "precision": self.precision, **self.given}

    def fit(self, training: Tensor | None = None, held_out: Tensor | None = None) -> Self:
        """Make it ready on images it shall know, those of the world if none are given."""
        self.fit_on(known() if training is None else training, fresh() if held_out is None else held_out)
        return self

    def fit_on(self, training: Tensor, held_out: Tensor) -> None:
        """Fit and calibrate."""
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

    def by_files(self) -> "Shell":
        """Return a shell of a copy that went through files."""
        with TemporaryDirectory() as folder:
            self.sent(Path(folder))
            return self.received(Path(folder))

    def _lacking(self, *arguments: Any) -> NoReturn:
        raise LackingError(type(self).__name__, len(arguments))


class Fused(Shell):
    """What all interfaces to a fusion have in common; ratios are None until others are set.

    Each score is a difference of two float32 scores in units of a small spread, which rounds more than the scores do.
    """

    is_fusion = True
    cutting = 1e-5


class Holder(Shell):
    """What holds a detector of the library that was fitted on inputs, and answers by what is made of it."""

    made_of: ClassVar[type[OPNP]] = OPNP

    def __init__(self, ratios: Ratios | None = None, *, precision: Precision = "float32") -> None:
        super().__init__(ratios, precision=precision)
        self.detector = self.made_of(**self.options)
        self.made: Any = None

    def fit_on(self, training: Tensor, held_out: Tensor) -> None:
        self.detector.fit(self.model, batches(training)).calibrate(batches(held_out), keep=KEEP)
        self.made = self.make()

    def make(self) -> Any:
        """Return what is made of the detector."""
        return self.detector

    @property
    def answering(self) -> Any:
        """What was made; where nothing was, the error of trying."""
        return self.make() if self.made is None else self.made

    def state(self) -> bytes:
        return bytes_of(self.detector)

    def calibrated_on(self) -> Tensor:
        return fresh()

    def set_ratios(self, ratios: Ratios) -> None:
        self.ratios = ratios
        self.detector = self.detector.with_ratios(ratios).calibrate(batches(fresh()), keep=KEEP)
        self.made = self.make()


class Pickled(Shell):
    """What travels as a pickle of one attribute of its shell, whose name is `inside`."""

    inside: ClassVar[str]

    def sent(self, folder: Path) -> None:
        (folder / "pickle").write_bytes(pickle.dumps(getattr(self, self.inside)))

    @classmethod
    def received(cls, folder: Path) -> Shell:
        other = cls()
        setattr(other, cls.inside, pickle.loads((folder / "pickle").read_bytes()))  # noqa: S301  # written by this test
        return other

    def copied(self) -> Shell:
        return self.by_files()


_Kind = TypeVar("_Kind", bound=type)

SUBJECTS: dict[str, type[Shell]] = {}
"""Every detector, adapter and exported module that the contract is held against."""

SETTING = "setting_"
"""What the names of detectors under one setting begin with, which are put to the checks of settings alone."""

BROKEN: dict[str, list[type[Shell]]] = {}
"""By the name of the check that must fail: the shells that fail it."""


def subject(name: str) -> Callable[[_Kind], _Kind]:
    """Enter a shell in the table of subjects."""

    def entered(kind: _Kind) -> _Kind:
        SUBJECTS[name] = kind
        return kind

    return entered


def breaks(*checks: str, of: tuple[type[Shell], ...] = ()) -> Callable[[_Kind], _Kind]:
    """Enter a broken shell, or shells `of` which a broken class is the inside, beside the checks that it must fail."""

    def entered(kind: _Kind) -> _Kind:
        kinds = [type(f"{kind.__name__}In{each.__name__}", (each,), {"made_of": kind}) for each in of] or [kind]
        for check in checks:
            BROKEN.setdefault(check, []).extend(kinds)
        return kind

    return entered


_READY: dict[type[Shell], Shell] = {}


def ready(kind: type[Shell]) -> Shell:
    """Return the fitted shell of a kind, for questions that must not change it; that they do not is checked too."""
    if kind not in _READY:
        _READY[kind] = kind().fit()
    return _READY[kind]


@cache
def plain(ratios: Ratios | None, precision: Precision, *, is_fusion: bool = False) -> OPNP:
    """Return the detector that the others are held against; ratios that a fusion is given later."""
    detector = OPNP(ratios=None if is_fusion else ratios, precision=precision).fit(classifier(), batches(known()))
    if is_fusion and ratios is not None:
        detector = detector.with_ratios(ratios)
    return detector.calibrate(batches(fresh()), keep=KEEP)


def save_model(model: nn.Module, folder: Path) -> None:
    """Write the tensors of a model."""
    torch.save(model.state_dict(), folder / "model.pt")


def load_model(model: nn.Module, folder: Path) -> None:
    """Read the tensors of a model."""
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
