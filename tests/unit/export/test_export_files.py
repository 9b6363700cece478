import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opnp.core import MEMBERS
from opnp.errors import InputTypeError, MissingFileError, ModelRunError
from opnp.export import OUTPUT_NAMES, DetectorModule, exported_program, write_onnx, write_program
from opnp.export.files import arguments, quiet_torch, rows
from tests.unit.detector.detector_world import FEATURES, KINDS, features, loader, made, model


def module_of(net: nn.Module, kind: str = "paper", **options: Any) -> DetectorModule:
    return made(kind, **options).fit(net, loader(20)).calibrate(loader(5, seed=1)).to_module()


class Renamed(nn.Module):
    """A model with an input of its own name, and one that it can go without."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def forward(self, values: Tensor, factor: float = 1.0) -> Tensor:
        made: Tensor = self.inner(values * factor)
        return made


class Anything(nn.Module):
    """A model whose forward names no input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        made: Tensor = self.inner(*args, **kwargs)
        return made


@pytest.mark.parametrize(
    ("net", "example", "name"),
    [
        (Renamed(), features(2), "values"),
        (Renamed(), {"values": features(2)}, "values"),
        (Renamed(), {"pixels": features(2)}, "values"),  # passed by position, as its keyword is unknown
        (Anything(), features(2), "inputs"),
        (model(), features(2), "input"),
    ],
)
def test_inputs_have_the_names_of_the_model(net: nn.Module, example: Tensor | Mapping[str, Tensor], name: str) -> None:
    program = exported_program(module_of(net), example)
    assert list(program.graph_signature.user_inputs) == [name]
    is_by_keyword = isinstance(example, Mapping) and name in example
    found = program.module()(**{name: features(7)}) if is_by_keyword else program.module()(features(7))
    assert [tuple(each.shape) for each in found] == [(7, 4), (7,), (7,), (7,)]


@pytest.mark.parametrize("is_strict", [False, True])
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")  # the list of a call
@pytest.mark.parametrize(("kind", "options"), [("paper", {}), ("fusion", {"members": MEMBERS})], ids=KINDS[::-1])
def test_torch_takes_the_module_by_itself(kind: str, options: dict[str, Any], is_strict: bool) -> None:
    """Whatever members are fused and however large the batch, one graph says it all."""
    module = module_of(model(), kind, **options)
    batch = torch.export.Dim("batch", max=2**20)
    program = torch.export.export(module, (features(2),), dynamic_shapes=({0: batch},), strict=is_strict).module()
    for given in (features(1), features(9), torch.zeros(2, FEATURES)):
        assert all(map(torch.equal, program(given), module(given)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_comes_back_from_its_file(kind: str, tmp_path: Path) -> None:
    module = module_of(model(), kind)
    write_program(tmp_path / "detector.pt2", module, features(2))
    loaded = torch.export.load(tmp_path / "detector.pt2").module()
    for count in (1, 5, 17):
        batch = features(count, seed=count)
        *found, is_ood = loaded(batch)
        assert all(map(torch.equal, found, module(batch)))
        assert torch.equal(is_ood, module.judge.is_ood(found[1]))
    assert [path.name for path in tmp_path.iterdir()] == ["detector.pt2"]
    assert b"test_export_files" not in (tmp_path / "detector.pt2").read_bytes(), "the file names paths of this machine"


def test_a_batch_of_one_is_no_example() -> None:
    for example in (features(1), {"values": features(1)}, {"values": 3}, torch.tensor(1.0)):
        with pytest.raises(InputTypeError, match="at least two inputs"):
            exported_program(module_of(Renamed()), example)


class Branching(nn.Module):
    """A model that looks at the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def forward(self, values: Tensor) -> Tensor:
        made: Tensor = self.inner(values if bool(values.sum() > 0) else -values)
        return made


class FixedBatch(Branching):
    """A model that takes one size of batch."""

    def forward(self, values: Tensor) -> Tensor:
        made: Tensor = self.inner(values.reshape(2, 12) if len(values) == 2 else values)
        return made


def test_a_model_that_fails_on_the_example_is_told_in_one_line() -> None:
    with pytest.raises(ModelRunError, match=r"^The model failed on the example: RuntimeError: [^\n]+$"):
        exported_program(module_of(model()), torch.ones(2, 5))


@pytest.mark.parametrize("net", [Branching(), FixedBatch()], ids=lambda net: type(net).__name__)
def test_a_model_that_torch_refuses_is_told_in_one_line(net: nn.Module, tmp_path: Path) -> None:
    module = module_of(net)
    with pytest.raises(ModelRunError, match=r"^torch\.export refuses this model: [^\n]+$"):
        write_program(tmp_path / "detector.pt2", module, features(2))
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_says_what_and_where_and_leaves_the_terminal_alone(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    levels = {name: logging.getLogger(name).level for name in ("torch", "torch.export", "torch._dynamo")}
    module = module_of(Branching())
    place = r"\(test_export_files\.py, line \d+, in forward: made: Tensor = self\.inner\(values if bool.*\)"
    with pytest.raises(
        ModelRunError, match=rf"depends on values of tensors .* as a branch or a shape does {place}\. Say"
    ):
        exported_program(module, features(2))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert {name: logging.getLogger(name).level for name in levels} == levels


def test_what_torch_writes_of_what_it_takes_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_torch():
        sys.stderr.write("a hint\n")
    assert capsys.readouterr().err == "a hint\n"


def test_a_program_that_reads_back_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = exported_program(module_of(nn.Sequential(nn.Flatten(), *model())), 2 * features(2))
    for parameter in other.state_dict.values():
        parameter.mul_(1.5)
    monkeypatch.setattr(torch.export, "load", lambda _file: other)
    with pytest.raises(ModelRunError, match="read back gives other numbers"):
        write_program(tmp_path / "detector.pt2", module_of(model()), features(2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_program, write_onnx])
def test_what_cannot_be_written_or_checked_is_told_first(write: Callable[..., None], tmp_path: Path) -> None:
    module, path = module_of(model()), tmp_path / "detector"
    with pytest.raises(MissingFileError, match="is no folder"):
        write(tmp_path / "none" / "detector", model(), features(2))
    with pytest.raises(InputTypeError, match=r"give `detector.to_module\(model\)`, got Sequential"):
        write(path, model(), features(2))
    for example in (features(2).numpy(), (features(2),), {"input": [1, 2]}):
        with pytest.raises(InputTypeError, match="`example` must be a batch as a tensor, or as a mapping"):
            write(path, module, example)
    with pytest.raises(ModelRunError, match="features or logits of the example are not finite"):
        write(path, module, features(2) / 0)
    assert list(tmp_path.iterdir()) == []


def test_rows_and_arguments_of_batches() -> None:
    module, batch = module_of(Renamed()), {"values": features(3)}
    chosen = rows(batch, [2])
    assert isinstance(chosen, dict)
    assert torch.equal(chosen["values"], features(3)[2:])
    assert torch.equal(torch.as_tensor(rows(features(3), [1, 1])), features(3)[[1, 1]])
    args, named = arguments(module, batch)
    assert (args, list(named)) == ((), ["values"])
    assert OUTPUT_NAMES == ("logits", "score", "p_value", "is_ood")
