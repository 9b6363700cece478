"""Features, heads and weights on disk: what is written is what is read, whole, in parts and in blocks."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from opnp.data import (
    block_edges,
    feature_part,
    load_weights,
    open_features,
    read_features,
    read_head,
    read_weights,
    write_features,
    write_head,
)
from opnp.errors import DataFileError, InputTypeError, MissingFileError, OptionError, ShapeError

FEATURES = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
both = pytest.mark.parametrize("read", [read_features, read_head])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("labels", [None, LABELS, LABELS.short()])
def test_features_round_trip(tmp_path: Path, dtype: torch.dtype, labels: Tensor | None) -> None:
    write_features(tmp_path / "file", FEATURES.to(dtype), labels=labels)
    found = read_features(str(tmp_path / "file"))
    torch.testing.assert_close(found.features, FEATURES.to(dtype), rtol=0, atol=0)
    assert (found.labels is None) is (labels is None)
    if labels is not None:
        torch.testing.assert_close(found.labels, labels, rtol=0, atol=0)


@pytest.mark.parametrize("bias", [None, torch.arange(3.0)])
def test_head_round_trip(tmp_path: Path, bias: Tensor | None) -> None:
    weight = torch.nn.Parameter(FEATURES[:3])
    write_head(tmp_path / "head", weight, bias=bias)
    found = read_head(tmp_path / "head")
    assert torch.equal(found.weight, weight)
    assert not found.weight.requires_grad
    assert None is found.bias is bias or torch.equal(found.bias, bias)  # type: ignore[arg-type]  # both, or neither


def test_parts_of_larger_tensors_are_written_alone_and_other_tensors_are_passed_over(tmp_path: Path) -> None:
    write_features(tmp_path / "part", FEATURES.T[1:3], labels=LABELS[3:5])
    found = read_features(tmp_path / "part")
    assert torch.equal(found.features, FEATURES.T[1:3])
    assert (tmp_path / "part").stat().st_size < 400
    save_file({"features": FEATURES, "weight": FEATURES.clone(), "ids": LABELS}, tmp_path / "both")
    assert read_features(tmp_path / "both").labels is None
    assert read_head(tmp_path / "both").bias is None


@both
def test_files_that_cannot_be_read(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(MissingFileError, match=r"none\.safetensors does not exist: expected"):
        read(tmp_path / "none.safetensors")
    with pytest.raises(MissingFileError, match="is a folder"):
        read(tmp_path)
    path = tmp_path / "file.safetensors"
    save_file({"features": FEATURES, "weight": FEATURES.clone()}, path)
    for content in (b"", b"a,b\n1,2\n", b"\x80\x04N.", path.read_bytes()[:-1]):
        path.write_bytes(content)
        with pytest.raises(DataFileError, match=r"file\.safetensors is no readable safetensors file"):
            read(path)


@pytest.mark.parametrize(
    ("read", "tensors", "message"),
    [
        (read_features, {"labels": LABELS}, r"must hold the tensor `features` \(cached.*, but it holds labels"),
        (read_features, {"features": FEATURES[0]}, r"`features` must have shape \(batch, features\), got \(4,\)"),
        (read_features, {"features": torch.ones(2, 3, 7, 7)}, "`features` must have shape.*Pool"),
        (read_features, {"features": FEATURES.long()}, "`features` must be floating point, got torch.int64"),
        (read_features, {"features": FEATURES, "labels": LABELS[:5]}, r"`labels` must be integers of shape \(6,\)"),
        (read_features, {"features": FEATURES, "labels": LABELS / 2}, "`labels` must be class indices, got 0.5"),
        (read_features, {"features": FEATURES, "labels": LABELS, "label": LABELS.clone()}, "both `labels` and `label`"),
        (read_head, {"bias": LABELS.float()}, "must hold the tensor `weight`.*but it holds bias"),
        (read_head, {"weight": FEATURES.int()}, "`weight` must be floating point, got torch.int32"),
        (read_head, {"weight": FEATURES, "bias": torch.ones(6, 1)}, r"`bias` must have shape \(6,\), got \(6, 1\)"),
    ],
)
def test_files_of_other_content(tmp_path: Path, read: Any, tensors: dict[str, Tensor], message: str) -> None:
    save_file(tensors, tmp_path / "given.safetensors")
    with pytest.raises(DataFileError, match=rf"given\.safetensors.*{message}"):
        read(tmp_path / "given.safetensors")


@pytest.mark.parametrize("write", [write_features, write_head])
def test_what_could_not_be_read_is_not_written(tmp_path: Path, write: Any) -> None:
    for given, error in ((FEATURES[0], ShapeError), (FEATURES.long(), InputTypeError), ([[1.0]], InputTypeError)):
        with pytest.raises(error):
            write(tmp_path / "file", given)
    with pytest.raises(MissingFileError, match="missing is no folder"):
        write(tmp_path / "missing" / "file", FEATURES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("labels", [None, LABELS])
def test_a_file_is_a_source_that_is_read_in_ranges(tmp_path: Path, labels: Tensor | None) -> None:
    write_features(tmp_path / "file", FEATURES, labels=labels)
    source = open_features(tmp_path / "file")
    features, targets = source.read(2, 5)
    assert features.equal(FEATURES[2:5])
    assert (targets is None) is (labels is None) is (not source.is_labelled)
    assert (source.rows, source.first_row) == (6, 0)
    for start, stop in [(-1, 5), (0, 7), (6, 5)]:
        with pytest.raises(OptionError, match="Rows must lie in 0 to 6"):
            source.read(start, stop)
    digest = source.digest()
    write_features(tmp_path / "file", FEATURES + 1, labels=labels)
    assert open_features(tmp_path / "file").digest() != digest


def test_a_part_is_a_source_that_knows_its_place(tmp_path: Path) -> None:
    write_features(tmp_path / "file", FEATURES, labels=LABELS)
    whole = open_features(tmp_path / "file")
    part = feature_part(feature_part(whole, 1, 6), 2, 5)
    assert (part.rows, part.width, part.is_labelled, part.first_row) == (3, 4, True, 3)
    assert part.digest() == whole.digest()
    features, labels = part.read(1, 3)
    assert features.equal(FEATURES[4:6])
    assert labels is not None
    assert labels.equal(LABELS[4:6])
    for start, stop in [(-1, 5), (3, 7), (5, 4)]:
        with pytest.raises(OptionError, match="A part must lie in rows 0 to 6"):
            feature_part(whole, start, stop)


@pytest.mark.parametrize("size", [0, True, 2.0])
def test_a_block_of_no_size(size: int) -> None:
    with pytest.raises(OptionError, match="`batch_size` must be a positive number of rows"):
        block_edges(10, size=size)


# ------------------------------------------------------------------------------------------------- weights of a model
def model(*, width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))


def state(*, width: int = 4) -> dict[str, Tensor]:
    return {name: torch.rand(value.shape).to(value.dtype) for name, value in model(width=width).state_dict().items()}


def named(values: dict[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in values.items()}


@pytest.mark.parametrize(
    "stored",
    [
        lambda values: {"state_dict": values, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda values: {"model": named(values)},
        lambda values: {"model_state_dict": values},
        lambda values: values,
        named,
        lambda values: named(values, "_orig_mod."),
        lambda values: {"state_dict": named(values, "model.")},
        lambda values: {"state_dict": named(values, "model._orig_mod.")},
        lambda values: named(values, "net.module."),
        lambda values: {"n_averaged": torch.tensor(4)} | named(values),
    ],
)
@pytest.mark.parametrize("wrap", [lambda plain: plain, nn.DataParallel, lambda plain: nn.ModuleDict({"net": plain})])
def test_checkpoints_as_training_scripts_write_them(tmp_path: Path, stored: Any, wrap: Any) -> None:
    """Into a model, into one that `DataParallel` wraps, and into one that holds the model."""
    values, plain = state(), model()
    torch.save(stored(values), tmp_path / "last.pt")
    load_weights(wrap(plain), read_weights(tmp_path / "last.pt"), path="last.pt")
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in values.items())


def test_prefixes_stay_where_names_do_not_all_fit() -> None:
    whole = named(state(), "model.")
    for stored in ({**whole, "loss.weight": torch.ones(2)}, named(whole, "teacher."), dict(list(whole.items())[:2])):
        with pytest.raises(DataFileError, match=rf"{'teacher' if 'loss.weight' not in stored else 'model'}|missing"):
            load_weights(model(), stored, path="last.pt")


@pytest.mark.parametrize("name", ["label", "labels"])
@pytest.mark.parametrize(
    "form",
    [lambda labels: labels.to(torch.uint16), lambda labels: labels[:, None].int(), lambda labels: labels.double()],
)
def test_labels_of_features_in_any_usual_form(tmp_path: Path, name: str, form: Any) -> None:
    save_file({"features": FEATURES, name: form(LABELS)}, tmp_path / "some.safetensors")
    found = open_features(tmp_path / "some.safetensors").read(1, 4)[1]
    assert found is not None
    assert found.tolist() == LABELS[1:4].tolist()


def test_safetensors_and_files_of_before_batches_were_counted(tmp_path: Path) -> None:
    values, target = state(), model()
    old = {name: value for name, value in values.items() if not name.endswith("num_batches_tracked")}
    save_file(old, tmp_path / "model.safetensors")
    load_weights(target, read_weights(tmp_path / "model.safetensors"), path="model.safetensors")
    assert all(torch.equal(target.state_dict()[name], value) for name, value in old.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"3.bias": None}, "Of its names, missing 1: 3.bias"),
        ({"extra": torch.ones(1)}, "unexpected 1: extra"),
        (state(width=5), r"of another shape \d: 0.weight \(5, 3, 1, 1\) for \(4, 3, 1, 1\)"),
        ({"3.bias": torch.ones(2, dtype=torch.complex64)}, "of another kind 1: 3.bias complex strided for real"),
        (
            dict.fromkeys(state()) | {"fc": torch.ones(1)},
            r"missing 8: 0.weight, 0.bias, 1.weight, 1.bias, \.\.\.; unexpected 1: fc",
        ),
    ],
    ids=["missing", "unexpected", "shape", "kind", "all"],
)
def test_what_does_not_fit_is_told_and_changes_nothing(changes: dict[str, Tensor | None], message: str) -> None:
    target = model()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    values = {name: value for name, value in (state() | changes).items() if value is not None}
    with pytest.raises(DataFileError, match=rf"my\.pt does not fit the model\. .*{message}"):
        load_weights(target, values, path="my.pt")
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


class Evil:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path, ("/ran",))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save(model(), path), r"holds more than tensors \(torch\.nn\.modules\.[\w.]+\)\. Save one"),
        (lambda path: torch.save({"state_dict": state(), "args": Evil()}, path), r"holds more than tensors \(pathlib"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)), "is damaged, or of another format"),
        (lambda path: path.write_bytes(b""), "is damaged, or of another format"),
    ],
    ids=["whole model", "code", "pickle", "empty"],
)
def test_files_that_hold_no_tensors_alone(tmp_path: Path, write: Any, message: str) -> None:
    """What torch advises, to run the code of the file, is not passed on."""
    write(tmp_path / "some.pt")
    with pytest.raises(
        DataFileError, match=rf"some\.pt is no state dict .* without running code: it {message}"
    ) as told:
        read_weights(tmp_path / "some.pt")
    assert not any(word in str(told.value) for word in ("weights_only", "PyTorch", "trust", "\x1b", " ()", "\n"))


def test_weights_of_other_content(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="expected a file with the model's weights"):
        read_weights(tmp_path / "absent.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"12345678")
    with pytest.raises(DataFileError, match=r"broken\.safetensors is no readable safetensors file"):
        read_weights(tmp_path / "broken.safetensors")
    for stored in ({}, [torch.ones(2)], {"state_dict": {"a": 1}}):
        torch.save(stored, tmp_path / "some.pt")
        with pytest.raises(DataFileError, match=r"some\.pt must hold tensors by name"):
            read_weights(tmp_path / "some.pt")
