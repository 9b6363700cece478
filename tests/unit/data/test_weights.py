"""State dicts on disk: read without running code, loaded whole or not at all."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from opnp.data import load_weights, read_weights
from opnp.errors import DataFileError, MissingFileError


def model(*, width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))


def state(*, width: int = 4) -> dict[str, Tensor]:
    return {name: torch.rand(value.shape).to(value.dtype) for name, value in model(width=width).state_dict().items()}


def parallel(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in values.items()}


@pytest.mark.parametrize(
    "stored",
    [
        lambda values: {"state_dict": values, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda values: {"model": parallel(values)},
        lambda values: {"model_state_dict": values},
        lambda values: values,
        parallel,
    ],
    ids=["state_dict", "parallel in model", "model_state_dict", "plain", "parallel"],
)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_checkpoints_as_training_scripts_write_them(tmp_path: Path, stored: Any, is_wrapped: bool) -> None:
    """Into a model, or into one that `DataParallel` wraps."""
    values, plain = state(), model()
    torch.save(stored(values), tmp_path / "last.pt")
    found = read_weights(tmp_path / "last.pt")
    load_weights(nn.DataParallel(plain) if is_wrapped else plain, found, path="last.pt")
    assert found.keys() == values.keys()
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in values.items())


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
        (lambda path: path.write_bytes(b"no checkpoint"), "is damaged, or of another format"),
        (lambda path: path.write_bytes(b""), "is damaged, or of another format"),
    ],
    ids=["whole model", "code", "pickle", "text", "empty"],
)
def test_files_that_hold_no_tensors_alone(tmp_path: Path, write: Any, message: str) -> None:
    """What torch advises, to run the code of the file, is not passed on."""
    write(tmp_path / "some.pt")
    with pytest.raises(
        DataFileError, match=rf"some\.pt is no state dict .* without running code: it {message}"
    ) as told:
        read_weights(tmp_path / "some.pt")
    assert not any(word in str(told.value) for word in ("weights_only", "PyTorch", "trust", "\x1b", " ()", "\n"))


@pytest.mark.parametrize("stored", [{}, {"a": 1}, [torch.ones(2)], {"state_dict": {"a": 1}}, torch.ones(2)])
def test_other_content(tmp_path: Path, stored: object) -> None:
    torch.save(stored, tmp_path / "some.pt")
    with pytest.raises(DataFileError, match=r"some\.pt must hold tensors by name"):
        read_weights(tmp_path / "some.pt")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="expected a file with the model's weights"):
        read_weights(tmp_path / "absent.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"12345678")
    with pytest.raises(DataFileError, match=r"broken\.safetensors is no readable safetensors file"):
        read_weights(tmp_path / "broken.safetensors")
