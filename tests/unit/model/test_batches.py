"""Batches as loaders yield them: inputs, labels, one input or several."""

from collections import UserDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opnp.errors import InputTypeError
from opnp.model import as_batch, axes_of, inputs_of, labels_of, logits_of, run_model
from tests.unit.model.tiny_models import Named, WithLogits, batch, mlp, read

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


@pytest.mark.parametrize("output", [INPUTS, WithLogits(INPUTS), {"logits": INPUTS}, UserDict(logits=INPUTS)])
def test_logits_of(output: object) -> None:
    assert logits_of(output) is INPUTS


@pytest.mark.parametrize("output", [(INPUTS, INPUTS), None, {"loss": INPUTS}, WithLogits(None)])  # type: ignore[arg-type]  # what a model may give
def test_logits_of_other_outputs(output: object) -> None:
    assert logits_of(output) is None


def test_a_mapping_is_passed_by_keyword() -> None:
    model = Named()
    twice = run_model(model, {"pixel_values": INPUTS, "scale": 2.0}, device=None)
    assert isinstance(twice, Tensor)
    assert torch.equal(twice, read(model.inner, 2 * INPUTS)[1])


def test_one_keyword_that_forward_lacks_is_passed_by_position() -> None:
    model = mlp()
    outputs = run_model(model, {"pixel_values": INPUTS}, device=torch.device("cpu"))
    assert isinstance(outputs, Tensor)
    assert torch.equal(outputs, read(model, INPUTS)[1])


def test_one_keyword_goes_to_a_forward_that_takes_any() -> None:
    class Any(nn.Module):
        def forward(self, **inputs: Tensor) -> Tensor:
            return inputs["anything"] + 1

    outputs = run_model(Any(), {"anything": INPUTS}, device=None)
    assert isinstance(outputs, Tensor)
    assert torch.equal(outputs, INPUTS + 1)


def test_uint8_images_to_a_float_model_name_both_dtypes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2, 2))
    images = torch.zeros(1, 3, 3, 3, dtype=torch.uint8)
    with pytest.raises(InputTypeError, match=r"torch\.float32.*torch\.uint8.*images\.float\(\) / 255") as caught:
        run_model(model, images, device=None)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(InputTypeError, match=r"torch\.float32.*torch\.uint8"):
        run_model(model, {"pixel_values": images}, device=None)


def test_a_models_own_runtime_error_is_passed_on() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        run_model(mlp(), torch.ones(2, 99), device=None)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("expected 7 tokens")])
def test_a_text_models_own_runtime_error_is_passed_on(error: RuntimeError) -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.EmbeddingBag(10, 4)

        def forward(self, ids: Tensor) -> Tensor:
            self.embedding(ids)
            raise error

    with pytest.raises(type(error)) as caught:
        run_model(Text(), torch.zeros(2, 5, dtype=torch.int64), device=None)
    assert caught.value is error
