"""The detector for scikit-learn: round a classifier it trains, round a frozen one, and as the last step of a pipeline.

Rows are the features of the world's images, so that all shells take the same images.
"""

import pickle
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils import check_random_state
from torch import Tensor

from opnp import OPNP, Ratios, Verdict
from opnp.adapters.scikit_learn import OPNPOutlierDetector, _split
from opnp.adapters.toolkits import bytes_of
from tests.contract.shell import KEEP, Fused, Shell, class_labels, features, fresh, head_of, known
from tests.contract.snapshot import snapshot
from tests.contract.world import classifier

__all__ = [
    "FrozenShell",
    "FusedFrozenShell",
    "FusedPipelineShell",
    "FusedScikitLearnShell",
    "PipelineShell",
    "ScikitLearnShell",
]

_SHARE = 0.2


class ScikitLearnShell(Shell):
    """`OPNPOutlierDetector` round a classifier that it trains itself."""

    plural = "outlier detectors of scikit-learn"
    covers: ClassVar[tuple[str, ...]] = ("opnp.adapters.scikit_learn.OPNPOutlierDetector",)
    made_of: ClassVar[type[OPNPOutlierDetector]] = OPNPOutlierDetector
    sign = -1
    tolerance = 1e-12
    on_empty = ValueError
    unfitted = NotFittedError
    shared: ClassVar = {
        "filters of warnings": "`check_array` sets a filter inside `warnings.catch_warnings`, which threads leave set",
    }
    lacks: ClassVar = {
        "classes": "the classifier inside predicts them",
        "labels": "`score_samples` takes rows alone",
        "model": "the classifier is one of scikit-learn, which is cloned",
        "modes": "the classifier is one of scikit-learn, which has no modes",
        "sums": "the rows trained on are drawn by it; products are float64, to which the agreement is held",
    }

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]  # those of a shell
        self.given = self._given()
        self.estimator = self._estimator()

    def fit(self, training: Tensor | None = None, held_out: Tensor | None = None) -> Self:
        rows, labels = self._rows_and_labels(training, held_out)
        self.estimator.fit(rows, labels)
        return self

    def scores(self, inputs: Tensor) -> Tensor:
        return torch.from_numpy(self.estimator.score_samples(rows_of(inputs)))

    def verdicts(self, inputs: Tensor) -> Tensor:
        flags = torch.from_numpy(self.estimator.predict(rows_of(inputs)) == -1)
        assert torch.equal(torch.from_numpy(self.estimator.decision_function(rows_of(inputs)) < 0), flags)
        return flags

    def p_values(self, inputs: Tensor) -> Tensor:
        return torch.from_numpy(self.detector.p_value(self._before(rows_of(inputs))))

    def state(self) -> bytes:
        found = self.detector
        return bytes_of(found.detector_) + np.array(found.offset_).tobytes() + np.array(found.classes_).tobytes()

    def owned(self) -> dict[str, object]:
        given = {} if self.given is None else {"the estimator that was given": pickle.dumps(self.given)}
        return {**snapshot(self.model), **given}

    def expected(self, inputs: Tensor) -> Verdict:
        return self._plain().verdict_features(torch.from_numpy(self._before(rows_of(inputs))))

    def calibrated_on(self) -> Tensor:
        images = torch.cat([known(), fresh()])
        return images[self._parts(len(images))[1]]

    def refit(self, training: Tensor, held_out: Tensor) -> None:
        self.fit(training, held_out)

    def set_ratios(self, ratios: Ratios) -> None:
        self.ratios = ratios
        self.detector.set_params(**{name: getattr(ratios, name) for name in Ratios.__slots__})
        self.fit()

    def copied(self) -> Shell:
        other = type(self)(self.ratios)
        other.estimator = pickle.loads(pickle.dumps(self.estimator))  # noqa: S301  # made a moment ago
        cloned = clone(self.estimator)
        assert repr(cloned.get_params()) == repr(self.estimator.get_params()), "a clone has other parameters"
        return other

    def parameters(self) -> object:
        return {name: repr(value) for name, value in self.detector.get_params(deep=False).items()}

    def sent(self, folder: Path) -> None:
        (folder / "pickle").write_bytes(pickle.dumps(self.estimator))

    @classmethod
    def received(cls, folder: Path) -> Shell:
        other = cls()
        other.estimator = pickle.loads((folder / "pickle").read_bytes())  # noqa: S301  # written by this test
        return other

    @property
    def detector(self) -> OPNPOutlierDetector:
        """The detector itself."""
        found: OPNPOutlierDetector = self.estimator
        return found

    def _given(self) -> Any:
        return LogisticRegression()

    def _estimator(self) -> Any:
        ratios = {} if self.ratios is None else {name: getattr(self.ratios, name) for name in Ratios.__slots__}
        return self.made_of(
            self.given,
            **ratios,
            contamination=round(1 - KEEP, 6),
            validation_fraction=_SHARE,
            random_state=0,
        )

    def _before(self, rows: np.ndarray) -> np.ndarray:
        """Return what the detector receives of rows."""
        return rows

    def _rows_and_labels(self, training: Tensor | None, held_out: Tensor | None) -> tuple[np.ndarray, Any]:
        images = known() if training is None else training, fresh() if held_out is None else held_out
        return rows_of(torch.cat(images)), torch.cat(list(map(class_labels, images))).numpy()

    def _parts(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows trained on, and those held out."""
        targets = torch.cat([class_labels(known()), class_labels(fresh())]).numpy()
        return _split(rows, targets, share=_SHARE, generator=check_random_state(0))

    def _plain(self) -> OPNP:
        rows, labels = self._rows_and_labels(None, None)
        training, held_out = self._parts(len(rows))
        weight, bias = self._weight_and_bias(self._before(rows)[training], labels[training])
        detector = OPNP(ratios=self.ratios, precision="float64")
        detector.fit_features(torch.from_numpy(self._before(rows)[training]), weight=weight, bias=bias)
        return detector.calibrate_features(torch.from_numpy(self._before(rows)[held_out]), keep=KEEP)

    def _weight_and_bias(self, rows: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        trained = LogisticRegression().fit(rows, labels)
        return torch.from_numpy(trained.coef_), torch.from_numpy(trained.intercept_)


class FrozenShell(ScikitLearnShell):
    """`OPNPOutlierDetector` round a classifier that is trained already, with the weights of the world's model."""

    plural = "outlier detectors round trained classifiers"
    covers = ()

    def _given(self) -> Any:
        head = head_of(classifier())
        trained = LogisticRegression()
        trained.coef_, trained.intercept_ = (each.detach().double().numpy() for each in (head.weight, head.bias))
        trained.classes_, trained.n_features_in_ = np.arange(4), head.in_features
        return FrozenEstimator(trained)

    def _parts(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        return _split(rows, None, share=_SHARE, generator=check_random_state(0))

    def _weight_and_bias(self, rows: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:  # trained before
        head = head_of(classifier())
        return head.weight.detach().double(), head.bias.detach().double()


class PipelineShell(ScikitLearnShell):
    """`OPNPOutlierDetector` as the last step of a pipeline."""

    plural = "pipelines that end in outlier detectors"
    covers = ()

    @property
    def detector(self) -> OPNPOutlierDetector:
        """The last step."""
        found: OPNPOutlierDetector = self.estimator.steps[-1][1]
        return found

    def _estimator(self) -> Any:
        return Pipeline([("scale", MinMaxScaler()), ("detector", super()._estimator())])

    def _before(self, rows: np.ndarray) -> np.ndarray:
        fitted = MinMaxScaler().fit(self._rows_and_labels(None, None)[0])
        scaled: np.ndarray = fitted.transform(rows) if len(rows) else rows
        return scaled


class FusedScikitLearnShell(Fused, ScikitLearnShell):
    """The fusion round a classifier that is trained with it."""

    plural = "fusions for scikit-learn"


class FusedFrozenShell(Fused, FrozenShell):
    """The fusion round a classifier that is trained already."""

    plural = "fusions round trained classifiers"


class FusedPipelineShell(Fused, PipelineShell):
    """The fusion as the last step of a pipeline."""

    plural = "pipelines that end in fusions"


def rows_of(inputs: Tensor) -> np.ndarray:
    """Return the features of images as rows in float64."""
    return features(inputs).double().numpy()
