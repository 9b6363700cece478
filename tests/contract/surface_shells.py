"""What answers outside of Python: the HTTP service and the command line."""

import asyncio
import csv
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import httpx
import torch
from torch import Tensor, nn

from opnp.data import Preprocessing, write_features
from opnp.serve.app import serve_app
from opnp.serve.limits import Limits
from tests.contract.shell import Fused, Holder, save_model, subject
from tests.contract.world import classifier, features
from tests.in_process import run_opnp
from tests.unit.data.image_files import write_tensors
from tests.unit.serve.serve_world import in_service

__all__ = ["Command", "RefusedError", "Service", "net"]

_FEATURES_ONLY = "features are given, and no model runs"

PIXELS = Preprocessing(size=8, resize=8, mean=(0.0,), std=(1.0,))
"""What the world's images are, in files and in arrays."""


class RefusedError(Exception):
    """The service answered with a status that says no, or the command with an exit code that does."""


class Surface(Holder):
    """A fitted detector behind a surface, with answers of which each is a row of all values."""

    tolerance = 1e-6
    on_empty = RefusedError
    on_nan = RefusedError

    def rows(self, inputs: Tensor) -> list[dict[str, Any]]:
        """Return ``class``, ``score``, ``p_value`` and ``is_ood`` of each image."""
        raise NotImplementedError

    def scores(self, inputs: Tensor) -> Tensor:
        return torch.tensor([row["score"] for row in self.rows(inputs)], dtype=torch.float64)

    def p_values(self, inputs: Tensor) -> Tensor:
        return torch.tensor([row["p_value"] for row in self.rows(inputs)], dtype=torch.float64)

    def verdicts(self, inputs: Tensor) -> Tensor:
        return torch.tensor([row["is_ood"] for row in self.rows(inputs)])

    def classes(self, inputs: Tensor) -> Tensor:
        return torch.tensor([row["class"] for row in self.rows(inputs)])


@subject("service")
class Service(Surface):
    """`serve_app`, asked over HTTP without a network."""

    plural = "HTTP services"
    covers = ("opnp.serve.app.serve_app", "opnp.serve.engine.Engine")
    concurrency = 1e-6
    errors = (RuntimeError,)
    lacks: ClassVar = {
        "copies": "a service is started anew from its detector",
        "files": "a service is started anew from its detector",
        "labels": "a request holds inputs alone",
        "nan": "JSON has no NaN; tests/unit/serve has what becomes of numbers that are none",
        "parameters": "its limits are those of the server, not of the detector",
        "refit": "a service answers, and nothing can be fitted through it",
        "sums": "a service answers, and nothing can be fitted through it",
    }

    def make(self) -> Any:
        return serve_app(self.detector, self.model, PIXELS, limits=Limits(max_inputs=1000))

    def rows(self, inputs: Tensor) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = _posted(self.answering, [inputs.tolist()])[0]
        return found

    def concurrent_scores(self, parts: list[Tensor]) -> list[Tensor]:
        answers = _posted(self.answering, [part.tolist() for part in parts])
        return [torch.tensor([row["score"] for row in rows], dtype=torch.float64) for rows in answers]

    def running_model(self) -> nn.Module:
        return self.model

    def switch_to_training(self) -> None:
        self.model.train()


@subject("command")
class Command(Surface):
    """`opnp score --features`."""

    plural = "runs of opnp score on features"
    covers: ClassVar[tuple[str, ...]] = ("opnp.cli.score.score",)
    lacks: ClassVar = {
        "copies": "a command has no state",
        "files": "each run reads its detector from a file, as a run elsewhere does",
        "model": _FEATURES_ONLY,
        "modes": _FEATURES_ONLY,
        "parameters": "a command has no state",
        "refit": "the command scores, and `opnp fit` fits",
        "sums": "the command scores, and `opnp fit` fits",
        "threads": "a command is a process of its own",
    }

    def rows(self, inputs: Tensor) -> list[dict[str, Any]]:
        return self._run(inputs, None)

    def labelled_scores(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return torch.tensor([row["score"] for row in self._run(inputs, labels)], dtype=torch.float64)

    def _run(self, inputs: Tensor, labels: Tensor | None) -> list[dict[str, Any]]:
        with TemporaryDirectory() as name:
            folder = Path(name)
            self.detector.save(folder / "detector")
            data = self._data(folder, inputs, labels)
            given = ("--detector", folder / "detector", "--out", folder / "scores.csv", *data)
            code, _, errors = run_opnp("score", *given)
            if code:
                raise RefusedError(code, errors)
            with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
                found = list(csv.DictReader(file))
        assert [int(row["index"]) for row in found] == list(range(len(inputs))), "rows are not in the inputs' order"
        return [
            {
                "class": int(row["predicted_class"]),
                "score": float(row["score"]),
                "p_value": float(row["p_value"]),
                "is_ood": row["is_ood"] == "True",
            }
            for row in found
        ]

    def _data(self, folder: Path, inputs: Tensor, labels: Tensor | None) -> list[object]:
        write_features(folder / "features.safetensors", features(inputs), labels=labels)
        return ["--features", folder / "features.safetensors"]


@subject("command_on_images")
class ModelCommand(Command):
    """`opnp score --model`."""

    plural = "runs of opnp score on images"
    lacks: ClassVar = {
        **Command.lacks,
        "model": "each run opens a copy of the model by its name",
        "modes": "each run opens a copy of the model by its name",
        "nan": "pixels of a file are whole numbers",
    }

    def _data(self, folder: Path, inputs: Tensor, labels: Tensor | None) -> list[object]:
        images = write_tensors(folder / "images.safetensors", (inputs[:, 0] * 255).round().to(torch.uint8), labels)
        save_model(self.model, folder)
        named = ("--model", f"{__name__}:net", "--weights", folder / "model.pt")
        return [*named, "--data", images, "--image-size", "8", "--mean", "0", "--std", "1"]


@subject("fused_service")
class FusedService(Fused, Service):
    plural = "HTTP services with fusions"
    tolerance = 1e-5
    concurrency = 1e-5


@subject("fused_command")
class FusedCommand(Fused, Command):
    plural = "runs of opnp score with fusions"
    tolerance = 1e-5


def net() -> nn.Module:
    """Return the world's model, for the command line."""
    return classifier()


def _posted(app: Any, bodies: Sequence[object]) -> list[Any]:
    """Return the answers to bodies that are sent at once, each in a request of its own."""

    async def ask(client: httpx.AsyncClient) -> list[Any]:
        answers = await asyncio.gather(*(client.post("/score", json=body) for body in bodies))
        for answer in answers:
            if answer.status_code != 200:
                raise RefusedError(answer.status_code, answer.text)
        return [answer.json() for answer in answers]

    return in_service(app, ask)
