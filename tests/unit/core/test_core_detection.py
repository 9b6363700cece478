"""All figures at once: the same as one by one, with ties, infinities and sets of one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opnp.core import aupr, auroc, detection_metrics, fpr_at_tpr
from opnp.errors import EmptyDataError, NonFiniteError, ShapeError

SCORES = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.floats(allow_nan=False, width=32)), min_size=1, max_size=40
)


@given(SCORES, st.lists(SCORES, min_size=1, max_size=3))
def test_each_figure_is_that_of_its_own_function(inside: list[float], sets: list[list[float]]) -> None:
    id_scores, ood_sets = torch.tensor(inside), [torch.tensor(scores) for scores in sets]
    found = detection_metrics(id_scores, ood_sets)
    assert len(found) == len(ood_sets)
    for figures, ood in zip(found, ood_sets, strict=True):
        assert figures.auroc == auroc(id_scores, ood)
        assert figures.fpr95 == fpr_at_tpr(id_scores, ood)
        assert figures.fpr95_ood_positive == fpr_at_tpr(id_scores, ood, positive="ood")
        assert figures.aupr_id_positive == pytest.approx(aupr(id_scores, ood), abs=1e-12)
        assert figures.aupr_ood_positive == pytest.approx(aupr(id_scores, ood, positive="ood"), abs=1e-12)


def test_what_cannot_be_ranked_is_refused() -> None:
    scores = torch.tensor([1.0, 2.0])
    with pytest.raises(NonFiniteError, match="`ood_scores` holds 1 NaN"):
        detection_metrics(scores, [torch.tensor([torch.nan])])
    with pytest.raises(EmptyDataError, match="`id_scores` is empty"):
        detection_metrics(scores[:0], [scores])
    with pytest.raises(ShapeError, match=r"`ood_scores` must have shape \(batch,\)"):
        detection_metrics(scores, [scores[None]])


def test_95_percent_of_the_positive_class_are_kept() -> None:
    """Of a hundred samples the 95th decides, from below for ID and from above for OOD."""
    hundred = torch.arange(100.0)
    for score, fpr in ((93.5, 1.0), (94.5, 0.0)):
        [figures] = detection_metrics(hundred, [torch.full((3,), score)])
        assert figures.fpr95 == fpr
    for score, fpr in ((4.5, 0.0), (5.5, 1.0)):
        [figures] = detection_metrics(torch.full((3,), score), [hundred])
        assert figures.fpr95_ood_positive == fpr
