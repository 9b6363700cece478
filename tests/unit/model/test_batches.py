"""One reading of batches: every item reaches the model or is its labels, everywhere alike, or the batch is refused."""

import warnings
from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios
from opnp.errors import InputTypeError, LabelWarning, OpnpError, OptionError, ShapeError
from opnp.model import BatchReader, head_stream, sensitivity
from opnp.model.batches import axes_of
from tests.unit.model.tiny_models import CLASSES, INPUTS, Named, batch, mlp

GIVEN, LABELS = batch(), torch.arange(8) % CLASSES
NAMES = [f"{row}.png" for row in range(8)]
WORDS, LENGTH = 40, 24


class Pair(NamedTuple):
    inputs: Tensor
    labels: Tensor


# ----------------------------------------------------------------------------------- models that take more than inputs
class Recurrent(nn.Module):
    """Sums the first steps of padded sequences; lengths are needed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, padded: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(padded.shape[1])[None, :, None] < lengths[:, None, None]
        outputs: Tensor = self.inner((padded * steps).sum(1))
        return outputs


class MaybeLengths(Recurrent):
    """The same; without lengths all steps count."""

    def forward(self, padded: Tensor, lengths: Tensor | None = None, return_feature: bool = False) -> Any:  # the test
        full = torch.full((len(padded),), padded.shape[1])
        logits = super().forward(padded, full if lengths is None else lengths)
        return (logits, padded) if return_feature else logits


class Switches(nn.Module):
    """Takes nothing but inputs, and has switches that a tensor would turn on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor, targets: Tensor | None = None, return_feature: bool = False) -> Tensor:  # the test
        assert targets is None
        assert return_feature is False
        outputs: Tensor = self.inner(x)
        return outputs


class Words(nn.Module):
    """The mean over words that a mask leaves, with types added: the arguments of BERT, in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.types, self.inner = nn.Embedding(WORDS, INPUTS), nn.Embedding(2, INPUTS), mlp()
        generator = torch.Generator().manual_seed(1)
        for layer in (self.words, self.types):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,  # as BERT has it
    ) -> dict[str, Tensor]:
        assert labels is None
        assert output_attentions is None
        assert input_ids is not None
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        embedded = (self.words(input_ids) + self.types(types)) * mask[..., None]
        return {"logits": self.inner(embedded.sum(1) / mask.sum(1)[:, None])}


def lengths_of(rows: int) -> Tensor:
    return torch.randint(3, LENGTH, (rows,), generator=torch.Generator().manual_seed(rows))


def texts(rows: int = 80) -> tuple[Tensor, Tensor, Tensor]:
    """Return token indices, their mask and their types."""
    place = torch.arange(LENGTH)
    mask = (place < lengths_of(rows)[:, None]).long()
    ids = torch.randint(1, WORDS, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    return ids, mask, ((place > 1) * mask).long()


# ------------------------------------------------------------------------------------------------- the table of forms
@pytest.mark.parametrize(
    ("loaded", "has_labels"),
    [
        (GIVEN, False),
        ((GIVEN,), False),
        ([GIVEN], False),
        ((GIVEN, None), False),
        ((GIVEN, LABELS), True),
        ([GIVEN, LABELS.short()], True),
        (Pair(GIVEN, LABELS), True),
        ((GIVEN, LABELS.tolist()), True),
        ((GIVEN, LABELS.numpy()), True),
        ((GIVEN, LABELS[:, None]), True),
        ((GIVEN, LABELS.float()), True),
        ((GIVEN, torch.nn.functional.one_hot(LABELS, CLASSES)), True),
        ((GIVEN, LABELS, NAMES), True),
        ((GIVEN, LABELS, NAMES, list(range(8)), np.arange(8)), True),
        ((GIVEN, NAMES, LABELS), True),
        ((GIVEN, None, NAMES), False),
    ],
)
def test_a_tensor_and_its_labels(loaded: object, has_labels: bool) -> None:
    for model in (mlp(), Switches(), Named()):
        found = BatchReader.of(model, classes=CLASSES).read(loaded)
        assert found.inputs is GIVEN
        assert (found.labels is not None) is has_labels
        assert found.labels is None or found.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("kind", [dict, UserDict])
@pytest.mark.parametrize("label", ["label", "labels"])
def test_a_mapping_goes_by_its_names_without_labels(kind: Any, label: str) -> None:
    loaded = kind({"pixel_values": GIVEN, label: LABELS.tolist(), "scale": 2.0})
    for form in (loaded, (loaded, LABELS), [loaded], (loaded, None, NAMES)):
        found = BatchReader.of(Named(), classes=CLASSES).read(form)
        assert isinstance(found.inputs, dict)
        assert found.inputs == {"pixel_values": GIVEN, "scale": 2.0}
        assert found.labels is not None
        assert found.labels.tolist() == LABELS.tolist()
    assert sorted(loaded) == sorted(["pixel_values", label, "scale"])


@pytest.mark.parametrize(
    ("loaded", "error", "message"),
    [
        ("images", InputTypeError, r"A batch must be a tensor.*got str\."),
        (3, InputTypeError, r"got int\."),
        (None, InputTypeError, r"got NoneType\."),
        (np.array(["a.png"]), InputTypeError, "An array must hold numbers that torch has a dtype for, got <U5"),
        ([GIVEN.numpy()] * 4, InputTypeError, r"a list of 4 that look like several inputs, .*torch\.stack"),
        ((GIVEN.numpy(), LABELS, np.ones((8, 2))), InputTypeError, r"item 2 \(float64 of shape \(8, 2\)\)"),
        ((), InputTypeError, r"got an empty tuple\."),
        ((["a.png"], 0), InputTypeError, r"got list\."),
        ([(GIVEN, LABELS), (GIVEN, LABELS)], InputTypeError, r"got tuple\."),
        ([GIVEN] * 4, InputTypeError, r"a list of 4 that look like several inputs, .*\(8, 6\).*torch\.stack"),
        ((GIVEN, GIVEN), InputTypeError, "a tuple of 2 that look like several"),
        ([GIVEN, [GIVEN, LABELS]], InputTypeError, "look like several inputs: item 1, a list of numbers or tensors"),
        ((GIVEN, LABELS, np.ones((8, 2))), InputTypeError, "item 2, a ndarray"),
        ((GIVEN, LABELS, {"mask": LABELS}), InputTypeError, "item 2, a dict"),
        ((GIVEN, LABELS, torch.arange(8)), InputTypeError, r"item 1 \(int64.*item 2 .*its forward takes \(input"),
        ((GIVEN, LABELS, torch.rand(8, 2)), InputTypeError, r"item 2 \(float32 of shape \(8, 2\)\).*as a mapping"),
        ((GIVEN, torch.rand(8, CLASSES).softmax(1)), InputTypeError, "soft, a probability for each class"),
        ((GIVEN, (torch.rand(8, CLASSES) > -1).float()), InputTypeError, "multi-hot"),
        ((GIVEN, torch.rand(8)), InputTypeError, "targets of a regression"),
        ((GIVEN, NAMES), InputTypeError, r"got names such as '0\.png'.*behind the labels, `\(inputs, labels, names\)`"),
        ((GIVEN, LABELS + 1), OptionError, "must lie in 0 to 2 for 3 classes, got 1 to 3"),
        ((GIVEN, LABELS[:, None].expand(8, 2)), InputTypeError, "multi-hot|int64 of shape"),
        ({"x": GIVEN, "label": LABELS, "labels": LABELS}, OptionError, "both `labels` and `label`"),
        ({"x": GIVEN, "labels": torch.rand(8, CLASSES)}, InputTypeError, "float32 of shape"),
        (({"x": GIVEN, "labels": LABELS}, LABELS.flip(0)), InputTypeError, "both in its mapping and beside it"),
        (({"x": GIVEN}, LABELS, torch.rand(8, 2)), InputTypeError, "would not reach the model"),
    ],
)
def test_what_has_no_reading_is_refused_by_fit_and_score_alike(
    loaded: object, error: type[OpnpError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        OPNP().fit(mlp(), [loaded])
    assert str(caught.value).count(". ") < 3
    if error is not OptionError or isinstance(loaded, Mapping):  # what is scored may be of other classes
        with pytest.raises(error, match=message):
            OPNP(ratios=Ratios()).fit(mlp(), [GIVEN]).score(loaded)


def test_an_array_is_the_tensor_of_its_memory() -> None:
    array = GIVEN.numpy()
    options: dict[str, Any] = {"ratios": Ratios(w_min=0.3)}
    by_tensor = OPNP(**options).fit(mlp(), [(GIVEN, LABELS)] * 3, validation=[GIVEN] * 3)
    loader = [(array, LABELS.numpy().astype(np.uint16), np.array(NAMES)), (array[:0], LABELS.numpy()[:0])]
    by_array = OPNP(**options).fit(mlp(), loader[:1] * 3 + loader[1:], validation=[array] * 3)
    assert by_array.id_accuracy == by_tensor.id_accuracy
    assert torch.equal(by_array.calibration_scores, by_tensor.calibration_scores)
    expected = by_tensor.score(GIVEN)
    for given in (array, [array], iter([array]), (array, LABELS), {"input": array}, {"input": array, "labels": LABELS}):
        assert torch.equal(by_array.score(given), expected)
    torch.testing.assert_close(by_array.score((array[3], np.int64(1))), expected[3])
    assert BatchReader.of(mlp()).read(array).inputs.data_ptr() == GIVEN.data_ptr()  # type: ignore[union-attr]  # a tensor
    with pytest.raises(InputTypeError, match=r"got ndarray\. For a single batch pass a list of one"):
        OPNP().fit(mlp(), array)


# ------------------------------------------------------------------------------------------------ more than one input
IDS, MASK, TYPES = texts()
TEXT_LABELS = torch.arange(len(IDS)) % CLASSES
PADDED = torch.randn(80, LENGTH, INPUTS, generator=torch.Generator().manual_seed(3))
LENGTHS = lengths_of(80)


@pytest.mark.parametrize(
    ("model", "loaded", "named"),
    [
        (Words(), (IDS, MASK), {"input_ids": IDS, "attention_mask": MASK}),
        (Words(), (IDS, MASK, TEXT_LABELS), {"input_ids": IDS, "attention_mask": MASK}),
        (Words(), (IDS, MASK.bool(), TEXT_LABELS), {"input_ids": IDS, "attention_mask": MASK.bool()}),
        (Words(), (IDS, MASK.float(), None, TEXT_LABELS), {"input_ids": IDS, "attention_mask": MASK.float()}),
        (Words(), (IDS, TEXT_LABELS, MASK), {"input_ids": IDS, "attention_mask": MASK}),
        (
            Words(),
            (IDS, MASK, TYPES, TEXT_LABELS, NAMES),
            {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": TYPES},
        ),
        (Words(), (IDS, TYPES, MASK), {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": TYPES}),
        (Words(), (IDS, 0 * TYPES, MASK), {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": 0 * TYPES}),
        (Recurrent(), (PADDED, LENGTHS), {"padded": PADDED, "lengths": LENGTHS}),
        (Recurrent(), (PADDED, LENGTHS, TEXT_LABELS), {"padded": PADDED, "lengths": LENGTHS}),
        (Recurrent(), (PADDED, TEXT_LABELS, LENGTHS), {"padded": PADDED, "lengths": LENGTHS}),
        (Recurrent(), (PADDED, LENGTHS.clamp(max=1)), {"padded": PADDED, "lengths": LENGTHS.clamp(max=1)}),
        (MaybeLengths(), (PADDED, LENGTHS, TEXT_LABELS), {"padded": PADDED, "lengths": LENGTHS}),
        (MaybeLengths(), (PADDED, LENGTHS), {"padded": PADDED, "lengths": LENGTHS}),
        (MaybeLengths(), (PADDED, TEXT_LABELS), PADDED),
    ],
)
def test_further_tensors_reach_the_model_by_name_everywhere(model: nn.Module, loaded: Any, named: Any) -> None:
    """The detector, its calibration, scores and sensitivities are those of the mapping, and of both in pieces."""
    options: dict[str, Any] = {"ratios": Ratios(w_min=0.3)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", LabelWarning)
        by_name = OPNP(**options).fit(model, [named], validation=[named])
        by_place = OPNP(**options).fit(model, [loaded], validation=[loaded])
    assert torch.equal(by_place.sensitivity.weight, by_name.sensitivity.weight)
    assert torch.equal(by_place.calibration_scores, by_name.calibration_scores)
    for detector in (by_place, by_name):
        assert torch.equal(detector.score(loaded), by_name.score(named))
    layers = [sensitivity(model, [each], layers=["inner.0"])["inner.0"].weight for each in (loaded, named)]
    assert torch.equal(*layers)
    is_labelled = any(each is TEXT_LABELS for each in loaded)
    with head_stream(model, [loaded]) as stream:
        ((_, _, labels),) = stream.batches
    assert (labels is not None) is is_labelled
    arrays = tuple(each.numpy() if isinstance(each, Tensor) else each for each in loaded)
    assert torch.equal(by_place.score(arrays), by_name.score(named))
    one = tuple(each if each is None else each[3] for each in loaded)
    expected = by_name.score(named)[3]
    torch.testing.assert_close(by_place.score(one), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "loaded", "message"),
    [
        (
            Recurrent(),
            (PADDED, LENGTHS.clamp(max=2), TEXT_LABELS.clamp(min=1)),
            "`labels`, item 2 as `lengths`; or item 1 as `lengths`, item 2",
        ),
        (MaybeLengths(), (PADDED, LENGTHS.clamp(max=2)), "several ways: item 1 as `labels`; or item 1 as `lengths`"),
        (MaybeLengths(), (PADDED, LENGTHS, TEXT_LABELS, TEXT_LABELS), "item 3.*which would not reach the model"),
        (Words(), (IDS, torch.rand(IDS.shape)), "would not reach the model"),
        (Words(), (IDS, MASK, MASK), "would not reach the model"),
        (Words(), (IDS, MASK.tolist(), TEXT_LABELS), "would not reach the model"),
        (Words(), (IDS, TEXT_LABELS, {"attention_mask": MASK.tolist()}), "would not reach the model"),
        (MaybeLengths(), (PADDED, TEXT_LABELS, LENGTHS.tolist()), "would not reach the model"),
        (Recurrent(), (PADDED, TEXT_LABELS, LENGTHS.numpy()), "would not reach the model"),
        (Words(), (IDS, MASK, TEXT_LABELS, LENGTHS), "would not reach the model"),
        (Switches(), (GIVEN, LABELS, torch.ones(8, dtype=torch.bool)), r"item 2 \(bool.*\(x: .*targets"),
        (Switches(), (GIVEN, torch.rand(8, 4)), "float32 of shape"),
    ],
)
def test_two_readings_and_none_are_refused_with_the_mapping_as_the_way_out(
    model: nn.Module, loaded: Any, message: str
) -> None:
    known = {"padded": PADDED, "lengths": LENGTHS} if isinstance(model, Recurrent) else loaded[:1]
    detector = OPNP(ratios=Ratios()).fit(model, [known])
    actions: list[Callable[[], object]] = [
        lambda: OPNP(ratios=Ratios()).fit(model, [loaded]),
        lambda: detector.calibrate([loaded]),
        lambda: detector.score(loaded),
        lambda: sensitivity(model, [loaded], layers=["inner.0"]),
    ]
    for action in actions:
        with pytest.raises(InputTypeError, match=message) as caught:
            action()
        assert str(caught.value).count(". ") < 3


def test_the_number_of_classes_decides_once_it_is_known() -> None:
    """The last layer that is registered is none of the head's size, so that lengths of 4 are no labels only then."""
    model = Recurrent()
    model.auxiliary = nn.Linear(2, 50)
    lengths, labels = torch.full((80,), 4), TEXT_LABELS.clamp(min=1)
    with pytest.raises(InputTypeError, match="several ways"):
        OPNP(ratios=Ratios()).fit(model, [(PADDED, lengths, labels)])
    found = OPNP(ratios=Ratios(w_min=0.3)).fit(model, [(PADDED, 20 + lengths * 8, labels)], head="inner.2")
    named = [{"padded": PADDED, "lengths": 20 + lengths * 8}]
    expected = OPNP(ratios=Ratios(w_min=0.3)).fit(model, named, head="inner.2")
    assert torch.equal(found.sensitivity.weight, expected.sensitivity.weight)


def test_one_input_is_told_by_its_axes_with_its_label_too() -> None:
    detector = OPNP(ratios=Ratios(w_min=0.3)).fit(mlp(), [(GIVEN, LABELS)])
    expected = detector.score(GIVEN)[2]
    one = GIVEN[2]
    for given in (one, (one, 2), (one, LABELS[2]), (one, np.int64(2)), (one, torch.eye(CLASSES)[2]), (one, 2, "a.png")):
        found = detector.score(given)
        assert found.shape == ()
        torch.testing.assert_close(found, expected)
    reader = BatchReader.of(Words())
    for axes, is_single in ((axes_of({"input_ids": IDS, "attention_mask": MASK}), True), (None, False)):
        read = reader.read({"input_ids": IDS[0], "attention_mask": MASK[0]}, axes=axes)
        assert read.is_single is is_single
    mixed = reader.read({"input_ids": IDS[0], "attention_mask": MASK}, axes={"input_ids": 2, "attention_mask": 2})
    assert not mixed.is_single


def test_labels_of_what_is_scored_may_be_of_other_classes() -> None:
    detector = OPNP(ratios=Ratios(w_min=0.3)).fit(mlp(), [GIVEN], validation=[GIVEN] * 3)
    assert torch.equal(detector.score((GIVEN, LABELS + 90)), detector.score(GIVEN))
    with pytest.raises(OptionError, match="must lie in 0 to 2"):
        detector.calibrate([(GIVEN, LABELS + 90)] * 3)
    with pytest.raises(ShapeError, match="Batch 0 holds 3 labels for 8 inputs"):
        detector.calibrate([(GIVEN, LABELS[:3])] * 3)


# ------------------------------------------------------------------------------------------ accuracy where it is known
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model, inputs and the labels that it nearly always gives."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = nn.Sequential(nn.Linear(INPUTS, 32), nn.ReLU(), nn.Linear(32, CLASSES)), batch(600)
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    labels[::20] = (labels[::20] + 1) % CLASSES
    return model, inputs, labels


ORDINARY: dict[str, Callable[[Tensor, Tensor], object]] = {
    "inputs": lambda inputs, _: inputs,
    "labels": lambda inputs, labels: (inputs, labels),
    "list": lambda inputs, labels: [inputs, labels.tolist()],
    "NumPy": lambda inputs, labels: (inputs, labels.numpy()),
    "column": lambda inputs, labels: (inputs, labels[:, None]),
    "floats": lambda inputs, labels: (inputs, labels.float()),
    "one-hot": lambda inputs, labels: (inputs, torch.nn.functional.one_hot(labels, CLASSES)),
    "names": lambda inputs, labels: (inputs, labels, [str(row) for row in range(len(inputs))]),
    "mapping": lambda inputs, labels: {"input": inputs, "labels": labels},
    "some without": lambda inputs, labels: (inputs, torch.where(torch.arange(len(labels)) % 3 == 0, -1, labels)),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_fits_warn_of_nothing_and_tell_the_accuracy(kind: str) -> None:
    model, inputs, labels = trained()
    loader = [ORDINARY[kind](*parts) for parts in zip(inputs.split(50), labels.split(50), strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = OPNP().fit(model, loader[:8], validation=loader[8:])
        found.calibrate(loader[8:])
    expected = {} if kind == "inputs" else {"training": 0.95, "validation": 0.95}
    assert found.id_accuracy == pytest.approx(expected, abs=0.01)
    others = list(zip(inputs[400:].split(50), ((labels[400:] + 1) % CLASSES).split(50), strict=True))
    with pytest.warns(LabelWarning, match="of 200 labelled validation samples right, which is not above chance"):
        found.calibrate(others)
    assert found.id_accuracy["validation"] < 0.1
