"""What subjects answer in another process, which has nothing but their files."""

from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from tests.child_process import started
from tests.contract.checking import ready
from tests.contract.shell import Shell, strange

__all__ = ["answers_elsewhere", "subjects_with_files"]


def answers_elsewhere(kind: type[Shell]) -> Tensor:
    """Return the scores of what is strange by a process that read the files of a subject."""
    found = _all_answers()
    assert isinstance(found, dict), found
    return found[_name(kind)]


def subjects_with_files() -> list[type[Shell]]:
    """Return the kinds of shells that travel in files, broken ones too."""
    from tests.contract.broken_subjects import BROKEN_FILES
    from tests.contract.subjects import SUBJECTS

    return [kind for kind in SUBJECTS.values() if "files" not in kind.lacks] + list(BROKEN_FILES)


@cache
def _all_answers() -> dict[str, Tensor] | str:
    """Return the scores of all at once, as a process takes seconds to begin; where it failed, what it printed."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        kinds = subjects_with_files()
        for kind in kinds:
            (folder / _name(kind)).mkdir()
            ready(kind).sent(folder / _name(kind))
        torch.save(strange(), folder / "inputs.pt")
        process = started(_answer, folder, [_name(kind) for kind in kinds], log=folder / "log")
        process.join(300)
        if process.exitcode != 0:
            process.kill()
            return f"the other process ended with {process.exitcode}: {(folder / 'log').read_text(encoding='utf-8')}"
        return {_name(kind): torch.load(folder / _name(kind) / "scores.pt", weights_only=True) for kind in kinds}


def _answer(folder: Path, names: list[str]) -> None:
    """Score as each subject does; a task for the other process."""
    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    for name in names:
        module, _, attribute = name.rpartition(".")
        kind: type[Shell] = getattr(import_module(module), attribute)
        torch.save(kind.received(folder / name).scores(inputs), folder / name / "scores.pt")


def _name(kind: type[Shell]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
