"""Labels in every form that names classes, what names none, and what answers say against labels."""

import warnings
from collections.abc import Callable
from math import comb
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from opnp.core.labels import AnswerSum, class_indices, label_name
from opnp.errors import InputTypeError, OpnpError, OptionError, ShapeError

CLASSES = 12
FORMS: dict[str, Callable[[Tensor], Any]] = {
    "int64": lambda labels: labels,
    "uint8": lambda labels: labels.to(torch.uint8),
    "list": lambda labels: labels.tolist(),
    "tuple of floats": lambda labels: tuple(labels.double().tolist()),
    "list of tensors": list,
    "NumPy int32": lambda labels: labels.numpy().astype(np.int32),
    "NumPy uint64": lambda labels: labels.numpy().astype(np.uint64),
    "list of NumPy integers": lambda labels: list(labels.numpy()),
    "NumPy float": lambda labels: labels.numpy().astype(np.float32),
    "(n, 1)": lambda labels: labels[:, None],
    "(n, 1) of NumPy": lambda labels: labels.numpy()[:, None],
    "half": lambda labels: labels.half(),
    "one-hot": lambda labels: torch.nn.functional.one_hot(labels, CLASSES),
    "one-hot of floats": lambda labels: torch.nn.functional.one_hot(labels, CLASSES).float(),
    "one-hot of bools": lambda labels: torch.nn.functional.one_hot(labels, CLASSES).bool(),
    "one-hot lists": lambda labels: torch.nn.functional.one_hot(labels, CLASSES).tolist(),
}


@pytest.mark.parametrize("classes", [None, CLASSES])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@given(labels=st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=30))
def test_usual_forms_are_read_as_integers_are(
    form: Callable[[Tensor], Any], classes: int | None, labels: list[int]
) -> None:
    found = class_indices(form(torch.tensor(labels)), classes=classes)
    assert found.dtype == torch.int64
    assert found.tolist() == labels


def test_no_label_stands_for_itself_and_no_samples_for_none() -> None:
    assert class_indices([-1, 0, -1.0], classes=2).tolist() == [-1, 0, -1]
    assert class_indices(torch.empty(0), classes=2).tolist() == []
    assert class_indices([-7, 99]).tolist() == [-7, 99]


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.rand(4, CLASSES).softmax(1), InputTypeError, "soft, a probability for each class"),
        (torch.randn(4, CLASSES), InputTypeError, r"float32 of shape \(4, 12\)"),
        (torch.ones(4, CLASSES), InputTypeError, "multi-hot: rows name several classes or none"),
        (torch.zeros(4, CLASSES).bool(), InputTypeError, "multi-hot"),
        (["cat", "dog"], InputTypeError, "names such as 'cat'"),
        (np.array(["cat", "dog"], dtype=object), InputTypeError, "got ndarray of other things"),
        ([[0, 1], [0]], InputTypeError, "got list of other things"),
        ([0.5, 1.0], InputTypeError, "got 0.5: targets of a regression"),
        (torch.tensor([[0.25], [3.0]]), InputTypeError, "got 0.25"),
        ([1.0, float("nan")], InputTypeError, "got nan"),
        (torch.ones(3, dtype=torch.bool), InputTypeError, r"got torch\.bool"),
        (torch.ones(3, dtype=torch.complex64), InputTypeError, "complex64"),
        ("cat", InputTypeError, "got str"),
        (3, InputTypeError, "got int"),
        (torch.zeros(4, 8, 8, dtype=torch.int64), ShapeError, r"shape \(n,\), got \(4, 8, 8\)"),
        (torch.eye(5), ShapeError, "a column for each of 12 classes, got 5"),
        ([0, 12], OptionError, "must lie in 0 to 11 for 12 classes, got 0 to 12"),
        ([0, -2], OptionError, "got -2 to 0"),
    ],
)
def test_what_names_no_class_is_refused(labels: Any, error: type[OpnpError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        class_indices(labels, classes=CLASSES)
    assert str(caught.value).count(". ") < 3


def test_labels_go_by_one_name() -> None:
    assert label_name(["x", "label"], where="The batch") == "label"
    assert label_name({"labels": 1}, where="The batch") == "labels"
    assert label_name([3, "target"], where="The batch") is None
    with pytest.raises(OptionError, match="The batch holds both `labels` and `label`: leave one of them out"):
        label_name(["label", "labels"], where="The batch")


# ------------------------------------------------------------------------------------------------- answers and labels
def answers(right: int, wrong: int, *, classes: int = 10, sure: float = 1e-3, shift: int = 1) -> AnswerSum:
    """Return the sum over samples of which some are answered by their label, the others by another class."""
    labels = torch.arange(right + wrong) % classes
    predicted = torch.where(torch.arange(right + wrong) < right, labels, (labels + shift) % classes)
    return AnswerSum.zeros(classes).add_(sure * torch.nn.functional.one_hot(predicted, classes).float(), labels)


@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 4)), max_size=40), st.integers(0, 40))
def test_sums_of_parts_are_that_of_the_whole(pairs: list[tuple[int, int]], cut: int) -> None:
    labels, predicted = (torch.tensor([pair[place] for pair in pairs], dtype=torch.int64) for place in (0, 1))
    logits = 3 * torch.nn.functional.one_hot(predicted, 5).double()
    whole = AnswerSum.zeros(5).add_(logits, labels)
    parts = [AnswerSum.zeros(5).add_(logits[part], labels[part]) for part in (slice(cut), slice(cut, None))]
    total = parts[0] + parts[1]
    known = [(label, answer) for label, answer in pairs if label >= 0]
    assert total.count == whole.count == len(known)
    assert total.accuracy == (sum(one == other for one, other in known) / len(known) if known else None)
    assert torch.equal(total.confusion, whole.confusion)
    assert int(whole.confusion.sum()) == len(known)
    again = AnswerSum.from_tensors(whole.to_tensors())
    assert torch.equal(again.confidence, whole.confidence)
    sure = float(logits.softmax(1).amax(1)[labels >= 0].sum())
    assert float(whole.confidence) == pytest.approx(sure, rel=1e-6)
    with pytest.raises(TypeError):
        _ = whole + 1


@given(count=st.integers(1, 60), classes=st.integers(2, 12), share=st.floats(0, 1))
def test_the_test_against_chance_is_the_binomial_one(count: int, classes: int, share: float) -> None:
    right = round(share * count)

    def tail(least: int) -> float:
        return sum(
            comb(count, hits) * (1 / classes) ** hits * (1 - 1 / classes) ** (count - hits)
            for hits in range(least, count + 1)
        )

    found = answers(right, count - right, classes=classes).contradiction(classes=classes)
    is_told = tail(right) > 1e-3 >= tail(round((1 + 1 / classes) / 2 * count))
    assert (found is not None) == is_told
    assert found is None or f"answers {right} of {count} " in found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (answers(0, 500), "which is not above chance for 10 classes. Likely causes"),
        (answers(0, 500, sure=9.0), "chance for 10 classes; with the classes in another order it would be 500"),
        (answers(150, 350, sure=9.0), "is 100% sure on average; with the classes in another order it would be 350"),
        (answers(350, 150, sure=9.0), None),
        (answers(300, 200, sure=9.0), None),  # too sure, and no other order of the classes explains it
        (answers(150, 350), None),
        (answers(0, 5), None),
        (AnswerSum.zeros(10), None),
        (answers(0, 3000, classes=3000, sure=9.0), "not above chance for 3000 classes. Likely"),
    ],
)
def test_labels_that_answers_contradict_are_told(given: AnswerSum, message: str | None) -> None:
    found = given.contradiction(classes=max(10, 3000 if not given.confusion.numel() else 10), what="labelled samples")
    assert found is None if message is None else message in str(found)
    assert found is None or found.count(". ") < 3


def test_large_sums_are_judged_at_once() -> None:
    few = AnswerSum(torch.tensor([10**9, 10**8 + 5000]), torch.tensor([1e8]), torch.empty(0, 0))
    many = AnswerSum(torch.tensor([10**9, 10**8 + 50000]), torch.tensor([1e8]), torch.empty(0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert few.contradiction(classes=10) is not None
        assert many.contradiction(classes=10) is None
