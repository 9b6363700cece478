"""The adapters for pytorch-ood and OpenOOD, and the methods of pytorch-ood that the library hands on."""

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from opnp import Ratios, Verdict
from opnp.adapters import PytorchOodBaseline, odin_scores
from opnp.adapters.openood import OPNPPostprocessor
from opnp.adapters.pytorch_ood import OPNPDetector
from opnp.adapters.toolkits import OPTION_DEFAULTS, bytes_of
from opnp.core import Sensitivity
from opnp.errors import EmptyDataError, NonFiniteError
from tests.contract.library_shells import load_model, save_model
from tests.contract.shell import NO_RATIOS, Fused, Shell, body_of, class_labels, features, head_of, known, plain
from tests.contract.snapshot import snapshot
from tests.contract.world import batches
from tests.unit.adapters.encoder_world import batches as openood_batches

__all__ = [
    "BaselineShell",
    "FusedOpenOodShell",
    "FusedPytorchOodFeatureShell",
    "FusedPytorchOodShell",
    "OdinShell",
    "OpenOodShell",
    "PytorchOodFeatureShell",
    "PytorchOodShell",
]

_NO_CALIBRATION: Mapping[str, str] = {
    "calibration": "the toolkit has scores alone, and takes thresholds from the data it tests on",
    "p-values": "the toolkit has scores alone",
    "verdicts": "the toolkit has scores alone",
}


def _ratio_options(ratios: Ratios | None) -> dict[str, Any]:
    return {} if ratios is None else {name: getattr(ratios, name) for name in Ratios.__slots__}


class PytorchOodShell(Shell):
    """`OPNPDetector` with an encoder."""

    plural = "detectors of pytorch-ood"
    covers: ClassVar[tuple[str, ...]] = ("opnp.adapters.pytorch_ood.OPNPDetector",)
    made_of: ClassVar[type[OPNPDetector]] = OPNPDetector
    on_nan = NonFiniteError
    on_empty = EmptyDataError
    lacks: ClassVar = {
        **_NO_CALIBRATION,
        "classes": "the toolkit asks for scores alone",
        "files": "an encoder is pickled as its owner can; what was fitted travels in detectors on features",
        "labels": "`predict` takes inputs alone",
    }

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]  # those of a shell
        self.detector = self._detector()

    def fit(self, training: Tensor | None = None, held_out: Tensor | None = None) -> Self:  # no calibration
        inputs = known() if training is None else training
        self.detector.fit(list(zip(batches(inputs), batches(class_labels(inputs)), strict=True)))
        return self

    def scores(self, inputs: Tensor) -> Tensor:
        return self.detector.predict(inputs)

    def state(self) -> bytes:
        return bytes_of(self.detector.opnp)

    def refit(self, training: Tensor, held_out: Tensor) -> None:
        self.fit(training, held_out)

    def set_ratios(self, ratios: Ratios) -> None:
        self.ratios = ratios
        self.detector.set_hyperparameters(**_ratio_options(ratios))

    def copied(self) -> Shell:
        other = type(self)(self.ratios)
        other.detector = copy.deepcopy(self.detector)
        return other

    def parameters(self) -> object:
        return [(name, getattr(self.detector, name)) for name in OPTION_DEFAULTS]

    def running_model(self) -> nn.Module:
        return self.model

    def switch_to_training(self) -> None:
        self.model.train()

    def sensitivity(self) -> Sensitivity:
        return self.detector.opnp.sensitivity

    def _detector(self) -> OPNPDetector:
        encoder: nn.Module = body_of(self.model)
        head = head_of(self.model)
        options = {**_ratio_options(self.ratios), "precision": self.precision}
        return self.made_of(encoder, head, **options)


class PytorchOodFeatureShell(PytorchOodShell):
    """`OPNPDetector` on features."""

    plural = "detectors of pytorch-ood on features"
    covers = ()
    lacks: ClassVar = {
        **_NO_CALIBRATION,
        "classes": "the toolkit asks for scores alone",
        "labels": "`predict_features` takes features alone",
        "model": "features are given, and no model runs",
        "modes": "features are given, and no model runs",
    }
    running_model = Shell.running_model
    switch_to_training = Shell.switch_to_training

    def fit(self, training: Tensor | None = None, held_out: Tensor | None = None) -> Self:  # no calibration
        inputs = known() if training is None else training
        self.detector.fit_features(features(inputs), class_labels(inputs))
        return self

    def scores(self, inputs: Tensor) -> Tensor:
        return self.detector.predict_features(features(inputs))

    def copied(self) -> Shell:
        other = type(self)(self.ratios)
        other.detector = pickle.loads(pickle.dumps(self.detector))  # noqa: S301  # made a moment ago
        return other

    def sent(self, folder: Path) -> None:
        (folder / "pickle").write_bytes(pickle.dumps(self.detector))

    @classmethod
    def received(cls, folder: Path) -> Shell:
        other = cls()
        other.detector = pickle.loads((folder / "pickle").read_bytes())  # noqa: S301  # written by this test
        return other

    def _detector(self) -> OPNPDetector:
        head = head_of(self.model)
        options = {**_ratio_options(self.ratios), "precision": self.precision}
        return self.made_of(None, head, **options)


class FusedPytorchOodShell(Fused, PytorchOodShell):
    """`OPNPDetector` with an encoder and no ratios."""

    plural = "fusions for pytorch-ood"
    lacks: ClassVar = {**PytorchOodShell.lacks, "ratios": NO_RATIOS}
    set_ratios = Shell.set_ratios


class FusedPytorchOodFeatureShell(Fused, PytorchOodFeatureShell):
    """`OPNPDetector` on features, with no ratios."""

    plural = "fusions for pytorch-ood on features"
    lacks: ClassVar = {**PytorchOodFeatureShell.lacks, "ratios": NO_RATIOS}
    set_ratios = Shell.set_ratios


class _Net(nn.Module):
    """A model with the interface that OpenOOD asks of its nets."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model
        self.training = False

    def forward(self, inputs: Tensor, return_feature: bool = False) -> Any:
        for name, layer in self.inner.named_children():
            if name == "head":
                return (layer(inputs), inputs) if return_feature else layer(inputs)
            inputs = layer(inputs.clone() if name == "convolution" else inputs)
        raise AssertionError

    def get_fc(self) -> tuple[np.ndarray, np.ndarray]:
        head = head_of(self.inner)
        return head.weight.detach().cpu().numpy(), head.bias.detach().cpu().numpy()


class OpenOodShell(Shell):
    """`OPNPPostprocessor`, asked by `inference` as OpenOOD's evaluator asks. Confidences are larger for ID."""

    plural = "postprocessors of OpenOOD"
    covers = ("opnp.adapters.openood.OPNPPostprocessor",)
    made_of: ClassVar[type[OPNPPostprocessor]] = OPNPPostprocessor
    sign = -1
    on_nan = NonFiniteError
    on_empty = EmptyDataError
    lacks: ClassVar = {**_NO_CALIBRATION}

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]  # those of a shell
        self.net = _Net(self.model)
        given = {**_ratio_options(self.ratios), "precision": self.precision}
        sweep = {f"{name}_list": [0.0, 0.1] for name in Ratios.__slots__}
        section = {"APS_mode": False, "postprocessor_args": given, "postprocessor_sweep": sweep}
        self.postprocessor = self.made_of({"postprocessor": section})

    def fit(self, training: Tensor | None = None, held_out: Tensor | None = None) -> Self:
        inputs = known() if training is None else training
        loaders = {"train": openood_batches(inputs, class_labels(inputs), size=32)}
        if held_out is not None:
            loaders["val"] = openood_batches(held_out, class_labels(held_out))
        self.postprocessor.setup(self.net, loaders, {"val": None})
        return self

    def scores(self, inputs: Tensor) -> Tensor:
        return self.labelled_scores(inputs, class_labels(inputs))

    def labelled_scores(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return self._inferred(inputs, labels)[1]

    def classes(self, inputs: Tensor) -> Tensor:
        return self._inferred(inputs, class_labels(inputs))[0]

    def state(self) -> bytes:
        return bytes_of(self.postprocessor.opnp)

    def owned(self) -> dict[str, object]:
        return snapshot(self.net)

    def refit(self, training: Tensor, held_out: Tensor) -> None:
        self.postprocessor.setup_flag = False
        self.fit(training, held_out)

    def set_ratios(self, ratios: Ratios) -> None:
        self.ratios = ratios
        self.postprocessor.set_hyperparam(list(_ratio_options(ratios).values()))

    def copied(self) -> Shell:
        other = type(self)(self.ratios)
        other.postprocessor = pickle.loads(pickle.dumps(self.postprocessor))  # noqa: S301  # made a moment ago
        return other

    def parameters(self) -> object:
        return self.postprocessor.options, self.postprocessor.get_hyperparam(), dict(self.postprocessor.args_dict)

    def running_model(self) -> nn.Module:
        return self.model

    def switch_to_training(self) -> None:
        self.net.train()

    def sensitivity(self) -> Sensitivity:
        return self.postprocessor.opnp.sensitivity

    def sent(self, folder: Path) -> None:
        save_model(self.model, folder)
        (folder / "pickle").write_bytes(pickle.dumps(self.postprocessor))

    @classmethod
    def received(cls, folder: Path) -> Shell:
        other = cls()
        load_model(other.model, folder)
        other.postprocessor = pickle.loads((folder / "pickle").read_bytes())  # noqa: S301  # written by this test
        return other

    def _inferred(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loader = openood_batches(inputs, labels, size=len(inputs)) if len(inputs) else []
        classes, confidences, _ = self.postprocessor.inference(self.net, loader, False)  # as OpenOOD
        return torch.from_numpy(classes), torch.from_numpy(confidences)


class FusedOpenOodShell(Fused, OpenOodShell):
    """`OPNPPostprocessor` with no ratios."""

    plural = "fusions for OpenOOD"
    lacks: ClassVar = {**OpenOodShell.lacks, "ratios": NO_RATIOS}
    set_ratios = Shell.set_ratios


class BaselineShell(Shell):
    """The energy of pytorch-ood on features, which is OPNP without pruning."""

    plural = "baselines of pytorch-ood"
    covers = ("opnp.adapters.PytorchOodBaseline", "opnp.adapters.BaselineOutput")
    made_of: ClassVar[type[PytorchOodBaseline]] = PytorchOodBaseline
    tolerance = 1e-6
    on_nan = "passed on"
    lacks: ClassVar = {
        **_NO_CALIBRATION,
        "copies": "a baseline lives as long as the benchmark that makes it",
        "files": "a baseline lives as long as the benchmark that makes it",
        "labels": "it takes features alone",
        "model": "features are given, and no model runs",
        "modes": "features are given, and no model runs",
        "ratios": "another method, which prunes nothing",
        "sums": "another method, which has no sensitivities",
    }

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]  # those of a shell
        head = head_of(self.model)
        self.method = self.made_of("Energy", weight=head.weight, bias=head.bias)

    def fit(self, training: Tensor | None = None, held_out: Tensor | None = None) -> Self:  # no calibration
        inputs = known() if training is None else training
        self.method.fit(features(inputs), class_labels(inputs))
        return self

    def scores(self, inputs: Tensor) -> Tensor:
        return self.method.output(features(inputs)).scores

    def classes(self, inputs: Tensor) -> Tensor:
        logits = self.method.output(features(inputs)).logits
        assert logits is not None
        return logits.argmax(1)

    def state(self) -> bytes:
        return b"".join(tensor.numpy().tobytes() for tensor in (self.method._weight, self.method._bias))

    def parameters(self) -> object:
        return self.method.name, dict(self.method.settings)

    def refit(self, training: Tensor, held_out: Tensor) -> None:
        self.fit(training, held_out)

    def expected(self, inputs: Tensor) -> Verdict:
        return plain(Ratios(), "float64").verdict(inputs)


class OdinShell(Shell):
    """ODIN of pytorch-ood, which runs the model with gradients."""

    plural = "passes of ODIN"
    covers = ("opnp.adapters.odin_scores",)
    cutting = 1e-6
    on_empty = EmptyDataError
    on_nan = "passed on"
    lacks: ClassVar = {
        **_NO_CALIBRATION,
        "agreement": "another method: tests/unit/adapters/test_baselines.py has its formula",
        "classes": "it gives scores alone",
        "copies": "a function, which holds nothing",
        "files": "a function, which holds nothing",
        "parameters": "a function, whose options are arguments",
        "ratios": "another method, which prunes nothing",
        "refit": "it needs no training data",
        "sums": "another method, which has no sensitivities",
        "unfitted": "it needs no training data",
    }

    def fit(self, training: Tensor | None = None, held_out: Tensor | None = None) -> Self:  # needs none
        return self

    def scores(self, inputs: Tensor) -> Tensor:
        return odin_scores(self.model, [inputs] if len(inputs) else [], std=None)

    def labelled_scores(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return odin_scores(self.model, [(inputs, labels)], std=None)

    def state(self) -> bytes:
        return b""

    def running_model(self) -> nn.Module:
        return self.model

    def switch_to_training(self) -> None:
        self.model.train()
