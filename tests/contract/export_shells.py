"""What a detector is exported as: a module, a module for features, a program of torch and an ONNX file."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from opnp import OPNP, Ratios
from opnp.export import DetectorModule, write_onnx, write_program
from tests.contract.shell import KEEP, Fused, Shell, features, fresh, known
from tests.contract.world import batches

__all__ = [
    "ExportShell",
    "FusedJudgeShell",
    "FusedModuleShell",
    "FusedOnnxShell",
    "FusedProgramShell",
    "JudgeShell",
    "ModuleShell",
    "OnnxShell",
    "ProgramShell",
    "onnx_answers",
]

_MADE = "it is made of a fitted detector, and never fitted itself"
_GRAPH = "a graph holds a copy of the model, and none of its code"


class ExportShell(Shell):
    """What all of them have in common: a fitted detector, and what is made of it when it is asked for."""

    tolerance = 1e-6
    on_nan = "flagged"
    detector: OPNP

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]  # those of a shell
        self.detector = OPNP(**self.options)
        self._made: Any = None

    def fit(self, training: Tensor | None = None, held_out: Tensor | None = None) -> Self:
        self.detector.fit(self.model, batches(known() if training is None else training))
        self.detector.calibrate(batches(fresh() if held_out is None else held_out), keep=KEEP)
        self._made = self.exported()
        return self

    @property
    def made(self) -> Any:
        """What was exported; where nothing was, the error of trying."""
        return self.exported() if self._made is None else self._made

    def exported(self) -> Any:
        """Return what the detector is exported as."""
        raise NotImplementedError

    def answers(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return (logits, score, p_value, is_ood) of images."""
        raise NotImplementedError

    def scores(self, inputs: Tensor) -> Tensor:
        return self.answers(inputs)[1]

    def p_values(self, inputs: Tensor) -> Tensor:
        return self.answers(inputs)[2]

    def verdicts(self, inputs: Tensor) -> Tensor:
        return self.answers(inputs)[3]

    def calibrated_on(self) -> Tensor:
        return fresh()

    def set_ratios(self, ratios: Ratios) -> None:
        self.ratios = ratios
        self.detector = self.detector.with_ratios(ratios).calibrate(batches(fresh()), keep=KEEP)
        self._made = self.exported()


class ModuleShell(ExportShell):
    """`OPNP.to_module`, run as it is."""

    plural = "modules"
    covers = ("opnp.export.module.DetectorModule",)
    tolerance = 0.0
    lacks: ClassVar = {
        "files": "a module travels as a program or an ONNX file",
        "labels": "a module takes what the model takes",
        "parameters": "a module has no options",
        "refit": _MADE,
        "sums": "a module holds no sensitivities",
    }

    def exported(self) -> DetectorModule:
        return self.detector.to_module()

    def answers(self, inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            logits, score, p_value = self.made(inputs)
        return logits, score, p_value, self.made.judge.is_ood(score)

    def classes(self, inputs: Tensor) -> Tensor:
        return self.answers(inputs)[0].argmax(1)

    def state(self) -> bytes:
        return _tensor_bytes(self.made)

    def copied(self) -> Shell:
        other = type(self)(self.ratios)
        other._made = copy.deepcopy(self.made)
        return other

    def running_model(self) -> nn.Module:
        model: nn.Module = self.made.model
        return model

    def switch_to_training(self) -> None:
        self.made.train()


class JudgeShell(ExportShell):
    """The part of a module that takes features."""

    plural = "modules for features"
    covers = ("opnp.export.module.FeatureJudge",)
    lacks: ClassVar = {
        "classes": "it has the pruned head alone",
        "files": "it travels inside a program or an ONNX file",
        "labels": "it takes features alone",
        "model": "features are given, and no model runs",
        "parameters": "a module has no options",
        "refit": _MADE,
        "sums": "a module holds no sensitivities",
    }

    def exported(self) -> nn.Module:
        return self.detector.to_module().judge

    def answers(self, inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            score, p_value, is_ood = self.made(features(inputs))
        return score, score, p_value, is_ood

    def state(self) -> bytes:
        return _tensor_bytes(self.made)

    def copied(self) -> Shell:
        other = type(self)(self.ratios)
        other._made = copy.deepcopy(self.made)
        return other

    def switch_to_training(self) -> None:
        self.made.train()


_FILES: dict[tuple[str, bool, Ratios | None], bytes] = {}
"""Files by the interface and the detector: they take seconds to write, and are the same every time."""


class FileShell(ExportShell):
    """What the files have in common."""

    ending: ClassVar[str]
    lacks: ClassVar = {
        "copies": "a file is copied as files are",
        "labels": "a graph takes what the model takes",
        "model": _GRAPH,
        "modes": _GRAPH,
        "parameters": "a file has no options",
        "refit": _MADE,
        "sums": "a file holds no sensitivities",
    }

    def exported(self) -> Any:
        return _opened(type(self), self.content())

    def content(self) -> bytes:
        """Return the file of the detector as it is now."""
        key = self.ending, self.is_fusion, self.ratios
        if key not in _FILES or not self.detector.is_fitted:
            with TemporaryDirectory() as folder:
                self.write(Path(folder) / "file")
                _FILES[key] = (Path(folder) / "file").read_bytes()
        return _FILES[key]

    def write(self, path: Path) -> None:
        """Write the file."""
        raise NotImplementedError

    @classmethod
    def opened(cls, content: bytes) -> Any:
        """Return what answers, from the bytes of a file."""
        raise NotImplementedError

    def classes(self, inputs: Tensor) -> Tensor:
        return self.answers(inputs)[0].argmax(1)

    def sent(self, folder: Path) -> None:
        (folder / "file").write_bytes(self.content())

    @classmethod
    def received(cls, folder: Path) -> Shell:
        other = cls()
        other._made = _opened(cls, (folder / "file").read_bytes())
        return other


_OPENED: dict[tuple[type[FileShell], bytes], Any] = {}
"""What answers, by the content of its file: it holds no state, and takes a while to open."""


def _opened(kind: type[FileShell], content: bytes) -> Any:
    """Return what answers, from the bytes of a file."""
    if (kind, content) not in _OPENED:
        _OPENED[kind, content] = kind.opened(content)
    return _OPENED[kind, content]


class ProgramShell(FileShell):
    """The program of `torch.export`, saved and loaded."""

    plural = "programs of torch.export"
    covers = ("opnp.export.files.write_program",)
    ending = "pt2"

    def write(self, path: Path) -> None:
        write_program(path, self.detector.to_module(), fresh()[:3])

    @classmethod
    def opened(cls, content: bytes) -> Any:
        with TemporaryDirectory() as folder:
            (Path(folder) / "file").write_bytes(content)
            return torch.export.load(Path(folder) / "file").module()

    def answers(self, inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found: tuple[Tensor, ...] = tree_map(torch.Tensor.detach, tuple(self.made(inputs)))
        return found

    def state(self) -> bytes:
        return _tensor_bytes(self.made)


class OnnxShell(FileShell):
    """The ONNX file, run by onnxruntime."""

    plural = "ONNX files"
    covers = ("opnp.export.files.write_onnx",)
    tolerance = 1e-5
    ending = "onnx"

    def write(self, path: Path) -> None:
        write_onnx(path, self.detector.to_module(), fresh()[:3])

    @classmethod
    def opened(cls, content: bytes) -> Any:
        import onnxruntime  # type: ignore[import-untyped]  # the package ships no types

        return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def answers(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return onnx_answers(self.made, inputs)

    def state(self) -> bytes:
        return self.content()


class FusedModuleShell(Fused, ModuleShell):
    """The module of a fusion."""

    plural = "modules of fusions"


class FusedJudgeShell(Fused, JudgeShell):
    """The part of a fusion's module that takes features."""

    plural = "modules of fusions for features"
    tolerance = 1e-5


class FusedProgramShell(Fused, ProgramShell):
    """The program of a fusion."""

    plural = "programs of fusions"
    tolerance = 1e-5


class FusedOnnxShell(Fused, OnnxShell):
    """The ONNX file of a fusion."""

    plural = "ONNX files of fusions"


def onnx_answers(session: Any, inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs of a session for images."""
    found = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    return tuple(torch.from_numpy(values) for values in found)


def _tensor_bytes(module: nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values())
