"""State dicts on disk: read without running code, loaded whole or not at all."""

import pickle
from collections import OrderedDict
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
        lambda values: values,
        OrderedDict,
        lambda values: {"state_dict": values, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda values: {"model": parallel(values)},
        lambda values: {"model_state_dict": values},
        parallel,
    ],
    ids=["plain", "ordered", "state_dict", "parallel in model", "model_state_dict", "parallel"],
)
def test_checkpoints_as_training_scripts_write_them(tmp_path: Path, stored: Any) -> None:
    values = state()
    torch.save(stored(values), tmp_path / "last.pt")
    found = read_weights(tmp_path / "last.pt")
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], value) for name, value in values.items())


def test_loading_is_what_torch_loads(tmp_path: Path) -> None:
    values = state()
    save_file(values, tmp_path / "model.safetensors")
    one, other = model(), model()
    load_weights(one, read_weights(tmp_path / "model.safetensors"), path="model.safetensors")
    other.load_state_dict(values)
    assert all(torch.equal(left, right) for left, right in zip(one.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(left, right) for left, right in zip(one.buffers(), other.buffers(), strict=True))


def test_the_count_of_batches_may_be_missing() -> None:
    values = {name: value for name, value in state().items() if not name.endswith("num_batches_tracked")}
    target = model()
    load_weights(target, values, path="old.pt")
    assert torch.equal(target.state_dict()["1.running_mean"], values["1.running_mean"])


@pytest.mark.parametrize("stored", [state, lambda: parallel(state())])
def test_a_model_that_is_wrapped_itself_takes_both_kinds_of_names(tmp_path: Path, stored: Any) -> None:
    values, target = stored(), nn.DataParallel(model())
    torch.save(values, tmp_path / "last.pt")
    load_weights(target, read_weights(tmp_path / "last.pt"), path="last.pt")
    expected = next(value for name, value in values.items() if name.endswith("3.weight"))
    assert torch.equal(target.state_dict()["module.3.weight"], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("3.bias"), "Of its names, missing 1: 3.bias"),
        (lambda values: values.update(extra=torch.ones(1)), "unexpected 1: extra"),
        (
            lambda values: values.update(state(width=5)),
            r"of another shape \d: 0.weight \(5, 3, 1, 1\) for \(4, 3, 1, 1\)",
        ),
        (
            lambda values: [values.pop(name) for name in list(values)] and values.update(fc=torch.ones(1)),
            r"missing 8: 0.weight, 0.bias, 1.weight, 1.bias, \.\.\.; unexpected 1: fc",
        ),
    ],
)
def test_what_does_not_fit_is_told_and_changes_nothing(change: Any, message: str) -> None:
    values, target = state(), model()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    change(values)
    with pytest.raises(DataFileError, match=rf"my\.pt does not fit the model\. .*{message}"):
        load_weights(target, values, path="my.pt")
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


class Evil:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path, ("/ran",))


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Evil(), protocol=2), b"", b"no checkpoint", b"PK\x03\x04 no archive"],
    ids=["pickle", "empty", "text", "archive"],
)
def test_files_that_hold_no_tensors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "some.pt").write_bytes(content)
    with pytest.raises(DataFileError, match=r"some\.pt is no state dict that can be read without running code"):
        read_weights(tmp_path / "some.pt")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save(model(), path), r"holds more than tensors \(torch\.nn\.modules\.[\w.]+\)\. Save one"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)), "is damaged, or of another format"),
        (lambda path: path.write_bytes(b"no checkpoint"), "is damaged, or of another format"),
        (lambda path: path.write_bytes(b""), "is damaged, or of another format"),
    ],
    ids=["whole model", "pickle", "text", "empty"],
)
def test_torchs_advice_to_run_the_code_of_a_file_is_not_passed_on(tmp_path: Path, write: Any, message: str) -> None:
    write(tmp_path / "some.pt")
    with pytest.raises(
        DataFileError, match=rf"some\.pt is no state dict .* without running code: it {message}"
    ) as caught:
        read_weights(tmp_path / "some.pt")
    for word in ("weights_only", "PyTorch", "trust", "\x1b", " ()"):
        assert word not in str(caught.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": state(), "args": Evil()}, tmp_path / "some.pt")
    with pytest.raises(DataFileError, match="without running code") as caught:
        read_weights(tmp_path / "some.pt")
    assert "\n" not in str(caught.value)


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
