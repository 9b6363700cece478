"""What the README shows works as it stands, and so does what the README of version 0.1 showed, but for what is gone."""

import json
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from opnp import OPNP, Ratios, layer_masks, pruned, pruned_copy, sensitivity
from opnp.cli.app import COMMANDS
from tests.child_process import command_line, started
from tests.in_process import Opnp, done
from tests.integration.serve_process import address_of
from tests.unit.adapters.hub_folders import WORDS, write_bert
from tests.unit.bench.image_world import tiny_model, write_module

ROOT = Path(__file__).parents[2]
README, OF_0_1 = ROOT / "README.md", Path(__file__).parent / "readme_of_0.1.md"
COMMAND_LINE = ROOT / "docs" / "how-to" / "command-line.md"
SLOW = ("demo", "cache", "bench", "sweep", "report")
"""Commands that are run once, whatever page shows the line again."""
SMALL: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}
"""Of the networks of timm that the page names: their own names, steps and preprocessing, and fewer weights."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Return the commands of a page in its order."""
    script = "".join(blocks(page, "sh")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in script.splitlines() if line.strip()]


def serve_small(arguments: list[str]) -> None:
    """Run the service on a small network; a task for a process of its own."""
    setattr(timm, "create_model", partial(timm.create_model, **SMALL))  # noqa: B010  # of another type
    command_line(arguments, {})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with everything that the page names as the reader's own, in small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mymodels", raising=False)
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **SMALL))
    generator = np.random.default_rng(0)
    counts = {"train": 30, "test": 40, "val": 21, "new": 3, "dtd": 3, "imagenet/train": 6, "imagenet/val": 24}
    for folder, count in counts.items():
        for place in range(count):
            path = tmp_path / folder / f"{place % 3}" / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    save_file({"images": torch.randint(256, (12, 32, 32, 3)).to(torch.uint8)}, tmp_path / "mnist.safetensors")
    for name, file in {"resnet18": "mine", "resnet50": "resnet50"}.items():
        save_file(timm.create_model(name, num_classes=3).state_dict(), tmp_path / f"{file}.safetensors")
    write_module(tmp_path, "mymodels")
    torch.save(tiny_model().state_dict(), tmp_path / "net.pt")
    write_bert(tmp_path / "my-bert")
    for name, count in {"train": 12, "val": 21, "new": 3}.items():
        rows = [{"text": " ".join(generator.choice(WORDS[5:], 6)), "label": place % 3} for place in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_every_command_runs_in_the_order_of_its_page(opnp: Opnp, here: Path) -> None:
    ran: list[str] = []
    for program, *arguments in [line for page in (README, COMMAND_LINE, OF_0_1) for line in commands(page)]:
        line = shlex.join(arguments)
        if program in ("make", "curl") or arguments[0] == "serve" or (arguments[0] in SLOW and line in ran):
            continue  # below, or before
        own = ["--weights", "resnet50.safetensors"] if "timm:resnet50" in arguments else []  # none can be fetched here
        if arguments[:2] == ["fit", "--features"] and not (here / "opnp-demo").is_dir():
            done(opnp, "demo", "--out", "opnp-demo")
        outcome = opnp(*arguments, *own)
        is_alarm = arguments[0] == "monitor" and outcome.code == 3  # of far OOD, by then
        assert outcome.code == 0 or is_alarm, f"opnp {line}: {outcome.err}"
        assert "deprecat" not in outcome.err
        ran.append(line)
    assert len(ran) == 25
    wanted = {"fit", "score", "export", "demo", "inspect", "cache", "bench", "sweep", "report", "monitor"}
    assert {line.split()[0] for line in ran} == wanted
    for name in ("detector.onnx", "scores.csv", "results/results.json", "sweep/sweep.json", "report.html"):
        assert (here / name).is_file(), name
    assert (here / "figures" / "figure-5-scores-demo.svg").is_file()


def test_the_table_of_commands_is_whole() -> None:
    table = README.read_text(encoding="utf-8").partition("## Commands")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == sorted(COMMANDS)


@pytest.mark.slow
def test_the_service_answers_the_request_of_the_page(opnp: Opnp, here: Path) -> None:
    lines = commands(README)
    (serve,) = [line for line in lines if line[1] == "serve"]
    (curl,) = [line for line in commands(OF_0_1) if line[0] == "curl"]
    done(opnp, *next(arguments for _, *arguments in lines if "timm:resnet18" in arguments))
    process = started(serve_small, [*serve[1:], "--port", "0"], log=here / "log")
    try:
        kind = curl[curl.index("-H") + 1].partition(": ")[2]
        image = next((here / "new").rglob("*.png")).read_bytes()
        address = address_of(process, here / "log")
        answer = httpx.post(f"{address}/score", content=image, headers={"Content-Type": kind}, timeout=60)
        assert set(answer.json()) >= {"class", "confidence", "score", "p_value", "is_ood"}
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("page", [README, OF_0_1], ids=lambda page: page.stem)
def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: Path) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), scope)  # noqa: S102  # the project's own page
    assert (tmp_path / "detector.safetensors").is_file()


def test_what_stood_between_the_lines_of_0_1_works() -> None:
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


def test_links_lead_somewhere_make_targets_exist_and_what_is_gone_is_told() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line[1] for line in commands(README) if line[0] == "make"]
    assert targets
    assert [target for target in targets if f"\n{target}: " not in makefile] == []
    removed = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("Removed")[2]
    assert [option for option in ("--compile", 'ratios="auto"') if option not in removed] == []
