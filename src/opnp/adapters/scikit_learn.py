"""A detector for scikit-learn: a meta-estimator round a linear classifier, or a pipeline that ends in one.

This module needs scikit-learn 1.6 or newer, and is imported by its own name alone:
``from opnp.adapters.scikit_learn import OPNPOutlierDetector``.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from opnp.adapters.toolkits import RATIO_NAMES, settings_of
from opnp.artifact import tensors_digest
from opnp.core.checks import checked_fraction
from opnp.core.conformal import minimum_samples
from opnp.core.scores import SCORE_NAMES
from opnp.core.shaping import Shaping
from opnp.data import block_edges
from opnp.detector import OPNP
from opnp.errors import EmptyDataError, MissingExtraError, OptionError, UncalibratedWarning
from opnp.values.settings import NeuronReading, Scope, ScoreName

try:
    from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone
    from sklearn.frozen import FrozenEstimator
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.svm import SVC, NuSVC
    from sklearn.utils import _safe_indexing, check_random_state, get_tags, indexable
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "`opnp.adapters.scikit_learn` needs scikit-learn 1.6 or newer, which is not installed: "
        "`pip install 'opnp[bench]'`.",
    ) from error

__all__ = ["OPNPOutlierDetector"]

_BLOCK_VALUES = 2**22
"""Values of a block of rows that is made dense at once: 32 MB in float64."""

_CHECKED_ROWS = 1000
"""Training rows on which the classifier's answers are compared with those of its coefficients."""

_TIE = 1e-4
"""Difference of two logits, relative to the largest, below which either class may be the answer."""


class OPNPOutlierDetector(MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]  # the package ships no types
    """Detector of inputs that a linear classifier was not trained for: OPNP on its features and coefficients.

    `fit` trains the classifier on a part of the rows, fits the detector there, and calibrates on the rows held out.
    Features are what the classifier receives: of a pipeline, what its last step receives. With two classes and one row
    of coefficients, the decision value z stands for the logits -z/2 and z/2, whose softmax is the sigmoid of z.

    Scores have scikit-learn's sign: larger = in distribution, unlike everywhere else in opnp. It is no `OutlierMixin`,
    because outlier detectors of that type are fitted without `y`. Sparse rows are accepted where the classifier accepts
    them, and made dense block by block. There is no `sample_weight`: train the classifier with weights and give it
    frozen.

    Args:
        estimator: A linear classifier (`coef_`, `intercept_`, `classes_`), a pipeline or a search that ends in one, or
            one that is trained already, as ``FrozenEstimator(classifier)``, which needs no `y` and should be given rows
            that it was not trained on; None for ``LogisticRegression()``. It is cloned.
        w_min: Share of the weights with the smallest sensitivity to remove, in [0, 1). Where no option of the paper's
            method is given, this one and the following, scores are fused. With any of them given, None is 0 or none.
        w_max: Share of the weights with the largest sensitivity to remove.
        o_min: Share of the features with the smallest sensitivity to remove.
        o_max: Share of the features with the largest sensitivity to remove.
        neuron: Reading of the features' sensitivity, ``"gradient"`` (the default) or ``"aggregate"``.
        scope: Rank all weights together (``"layer"``, the default) or each class's by themselves (``"class"``).
        temperature: Temperature of the energy, above 0; 1 by default. Classifiers with a margin (LinearSVC,
            RidgeClassifier) give logits on a scale of their own; below 1 suits small ones.
        ood_score: What is read off the pruned logits: ``"energy"`` (the default), ``"msp"``, ``"max_logit"``,
            ``"entropy"`` or ``"gen"``. `score` would be taken for the method of that name.
        shaping: None, ``ReAct(...)``, ``ASHS(...)`` or ``SCALE(...)`` for features that are not negative.
        contamination: Share of rows in distribution that `predict` calls outliers: at most this share in expectation.
            In (0, 0.5].
        validation_fraction: Share of the rows held out of training to calibrate on, in (0, 1), drawn at random; of a
            class at least one row is left to train on. Fewer than 19 rows at ``contamination=0.05`` cannot hold it:
            then the threshold is their least score, and a warning says what it keeps.
        random_state: Seed, or generator, of that draw.

    Attributes:
        estimator_: The classifier, trained on the rows that were not held out.
        detector_: The fitted `opnp.OPNP`: sensitivities, pruned head, calibration, `save`.
        offset_: Least `score_samples` that is no outlier.
        classes_: Labels of the classes.
        n_features_in_: Number of columns, where the classifier counts them.
        feature_names_in_: Names of the columns, where they had some.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import MinMaxScaler
        >>> X, y = load_digits(return_X_y=True)
        >>> classifier = make_pipeline(MinMaxScaler(), LogisticRegression())
        >>> detector = OPNPOutlierDetector(classifier, w_min=0.1, random_state=0).fit(X, y)
        >>> detector.predict([X[0], X[1], 0 * X[0]])  # two digits and a blank page
        array([ 1,  1, -1])

    References:
        Chen et al., "Optimal Parameter and Neuron Pruning for Out-of-Distribution Detection", NeurIPS 2023.

    """

    def __init__(
        self,
        estimator: Any = None,  # noqa: ANN401  # the package ships no types
        *,
        w_min: float | None = None,
        w_max: float | None = None,
        o_min: float | None = None,
        o_max: float | None = None,
        neuron: NeuronReading | None = None,
        scope: Scope | None = None,
        temperature: float | None = None,
        ood_score: ScoreName | None = None,
        shaping: Shaping | None = None,
        contamination: float = 0.05,
        validation_fraction: float = 0.2,
        random_state: Any = None,  # noqa: ANN401  # a seed, or a generator of numpy's older kind
    ) -> None:
        """Store the parameters as they are."""
        self.estimator = estimator
        self.w_min = w_min
        self.w_max = w_max
        self.o_min = o_min
        self.o_max = o_max
        self.neuron = neuron
        self.scope = scope
        self.temperature = temperature
        self.ood_score = ood_score
        self.shaping = shaping
        self.contamination = contamination
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: object, y: object = None) -> Self:  # noqa: N803  # scikit-learn's name
        """Train the classifier on a part of the rows, calibrate on the others, and return self.

        Args:
            X: Rows in distribution, shape ``(rows, columns)``, or whatever else the estimator takes.
            y: Their classes, shape ``(rows,)``; only a frozen estimator can do without.

        Returns:
            This detector.

        Raises:
            OptionError: If a parameter is out of range, or the estimator is no linear classifier.
            EmptyDataError: If `y` is missing, or there are too few rows or classes.
            ValueError: Whatever else scikit-learn finds wrong with the data.

        Warns:
            UncalibratedWarning: If too few rows are held out for `contamination`.
            MemberWarning: If a score cannot be fused.
            RatioWarning: If a share above 0 removes nothing.

        """
        detector = self._unfitted()
        keep = _keep(self.contamination)
        share = checked_fraction(self.validation_fraction, name="validation_fraction")
        rows, labels = indexable(X, y)
        targets = self._targets(labels)
        total = rows.shape[0] if hasattr(rows, "shape") else len(rows)
        generator = check_random_state(self.random_state)
        training, held_out = _split(total, None if self._is_frozen else targets, share=share, generator=generator)
        known = _safe_indexing(rows, training)
        estimator = LogisticRegression() if self.estimator is None else clone(self.estimator)
        estimator.fit(known, None if targets is None else targets[training])
        classifier = last_step(estimator)
        weight, bias = linear_head(classifier)
        if targets is not None:
            require_known(targets, classifier.classes_)
        features = classifier_features(estimator, known)
        require_linear(estimator, known, features, weight=weight, bias=bias)
        validation = classifier_features(estimator, _safe_indexing(rows, held_out))
        detector.fit_features(
            features,
            weight=torch.from_numpy(weight),
            bias=torch.from_numpy(bias),
            validation=validation,
            keep=_possible_keep(keep, samples=len(held_out)),
            batch_size=features.block,
        )
        self.estimator_ = estimator
        self.detector_ = detector
        self.classes_ = classifier.classes_
        self.offset_ = -detector.threshold
        return self

    def score_samples(self, X: object) -> np.ndarray:  # noqa: N803  # scikit-learn's name
        """Return how much each row looks in distribution, shape ``(rows,)``: minus the score of `opnp.OPNP`."""
        return -self._answers(X, OPNP.score_features)

    def decision_function(self, X: object) -> np.ndarray:  # noqa: N803  # scikit-learn's name
        """Return `score_samples` less `offset_`, shape ``(rows,)``: negative for outliers."""
        scores = self.score_samples(X)
        with np.errstate(invalid="ignore"):
            above = scores - self.offset_
        found: np.ndarray = np.where(scores == self.offset_, 0.0, above)  # both may be infinite
        return found

    def predict(self, X: object) -> np.ndarray:  # noqa: N803  # scikit-learn's name
        """Return -1 for each row that is an outlier and +1 for each that is none, shape ``(rows,)``."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def p_value(self, X: object) -> np.ndarray:  # noqa: N803  # scikit-learn's name
        """Return the conformal p-value of each row, shape ``(rows,)``, small for outliers.

        For rows exchangeable with those held out, P(p <= a) <= a for every a.
        """
        return self._answers(X, OPNP.p_value_features)

    @property
    def n_features_in_(self) -> int:
        """Number of columns that `fit` saw."""
        return int(self.estimator_.n_features_in_)

    @property
    def feature_names_in_(self) -> np.ndarray:
        """Names of the columns that `fit` saw."""
        names: np.ndarray = self.estimator_.feature_names_in_
        return names

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401  # scikit-learn's name, and it ships no types
        """Return the tags: input as the classifier takes it, `y` required unless the classifier is frozen."""
        tags = super().__sklearn_tags__()
        inner = get_tags(LogisticRegression() if self.estimator is None else self.estimator)
        tags.input_tags = inner.input_tags
        tags.non_deterministic = inner.non_deterministic
        tags.target_tags.required = not self._is_frozen
        return tags

    @property
    def _is_frozen(self) -> bool:
        return isinstance(self.estimator, FrozenEstimator)

    def _unfitted(self) -> OPNP:
        """Return the detector that the parameters ask for, or raise if they cannot be."""
        if self.ood_score is not None and self.ood_score not in SCORE_NAMES:
            names = ", ".join(map(repr, SCORE_NAMES))
            raise OptionError(f"`ood_score` must be one of {names}, got {self.ood_score!r}.")
        given = {name: getattr(self, name) for name in (*RATIO_NAMES, "neuron", "scope", "temperature", "shaping")}
        return OPNP.from_settings(settings_of({**given, "score": self.ood_score, "precision": "float64"}))

    def _targets(self, labels: object) -> np.ndarray | None:
        """Return the labels as one axis, checked; None where there are none and none are needed."""
        if labels is None:
            if self._is_frozen:
                return None
            raise EmptyDataError(
                f"This {type(self).__name__} requires y to be passed, but the target y is None: the classifier is "
                f"trained on it. For one that is trained already: `estimator=FrozenEstimator(classifier)`.",
            )
        targets: np.ndarray = column_or_1d(labels, warn=True)
        check_classification_targets(targets)
        classes = len(np.unique(targets))
        if classes < 2 and not self._is_frozen:
            raise EmptyDataError(f"`y` must hold at least two classes, got {classes} class{'es' * (classes != 1)}.")
        return targets

    def _answers(self, rows: object, question: Callable[[OPNP, Tensor], Tensor]) -> np.ndarray:
        check_is_fitted(self)
        features = classifier_features(self.estimator_, rows)
        return torch.cat([question(self.detector_, block) for block in features.blocks()]).numpy()


def _split(
    rows: int, targets: np.ndarray | None, *, share: float, generator: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on and those to hold out, drawn at random, each class with a row to train on.

    Raises:
        EmptyDataError: If there is no row to hold out.

    """
    order = generator.permutation(rows)
    wanted = min(max(1, round(share * rows)), rows - 1)
    classes = np.zeros(rows, dtype=int) if targets is None else np.unique(targets, return_inverse=True)[1]
    left = np.bincount(classes)
    is_held_out = np.zeros(rows, dtype=bool)
    for row in order:
        if wanted > 0 and left[classes[row]] > 1:
            left[classes[row]] -= 1
            is_held_out[row] = True
            wanted -= 1
    if not is_held_out.any():
        raise EmptyDataError(
            f"There is no row to hold out for calibration: got {rows} sample{'s' * (rows != 1)} of {len(left)} "
            f"class{'es' * (len(left) != 1)}, and each class needs one to train on.",
        )
    return order[~is_held_out[order]], order[is_held_out[order]]


def _keep(contamination: float) -> float:
    """Return the share of rows to keep, as the decimal that the contamination leaves of 1."""
    if checked_fraction(contamination, name="contamination") > 0.5:
        raise OptionError(f"`contamination` must lie in (0, 0.5], got {contamination!r}.")
    return float(1 - Fraction(str(float(contamination))))


def _possible_keep(keep: float, *, samples: int) -> float:
    """Return `keep`, or the largest share that so few calibration samples can be asked for, with a warning."""
    needed = minimum_samples(keep=keep)
    if samples >= needed:
        return keep
    warnings.warn(
        f"{samples} rows are held out for calibration, and `contamination` = {1 - keep:g} takes {needed}: the "
        f"threshold is their least score, which flags up to {1 / (samples + 1):.2g} of rows in distribution. Give more "
        f"rows, or a larger `validation_fraction` or `contamination`.",
        UncalibratedWarning,
        stacklevel=3,
    )
    return math.floor(1e6 * samples / (samples + 1)) / 1e6


@dataclass(frozen=True, eq=False, slots=True)
class FeatureRows:
    """Features in float64, dense or sparse, as a `FeatureSource` that gives dense blocks.

    Attributes:
        matrix: Shape ``(rows, features)``, an array or a sparse one in rows.

    """

    matrix: Any

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.matrix.shape[0])

    @property
    def width(self) -> int:
        """Number of features of a row."""
        return int(self.matrix.shape[1])

    @property
    def is_labelled(self) -> bool:
        """Whether there is a label for each row."""
        return False

    @property
    def first_row(self) -> int:
        """Number of the first row: 0."""
        return 0

    @property
    def block(self) -> int:
        """Rows to make dense at once."""
        return max(1, _BLOCK_VALUES // self.width)

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Return rows `start` to `stop`, dense and copied, and no labels."""
        part = self.matrix[start:stop]
        dense = part.toarray() if hasattr(part, "toarray") else np.array(part)
        return torch.from_numpy(dense), None

    def blocks(self) -> Iterator[Tensor]:
        """Yield all rows in dense blocks."""
        return (self.read(start, stop)[0] for start, stop in block_edges(self.rows, size=self.block))

    def digest(self) -> str:
        """Return the SHA-256 of the features."""
        return tensors_digest({"features": self.read(0, self.rows)[0]})


def last_step(estimator: Any) -> Any:  # noqa: ANN401  # the package ships no types
    """Return the classifier itself: what a fitted pipeline, a search or a frozen estimator ends in."""
    if isinstance(estimator, FrozenEstimator):
        return last_step(estimator.estimator)
    if isinstance(estimator, Pipeline):
        return last_step(estimator.steps[-1][1])
    return last_step(estimator.best_estimator_) if hasattr(estimator, "best_estimator_") else estimator


def classifier_features(estimator: Any, rows: object) -> FeatureRows:  # noqa: ANN401  # the package ships no types
    """Return what the classifier itself receives of rows that a fitted estimator is given.

    Raises:
        ValueError: If the rows are not those that the estimator takes.

    """
    if isinstance(estimator, FrozenEstimator):
        return classifier_features(estimator.estimator, rows)
    if isinstance(estimator, Pipeline):
        inputs = estimator[:-1].transform(rows) if len(estimator.steps) > 1 else rows
        return classifier_features(estimator.steps[-1][1], inputs)
    if hasattr(estimator, "best_estimator_"):
        return classifier_features(estimator.best_estimator_, rows)
    return FeatureRows(validate_data(estimator, rows, reset=False, accept_sparse="csr", dtype=np.float64))


def linear_head(classifier: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401  # the package ships no types
    """Return weight, shape ``(classes, features)``, and bias, shape ``(classes,)``, of a fitted linear classifier.

    A single row for two classes, with the decision value z, becomes the logits -z/2 and z/2.

    Raises:
        OptionError: If it is no linear classifier, or its coefficients are not one row a class.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> weight, bias = linear_head(LogisticRegression().fit([[-1.0], [1.0]], [0, 1]))
        >>> bool((weight[0] == -weight[1]).all()), weight.shape, bias.shape
        (True, (2, 1), (2,))

    """
    kind = type(classifier).__name__
    for name in ("coef_", "intercept_", "classes_"):
        if not hasattr(classifier, name):
            raise OptionError(
                f"`estimator` must be a linear classifier, or a pipeline that ends in one, got {kind}, which has no "
                f"`{name}`. Take LogisticRegression, LinearSVC, SGDClassifier, RidgeClassifier or the like.",
            )
    coefficients = classifier.coef_
    dense = coefficients.toarray() if hasattr(coefficients, "toarray") else coefficients
    weight = np.atleast_2d(np.array(dense, dtype=np.float64))
    bias = np.array(np.broadcast_to(np.ravel(classifier.intercept_), len(weight)), dtype=np.float64)
    classes = len(classifier.classes_)
    if len(weight) == 1 and classes == 2:
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    if len(weight) != classes or isinstance(classifier, SVC | NuSVC):
        raise OptionError(
            f"`estimator` must have one row of `coef_` for each class, or a single one for two classes, got {kind} "
            f"with {len(weight)} rows for {classes} classes, such as one for each pair of classes, which gives no "
            f"logits. In the place of SVC take LinearSVC.",
        )
    return weight, bias


def require_linear(
    estimator: Any,  # noqa: ANN401  # the package ships no types
    rows: object,
    features: FeatureRows,
    *,
    weight: np.ndarray,
    bias: np.ndarray,
) -> None:
    """Raise unless the estimator answers some rows as its coefficients do.

    Args:
        estimator: The fitted estimator.
        rows: What it was trained on.
        features: What its classifier receives of them.
        weight: Shape ``(classes, features)``.
        bias: Shape ``(classes,)``.

    Raises:
        OptionError: If it predicts other classes than those of the largest logits.

    """
    classifier = last_step(estimator)
    count = min(_CHECKED_ROWS, features.rows)
    logits = features.matrix[:count] @ weight.T + bias
    predicted = estimator.predict(_safe_indexing(rows, np.arange(count)))
    answers = np.take_along_axis(logits, _positions(predicted, classifier.classes_)[:, None], axis=1)[:, 0]
    is_other = answers < logits.max(1) - _TIE * np.abs(logits).max(1)
    if is_other.any():
        raise OptionError(
            f"`estimator` must predict the class of the largest `coef_ @ x + intercept_`, and "
            f"{type(classifier).__name__} predicts another for {int(is_other.sum())} of {count} training rows: its "
            f"coefficients give no logits.",
        )


def require_known(labels: np.ndarray, classes: np.ndarray) -> None:
    """Raise unless every label is a class of the classifier.

    Raises:
        OptionError: If one is none.

    """
    is_known = np.isin(labels, classes)
    if not is_known.all():
        unknown = ", ".join(map(repr, np.unique(labels[~is_known]).tolist()[:5]))
        raise OptionError(
            f"`y` must hold classes that the frozen classifier knows, got {unknown}. Leave such rows out: they are out "
            f"of distribution, and detectors are fitted on rows in distribution alone.",
        )


def _positions(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    order = np.argsort(classes)
    places: np.ndarray = order[np.searchsorted(classes, labels, sorter=order)]
    return places
