"""What the scikit-learn detector refuses, and the rows that it reads."""

import sys
from importlib import import_module

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import make_blobs
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from opnp.adapters.scikit_learn import FeatureRows, OPNPOutlierDetector
from opnp.errors import EmptyDataError, MissingExtraError, OptionError, RatioError

X, Y = make_blobs(n_samples=400, centers=4, n_features=6, cluster_std=3.0, random_state=0)
X = StandardScaler().fit_transform(X)
QUERY = np.random.default_rng(1).normal(scale=2.0, size=(300, 6))


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (RandomForestClassifier(n_estimators=2), "got RandomForestClassifier, which has no `coef_`"),
        (make_pipeline(StandardScaler(), SVC()), "got SVC, which has no `coef_`"),
        (LinearRegression(), "got LinearRegression, which has no `classes_`"),
        (SVC(kernel="linear"), "SVC with 6 rows for 4 classes, such as one for each pair"),
    ],
)
def test_what_is_no_linear_classifier_is_refused(estimator: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        OPNPOutlierDetector(estimator, w_min=0.1).fit(X, Y)


def test_pairs_of_three_classes_are_told_from_classes() -> None:
    rows, labels = X[Y < 3], Y[Y < 3]
    with pytest.raises(OptionError, match="SVC with 3 rows for 3 classes"):
        OPNPOutlierDetector(SVC(kernel="linear"), w_min=0.1).fit(rows, labels)
    two = OPNPOutlierDetector(SVC(kernel="linear"), w_min=0.0, ood_score="max_logit", random_state=0).fit(
        X[Y < 2], Y[Y < 2]
    )
    decision = two.estimator_.decision_function(QUERY)
    np.testing.assert_allclose(two.score_samples(QUERY), np.abs(decision) / 2, rtol=1e-9)


def test_coefficients_that_do_not_decide_are_refused() -> None:
    class Contrary(LogisticRegression):  # type: ignore[misc]  # the package ships no types
        def predict(self, X: object) -> np.ndarray:  # noqa: N803  # scikit-learn's name
            predicted: np.ndarray = self.classes_[(np.searchsorted(self.classes_, super().predict(X)) + 1) % 4]
            return predicted

    with pytest.raises(OptionError, match="Contrary predicts another for 320 of 320 training rows"):
        OPNPOutlierDetector(Contrary(), w_min=0.1).fit(X, Y)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"w_min": 1.0}, RatioError, r"`w_min` must be a fraction in \[0, 1\)"),
        ({"contamination": 0.6}, OptionError, r"`contamination` must lie in \(0, 0.5\], got 0.6"),
        ({"contamination": 5}, OptionError, "`contamination` must be a fraction"),
        ({"validation_fraction": 0}, OptionError, "`validation_fraction` must be a fraction"),
        ({"ood_score": "odin"}, OptionError, "`ood_score` must be one of 'energy', .*, got 'odin'"),
        ({"shaping": "react"}, OptionError, "`shaping` must be"),
        ({"temperature": 0.0}, OptionError, "`temperature` must be"),
    ],
)
def test_parameters_are_checked_by_fit_before_anything_is_trained(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    detector = OPNPOutlierDetector(**options)  # type: ignore[arg-type]  # what `fit` is to refuse
    with pytest.raises(error, match=message):
        detector.fit(X, Y)
    assert not hasattr(detector, "estimator_")


def test_labels_are_checked() -> None:
    detector = OPNPOutlierDetector(w_min=0.0)
    with pytest.raises(EmptyDataError, match="requires y to be passed, but the target y is None"):
        detector.fit(X)
    with pytest.raises(EmptyDataError, match="at least two classes, got 1 class"):
        detector.fit(X, np.ones(400))
    with pytest.raises(ValueError, match="Unknown label type"):
        detector.fit(X, X[:, 0])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        detector.fit(X, Y[:-1])


def test_rows_read_by_blocks_are_a_feature_source() -> None:
    rows = FeatureRows(sparse.csr_array(X))
    assert (rows.rows, rows.width, rows.is_labelled, rows.first_row) == (400, 6, False, 0)
    features, labels = rows.read(3, 5)
    np.testing.assert_array_equal(features.numpy(), X[3:5])
    assert labels is None
    assert rows.digest() == FeatureRows(X).digest()
    assert rows.digest() != FeatureRows(X[::-1].copy()).digest()


def test_rows_that_are_too_few_or_too_much_alike_to_fuse_scores_by_are_refused() -> None:
    rows, labels = np.repeat(np.eye(2), 10, axis=0), np.repeat([0, 1], 10)
    detector = OPNPOutlierDetector(contamination=0.25, random_state=0)
    with pytest.raises(EmptyDataError, match=r"No score can be fused after 16 training samples: .*give `ratios` for"):
        detector.fit(rows, labels)
    assert not hasattr(detector, "estimator_")
    assert detector.set_params(w_min=0.0).fit(rows, labels).predict(rows).tolist() == [1] * 20


@pytest.mark.parametrize("missing", ["sklearn.base", "sklearn.frozen"])
def test_without_scikit_learn_the_install_command_is_given(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "opnp.adapters.scikit_learn")
    with pytest.raises(MissingExtraError, match=r"scikit-learn 1.6 or newer, .*pip install 'opnp\[bench\]'"):
        import_module("opnp.adapters.scikit_learn")
