"""From prepared inputs to answers: one pass of the model for a batch, each input that fails by itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp.adapters import model_failure_text
from opnp.core.checks import require_finite
from opnp.data import ModelInputs, Transform
from opnp.data.class_order import model_class_names
from opnp.detector import OPNP
from opnp.errors import ModelRunError, NotCalibratedError, OpnpError, OptionError

__all__ = ["Answer", "Engine"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered of one input.

    Attributes:
        predicted_class: Class that the original head predicts.
        class_name: Its name, or None where names are not known.
        confidence: Its probability by the original head: the softmax, in [0, 1].
        score: Larger = more OOD; +inf where a member of a fusion is not finite.
        p_value: Conformal p-value, small = OOD.
        is_ood: Whether the input is flagged.
        calibration_samples: How many calibration samples it was compared with.
        calibration_group: The group of classes that these are of, where the detector is calibrated by class; else None.
        members: By name of each fused score its own p-value and its share of the score; None where not asked for.

    """

    predicted_class: int
    class_name: str | None
    confidence: float
    score: float
    p_value: float
    is_ood: bool
    calibration_samples: int
    calibration_group: str | None = None
    members: dict[str, tuple[float, float]] | None = None

    def to_json(self) -> dict[str, object]:
        """Return the answer as JSON values, an infinite score as None: JSON has no infinity."""
        name = {} if self.class_name is None else {"class_name": self.class_name}
        why: dict[str, object] = {}
        if self.members is not None:
            pairs = self.members.items()
            why["members"] = {member: {"p_value": p_value, "share": share} for member, (p_value, share) in pairs}
        return {
            "class": self.predicted_class,
            **name,
            "confidence": self.confidence,
            "score": self.score if math.isfinite(self.score) else None,
            "p_value": self.p_value,
            "is_ood": self.is_ood,
            **({} if self.calibration_group is None else {"calibration_group": self.calibration_group}),
            **why,
        }


@dataclass(frozen=True, eq=False, slots=True)
class Engine:
    """A detector with its model, ready to answer. Answers come from one thread at a time.

    Attributes:
        detector: Fitted and calibrated.
        model: Its model; it is as it was after each batch.
        transform: What makes the model's inputs.
        head: The original head.
        class_names: Names of the classes, or None.
        is_explained: Whether answers say what each fused score contributed.

    """

    detector: OPNP
    model: nn.Module
    transform: Transform
    head: nn.Linear
    class_names: tuple[str, ...] | None
    is_explained: bool = False

    @classmethod
    def opened(
        cls,
        detector: OPNP,
        model: nn.Module,
        transform: Transform,
        *,
        class_names: Sequence[str] | None = None,
        is_explained: bool = False,
    ) -> Self:
        """Return the engine of a detector and a model.

        Raises:
            NotFittedError: If nothing was fitted.
            NotCalibratedError: If the detector is not calibrated.
            HeadMismatchError: If no layer of the model is the head that the detector was fitted on.
            OptionError: If there are not as many names as classes.

        """
        head = detector.original_head
        if not detector.is_calibrated:
            raise NotCalibratedError(
                "The detector is not calibrated, so that there is no verdict to serve: fit it with held-out ID inputs, "
                "`opnp fit ... --validation PATH`, or call `calibrate(loader)` and save it again.",
            )
        if class_names is not None and len(class_names) != head.out_features:
            raise OptionError(f"`class_names` must be {head.out_features}, one a class, got {len(class_names)}.")
        detector.attach(model)
        names = model_class_names(model, head.out_features) if class_names is None else tuple(class_names)
        return cls(detector, model, transform, head, names, is_explained)

    def answers(self, inputs: Sequence[ModelInputs]) -> list[Answer | Exception]:
        """Return the answer to each input, in their order; in the place of one that fails, the error.

        Inputs of one shape are run together. Where that fails, the halves are, down to the inputs that it fails on.
        """
        found: dict[int, Answer | Exception] = {}
        for rows in _alike(inputs):
            answered = self._answered_or_error([inputs[row] for row in rows])
            found |= dict(zip(rows, answered, strict=True))
        return [found[row] for row in range(len(inputs))]

    def tried(self, sample: object) -> ModelInputs:
        """Return the input that is made of a sample, after the model and the detector have answered to it.

        Raises:
            ModelRunError: If the model fails.
            OpnpError: If the transform or the detector refuses it.

        """
        try:
            made = self.transform(sample)
            self._answered([made])
        except OpnpError:
            raise
        except (Exception, SystemExit) as error:
            place = f"a first {self.transform.kind}"
            raise ModelRunError(model_failure_text(error, self.model, place=place)) from error
        return made

    def _answered_or_error(self, inputs: Sequence[ModelInputs]) -> Sequence[Answer | Exception]:
        try:
            return self._answered(inputs)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # a model raises what it likes; who asked is told
            if len(inputs) == 1:
                return [error if isinstance(error, Exception) else ModelRunError(f"The model left: {error!r}.")]
            half = len(inputs) // 2
            return [*self._answered_or_error(inputs[:half]), *self._answered_or_error(inputs[half:])]

    def _answered(self, inputs: Sequence[ModelInputs]) -> list[Answer]:
        features = self.detector.features(self.transform.batch(inputs))
        verdict = self.detector.verdict_features(features)
        confidence = self._confidence(features, verdict.predicted_class)
        columns = (verdict.predicted_class, confidence, verdict.score, verdict.p_value, verdict.is_ood)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        names = self.class_names
        is_by_class = self.detector.calibrated_by is not None
        answers = []
        for label, probability, score, p_value, is_ood in rows:
            group = self.detector.calibration_group_of(label)
            name, where = None if names is None else names[label], group.name if is_by_class else None
            answers.append(Answer(label, name, probability, score, p_value, is_ood, group.samples, where))
        if not self.is_explained:
            return answers
        why = self.detector.explain_features(features)
        pairs = torch.stack([why.p_value, why.share.to(why.p_value)], 2).tolist()
        members = ({name: (p, share) for name, (p, share) in zip(why.members, row, strict=True)} for row in pairs)
        return [replace(answer, members=found) for answer, found in zip(answers, members, strict=True)]

    def _confidence(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return the probability of the predicted classes, shape ``(batch,)``, float64."""
        weight, bias = self.head.weight, self.head.bias
        logits = linear(features.to(weight), weight, bias)
        require_finite(logits, name="logits")
        return torch.softmax(logits.double(), dim=1).gather(1, classes[:, None].to(logits.device))[:, 0]


def _alike(inputs: Sequence[ModelInputs]) -> list[list[int]]:
    """Return the places of inputs that can be one batch: tensors of one shape, and all mappings, which are padded."""
    groups: dict[object, list[int]] = {}
    for place, item in enumerate(inputs):
        form = tuple(sorted(item)) if isinstance(item, Mapping) else (tuple(item.shape), item.dtype)
        groups.setdefault(form, []).append(place)
    return list(groups.values())
