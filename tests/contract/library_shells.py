"""The detector of the library in its several ways: inputs, features, loaded, its heads alone, and its exports."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from opnp import ASHS, MEMBERS, SCALE, Ratios, ReAct, energy_score
from opnp.core import Sensitivity
from opnp.errors import EmptyDataError
from opnp.export import write_onnx, write_program
from tests.contract.shell import KEEP, SETTING, Fused, Holder, Shell, load_model, save_model, subject
from tests.contract.world import features, fresh, head_of

__all__ = [
    "Features",
    "FusedFeatures",
    "FusedInputs",
    "FusedJudge",
    "Inputs",
    "Judge",
    "Module",
    "Onnx",
]

_FEATURES_ONLY = "features are given, and no model runs"


class Library(Holder):
    """What all ways to ask the detector itself have in common."""

    def refit(self, training: Tensor, held_out: Tensor) -> None:
        self.fit(training, held_out)

    def sensitivity(self) -> Sensitivity:
        return self.detector.sensitivity

    def parameters(self) -> object:
        return repr(self.detector.settings)

    def copied(self) -> Shell:
        return self.by_files()


@subject("inputs")
class Inputs(Library):
    plural = "detectors on inputs"
    covers = ("opnp.OPNP",)

    def scores(self, inputs: Tensor) -> Tensor:
        return self.detector.score(inputs)

    def verdicts(self, inputs: Tensor) -> Tensor:
        return self.detector.predict(inputs)

    def p_values(self, inputs: Tensor) -> Tensor:
        return self.detector.p_value(inputs)

    def classes(self, inputs: Tensor) -> Tensor:
        return self.detector.verdict(inputs).predicted_class

    def labelled_scores(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return self.detector.score((inputs, labels))

    def running_model(self) -> nn.Module:
        return self.model

    def switch_to_training(self) -> None:
        self.model.train()

    def sent(self, folder: Path) -> None:
        save_model(self.model, folder)
        self.detector.save(folder / "detector")

    @classmethod
    def received(cls, folder: Path) -> Shell:
        other = cls()
        load_model(other.model, folder)
        other.detector = cls.made_of.load(folder / "detector", model=other.model)
        return other


@subject("loaded")
class Loaded(Inputs):
    plural = "saved and loaded detectors"
    covers = ("opnp.OPNP.load",)
    lacks: ClassVar = {"unfitted": "a detector that was never fitted cannot be saved, so that none is loaded"}

    def fit_on(self, training: Tensor, held_out: Tensor) -> None:
        super().fit_on(training, held_out)
        with TemporaryDirectory() as folder:
            self.detector.save(Path(folder) / "detector")
            self.detector = self.made_of.load(Path(folder) / "detector", model=self.model)


@subject("features")
class Features(Library):
    plural = "detectors on cached features"
    covers = ("opnp.OPNP.fit_features",)
    on_empty = EmptyDataError
    lacks: ClassVar = {
        "labels": "`score_features` takes features alone",
        "model": _FEATURES_ONLY,
        "modes": _FEATURES_ONLY,
    }

    def fit_on(self, training: Tensor, held_out: Tensor) -> None:
        head = head_of(self.model)
        self.detector.fit_features(features(training), weight=head.weight, bias=head.bias)
        self.detector.calibrate_features(features(held_out), keep=KEEP)

    def scores(self, inputs: Tensor) -> Tensor:
        return self.detector.score_features(features(inputs))

    def verdicts(self, inputs: Tensor) -> Tensor:
        return self.detector.predict_features(features(inputs))

    def p_values(self, inputs: Tensor) -> Tensor:
        return self.detector.p_value_features(features(inputs))

    def classes(self, inputs: Tensor) -> Tensor:
        return self.detector.classify_features(features(inputs))

    def set_ratios(self, ratios: Ratios) -> None:
        self.ratios = ratios
        self.detector = self.detector.with_ratios(ratios).calibrate_features(features(fresh()), keep=KEEP)

    def sent(self, folder: Path) -> None:
        self.detector.save(folder / "detector")

    @classmethod
    def received(cls, folder: Path) -> Shell:
        other = cls()
        other.detector = cls.made_of.load(folder / "detector")
        return other


@subject("fused_inputs")
class FusedInputs(Fused, Inputs):
    plural = "fusions on inputs"


@subject("fused_loaded")
class FusedLoaded(Fused, Loaded):
    plural = "saved and loaded fusions"


@subject("fused_features")
class FusedFeatures(Fused, Features):
    plural = "fusions on cached features"


_ALL = Ratios(w_min=0.3, w_max=0.05, o_min=0.1, o_max=0.1)
_SETTINGS: dict[str, dict[str, Any]] = {
    "energy": {"ratios": Ratios()},
    "opp": {"ratios": Ratios(w_min=0.3, w_max=0.02)},
    "onp_gradient": {"ratios": Ratios(o_min=0.2, o_max=0.1), "neuron": "gradient"},
    "onp_aggregate": {"ratios": Ratios(o_min=0.2, o_max=0.1), "neuron": "aggregate"},
    "opnp": {"ratios": _ALL},
    "opnp_class": {"ratios": _ALL, "scope": "class"},
    "opnp_float64": {"ratios": _ALL, "precision": "float64"},
    "opnp_class_float64": {
        "ratios": Ratios(w_min=0.2, o_min=0.1),
        "scope": "class",
        "neuron": "aggregate",
        "precision": "float64",
    },
    "opnp_temperature": {"ratios": _ALL, "temperature": 2.0},
    "opp_react": {"ratios": Ratios(w_min=0.3), "shaping": ReAct(0.95)},
    "opp_ash_s": {"ratios": Ratios(w_min=0.3), "shaping": ASHS(0.5)},
    "opp_scale": {"ratios": Ratios(w_min=0.3), "shaping": SCALE(0.5)},
    **{f"opp_{name}": {"ratios": Ratios(w_min=0.3), "score": name} for name in ("msp", "max_logit", "entropy", "gen")},
    "fusion": {},
    "fusion_float64": {"precision": "float64"},
    "fusion_of_two": {"members": ("mahalanobis", "norm")},
    "fusion_of_all": {"members": MEMBERS},
}
for _name, _given in _SETTINGS.items():
    _base = Inputs if "ratios" in _given else FusedInputs
    subject(f"{SETTING}{_name}")(
        type(f"Setting{_name}", (_base,), {"plural": "detectors under their settings", "given": _given})
    )


@subject("compact_head")
class Head(Holder):
    """A pruned head alone, with the energy of its logits: the product that other software takes."""

    plural = "pruned heads"
    covers = ("opnp.export.module.CompactHead",)
    tolerance = 1e-6
    on_nan = "passed on"
    lacks: ClassVar = {
        "calibration": "a head gives logits, and has no threshold",
        "classes": "its classes are those of the pruned head, and no part of the contract",
        "files": "a module is saved by its state dict, as any other",
        "labels": "a head takes features alone",
        "model": _FEATURES_ONLY,
        "modes": _FEATURES_ONLY,
        "p-values": "a head gives logits",
        "parameters": "a head has weights, no options",
        "refit": "a head is made anew from a fitted detector",
        "sums": "a head holds no sensitivities",
        "verdicts": "a head gives logits",
    }
    calibrated_on = Shell.calibrated_on

    def make(self) -> nn.Module:
        return self.detector.compact_head()

    def scores(self, inputs: Tensor) -> Tensor:
        return energy_score(self.answering(features(inputs)))

    def state(self) -> bytes:
        return _tensor_bytes(self.answering)

    def copied(self) -> Shell:
        other = type(self)(self.ratios)
        other.made = copy.deepcopy(self.answering)
        return other


@subject("pruned_head")
class PlainHead(Head):
    def make(self) -> nn.Module:
        return self.detector.pruned_head


_MADE = "it is made of a fitted detector, and never fitted itself"
_GRAPH = "a graph holds a copy of the model, and none of its code"


class Export(Holder):
    """What the exports have in common."""

    tolerance = 1e-6
    on_nan = "flagged"

    def answers(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return (logits, score, p_value, is_ood) of images."""
        raise NotImplementedError

    def scores(self, inputs: Tensor) -> Tensor:
        return self.answers(inputs)[1]

    def p_values(self, inputs: Tensor) -> Tensor:
        return self.answers(inputs)[2]

    def verdicts(self, inputs: Tensor) -> Tensor:
        return self.answers(inputs)[3]

    def state(self) -> bytes:
        return _tensor_bytes(self.answering)


@subject("module")
class Module(Export):
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

    def make(self) -> nn.Module:
        return self.detector.to_module()

    def answers(self, inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            logits, score, p_value = self.answering(inputs)
        return logits, score, p_value, self.answering.judge.is_ood(score)

    def classes(self, inputs: Tensor) -> Tensor:
        return self.answers(inputs)[0].argmax(1)

    def copied(self) -> Shell:
        other = type(self)(self.ratios)
        other.made = copy.deepcopy(self.answering)
        return other

    def running_model(self) -> nn.Module:
        model: nn.Module = self.answering.model
        return model

    def switch_to_training(self) -> None:
        self.answering.train()


@subject("feature_judge")
class Judge(Module):
    plural = "modules for features"
    covers = ("opnp.export.module.FeatureJudge",)
    tolerance = 1e-6
    lacks: ClassVar = {
        **Module.lacks,
        "classes": "it has the pruned head alone",
        "labels": "it takes features alone",
        "model": _FEATURES_ONLY,
    }
    classes = Shell.classes
    running_model = Shell.running_model

    def make(self) -> nn.Module:
        return self.detector.to_module().judge

    def answers(self, inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            score, p_value, is_ood = self.answering(features(inputs))
        return score, score, p_value, is_ood


_FILES: dict[tuple[str, Ratios | None], bytes] = {}
"""Files by the interface and the ratios: they take seconds to write, and are the same every time."""

_OPENED: dict[bytes, Any] = {}
"""What answers, by the content of its file: it holds no state, and takes a while to open."""


class File(Export):
    """What the files have in common."""

    lacks: ClassVar = {
        "copies": "a file is copied as files are",
        "labels": "a graph takes what the model takes",
        "model": _GRAPH,
        "modes": _GRAPH,
        "parameters": "a file has no options",
        "refit": _MADE,
        "sums": "a file holds no sensitivities",
    }

    def make(self) -> Any:
        return self.opened(self.content())

    def content(self) -> bytes:
        """Return the file of the detector as it is now."""
        key = self.plural, self.ratios
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
        if content not in _OPENED:
            _OPENED[content] = cls.read(content)
        return _OPENED[content]

    @classmethod
    def read(cls, content: bytes) -> Any:
        """Return what answers, read anew."""
        raise NotImplementedError

    def classes(self, inputs: Tensor) -> Tensor:
        return self.answers(inputs)[0].argmax(1)

    def sent(self, folder: Path) -> None:
        (folder / "file").write_bytes(self.content())

    @classmethod
    def received(cls, folder: Path) -> Shell:
        other = cls()
        other.made = cls.opened((folder / "file").read_bytes())
        return other


@subject("program")
class Program(File):
    plural = "programs of torch.export"
    covers = ("opnp.export.files.write_program",)

    def write(self, path: Path) -> None:
        write_program(path, self.detector.to_module(), fresh()[:3])

    @classmethod
    def read(cls, content: bytes) -> Any:
        with TemporaryDirectory() as folder:
            (Path(folder) / "file").write_bytes(content)
            return torch.export.load(Path(folder) / "file").module()

    def answers(self, inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found: tuple[Tensor, ...] = tree_map(torch.Tensor.detach, tuple(self.answering(inputs)))
        return found


@subject("onnx")
class Onnx(File):
    plural = "ONNX files"
    covers = ("opnp.export.files.write_onnx",)
    tolerance = 1e-5

    def write(self, path: Path) -> None:
        write_onnx(path, self.detector.to_module(), fresh()[:3])

    @classmethod
    def read(cls, content: bytes) -> Any:
        import onnxruntime  # type: ignore[import-untyped]  # the package ships no types

        return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def answers(self, inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.answering.run(None, {self.answering.get_inputs()[0].name: inputs.numpy()})
        return tuple(map(torch.from_numpy, found))

    def state(self) -> bytes:
        return self.content()


@subject("fused_module")
class FusedModule(Fused, Module):
    plural = "modules of fusions"


@subject("fused_feature_judge")
class FusedJudge(Fused, Judge):
    plural = "modules of fusions for features"
    tolerance = 1e-5


@subject("fused_program")
class FusedProgram(Fused, Program):
    plural = "programs of fusions"
    tolerance = 1e-5


@subject("fused_onnx")
class FusedOnnx(Fused, Onnx):
    plural = "ONNX files of fusions"


def _tensor_bytes(module: nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values())
