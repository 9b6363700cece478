"""The detector inside other toolkits: pytorch-ood, OpenOOD and scikit-learn; and methods of pytorch-ood handed on."""

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils import check_random_state
from torch import Tensor, nn

from opnp import OPNP, Ratios, Verdict
from opnp.adapters import PytorchOodBaseline, odin_scores
from opnp.adapters.openood import OPNPPostprocessor
from opnp.adapters.pytorch_ood import OPNPDetector
from opnp.adapters.scikit_learn import OPNPOutlierDetector, _split
from opnp.adapters.toolkits import OPTION_DEFAULTS, bytes_of
from opnp.core import Sensitivity
from opnp.errors import EmptyDataError, NonFiniteError
from tests.contract.shell import (
    KEEP,
    NO_RATIOS,
    Fused,
    Pickled,
    Shell,
    load_model,
    plain,
    save_model,
    subject,
)
from tests.contract.snapshot import snapshot
from tests.contract.world import batches, body_of, class_labels, classifier, features, fresh, head_of, known
from tests.unit.adapters.encoder_world import batches as openood_batches

__all__ = [
    "Baseline",
    "Frozen",
    "FusedScikitLearn",
    "Odin",
    "OpenOod",
    "PytorchOod",
    "PytorchOodFeatures",
    "ScikitLearn",
]

_FEATURES_ONLY = "features are given, and no model runs"
_NO_CALIBRATION: Mapping[str, str] = {
    "calibration": "the toolkit has scores alone, and takes thresholds from the data it tests on",
    "p-values": "the toolkit has scores alone",
    "verdicts": "the toolkit has scores alone",
}


def _ratio_options(ratios: Ratios | None) -> dict[str, Any]:
    return {} if ratios is None else {name: getattr(ratios, name) for name in Ratios.__slots__}


@subject("pytorch_ood")
class PytorchOod(Shell):
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

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        given = {**_ratio_options(self.ratios), "precision": self.precision}
        self.detector = self.made_of(self._encoder(), head_of(self.model), **given)

    def _encoder(self) -> nn.Module | None:
        return body_of(self.model)

    def fit_on(self, training: Tensor, held_out: Tensor) -> None:  # no calibration
        self.detector.fit(list(zip(batches(training), batches(class_labels(training)), strict=True)))

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


@subject("pytorch_ood_features")
class PytorchOodFeatures(Pickled, PytorchOod):
    plural = "detectors of pytorch-ood on features"
    inside = "detector"
    lacks: ClassVar = {
        **_NO_CALIBRATION,
        "classes": "the toolkit asks for scores alone",
        "labels": "`predict_features` takes features alone",
        "model": _FEATURES_ONLY,
        "modes": _FEATURES_ONLY,
    }
    running_model = Shell.running_model
    switch_to_training = Shell.switch_to_training

    def _encoder(self) -> None:
        return None

    def fit_on(self, training: Tensor, held_out: Tensor) -> None:  # no calibration
        self.detector.fit_features(features(training), class_labels(training))

    def scores(self, inputs: Tensor) -> Tensor:
        return self.detector.predict_features(features(inputs))


@subject("fused_pytorch_ood")
class FusedPytorchOod(Fused, PytorchOod):
    plural = "fusions for pytorch-ood"
    lacks: ClassVar = {**PytorchOod.lacks, "ratios": NO_RATIOS}
    set_ratios = Shell.set_ratios


@subject("fused_pytorch_ood_features")
class FusedPytorchOodFeatures(Fused, PytorchOodFeatures):
    plural = "fusions for pytorch-ood on features"
    lacks: ClassVar = {**PytorchOodFeatures.lacks, "ratios": NO_RATIOS}
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


@subject("openood")
class OpenOod(Pickled):
    """`OPNPPostprocessor`, asked by `inference` as OpenOOD's evaluator asks. Confidences are larger for ID."""

    plural = "postprocessors of OpenOOD"
    covers = ("opnp.adapters.openood.OPNPPostprocessor",)
    made_of: ClassVar[type[OPNPPostprocessor]] = OPNPPostprocessor
    inside = "postprocessor"
    sign = -1
    on_nan = NonFiniteError
    on_empty = EmptyDataError
    lacks: ClassVar = {**_NO_CALIBRATION}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.net = _Net(self.model)
        given = {**_ratio_options(self.ratios), "precision": self.precision}
        sweep = {f"{name}_list": [0.0, 0.1] for name in Ratios.__slots__}
        section = {"APS_mode": False, "postprocessor_args": given, "postprocessor_sweep": sweep}
        self.postprocessor = self.made_of({"postprocessor": section})

    def fit_on(self, training: Tensor, held_out: Tensor) -> None:
        loaders = {
            "train": openood_batches(training, class_labels(training), size=32),
            "val": openood_batches(held_out, class_labels(held_out)),
        }
        self.postprocessor.setup(self.net, loaders, {"val": None})

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

    def parameters(self) -> object:
        return self.postprocessor.options, self.postprocessor.get_hyperparam(), dict(self.postprocessor.args_dict)

    def running_model(self) -> nn.Module:
        return self.model

    def switch_to_training(self) -> None:
        self.net.train()

    def sensitivity(self) -> Sensitivity:
        return self.postprocessor.opnp.sensitivity

    def sent(self, folder: Path) -> None:
        super().sent(folder)
        save_model(self.model, folder)

    @classmethod
    def received(cls, folder: Path) -> Shell:
        other = super().received(folder)
        load_model(other.model, folder)
        return other

    def _inferred(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loader = openood_batches(inputs, labels, size=len(inputs)) if len(inputs) else []
        classes, confidences, _ = self.postprocessor.inference(self.net, loader, False)  # as OpenOOD
        return torch.from_numpy(classes), torch.from_numpy(confidences)


@subject("fused_openood")
class FusedOpenOod(Fused, OpenOod):
    plural = "fusions for OpenOOD"
    lacks: ClassVar = {**OpenOod.lacks, "ratios": NO_RATIOS}
    set_ratios = Shell.set_ratios


@subject("baseline")
class Baseline(Shell):
    """The energy of pytorch-ood on features, which is OPNP without pruning."""

    plural = "baselines of pytorch-ood"
    covers = ("opnp.adapters.PytorchOodBaseline", "opnp.adapters.BaselineOutput")
    tolerance = 1e-6
    on_nan = "passed on"
    lacks: ClassVar = {
        **_NO_CALIBRATION,
        "copies": "a baseline lives as long as the benchmark that makes it",
        "files": "a baseline lives as long as the benchmark that makes it",
        "labels": "it takes features alone",
        "model": _FEATURES_ONLY,
        "modes": _FEATURES_ONLY,
        "ratios": "another method, which prunes nothing",
        "sums": "another method, which has no sensitivities",
    }

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        head = head_of(self.model)
        self.method = PytorchOodBaseline("Energy", weight=head.weight, bias=head.bias)

    def fit_on(self, training: Tensor, held_out: Tensor) -> None:  # no calibration
        self.method.fit(features(training), class_labels(training))

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


@subject("odin")
class Odin(Shell):
    """ODIN of pytorch-ood, which runs the model with gradients."""

    plural = "passes of ODIN"
    covers = ("opnp.adapters.odin_scores",)
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

    def fit_on(self, training: Tensor, held_out: Tensor) -> None:
        """Do nothing: it needs no training data."""

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


# ------------------------------------------------------------------------------------------------ scikit-learn
_SHARE = 0.2


def rows_of(inputs: Tensor) -> np.ndarray:
    """Return the features of images as rows in float64."""
    return features(inputs).double().numpy()


@subject("scikit_learn")
class ScikitLearn(Pickled):
    """`OPNPOutlierDetector` round a classifier that it trains itself, on the features of images as rows."""

    plural = "outlier detectors of scikit-learn"
    covers: ClassVar[tuple[str, ...]] = ("opnp.adapters.scikit_learn.OPNPOutlierDetector",)
    made_of: ClassVar[type[OPNPOutlierDetector]] = OPNPOutlierDetector
    inside = "estimator"
    sign = -1
    tolerance = 1e-12
    on_empty = ValueError
    unfitted = NotFittedError
    shared: ClassVar = {
        "filters of warnings": "`check_array` sets a filter inside `warnings.catch_warnings`, which threads leave set",
    }
    lacks: ClassVar = {
        "classes": "the classifier inside predicts them",
        "labels": "`score_samples` takes rows alone",
        "model": "the classifier is one of scikit-learn, which is cloned",
        "modes": "the classifier is one of scikit-learn, which has no modes",
        "sums": "the rows trained on are drawn by it; products are float64, to which the agreement is held",
    }

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.classifier = self._classifier()
        self.estimator: Any = self._estimator()

    def fit_on(self, training: Tensor, held_out: Tensor) -> None:
        self.estimator.fit(*self._rows_and_labels(training, held_out))

    def scores(self, inputs: Tensor) -> Tensor:
        return torch.from_numpy(self.estimator.score_samples(rows_of(inputs)))

    def verdicts(self, inputs: Tensor) -> Tensor:
        flags = torch.from_numpy(self.estimator.predict(rows_of(inputs)) == -1)
        assert torch.equal(torch.from_numpy(self.estimator.decision_function(rows_of(inputs)) < 0), flags)
        return flags

    def p_values(self, inputs: Tensor) -> Tensor:
        return torch.from_numpy(self.detector.p_value(self._before(rows_of(inputs))))

    def state(self) -> bytes:
        found = self.detector
        return bytes_of(found.detector_) + np.array(found.offset_).tobytes() + np.array(found.classes_).tobytes()

    def owned(self) -> dict[str, object]:
        return {**snapshot(self.model), "the estimator that was given": pickle.dumps(self.classifier)}

    def expected(self, inputs: Tensor) -> Verdict:
        rows, labels = self._rows_and_labels(known(), fresh())
        training, held_out = self._parts(len(rows))
        received = self._before(rows)
        weight, bias = self._weight_and_bias(received[training], labels[training])
        detector = OPNP(ratios=self.ratios, precision="float64")
        detector.fit_features(torch.from_numpy(received[training]), weight=weight, bias=bias)
        detector.calibrate_features(torch.from_numpy(received[held_out]), keep=KEEP)
        return detector.verdict_features(torch.from_numpy(self._before(rows_of(inputs))))

    def calibrated_on(self) -> Tensor:
        images = torch.cat([known(), fresh()])
        return images[self._parts(len(images))[1]]

    def refit(self, training: Tensor, held_out: Tensor) -> None:
        self.fit(training, held_out)

    def set_ratios(self, ratios: Ratios) -> None:
        self.ratios = ratios
        self.detector.set_params(**_ratio_options(ratios))
        self.fit()

    def copied(self) -> Shell:
        cloned = clone(self.estimator)
        assert repr(cloned.get_params()) == repr(self.estimator.get_params()), "a clone has other parameters"
        return super().copied()

    def parameters(self) -> object:
        return {name: repr(value) for name, value in self.detector.get_params(deep=False).items()}

    @property
    def detector(self) -> OPNPOutlierDetector:
        """The detector itself."""
        found: OPNPOutlierDetector = self.estimator
        return found

    def _classifier(self) -> Any:
        return LogisticRegression()

    def _estimator(self) -> Any:
        ratios, share = _ratio_options(self.ratios), round(1 - KEEP, 6)
        return self.made_of(self.classifier, **ratios, contamination=share, validation_fraction=_SHARE, random_state=0)

    def _before(self, rows: np.ndarray) -> np.ndarray:
        """Return what the detector receives of rows."""
        return rows

    def _rows_and_labels(self, training: Tensor, held_out: Tensor) -> tuple[np.ndarray, Any]:
        labels = torch.cat([class_labels(training), class_labels(held_out)])
        return rows_of(torch.cat([training, held_out])), labels.numpy()

    def _parts(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows trained on, and those held out."""
        targets = self._rows_and_labels(known(), fresh())[1]
        return _split(rows, targets, share=_SHARE, generator=check_random_state(0))

    def _weight_and_bias(self, rows: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        trained = LogisticRegression().fit(rows, labels)
        return torch.from_numpy(trained.coef_), torch.from_numpy(trained.intercept_)


@subject("scikit_learn_frozen")
class Frozen(ScikitLearn):
    """`OPNPOutlierDetector` round a classifier that is trained already, with the weights of the world's model."""

    plural = "outlier detectors round trained classifiers"

    def _classifier(self) -> Any:
        trained = LogisticRegression()
        trained.coef_, trained.intercept_ = (each.numpy() for each in self._weight_and_bias(np.empty(0), np.empty(0)))
        trained.classes_, trained.n_features_in_ = np.arange(4), trained.coef_.shape[1]
        return FrozenEstimator(trained)

    def _parts(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        return _split(rows, None, share=_SHARE, generator=check_random_state(0))

    def _weight_and_bias(self, rows: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:  # trained before
        head = head_of(classifier())
        return head.weight.detach().double(), head.bias.detach().double()


@subject("scikit_learn_pipeline")
class InPipeline(ScikitLearn):
    """`OPNPOutlierDetector` as the last step of a pipeline."""

    plural = "pipelines that end in outlier detectors"

    @property
    def detector(self) -> OPNPOutlierDetector:
        """The last step."""
        found: OPNPOutlierDetector = self.estimator.steps[-1][1]
        return found

    def _estimator(self) -> Any:
        return Pipeline([("scale", MinMaxScaler()), ("detector", super()._estimator())])

    def _before(self, rows: np.ndarray) -> np.ndarray:
        fitted = MinMaxScaler().fit(self._rows_and_labels(known(), fresh())[0])
        scaled: np.ndarray = fitted.transform(rows) if len(rows) else rows
        return scaled


@subject("fused_scikit_learn")
class FusedScikitLearn(Fused, ScikitLearn):
    plural = "fusions for scikit-learn"


@subject("fused_scikit_learn_frozen")
class FusedFrozen(Fused, Frozen):
    plural = "fusions round trained classifiers"


@subject("fused_scikit_learn_pipeline")
class FusedPipeline(Fused, InPipeline):
    plural = "pipelines that end in fusions"
