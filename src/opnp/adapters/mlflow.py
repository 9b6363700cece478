"""A detector in MLflow: logged with signature, example and model card, and answered by as a `pyfunc` model.

What is logged is the detector's own safetensors file, its card and MLflow's own text files: no pickle. MLflow loads it
by the name of this module, so that opnp must be installed where it is loaded. Nothing of MLflow is imported until a
function here is called: ``from opnp.adapters.mlflow import log_detector``.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from msgspec.structs import replace

from opnp import __version__
from opnp.adapters.origin import remembered_model, require_same_model, stored_model
from opnp.data import ModelInputs, Transform
from opnp.data.images import decoded_image
from opnp.detector import OPNP
from opnp.errors import (
    ArtifactError,
    DataFileError,
    InputTypeError,
    MissingFileError,
    NotCalibratedError,
    OptionError,
    require_installed,
)
from opnp.files import existing_file
from opnp.values.origin import ModelOrigin

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.models.model import ModelInfo

__all__ = ["Takes", "load", "log_detector", "save_detector"]

Takes = Literal["features", "inputs"]
"""What a logged detector answers to: features of the head, or files of images and texts as the model's own inputs."""

_FILE, _CARD = "detector.safetensors", "README.md"
_COLUMNS = {"image": "content", "text": "text"}
"""The column of inputs by their kind; Spark's reader of binary files calls it so, too."""
_EXTRAS = {"hf": "hf", "sentence-transformers": "sentences"}
"""What brings the packages that a model of this prefix needs; `vision` for all others, which take images."""


def log_detector(
    detector: OPNP,
    name: str = "detector",
    *,
    takes: Takes = "features",
    weights: str | os.PathLike[str] | None = None,
    example: object = None,
    requirements: Sequence[str] | None = None,
    registered_name: str | None = None,
) -> "ModelInfo":
    """Log a calibrated detector as a model of MLflow, in the active run if there is one.

    `mlflow.pyfunc.load_model(info.model_uri).predict(...)` gives a DataFrame with one row an input:
    ``predicted_class``, ``class_name`` where the detector knows names, ``score`` (larger = more OOD), ``p_value`` and
    ``is_ood``.

    Args:
        detector: Fitted and calibrated.
        name: Name of the logged model.
        takes: ``"features"``: `predict` takes what the head takes in, shape ``(batch, features)``, as an array or a
            DataFrame with one column a feature, or one column of arrays; float64 where the head is, and float32 else.
            Of a detector that was fitted by a table, a DataFrame whose columns are taken by their names.
            ``"inputs"``: it takes a DataFrame with a column ``content`` of image files as bytes, or ``text``; the model
            that the detector remembers is opened by its name where MLflow loads it, and prepares them as at the fit.
        weights: For ``"inputs"``, where the model's weights are a file of yours: this file, ``.safetensors``; it is
            logged, too.
        example: What is written down as an example: features, in the order of the fit or a DataFrame by its names, or
            a list of files as bytes or of texts; None for a row of zeros, and of inputs for none.
        requirements: What pip must install to load it; None for this version of opnp and of torch, and for inputs the
            extra of the model. Nothing is looked up.
        registered_name: Name in the model registry to register it under.

    Returns:
        What MLflow tells of the logged model, `model_uri` among it.

    Raises:
        NotFittedError: If nothing was fitted.
        NotCalibratedError: If the detector is not calibrated.
        OptionError: If `takes` is neither, or the model could not be opened again from what is logged.
        HeadMismatchError: If the weights are not those of the fit.
        MissingExtraError: If MLflow or pandas is not installed.

    """
    mlflow = _mlflow()
    with _staged(detector, takes, weights) as folder:
        info: ModelInfo = mlflow.pyfunc.log_model(
            name=name,
            registered_model_name=registered_name,
            **_options(detector, folder, takes=takes, example=example, requirements=requirements),
        )
    return info


def save_detector(
    detector: OPNP,
    path: str | os.PathLike[str],
    *,
    takes: Takes = "features",
    weights: str | os.PathLike[str] | None = None,
    example: object = None,
    requirements: Sequence[str] | None = None,
) -> None:
    """Write the same as `log_detector` into a new folder, without a run: what `mlflow models serve` takes, say.

    Args:
        detector: Fitted and calibrated.
        path: The folder; it must not exist, or be empty.
        takes: As for `log_detector`, and the other options, too.
        weights: The model's file of weights.
        example: What is written down as an example.
        requirements: What pip must install.

    Raises:
        NotFittedError: If nothing was fitted.
        NotCalibratedError: If the detector is not calibrated.
        OptionError: If `takes` is neither, or the model could not be opened again from what is written.
        HeadMismatchError: If the weights are not those of the fit.
        MissingExtraError: If MLflow or pandas is not installed.

    """
    mlflow = _mlflow()
    with _staged(detector, takes, weights) as folder:
        mlflow.pyfunc.save_model(
            path=os.fspath(path),
            **_options(detector, folder, takes=takes, example=example, requirements=requirements),
        )


def load(uri: str | os.PathLike[str]) -> OPNP:
    """Return the detector of a model that `log_detector` or `save_detector` wrote, without a model of torch.

    Args:
        uri: What MLflow calls it, such as ``models:/NAME/1`` or ``runs:/RUN/detector``, or a folder.

    Raises:
        ArtifactError: If it is another kind of model; nothing of it is run or unpickled.
        MissingExtraError: If MLflow is not installed.

    """
    mlflow = _mlflow()
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=os.fspath(uri)))
    flavor = mlflow.models.Model.load(str(folder)).flavors.get("python_function", {})
    if flavor.get("loader_module") != __name__:
        raise ArtifactError(f"{uri} is no detector of opnp: its loader is {flavor.get('loader_module')}.")
    return OPNP.load(folder / flavor["data"] / _FILE)


class _Predictor:
    """What MLflow asks for answers."""

    def __init__(self, folder: Path, *, takes: Takes, device: str | None, batch_size: int) -> None:
        self._detector = OPNP.load(folder / _FILE)
        self._batch_size = batch_size
        self._transform = _attached(self._detector, folder / _FILE, device=device) if takes == "inputs" else None

    def predict(self, model_input: Any, params: object = None) -> "pd.DataFrame":  # noqa: ANN401, ARG002  # MLflow's
        """Return the verdicts on features, or on inputs where there is a transform."""
        import pandas as pd

        if self._transform is None:
            names = self._detector.feature_names
            rows = model_input if names is None else _named(model_input, names)
            verdict = self._detector.verdict_features(np.atleast_2d(np.asarray(rows)))
        else:
            samples = list(model_input[_COLUMNS[self._transform.kind]])
            verdict = self._detector.verdict(self._batches(samples, self._transform))
        classes = verdict.predicted_class.tolist()
        columns: dict[str, object] = {"predicted_class": classes}
        if names := self._detector.class_names:
            columns["class_name"] = [names[each] for each in classes]
        columns |= {
            "score": verdict.score.double().cpu().numpy(),
            "p_value": verdict.p_value.cpu().numpy(),
            "is_ood": verdict.is_ood.cpu().numpy(),
        }
        return pd.DataFrame(columns)

    def _batches(self, samples: Sequence[object], transform: Transform) -> Iterator[ModelInputs]:
        for start in range(0, len(samples), self._batch_size):
            part = samples[start : start + self._batch_size]
            yield transform.batch([_made(transform, sample, row) for row, sample in enumerate(part, start)])


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> _Predictor:
    """Return what answers for a folder that was logged; MLflow calls it by this name.

    Raises:
        OptionError: If the configuration holds anything but `takes`, `device` and `batch_size`, or `takes` or
            `batch_size` is out of range.

    """
    config = {"takes": "features", "device": None, "batch_size": 64} | dict(model_config or {})
    unknown = [name for name in config if name not in ("takes", "device", "batch_size")]
    if unknown:
        raise OptionError(f"`model_config` must hold `takes`, `device` or `batch_size`, got {unknown[0]!r}.")
    takes, size = config["takes"], config["batch_size"]
    if takes not in get_args(Takes):
        raise OptionError(f'`takes` in `model_config` must be "features" or "inputs", got {takes!r}.')
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise OptionError(f"`batch_size` in `model_config` must be a positive number of inputs, got {size!r}.")
    return _Predictor(Path(path), takes=takes, device=config["device"], batch_size=size)


def _made(transform: Transform, sample: object, row: int) -> ModelInputs:
    """Return the model's input of a text, or of what an image file holds."""
    is_image = transform.kind == "image"
    if not isinstance(sample, bytes if is_image else str):
        wanted = "the bytes of an image file" if is_image else "a text"
        raise DataFileError(f"Input {row} must be {wanted}, got {type(sample).__name__}.")
    try:
        return transform(decoded_image(sample) if isinstance(sample, bytes) else sample)
    except DataFileError as error:
        raise DataFileError(f"Input {row} cannot be read: {error}.") from error


def _attached(detector: OPNP, file: Path, *, device: str | None = None) -> Transform:
    """Tie the detector of a file to the model that it remembers, and return what makes its inputs."""
    origin = _origin(detector)
    try:
        name = stored_model(origin, file)
    except MissingFileError as error:
        raise OptionError(
            f'`takes="inputs"` needs a model that can be had by name wherever it is loaded, and {origin.model} lies '
            f'on the machine of the fit: leave it at "features".'
        ) from error
    _, model, transform = remembered_model(origin, file, name=name)
    if transform is None:
        raise OptionError(
            f'`takes="inputs"` needs to know how inputs are prepared, and {origin.model} does not tell: leave it at '
            f'"features".'
        )
    require_same_model(origin, model, transform, head_sha256=detector.head_digest)
    detector.attach(model, device=device)
    return transform


def _origin(detector: OPNP) -> ModelOrigin:
    if detector.origin is None:
        raise OptionError(
            '`takes="inputs"` needs a detector that remembers its model, such as `opnp fit --model NAME` writes, and '
            'this one does not: leave it at "features".'
        )
    return detector.origin


@contextmanager
def _staged(detector: OPNP, takes: Takes, weights: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Yield a folder of what is logged beside MLflow's own files, after the model was opened from it where one is."""
    if takes not in get_args(Takes):
        raise OptionError(f'`takes` must be "features" or "inputs", got {takes!r}.')
    if not detector.is_calibrated:
        detector.samples  # noqa: B018  # one that was not fitted says so
        raise NotCalibratedError(
            "A logged detector gives verdicts, and this one is not calibrated: call `calibrate(loader)` or "
            "`calibrate_features(features)` with held-out ID inputs first."
        )
    with TemporaryDirectory() as outer:
        folder = Path(outer) / "detector"
        folder.mkdir()
        detector.save(folder / _FILE)
        inputs = None if detector.origin is None else detector.origin.inputs
        (folder / _CARD).write_text(detector.model_card(inputs=inputs), encoding="utf-8")
        stored = None if takes == "features" else _origin(detector).weights
        suffix = None if weights is None else Path(weights).suffix
        if suffix != (None if stored is None else ".safetensors"):
            wanted = "left out" if stored is None else f"{Path(stored).name} of the fit, as a .safetensors file"
            raise OptionError(f"`weights` must be {wanted} for this detector and `takes={takes!r}`, got {weights!r}.")
        if weights is not None and stored is not None:
            beside = shutil.copy(existing_file(weights, content="the weights of the model"), folder)
            origin = replace(_origin(detector), weights=Path(beside).name)
            OPNP.load(folder / _FILE).remember(origin).save(folder / _FILE)
        if takes == "inputs":
            _attached(OPNP.load(folder / _FILE), folder / _FILE)
        yield folder


def _options(
    detector: OPNP, folder: Path, *, takes: Takes, example: object, requirements: Sequence[str] | None
) -> dict[str, Any]:
    """Return what is told to MLflow in either way of writing."""
    import pandas as pd

    dtype, width = _matrix_form(detector)
    names = detector.feature_names
    if takes == "features":
        if names is not None and isinstance(example, pd.DataFrame):
            example = _named(example, names)
        dtype = dtype if names is None else np.dtype("float64")
        rows = np.zeros((1, width), dtype) if example is None else np.atleast_2d(np.asarray(example, dtype))
        example = rows if names is None else pd.DataFrame(rows, columns=[*names])
    elif example is not None:
        example = pd.DataFrame({_COLUMNS[_origin(detector).kind]: example})
    extra = "" if takes == "features" else f",{_EXTRAS.get(_origin(detector).model.partition(':')[0], 'vision')}"
    own = (f"opnp[mlflow{extra}]=={__version__}", f"torch=={torch.__version__.partition('+')[0]}")
    return {
        "loader_module": __name__,
        "data_path": str(folder),
        "signature": _signature(detector, takes),
        "input_example": example,
        "pip_requirements": list(own if requirements is None else requirements),
        "model_config": {"takes": takes} | ({"device": None, "batch_size": 64} if takes == "inputs" else {}),
    }


def _signature(detector: OPNP, takes: Takes) -> "ModelSignature":
    """Return what comes in and what goes out, in MLflow's words."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    if takes == "features" and detector.feature_names is not None:
        inputs = Schema([ColSpec("double", name) for name in detector.feature_names])
    elif takes == "features":
        dtype, width = _matrix_form(detector)
        inputs = Schema([TensorSpec(dtype, (-1, width))])
    else:
        kind = _origin(detector).kind
        inputs = Schema([ColSpec("binary" if kind == "image" else "string", _COLUMNS[kind])])
    name = () if detector.class_names is None else (("string", "class_name"),)
    answers = (("double", "score"), ("double", "p_value"), ("boolean", "is_ood"))
    columns = (("long", "predicted_class"), *name, *answers)
    return ModelSignature(inputs, Schema([ColSpec(*each) for each in columns]))


def _named(frame: Any, names: Sequence[str]) -> "pd.DataFrame":  # noqa: ANN401  # what MLflow passes on
    """Return the columns of the fit in its order."""
    missing = [name for name in names if name not in getattr(frame, "columns", ())]
    if missing:
        raise InputTypeError(
            f"Features must be a DataFrame with the {len(names)} columns of the detector's fit by their names, got "
            f"{type(frame).__name__} without {missing[0]!r}."
        )
    chosen: pd.DataFrame = frame[[*names]]
    return chosen


def _matrix_form(detector: OPNP) -> tuple[np.dtype[Any], int]:
    """Return dtype and width of the features that are taken."""
    weight = detector.original_head.weight
    return np.dtype("float64" if weight.dtype == torch.float64 else "float32"), weight.shape[1]


def _mlflow() -> Any:  # noqa: ANN401  # a module
    require_installed("`opnp.adapters.mlflow` needs", "mlflow", "pandas", extra="mlflow")
    import mlflow
    import mlflow.pyfunc

    return mlflow
