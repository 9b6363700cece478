"""From the name of a model to a fit, scores, an exported file and back: the numbers of the library on that model."""

import csv
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

from opnp import OPNP, Ratios
from opnp.adapters import PrototypeHead, SentenceClassifier, chosen_preprocessing, model_from_name
from opnp.data import open_inputs, write_head
from tests.in_process import Opnp, done, refused
from tests.integration.cli_world import write_world
from tests.unit.adapters.hub_caches import (
    TORCHVISION,
    cached,
    is_installed,
    offline_cache,
    write_sentence_encoder,
    write_timm,
    write_torchvision,
)
from tests.unit.adapters.hub_folders import TEXT_CLASSES, write_bert, write_vit

_TRANSFORMERS: Any = transformers  # typed in parts only


@dataclass(frozen=True)
class Case:
    """A model by its name, and the same made by its own library.

    Attributes:
        name: What ``--model`` takes.
        own: The model as its library makes it.
        weights: What ``--weights`` takes, or None.
        suffix: Ending of the files of inputs.

    """

    name: str
    own: Callable[[], nn.Module]
    weights: str | None = None
    suffix: str = ".safetensors"

    @property
    def arguments(self) -> list[str]:
        return ["--model", self.name, *([] if self.weights is None else ["--weights", self.weights])]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand in a folder with inputs, beside caches of hubs; every attempt to reach the network fails the test."""

    def connect(*_: object) -> None:
        pytest.fail("the network was asked for")

    (tmp_path / "world").mkdir()
    monkeypatch.chdir(write_world(tmp_path / "world"))
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.syspath_prepend(Path.cwd())
    yield offline_cache(tmp_path / "cache", monkeypatch)
    for module in ("litnet", "mynet"):
        sys.modules.pop(module, None)


def _timm(cache: Path) -> Case:
    cached(cache, "timm/test_resnet.r160_in1k", write_timm(cache.parent / "timm", classes=1000))
    return Case("timm:test_resnet.r160_in1k", lambda: timm.create_model("test_resnet.r160_in1k", pretrained=True))


def _timm_on_hub(cache: Path) -> Case:
    cached(cache, "org/tiny", write_timm(cache.parent / "timm"))
    return Case("timm:hf-hub:org/tiny", lambda: timm.create_model("hf-hub:org/tiny", pretrained=True))


def _torchvision(cache: Path) -> Case:
    write_torchvision(cache)
    own = lambda: models.get_model(TORCHVISION, weights="IMAGENET1K_V1")  # noqa: E731  # as the others
    return Case(f"torchvision:{TORCHVISION}@IMAGENET1K_V1", own)


def _hf_folder(cache: Path) -> Case:
    folder = write_vit(cache.parent / "world" / "vit")
    return Case(f"hf:{folder}", lambda: _TRANSFORMERS.ViTForImageClassification.from_pretrained(folder))


def _hf_on_hub(cache: Path) -> Case:
    cached(cache, "org/vit", write_vit(cache.parent / "vit"))
    return Case("hf:org/vit", lambda: _TRANSFORMERS.ViTForImageClassification.from_pretrained("org/vit"))


def _hf_texts_on_hub(cache: Path) -> Case:
    cached(cache, "org/bert", write_bert(cache.parent / "bert"))
    own = lambda: _TRANSFORMERS.BertForSequenceClassification.from_pretrained("org/bert")  # noqa: E731  # as above
    return Case("hf:org/bert", own, suffix=".jsonl")


def _sentences(cache: Path, name: str) -> Case:
    """Return a sentence encoder with class prototypes as its head."""
    if not is_installed("sentence_transformers"):
        pytest.skip("sentence-transformers is not installed")
    from sentence_transformers import SentenceTransformer

    head = PrototypeHead(torch.randn(TEXT_CLASSES, 16, generator=torch.Generator().manual_seed(0)), scale=20.0)
    write_head("head.safetensors", head.linear.weight)
    own = lambda: SentenceClassifier(SentenceTransformer(name, device="cpu"), head)  # noqa: E731  # as above
    return Case(f"sentence-transformers:{name}", own, "head.safetensors", ".jsonl")


def _sentences_of_a_folder(cache: Path) -> Case:
    write_sentence_encoder(cache.parent / "world" / "minilm")
    return _sentences(cache, "minilm")


def _sentences_on_hub(cache: Path) -> Case:
    cached(cache, "sentence-transformers/tiny", write_sentence_encoder(cache.parent / "tiny"))
    return _sentences(cache, "tiny")


def _module(cache: Path) -> Case:
    (cache.parent / "world" / "mynet.py").write_text(_MODULE, encoding="utf-8")
    return Case("mynet:net", lambda: import_module("mynet").net())


def _lightning(cache: Path) -> Case:
    """Return the network inside a module of Lightning, with a checkpoint that its trainer wrote."""
    if not is_installed("lightning"):
        pytest.skip("lightning is not installed")
    import lightning

    (cache.parent / "world" / "litnet.py").write_text(_LIGHTNING, encoding="utf-8")
    kind = import_module("litnet").Classifier
    options: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # of torch's newer names, and of few workers
        trainer = lightning.Trainer(max_epochs=1, enable_checkpointing=False, **options)
        module = kind(classes=5)
        trainer.fit(module, DataLoader(TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8) % 5), batch_size=4))
        trainer.save_checkpoint("last.ckpt")
    return Case("litnet:network", lambda: module.net, "last.ckpt")


_LIGHTNING = """
import lightning
import torch
from torch import nn


def network(classes=5):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 24), nn.ReLU(), nn.Linear(24, classes))


class Classifier(lightning.LightningModule):
    def __init__(self, classes):
        super().__init__()
        self.save_hyperparameters()
        self.net = network(classes)

    def training_step(self, batch, index):
        inputs, labels = batch
        return nn.functional.cross_entropy(self.net(inputs), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)
"""
_MODULE = """
import torch
from torch import nn


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 24), nn.ReLU(), nn.Linear(24, 5))
"""
_OF_MODULE = ("--image-size", "8", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
_RATIOS = ("--rho-w-min", "0.25")
_SMALL = ("--image-size", "32")
_NUMBERS: dict[tuple[str, ...], dict[str, Any]] = {
    _OF_MODULE: {"image_size": 8, "mean": [0.5] * 3, "std": [0.25] * 3},
    _SMALL: {"image_size": 32},
}
"""What options say, in Python."""
_CASES = (
    _timm,
    _timm_on_hub,
    _torchvision,
    _hf_folder,
    _hf_on_hub,
    _hf_texts_on_hub,
    _sentences_of_a_folder,
    _sentences_on_hub,
    _module,
    _lightning,
)


def _of_inputs(case: Case) -> tuple[str, ...]:
    """Return what is said of the inputs beside the name."""
    return {"mynet": _OF_MODULE, "litnet": _OF_MODULE, "timm": _SMALL, "torchvision": _SMALL}.get(
        case.name.partition(":")[0], ()
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", _CASES)
def test_a_name_goes_to_a_fit_scores_an_exported_file_and_back(
    opnp: Opnp, cache: Path, make: Callable[[Path], Case]
) -> None:
    case = make(cache)
    given = (*case.arguments, *_of_inputs(case), "--data", f"train{case.suffix}")
    done(
        opnp,
        "fit",
        *given,
        "--validation",
        f"validation{case.suffix}",
        "--batch-size",
        16,
        *_RATIOS,
        "--out",
        "d.safetensors",
    )
    assert str(cache.parent).encode() not in Path("d.safetensors").read_bytes()
    done(opnp, "score", "d.safetensors", f"test{case.suffix}", "--out", "scores.csv")
    done(opnp, "export", "d.safetensors", "--out", "d.pt2")
    with Path("scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    loaded = OPNP.load("d.safetensors")
    assert loaded.origin is not None
    transform = _transform(case)
    sets = {name: open_inputs(f"{name}{case.suffix}", transform) for name in ("train", "validation", "test")}
    model = case.own()
    detector = OPNP(ratios=Ratios(w_min=0.25)).fit(
        model, sets["train"].batches(16), validation=sets["validation"].batches(16)
    )
    (batch,) = sets["test"].batches(10)
    verdict = detector.verdict(batch)
    scores = torch.tensor([float(row["score"]) for row in rows])
    torch.testing.assert_close(scores, verdict.score.to(scores), rtol=1e-4, atol=1e-5)
    assert [int(row["predicted_class"]) for row in rows] == verdict.predicted_class.tolist()
    program = torch.export.load("d.pt2").module()
    inputs = batch[0] if isinstance(batch, tuple) else batch
    _, exported, *_ = program(inputs) if isinstance(inputs, torch.Tensor) else program(**inputs)
    torch.testing.assert_close(exported, verdict.score.to(exported), rtol=1e-4, atol=1e-5)


def _transform(case: Case) -> Any:
    """Return what makes the inputs of a case, by Python."""
    known = model_from_name(case.name, weights=case.weights)[1]
    return chosen_preprocessing(known, model=case.name, **_NUMBERS.get(_of_inputs(case), {}))


def test_default_weights_are_those_of_none_and_are_remembered_so(opnp: Opnp, cache: Path) -> None:
    case, written = _timm(cache), []
    for weights in ((), ("--weights", "DEFAULT")):
        given = (*case.arguments, *weights, *_SMALL, *_RATIOS, "--data", "train.safetensors", "--out", "d.safetensors")
        done(opnp, "fit", *given)
        written.append(Path("d.safetensors").read_bytes())
    assert written[0] == written[1]
    for weights in ((), ("--weights", "DEFAULT")):
        done(opnp, "score", "d.safetensors", "test.safetensors", *weights, "--out", "scores.csv")
    given = ("fit", "--model", "mynet:net", "--weights", "DEFAULT", "--data", "train.safetensors", "--out", "e.st")
    assert "DEFAULT stands for the pretrained weights of a hub" in refused(opnp, *given)
    sentences = [each.replace("mynet:net", "sentence-transformers:all-MiniLM-L6-v2") for each in given]
    assert "`--weights` is the file of its head" in refused(opnp, *sentences)


@pytest.mark.slow
def test_the_cache_that_the_environment_names_is_read(cache: Path) -> None:
    """As somebody without network has it: ``HF_HOME`` with the layout of downloads, ``HF_HUB_OFFLINE``."""
    cached(cache.parent / "home" / "hub", "org/vit", write_vit(cache.parent / "vit"))
    environment = os.environ | {"HF_HOME": str(cache.parent / "home"), "HF_HUB_OFFLINE": "1"}
    given = ("fit", "--data", "train.safetensors", *_RATIOS, "--out", "d.safetensors", "--model")

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "opnp", *given, name]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    finished = run("hf:org/vit")
    assert finished.returncode == 0, finished.stderr
    assert OPNP.load("d.safetensors").origin is not None
    finished = run("hf:org/absent")
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert "not in the cache on this machine, and the network cannot be reached" in finished.stderr
