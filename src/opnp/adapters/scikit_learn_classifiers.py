"""Linear classifiers of scikit-learn as heads: weight and bias, the features they receive, and whether they are linear.

The adapter `opnp.adapters.scikit_learn` is built on these.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC, NuSVC
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import validate_data
from torch import Tensor

from opnp.artifact import tensors_digest
from opnp.data import block_edges
from opnp.errors import OptionError

__all__ = ["FeatureRows", "classifier_features", "last_step", "linear_head", "require_known", "require_linear"]

_BLOCK_VALUES = 2**22
"""Values of a block of rows that is made dense at once: 32 MB in float64."""

_CHECKED_ROWS = 1000
"""Training rows on which the classifier's answers are compared with those of its coefficients."""

_TIE = 1e-4
"""Difference of two logits, relative to the largest, below which either class may be the answer."""


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
