"""Every option of every command takes odd values: it works or says what is wrong, in one message and exit code 2."""

import os
import random
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from opnp.bench.demo import DigitsData, digits_data, small_cnn
from opnp.cli.app import COMMANDS, command_function, named_command
from tests.in_process import Opnp
from tests.reliability.inputs_world import LINES, is_told, run_opnp, write_world
from tests.tried import Tried

_MANY = "9" * 5000
_ODD: dict[Any, tuple[str, ...]] = {
    int: (
        *("-1", "0", "1", "-0", "2147483648", "9223372036854775807", "9223372036854775808", "18446744073709551616"),
        *("9" * 30, _MANY, "1e3", "0x10", "\u0663", "nan", "inf", "", "  7 ", "1_0", "1.5", "-"),
    ),
    float: (
        *("nan", "inf", "-inf", "1e999", "-1", "0", "-0.0", "1", "2", "1e-320", "1e-30", "1e30", "1e308", _MANY),
        *("0x1p3", "", "\u0660.\u0665", "0,5", "1_0", "50%"),
    ),
    Path: (
        *("", "missing", "folder", "/dev/null", "/dev/zero", "a\nb", "x" * 300, "x" * 5000, "dangling"),
        *("loop", "fifo", "empty", "copy.st", "copy.safetensors", "copy.csv", "\u00fc \u00f1.csv", "folder/no/x.csv"),
        *("/dev/full", ".", "..", "~", "\x1b[31m.csv", "[bold]x.html", "[/x].safetensors"),
    ),
    str: (
        *("", " ", ":", "a:", ":b", "os:getcwd", "os:path", "os:_exit", "../x:y", "tinynets:no", "tinynets:number"),
        *("tinynets:broken", "tinynets", ".:x", ".x:y", "hf:no", "x" * 5000, "x" * 5000 + ":y"),
        *("a\nb:c", "[/x]:y", "\u00e9:\u00fc", "nan", "-1", "0", "9" * 30, _MANY, "\u00b2", "-\u00b2", "\u0663"),
        *("react:nan", "react:1e999", "react:-1", "scale:\u0660", "ash-s:", ",", ",,", "1,1,1", "nan,nan,nan"),
        *("0,0,0", "1e999,1,1", "1e-320,1e-320,1e-320", "0.5", "0.5,0.5", "x=", "=x", "x=y=z", "="),
        *("../e=copy.safetensors", "a/b=copy.safetensors", "cuda", "meta", "cpu:99", "xla"),
        "privateuseone",
    ),
    Literal: ("", "x", "\u0661"),
}
"""Values by what an option takes; `_paths` makes of the paths what their names say."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a folder in which all `LINES` work and have run; what is slow or goes on forever is left out."""
    with pytest.MonkeyPatch.context() as patched:
        folder = write_world(tmp_path_factory.mktemp("options") / "world")
        patched.chdir(folder)
        patched.setattr("opnp.serve.app.run_service", lambda app, listening, **_: listening.close())
        patched.setattr("opnp.export.write_program", lambda out, *_, **__: Path(out).write_bytes(b"graph"))
        patched.setattr("opnp.report.write_figures", lambda results, out, **_: [])
        patched.setattr("opnp.bench.demo.trained_cnn", _untrained)
        patched.setattr("opnp.bench.demo.digits_data", _few_digits)
        for line in LINES.values():
            ran = run_opnp(*line)
            assert ran.code == 0, (line, ran)
        for name, copy in {"d.st": "copy.st", "test.safetensors": "copy.safetensors", "s.csv": "copy.csv"}.items():
            shutil.copy(folder / name, folder / copy)
        yield folder


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of that folder as the current one, with what is no file beside the files."""
    folder = Path(shutil.copytree(made, tmp_path / "world"))
    monkeypatch.chdir(folder)
    (folder / "empty").touch()
    (folder / "folder").mkdir()
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo")
    return folder


def _untrained(*_: object, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return small_cnn().eval()


def _few_digits(*, seed: int) -> DigitsData:
    data = digits_data(seed=seed)
    train, validation, test = ((some[:60], labels[:60]) for some, labels in (data.train, data.validation, data.test))
    return DigitsData(train, validation, test, {name: images[:30] for name, images in data.ood.items()})


def _taken(annotation: Any) -> set[Any]:
    """Return the types of `_ODD` that an annotation names; none for a flag."""
    named = {get_origin(annotation) or annotation}
    for part in get_args(annotation):
        named |= _taken(part) if not isinstance(part, str) else set()
    if bool in named:
        return set()
    return named & set(_ODD)


def _lines(name: str, trials: int) -> list[tuple[str, list[str]]]:
    """Return lines of a command in each of which one option has an odd value, some of the values for each option."""
    line = LINES[name]
    command = line[0]
    hints = get_type_hints(command_function(command), include_extras=True)
    generator = random.Random(zlib.crc32(name.encode()))  # noqa: S311  # a choice, no secret
    found = []
    for parameter in named_command(command).params:
        kinds = _taken(hints[parameter.name])
        values = [value for kind in sorted(kinds, key=str) for value in _ODD[kind]]
        assert values or getattr(parameter, "is_flag", False), parameter.name
        option = parameter.opts[0]
        chosen = generator.sample(values, min(trials, len(values)))
        found += [(f"{option} {value[:40]!a}", _with(line, option, value)) for value in chosen]
    return found


def _with(line: Sequence[str], option: str, value: str) -> list[str]:
    """Return a line with another value of an option, or of its argument."""
    changed = list(line)
    if not option.startswith("-"):
        changed[1] = value
    elif option in changed:
        changed[changed.index(option) + 1] = value
    else:
        changed += [option, value]
    return changed


@pytest.mark.parametrize("trials", [1, pytest.param(99, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", LINES)
def test_odd_values_of_options_work_or_are_told(world: Path, tried: Tried, name: str, trials: int) -> None:
    lines = _lines(name, trials)
    tried("inputs", "odd values of options of the command line", len(lines))
    wrong = {}
    for about, line in lines:
        ran = run_opnp(*line)
        if not (ran.code == 0 or is_told(ran)):
            wrong[about] = (ran.code, ran.err[-500:])
    assert not wrong


def test_every_command_is_tried(tried: Tried) -> None:
    tried("inputs", "commands", len(COMMANDS))
    assert {line[0] for line in LINES.values()} == set(COMMANDS)


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("name", "odd", "message"),
    [
        ("demo", ("--seed", str(2**64)), "`seed` must lie in 0 to 2^63 - 1"),
        ("demo", ("--seed", "9" * 4000), "`seed` must lie in 0 to 2^63 - 1, got a number of"),
        ("fit features", ("--device", "meta"), "`--device` must be a device that computes"),
        ("fit model", ("--device", "privateuseone"), "`--device` must be a device of this machine"),
        ("fit model", ("--logits", _MANY), "`--logits` must be a place in a tuple or a name"),
        ("fit model", ("--workers", "2147483648"), "`workers` must be 0 or the number of processes"),
        ("score model", ("--image-size", "1000000"), "`size` must lie in 1 to 8192 pixels"),
    ],
    ids=lambda value: " ".join(value)[:20] if isinstance(value, tuple) else "",
)
def test_values_that_ended_in_a_traceback_are_told(
    world: Path, tried: Tried, name: str, odd: tuple[str, str], message: str
) -> None:
    tried("inputs", "odd values of options of the command line")
    ran = run_opnp(*_with(LINES[name], *odd))
    assert is_told(ran), ran
    assert message in ran.err


@pytest.mark.reliability
def test_names_of_files_that_are_no_unicode_are_printed_with_escapes(world: Path, tried: Tried, opnp: Opnp) -> None:
    tried("inputs", "names of files that are no Unicode", 2)
    ran = opnp(*LINES["fit features"][:-1], "\udcff.st")
    assert ran.code == 0, ran
    assert "\\udcff.st" in ran.out
    assert opnp(*LINES["score features"][:-1], "\udcff.csv").code == 0


@pytest.mark.reliability
def test_more_workers_than_batches_are_not_started(world: Path, tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    tried("inputs", "numbers of workers above the number of batches")
    started = []
    real = DataLoader.__init__

    def counted(self: Any, *arguments: Any, **options: Any) -> None:
        started.append(options["num_workers"])
        real(self, *arguments, **(options | {"num_workers": 0}))

    monkeypatch.setattr(DataLoader, "__init__", counted)
    assert run_opnp(*LINES["score model"], "--workers", "1000", "--batch-size", "3").code == 0
    assert started == [3]
