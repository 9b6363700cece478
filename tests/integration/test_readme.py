"""What the README shows works as it stands."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.in_process import Opnp
from tests.unit.adapters.hub_folders import WORDS, write_bert

README = Path(__file__).parents[2] / "README.md"


def run_script(opnp: Opnp, command: str) -> None:
    """Run the block of shell commands that has this one in it."""
    (script,) = (block for block in blocks("sh") if command in block)
    for line in script.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line)
        assert program == "opnp"
        outcome = opnp(*arguments)
        assert outcome.code == 0, outcome.err


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102  # the project's own page
    assert (tmp_path / "detector.safetensors").is_file()


def test_the_shell_commands_run(opnp: Opnp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_script(opnp, "opnp inspect")
    run_script(opnp, "opnp report")
    assert (tmp_path / "figures" / "figure-5-scores-demo.svg").is_file()
    assert (tmp_path / "scores.csv").is_file()


def test_the_commands_on_models_run(opnp: Opnp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("resnet18", num_classes=3).state_dict(), tmp_path / "mine.safetensors")
    pixels = np.random.default_rng(0)
    for name, count in {"train": 6, "val": 21, "new": 3}.items():
        for place in range(count):
            folder = tmp_path / name / f"{place % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{place}.png")
    write_bert(tmp_path / "my-bert")
    for name, count in {"train": 12, "val": 21}.items():
        rows = [{"text": " ".join(pixels.choice(WORDS[5:], 6)), "label": place % 3} for place in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run_script(opnp, "opnp export")
    assert len((tmp_path / "scores.csv").read_text(encoding="utf-8").splitlines()) == 4
    assert (tmp_path / "detector.onnx").is_file()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).exists(), target


def test_make_targets_exist() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), flags=re.MULTILINE):
        assert f"\n{target}: " in makefile, target
