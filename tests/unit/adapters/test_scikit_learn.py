"""The scikit-learn detector against scikit-learn's own checks, against plain OPNP, and against theory."""

import sys
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, make_blobs
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from opnp import OPNP, PANEL, Ratios
from opnp.adapters.scikit_learn import FeatureRows, OPNPOutlierDetector, _split
from opnp.core.scores import ScoreName
from opnp.errors import EmptyDataError, MissingExtraError, OptionError, RatioError, UncalibratedWarning

X, Y = make_blobs(n_samples=400, centers=4, n_features=6, cluster_std=3.0, random_state=0)
X = StandardScaler().fit_transform(X)
QUERY = np.random.default_rng(1).normal(scale=2.0, size=(300, 6))
TWO = X[Y < 2], Y[Y < 2]


class Remembering(LogisticRegression):  # type: ignore[misc]  # the package ships no types
    """A classifier that remembers the rows it was trained on."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Remembering":  # noqa: N803  # scikit-learn's name
        self.seen_ = X
        super().fit(X, y)
        return self


def is_row_of(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    found: np.ndarray = (rows[:, None] == others).all(2).any(1)
    return found


# scikit-learn's checks fit as few as ten rows of three columns, which leaves too few to calibrate on, and shares that
# round to nothing; some of their rows are zeros, whose norm measures nothing. All of it is said, and none of it is what
# those checks are about.
@pytest.mark.filterwarnings("ignore:.* rows are held out for calibration:opnp.errors.UncalibratedWarning")
@pytest.mark.filterwarnings("ignore:The fusion goes without:opnp.errors.MemberWarning")
@pytest.mark.filterwarnings("ignore:.* rounds to none:opnp.errors.RatioWarning")
@pytest.mark.filterwarnings("ignore:.*SCIPY_ARRAY_API is not set:sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [
        OPNPOutlierDetector(),
        OPNPOutlierDetector(LogisticRegression(), w_min=0.1, o_max=0.3, shaping=None, contamination=0.2),
        OPNPOutlierDetector(make_pipeline(StandardScaler(), LogisticRegression()), w_min=0.1),
    ]
)
def test_the_checks_of_scikit_learn_pass(estimator: OPNPOutlierDetector, check: object) -> None:
    check(estimator)  # type: ignore[operator]  # the package ships no types


@pytest.mark.parametrize("ood_score", ["energy", "msp", "max_logit", "entropy", "gen", None])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_numbers_are_those_of_opnp_on_the_same_weight(classes: int, ood_score: ScoreName | None) -> None:
    rows, labels = X[classes > Y], Y[classes > Y]
    others: dict[str, Any] = {"neuron": "aggregate", "scope": "class", "temperature": 2.0}
    options = {} if ood_score is None else {"w_min": 0.25, "o_max": 0.2, "ood_score": ood_score, **others}
    detector = OPNPOutlierDetector(Remembering(), **options, contamination=0.1, random_state=0).fit(rows, labels)
    classifier = detector.estimator_
    weight, bias = torch.from_numpy(classifier.coef_), torch.from_numpy(classifier.intercept_)
    if classes == 2:
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    held_out = rows[~is_row_of(rows, classifier.seen_)]
    assert len(held_out) == round(0.2 * len(rows))
    own = {} if ood_score is None else {"ratios": Ratios(w_min=0.25, o_max=0.2), "score": ood_score, **others}
    plain = OPNP(**own).fit_features(
        torch.from_numpy(classifier.seen_),
        weight=weight,
        bias=bias,
        validation=torch.from_numpy(held_out),
        keep=0.9,
    )
    query = torch.from_numpy(QUERY)
    np.testing.assert_allclose(detector.score_samples(QUERY), -plain.score_features(query).numpy(), rtol=1e-12)
    np.testing.assert_allclose(detector.offset_, -plain.threshold, rtol=1e-12)
    np.testing.assert_array_equal(detector.p_value(QUERY), plain.p_value_features(query).numpy())
    np.testing.assert_array_equal(detector.predict(QUERY) == -1, plain.predict_features(query).numpy())
    assert set(detector.predict(QUERY)) == {-1, 1}


def test_infinite_scores_are_outliers_unless_the_threshold_is_infinite_too() -> None:
    detector, rows = OPNPOutlierDetector(random_state=0).fit(X, Y), np.stack([X[0], np.zeros(6)])
    assert detector.score_samples(rows)[1] == -np.inf  # a norm of zero
    assert detector.decision_function(rows)[1] == -np.inf
    assert detector.predict(rows).tolist() == [1, -1]
    detector.offset_ = -np.inf
    assert detector.decision_function(rows).tolist() == [np.inf, 0.0]
    assert detector.predict(rows).tolist() == [1, 1]


def test_outliers_are_flagged_as_often_as_contamination_says() -> None:
    # 95 rows of 30 columns: the classifier is much surer of rows that it was trained on, so that a threshold taken
    # there would flag far too many. With 19 rows held out the expectation is 1/20; its standard error here is 0.0035.
    generator = np.random.default_rng(0)
    centres = generator.normal(scale=0.3, size=(3, 30))
    flagged = []
    for _ in range(200):
        labels = generator.integers(3, size=295)
        rows = centres[labels] + generator.normal(size=(295, 30))
        detector = OPNPOutlierDetector(RidgeClassifier(alpha=1e-3), w_min=0.0, random_state=0)
        detector.fit(rows[:95], labels[:95])
        flagged.append((detector.predict(rows[95:]) == -1).mean())
    assert abs(np.mean(flagged) - 0.05) < 4 * 0.0035


@pytest.mark.parametrize(("contamination", "flagged"), [(0.18, 18), (0.07, 7), (0.5, 50)])
def test_contamination_counts_as_the_decimal_it_is_written_as(contamination: float, flagged: int) -> None:
    classifier = FrozenEstimator(LogisticRegression().fit(X, Y))
    detector = OPNPOutlierDetector(
        classifier, w_min=0.0, contamination=contamination, validation_fraction=0.25, random_state=0
    ).fit(X[:396])
    ranked = detector.detector_.calibration_scores
    assert len(ranked) == 99  # 1 - 0.18 is no 0.82 in binary, and would flag up to rank 17 of 100
    assert -detector.offset_ == float(ranked[99 - flagged])


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=60),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_split_covers_all_rows_and_leaves_each_class_one_to_train_on(
    labels: list[int], share: float, seed: int
) -> None:
    targets = np.array(labels)
    spare = len(targets) - len(set(labels))
    generator = np.random.RandomState(seed)
    if spare == 0:
        with pytest.raises(EmptyDataError, match="There is no row to hold out"):
            _split(len(targets), targets, share=share, generator=generator)
        return
    training, held_out = _split(len(targets), targets, share=share, generator=generator)
    assert sorted([*training, *held_out]) == list(range(len(targets)))
    assert set(targets[training]) == set(labels)
    assert len(held_out) == min(max(1, round(share * len(targets))), spare)


def test_each_row_is_as_likely_to_be_held_out_as_another() -> None:
    targets = np.repeat([0, 1], [30, 10])
    generator = np.random.RandomState(0)
    held_out = [_split(40, targets, share=0.25, generator=generator)[1] for _ in range(4000)]
    shares = np.bincount(np.concatenate(held_out), minlength=40) / 4000
    assert np.abs(shares - 0.25).max() < 4.5 * np.sqrt(0.25 * 0.75 / 4000)


def test_too_few_rows_to_calibrate_on_are_said_and_the_least_score_serves() -> None:
    detector = OPNPOutlierDetector(w_min=0.0, random_state=0)
    with pytest.warns(UncalibratedWarning, match=r"12 rows are held out .* takes 19: .* flags up to 0.077"):
        detector.fit(X[:60], Y[:60])
    assert -detector.offset_ == detector.detector_.calibration_scores.max()
    p_values = detector.p_value(QUERY)
    np.testing.assert_array_equal(detector.predict(QUERY) == -1, p_values == 1 / 13)


@pytest.mark.parametrize("load", [load_digits, load_iris])
def test_scores_are_fused_where_no_option_of_the_papers_method_is_given(load: Any) -> None:
    rows, labels = load(return_X_y=True)
    names = np.array(list("zyxwvutsrq"))[labels]
    detector = OPNPOutlierDetector(RidgeClassifier(), random_state=0).fit(rows, names)
    assert detector.detector_.members == PANEL
    assert (detector.predict(rows) == 1).mean() > 0.9
    strange = np.random.default_rng(0).uniform(rows.min(), 3 * rows.max(), size=(200, rows.shape[1]))
    assert (detector.predict(strange) == -1).mean() > 0.9
    for options in ({"w_max": 0.1}, {"o_min": 0.0}, {"temperature": 2.0}, {"ood_score": "msp"}, {"scope": "class"}):
        alone = OPNPOutlierDetector(RidgeClassifier(), random_state=0, **options).fit(rows, names)
        assert alone.detector_.members == ("opnp",), options


def test_a_trained_classifier_stays_as_it_is_and_needs_no_labels() -> None:
    classifier = LogisticRegression().fit(X[:200], Y[:200])
    before = classifier.coef_.copy()
    detector = OPNPOutlierDetector(FrozenEstimator(classifier), w_min=0.2, random_state=0).fit(X[200:])
    np.testing.assert_array_equal(classifier.coef_, before)
    assert detector.classes_ is classifier.classes_
    assert not detector.__sklearn_tags__().target_tags.required
    assert OPNPOutlierDetector().__sklearn_tags__().target_tags.required
    labelled = clone(detector).fit(X[200:], Y[200:])
    np.testing.assert_array_equal(labelled.score_samples(QUERY), detector.score_samples(QUERY))
    with pytest.raises(OptionError, match="classes that the frozen classifier knows, got 7, 8"):
        clone(detector).fit(X[:100], [7, 8, *Y[:98]])
    with pytest.raises(NotFittedError, match="not fitted"):
        OPNPOutlierDetector(FrozenEstimator(LogisticRegression())).fit(X, Y)


def test_a_search_inside_is_looked_through() -> None:
    search = GridSearchCV(LogisticRegression(), {"C": [1e-4, 1.0]}, cv=3)
    detector = OPNPOutlierDetector(search, w_min=0.2, random_state=0).fit(X, Y)
    best = FrozenEstimator(detector.estimator_.best_estimator_)
    bare = OPNPOutlierDetector(best, w_min=0.2, random_state=0).fit(X, Y)
    np.testing.assert_array_equal(detector.score_samples(QUERY), bare.score_samples(QUERY))


def test_sparse_rows_give_what_dense_ones_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opnp.adapters.scikit_learn._BLOCK_VALUES", 60)  # ten rows a block
    rows, query = np.where(X > 0, X, 0.0), np.where(QUERY > 0, QUERY, 0.0)
    detector = OPNPOutlierDetector(RidgeClassifier(solver="lsqr", tol=1e-12), w_min=0.2, random_state=0)
    scores = clone(detector).fit(rows, Y).score_samples(query)
    for form in (sparse.csr_array, sparse.csc_matrix, sparse.coo_array):
        fitted = clone(detector).fit(form(rows), Y)
        np.testing.assert_allclose(fitted.score_samples(form(query)), scores, rtol=1e-6)
    svc = LinearSVC(random_state=0).fit(rows, Y)
    dense = OPNPOutlierDetector(FrozenEstimator(svc), w_min=0.2, random_state=0).fit(rows).score_samples(query)
    svc.sparsify()
    thin = OPNPOutlierDetector(FrozenEstimator(svc), w_min=0.2, random_state=0).fit(rows).score_samples(query)
    np.testing.assert_allclose(thin, dense, rtol=1e-12)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (RandomForestClassifier(n_estimators=2), "got RandomForestClassifier, which has no `coef_`"),
        (make_pipeline(StandardScaler(), SVC()), "got SVC, which has no `coef_`"),
        (LinearRegression(), "got LinearRegression, which has no `classes_`"),
        (SVC(kernel="linear"), "SVC with 6 rows for 4 classes, such as one for each pair"),
        (SVC(kernel="linear"), "SVC with 3 rows for 3 classes"),
    ],
)
def test_what_is_no_linear_classifier_is_refused(estimator: object, message: str) -> None:
    is_known = (3 if "for 3" in message else 4) > Y
    with pytest.raises(OptionError, match=message):
        OPNPOutlierDetector(estimator, w_min=0.1).fit(X[is_known], Y[is_known])


def test_two_classes_of_an_svc_are_no_pairs_of_three() -> None:
    two = OPNPOutlierDetector(SVC(kernel="linear"), w_min=0.0, ood_score="max_logit", random_state=0).fit(*TWO)
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


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (None, EmptyDataError, "requires y to be passed, but the target y is None"),
        (np.ones(400), EmptyDataError, "at least two classes, got 1 class"),
        (X[:, 0], ValueError, "Unknown label type"),
        (Y[:-1], ValueError, "inconsistent numbers of samples"),
    ],
)
def test_labels_are_checked(labels: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OPNPOutlierDetector(w_min=0.0).fit(X, labels)


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
