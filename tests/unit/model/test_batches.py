"""Batches as loaders yield them: inputs, labels, one input or several."""

from collections import UserDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from opnp.errors import InputTypeError
from opnp.model import as_batch, axes_of, inputs_of, labels_of
from tests.unit.model.tiny_models import batch

INPUTS, LABELS = batch(), torch.arange(8) % 3


class Pair(NamedTuple):
    inputs: Tensor
    labels: Tensor


@pytest.mark.parametrize(
    "loaded",
    [
        INPUTS,
        (INPUTS, LABELS),
        (INPUTS,),
        [INPUTS],
        [INPUTS, LABELS],
        (INPUTS, LABELS, ["a.png"]),
        (INPUTS, None),
        Pair(INPUTS, LABELS),
    ],
)
def test_inputs_of_tensors(loaded: object) -> None:
    assert inputs_of(loaded) is INPUTS


@pytest.mark.parametrize("kind", [dict, UserDict])
@pytest.mark.parametrize("label", ["label", "labels"])
def test_inputs_of_mappings_have_no_labels(kind: Any, label: str) -> None:
    loaded = kind({"pixel_values": INPUTS, label: LABELS, "scale": 2.0})
    for form in (loaded, (loaded, LABELS), [loaded]):
        found = inputs_of(form)
        assert isinstance(found, dict)
        assert sorted(found) == ["pixel_values", "scale"]
        assert found["pixel_values"] is INPUTS
    assert sorted(loaded) == sorted(["pixel_values", label, "scale"])


@pytest.mark.parametrize(
    ("loaded", "kind"),
    [("images", "str"), (3, "int"), (None, "NoneType"), (np.ones(3), "ndarray"), ({1, 2}, "set"), ((), "empty tuple")],
)
def test_inputs_of_anything_else_is_an_error(loaded: object, kind: str) -> None:
    with pytest.raises(InputTypeError, match=f"A batch must be a tensor.*got .*{kind}"):
        inputs_of(loaded)


def test_a_list_of_inputs_that_were_not_stacked_is_an_error() -> None:
    images = [torch.rand(3, 8, 8) for _ in range(4)]
    with pytest.raises(InputTypeError, match=r"a list of 4 tensors of shape \(3, 8, 8\): .*torch\.stack"):
        inputs_of(images)
    # Views of a batch, soft labels and further columns are not that.
    assert inputs_of([images[0], images[1]]) is images[0]
    assert inputs_of((images[0], torch.rand(3, 5), torch.rand(3))) is images[0]
    assert inputs_of((images[0], torch.zeros(3, 8, 8, dtype=torch.int64), images[1])) is images[0]


@pytest.mark.parametrize("loaded", [([INPUTS], LABELS), [["a.png", "b.png"]], (("a.png",), LABELS)])
def test_a_list_within_a_batch_is_not_called_empty(loaded: object) -> None:
    with pytest.raises(InputTypeError, match="A batch must be a tensor") as caught:
        inputs_of(loaded)
    assert "empty" not in str(caught.value)


@pytest.mark.parametrize(
    ("loaded", "has_labels"),
    [
        ((INPUTS, LABELS), True),
        ([INPUTS, LABELS.short()], True),
        ({"x": INPUTS, "labels": LABELS}, True),
        ({"x": INPUTS, "label": LABELS}, True),
        (UserDict(x=INPUTS, labels=LABELS), True),
        (INPUTS, False),
        ((INPUTS,), False),
        ({"x": INPUTS}, False),
        ((INPUTS, LABELS.float()), False),
        ((INPUTS, torch.eye(8).long()), False),
        ((INPUTS, ["cat"] * 8), False),
    ],
)
def test_labels_of(loaded: object, has_labels: bool) -> None:
    found = labels_of(loaded)
    assert (found is not None) is has_labels
    if found is not None:
        assert found.tolist() == LABELS.tolist()


def test_one_input_gets_a_batch_axis() -> None:
    axes = axes_of(torch.ones(5, 3, 8, 8))
    one, is_single = as_batch(torch.ones(3, 8, 8), axes)
    assert isinstance(one, Tensor)
    assert (one.shape, is_single) == ((1, 3, 8, 8), True)
    several = torch.ones(2, 3, 8, 8)
    assert as_batch(several, axes) == (several, False)
    assert as_batch(several, None) == (several, False)
    odd = torch.ones(8, 8)
    assert as_batch(odd, axes) == (odd, False)


def test_one_mapping_gets_a_batch_axis() -> None:
    loaded: dict[str, object] = {"ids": torch.ones(4, 7).long(), "mask": torch.ones(4, 7), "scale": 2.0}
    axes = axes_of(loaded)
    assert axes == {"ids": 2, "mask": 2}
    one, is_single = as_batch({"ids": torch.ones(7), "mask": torch.ones(7), "scale": 2.0}, axes)
    assert is_single
    assert isinstance(one, dict)
    assert (one["ids"].shape, one["mask"].shape, one["scale"]) == ((1, 7), (1, 7), 2.0)
    assert as_batch(loaded, axes) == (loaded, False)
    half = {"ids": torch.ones(7), "mask": torch.ones(1, 7)}
    assert as_batch(half, axes) == (half, False)
    assert as_batch(loaded, None) == (loaded, False)
    assert as_batch({"scale": 2.0}, axes) == ({"scale": 2.0}, False)
