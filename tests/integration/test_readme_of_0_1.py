"""Each line that the README of version 0.1 showed works today, or stands in CHANGELOG under "Removed"."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from opnp import OPNP, Ratios, layer_masks, pruned, pruned_copy, sensitivity
from tests.in_process import Opnp
from tests.unit.adapters.hub_folders import WORDS, write_bert
from tests.unit.bench.image_world import tiny_model, write_module

PAGE = Path(__file__).parent / "readme_of_0.1.md"
CHANGES = Path(__file__).parents[2] / "CHANGELOG.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


LINES = [
    shlex.split(line, comments=True)
    for block in blocks("sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
"""Every command of the page, in its order."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with everything that the page names as the reader's own, in small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mymodels", raising=False)
    generator = np.random.default_rng(0)

    def images(folder: str, count: int, side: int = 32) -> None:
        for place in range(count):
            path = tmp_path / folder / f"{place % 3}" / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path)

    for folder, count in {"train": 30, "test": 40, "val": 21, "new": 3, "dtd": 3}.items():
        images(folder, count)
    images("imagenet/train", 6)
    images("imagenet/val", 24)
    Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "cat.png")
    save_file({"images": torch.randint(256, (12, 32, 32, 3)).to(torch.uint8)}, tmp_path / "mnist.safetensors")
    save_file(timm.create_model("resnet18", num_classes=3).state_dict(), tmp_path / "mine.safetensors")
    save_file(timm.create_model("resnet50", num_classes=3).state_dict(), tmp_path / "resnet50.safetensors")
    write_module(tmp_path, "mymodels")
    torch.save(tiny_model().state_dict(), tmp_path / "net.pt")
    write_bert(tmp_path / "my-bert")
    for name, count in {"train": 12, "val": 21}.items():
        rows = [{"text": " ".join(generator.choice(WORDS[5:], 6)), "label": place % 3} for place in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def test_every_command_runs_in_the_order_of_the_page(opnp: Opnp, here: Path) -> None:
    ran = []
    for program, *arguments in LINES:
        if program in ("make", "curl") or arguments[0] == "serve":
            continue  # below
        own = ["--weights", "resnet50.safetensors"] if "timm:resnet50" in arguments else []  # none can be fetched here
        outcome = opnp(*arguments, *own)
        is_alarm = arguments[0] == "monitor" and outcome.code == 3  # of far OOD, by then
        assert outcome.code == 0 or is_alarm, f"opnp {shlex.join(arguments)}: {outcome.err}"
        assert "deprecat" not in outcome.err
        ran.append(arguments[0])
    assert len(ran) == 14
    assert set(ran) == {*["fit", "score", "export", "demo", "inspect", "cache", "bench", "sweep", "report", "monitor"]}
    for name in ("detector.onnx", "scores.csv", "results/results.json", "sweep/sweep.json", "report.html"):
        assert (here / name).is_file(), name


def test_the_service_answers_the_request_of_the_page(opnp: Opnp, here: Path) -> None:
    (serve,) = (line for line in LINES if line[1] == "serve")
    (curl,) = (line for line in LINES if line[0] == "curl")
    fit = LINES[2]
    assert opnp(*fit[1:]).code == 0
    command = [sys.executable, "-m", "opnp", *serve[1:], "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            address = next(found[0] for line in process.stderr if (found := re.search(r"http://[\d.:]+", line)))
            kind = curl[curl.index("-H") + 1].partition(": ")[2]
            image = (here / "cat.png").read_bytes()
            answer = httpx.post(f"{address}/score", content=image, headers={"Content-Type": kind}, timeout=60)
            assert set(answer.json()) >= {"class", "confidence", "score", "p_value", "is_ood"}
        finally:
            process.terminate()


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code, PAGE.name, "exec"), {})  # noqa: S102  # the project's own page
    assert (tmp_path / "detector.safetensors").is_file()


def test_what_stood_between_the_lines_works() -> None:
    first = torch.nn.Linear(6, 8)
    model = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Linear(8, 3))
    batches = [torch.rand(40, 6)]
    detector = OPNP(ratios=Ratios(w_min=0.3)).fit(model, batches)
    assert type(detector.pruned_head) is torch.nn.Linear
    assert detector.with_ratios(Ratios(w_min=0.5)).settings.ratios == Ratios(w_min=0.5)
    assert detector.compact_head()(torch.rand(2, 8)).shape == (2, 3)
    masks = layer_masks(sensitivity(model, batches, layers=["0", "2"]), w_min=0.3)
    before = first.weight.detach().clone()
    with pruned(model, masks):
        assert int((first.weight == 0).sum()) == round(0.3 * before.numel())
    assert torch.equal(first.weight, before)
    assert int((pruned_copy(model, masks).get_parameter("0.weight") == 0).sum()) == round(0.3 * before.numel())


@pytest.mark.parametrize("option", ["--compile", 'ratios="auto"'])
def test_what_is_gone_is_told(option: str) -> None:
    assert option in CHANGES.read_text(encoding="utf-8").partition("Removed")[2]
