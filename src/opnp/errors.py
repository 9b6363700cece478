"""Every error and warning that opnp raises on purpose.

`OpnpError` is the base of the errors, `OpnpWarning` of the warnings. Each is also the built-in that a
caller would expect, so that ``except ValueError`` keeps working.
"""

from importlib.util import find_spec

__all__ = [
    "ArtifactError",
    "BatchSizeWarning",
    "CalibrationError",
    "CheckpointError",
    "ClassOrderWarning",
    "ColumnWarning",
    "DataFileError",
    "DistributedError",
    "EmptyDataError",
    "HeadMismatchError",
    "HeadNotFoundError",
    "HeldOutWarning",
    "InputTypeError",
    "InsufficientMemoryError",
    "LabelWarning",
    "LayerError",
    "LayerNotFoundError",
    "LayerWarning",
    "MemberWarning",
    "MissingExtraError",
    "MissingFileError",
    "ModelRunError",
    "NonFiniteError",
    "NotCalibratedError",
    "NotFittedError",
    "OpnpError",
    "OpnpWarning",
    "OptionError",
    "OriginWarning",
    "PrecisionWarning",
    "RatioError",
    "RatioWarning",
    "ShapeError",
    "SignedFeaturesWarning",
    "UncalibratedWarning",
    "WorkerError",
]


_PACKAGES = {"PIL": "Pillow", "sklearn": "scikit-learn", "vl_convert": "vl-convert-python"}
"""Packages that are not called as their modules are."""


class OpnpError(Exception):
    """Base of every error raised by opnp."""


class ShapeError(OpnpError, ValueError):
    """A tensor has the wrong number of axes or the wrong length along one."""


class InputTypeError(OpnpError, TypeError):
    """An argument has the wrong type, or a tensor the wrong dtype."""


class OptionError(OpnpError, ValueError):
    """An option has a value outside the ones it may take."""


class RatioError(OptionError):
    """A pruning ratio is out of range, or the ratios together leave nothing."""


class NonFiniteError(OpnpError, ValueError):
    """Data hold NaN or infinite values."""


class EmptyDataError(OpnpError, ValueError):
    """There are no samples, or too few classes, to work on."""


class HeadNotFoundError(OpnpError, LookupError):
    """No layer, or more than one, answers to the description of the classifier's head."""


class LayerNotFoundError(OpnpError, LookupError):
    """A layer that was asked for is no layer of the model, or never ran."""


class LayerError(OpnpError, ValueError):
    """A layer is of a kind, or is used in a way, for which there is no sensitivity or no mask."""


class NotFittedError(OpnpError, RuntimeError):
    """The detector has seen no training data yet."""


class NotCalibratedError(OpnpError, RuntimeError):
    """The detector can score, but it has no calibration scores for a verdict."""


class CalibrationError(OpnpError, ValueError):
    """The calibration data cannot support the requested guarantee."""


class ArtifactError(OpnpError, ValueError):
    """A saved detector cannot be read as one."""


class HeadMismatchError(OpnpError, ValueError):
    """A detector was given another head than the one it was fitted on."""


class DataFileError(OpnpError, ValueError):
    """A data file is unreadable, or lacks what it must hold."""


class CheckpointError(OpnpError, ValueError):
    """A checkpoint cannot be read, or belongs to another run than the one that would go on from it."""


class DistributedError(OpnpError, RuntimeError):
    """Ranks of one run lost each other, do not fit together, or one of them failed."""


class MissingFileError(OpnpError, FileNotFoundError):
    """A file that was named does not exist."""


class MissingExtraError(OpnpError, ImportError):
    """An optional dependency is not installed."""


def require_installed(what: str, *modules: str, extra: str, way_out: str = "") -> None:
    """Raise unless modules that an extra brings can be imported.

    Args:
        what: What needs them, with its verb, as the message begins.
        modules: Names of the modules.
        extra: The extra.
        way_out: A sentence for the end of the message.

    Raises:
        MissingExtraError: If one cannot; the message names the command that installs it.

    Example:
        >>> require_installed("The moon needs", "green_cheese", extra="bench")
        Traceback (most recent call last):
            ...
        opnp.errors.MissingExtraError: The moon needs green-cheese, not installed here: `pip install 'opnp[bench]'`.

    """
    missing = [_PACKAGES.get(name, name.replace("_", "-")) for name in modules if find_spec(name) is None]
    if missing:
        message = f"{what} {' and '.join(missing)}, not installed here: `pip install 'opnp[{extra}]'`."
        raise MissingExtraError(f"{message} {way_out}".rstrip())


class ModelRunError(OpnpError, RuntimeError):
    """The user's model raised an error of its own on the inputs it was given."""


class InsufficientMemoryError(ModelRunError, MemoryError):
    """The model, or a batch of inputs in it, needs more memory than there is."""


class WorkerError(OpnpError, RuntimeError):
    """A process that reads inputs ahead of time died."""


class OpnpWarning(UserWarning):
    """Base of every warning issued by opnp."""


class RatioWarning(OpnpWarning):
    """A ratio above zero is too small to remove a single entry, or cuts among sensitivities that underflowed."""


class BatchSizeWarning(OpnpWarning):
    """The model ran out of memory on a batch, which is run in smaller parts."""


class SignedFeaturesWarning(OpnpWarning):
    """A method made for non-negative features was given negative ones."""


class MemberWarning(OpnpWarning):
    """A fusion goes without a score that it was asked for; the message says which, and why."""


class LabelWarning(OpnpWarning):
    """Labels and the model's answers contradict each other; the message says how, and names the likely causes."""


class LayerWarning(OpnpWarning):
    """Layers were left out that no sensitivity can be taken of."""


class ClassOrderWarning(OpnpWarning):
    """Classes are numbered by their names, in an order that other readers may not share."""


class ColumnWarning(OpnpWarning):
    """Columns of a table of features are left out; the message says which, and why."""


class HeldOutWarning(OpnpWarning):
    """Samples that should be held out are those of the training, so that a threshold by them is too low."""


class OriginWarning(OpnpWarning):
    """A detector goes on, as it was told to, with another model or other inputs than those of its fit."""


class PrecisionWarning(OpnpWarning):
    """A model has the weights of the fit, stored in another type, so that scores differ a little."""


class UncalibratedWarning(OpnpWarning):
    """A detector was stored or used without the calibration its verdicts need."""
