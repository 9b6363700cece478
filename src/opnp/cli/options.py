"""Options that several commands share, each declared once; their reading, and what is asked before anything runs."""

import os
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opnp.errors import HeldOutWarning, OpnpError, OptionError, OriginWarning, require_installed
from opnp.files import require_writable
from opnp.values.settings import CalibratedBy

if TYPE_CHECKING:
    from torch import nn

    from opnp.core import Shaping
    from opnp.data import Transform
    from opnp.detector import OPNP, Ratios

input_option, model_option, detector_option, running_option = (
    partial(typer.Option, rich_help_panel=panel) for panel in ("Inputs", "Model", "Detector", "Running")
)
"""Declare an option of a group in the help."""

_FEATURES = (
    "Safetensors file with `features` (batch, features), and perhaps `labels`; a folder of feature shards; or .csv or "
    ".parquet, of which columns of numbers are features and `label` the class."
)
_NAMES = (
    "timm:NAME, torchvision:NAME, hf:NAME (of transformers: a folder, or org/name on the hub), "
    "sentence-transformers:NAME with its head as --weights, onnx:FILE, or module:callable that returns the model"
)
_PLACE_DIGITS = 5

# ------------------------------------------------------------------------------------------------------ single options

CalibrateBy = Annotated[
    CalibratedBy | None,
    detector_option(
        help="With --validation: `predicted` compares an input with the samples of its predicted class, so that no "
        "class is flagged more often than --keep allows. Default: with all."
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ReportFile = Annotated[
    Path | None, typer.Option("--report", help="HTML page with tables and figures of the results to write as well.")
]
FeaturesFile = Annotated[Path, input_option(help=_FEATURES)]
FeaturesFileOrNone = Annotated[Path | None, input_option(help=_FEATURES)]
FeaturesFolder = input_option(
    help="Folder with head, train, test and ood_*, each .safetensors; or a folder of such folders, one a model."
)
DataPath = Annotated[
    Path | None,
    input_option(
        help="With --model: inputs, as a folder of images (subfolders are classes), a list of files, .safetensors, "
        ".npy, a data set of Hugging Face saved to disk, or .jsonl and .csv with texts."
    ),
]
OodPaths = Annotated[
    list[str] | None, input_option(metavar="NAME=PATH", help="OOD inputs, as --train; may be given several times.")
]
ValidationOod = Annotated[
    Path | None,
    input_option("--val-ood", help="OOD inputs to tune the paper's ratios by, as --train; no part of any other set."),
]
DetectorFile = Annotated[
    Path | None, typer.Argument(metavar="DETECTOR", help="Detector that `opnp fit` wrote.", show_default=False)
]
DetectorOption = Annotated[Path | None, input_option("--detector", help="The same as DETECTOR, by name.")]
HeadFile = Annotated[Path, input_option(help="Safetensors file with `weight` (classes, features), and perhaps `bias`.")]
ModelName = Annotated[str, model_option(help=f"The model: {_NAMES}.")]
ModelNames = Annotated[
    list[str] | None,
    model_option(
        "--model",
        metavar="NAME",
        help=f"Instead of --features, the model: {_NAMES}. Given several times, all of them, one after another.",
    ),
]
ModelNameOrNone = Annotated[str | None, model_option(help=f"Instead of --features, the model: {_NAMES}.")]
DetectorModelName = Annotated[
    str | None, model_option(help=f"The model: {_NAMES}. Default: the one that the detector remembers.")
]
ForceFlag = Annotated[
    bool,
    model_option("--force", help="Go on with other weights or inputs than those that the detector was fitted on."),
]
RayAddress = Annotated[
    str | None,
    running_option(
        "--ray",
        metavar="ADDRESS",
        help="Work on a cluster of Ray: auto on one of its nodes, or local for the cores of this machine. Every worker "
        "must reach the data.",
    ),
]
RankTimeout = Annotated[
    float, running_option(help="Under torchrun: seconds that a rank waits for the others before it gives up.")
]

# ------------------------------------------------------- groups of options: a command takes each field as an option


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioOptions:
    """Ratios of the paper's method."""

    rho_w_min: Annotated[
        float | None, detector_option(help="Share of the least sensitive weights to remove, in [0, 1).")
    ] = None
    rho_w_max: Annotated[
        float | None, detector_option(help="Share of the most sensitive weights to remove, in [0, 1).")
    ] = None
    rho_o_min: Annotated[
        float | None, detector_option(help="Share of the least sensitive neurons to remove, in [0, 1).")
    ] = None
    rho_o_max: Annotated[
        float | None, detector_option(help="Share of the most sensitive neurons to remove, in [0, 1).")
    ] = None

    @property
    def given_ratios(self) -> dict[str, float]:
        """The ratios that are given, by the names that `Ratios` has for them."""
        values = {each.name: getattr(self, each.name) for each in fields(RatioOptions)}
        return {name.removeprefix("rho_"): value for name, value in values.items() if value is not None}

    def over(self, default: "Ratios") -> "Ratios":
        """Return these ratios, those of the default where they are not given."""
        return replace(default, **self.given_ratios)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What is said of a model beside its name, and of its inputs."""

    weights: Annotated[
        Path | None,
        model_option(
            help="State dict of the model: a .safetensors file, or one of torch.save. DEFAULT, or nothing: the "
            "pretrained weights of timm or torchvision, or those of the folder or model of hf."
        ),
    ] = None
    image_size: Annotated[
        int | None, model_option(help="Side of the model's input in pixels. Default: the model's own.")
    ] = None
    resize: Annotated[
        int | None,
        model_option(help="Shorter side of images before the crop. Default: the model's own, or --image-size."),
    ] = None
    mean: Annotated[
        str | None,
        model_option(
            metavar="R,G,B", help="Mean of pixels in [0, 1]; one number for grey inputs. Default: the model's."
        ),
    ] = None
    std: Annotated[str | None, model_option(metavar="R,G,B", help="Standard deviation, as --mean.")] = None

    @property
    def weights_file(self) -> Path | None:
        """The file of weights; None for those that a hub gives by itself.

        Example:
            >>> ModelOptions(weights=Path("DEFAULT")).weights_file is None
            True

        """
        from opnp.adapters import DEFAULT_WEIGHTS

        return None if self.weights == Path(DEFAULT_WEIGHTS) else self.weights

    def opened(self, name: str) -> "tuple[nn.Module, Transform]":
        """Return the model of a name and what makes its inputs.

        Raises:
            OpnpError: If there is no such model, or nothing says how to make its inputs.

        """
        from opnp.adapters import model_from_name

        chosen = self._chosen()
        model, known = model_from_name(name, weights=self.weights)
        return model, chosen(known, model=name)

    def _chosen(self) -> "Callable[..., Transform]":
        """Return a function of what is known of a model's inputs and of its name: what makes them by these options."""
        from opnp.adapters import chosen_preprocessing

        mean, std = _numbers("--mean", self.mean), _numbers("--std", self.std)
        return partial(chosen_preprocessing, image_size=self.image_size, resize=self.resize, mean=mean, std=std)

    def opened_for(
        self, detector: "OPNP", file: Path, name: str | None, *, is_forced: bool
    ) -> "tuple[nn.Module, Transform]":
        """Return the model of a detector and what makes its inputs: as it remembers them, where no option says more.

        Args:
            detector: The detector, of this file.
            file: Where it lies; what it remembers by a relative path is looked for from there.
            name: The model that was named, or None.
            is_forced: Whether other weights or inputs than those of the fit are taken.

        Raises:
            OpnpError: If there is no such model, or it differs from that of the fit.

        Warns:
            OriginWarning: If it differs, and is taken all the same.

        """
        from opnp.adapters import remembered_model, require_same_model

        origin = detector.origin
        if origin is None:
            if name is None:
                raise OptionError(
                    f"{file} does not know the model that it was fitted on: give `--model NAME`, or `--features FILE`."
                )
            return self.opened(name)
        chosen = self._chosen()
        name, model, known = remembered_model(origin, file, name=name, weights=self.weights)
        transform = chosen(known, model=name)
        try:
            require_same_model(origin, model, transform, head_sha256=detector.head_digest)
        except OpnpError as error:
            if not is_forced:
                raise
            warnings.warn(f"Forced: {error} Verdicts may mean nothing.", OriginWarning, stacklevel=2)
        return model, transform


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(ModelOptions):
    """How a model is run on inputs."""

    batch_size: Annotated[int | None, running_option(help="Inputs a batch. Default: 64.")] = None
    device: Annotated[
        str | None, running_option(help="Where to compute, such as cuda or cuda:1. Default: the CPU.")
    ] = None
    workers: Annotated[
        int | None,
        running_option(
            help="Processes that read and prepare images ahead of time; the features are the same. Default: one a "
            "core, at most 8."
        ),
    ] = None
    strict: Annotated[bool, running_option("--strict", help="Stop at the first input that cannot be read.")] = False
    auto_batch: Annotated[
        bool,
        running_option(
            "--auto-batch", help="Where a batch needs more memory than there is, warn, and run it in halves."
        ),
    ] = False

    @property
    def inputs_a_batch(self) -> int:
        """Inputs that the model is run on at once."""
        return 64 if self.batch_size is None else self.batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOptions(RunOptions):
    """Where features are taken from."""

    head_layer: Annotated[
        str | None, model_option(metavar="NAME", help="Dotted name of the model's head. Default: found by itself.")
    ] = None
    logits: Annotated[
        str | None,
        model_option(
            help="Where the logits are in the model's output, if that is no tensor: a number for a place in a tuple, "
            "else a key or attribute."
        ),
    ] = None

    @property
    def logits_place(self) -> int | str | None:
        """Where the logits are: an index of a tuple, a key or attribute, or None where that is plain.

        Raises:
            OptionError: If it is a number of more than five characters.

        Example:
            >>> [HeadOptions(logits=text).logits_place for text in ("0", "-1", "logits")]
            [0, -1, 'logits']

        """
        text = self.logits
        if text is None or not text.removeprefix("-").isdecimal():
            return text
        if len(text) > _PLACE_DIGITS:
            raise OptionError(
                f"`--logits` must be a place in a tuple or a name, got a number of {len(text)} characters."
            )
        return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions(HeadOptions):
    """How features are computed and stored."""

    head: Annotated[str | None, typer.Option(help="The old name of --head-layer.", hidden=True)] = None
    dtype: Annotated[Literal["float16", "float32"], running_option(help="Type to store features in.")] = "float16"
    amp: Annotated[
        Literal["none", "bf16"],
        running_option(help="Precision of the forward pass: none as the model is, bf16 by autocast of torch."),
    ] = "none"
    channels_last: Annotated[
        bool,
        running_option("--channels-last", help="Run convolutions with channels last in memory, mostly faster on GPUs."),
    ] = False


def given_options(group: Any, *, but: Iterable[str] = ()) -> dict[str, object]:  # noqa: ANN401  # any group above
    """Return the options of a group that differ from their defaults, by the name that they have in a command.

    Example:
        >>> given_options(RunOptions(image_size=8, strict=True, device="cpu"), but=["--device"])
        {'--image-size': 8, '--strict': True}

    """
    values = {f"--{each.name.replace('_', '-')}": (getattr(group, each.name), each.default) for each in fields(group)}
    return {name: value for name, (value, default) in values.items() if value != default and name not in but}


# ------------------------------------------------------------------------------------------------------------- reading


def require_form(
    *,
    features: object,
    model: object,
    inputs: str,
    of_model: Mapping[str, object],
    of_features: Mapping[str, object] | None = None,
) -> None:
    """Raise unless exactly one of ``--features`` and ``--model`` is given, with options of its own form alone.

    Args:
        features: What was given for ``--features``, or None.
        model: What was given for ``--model``, or None.
        inputs: The options that name the inputs of ``--model``, for the message.
        of_model: What was given for options that belong to ``--model``, None where nothing was.
        of_features: The same of ``--features``.

    Raises:
        OptionError: If so.

    Example:
        >>> require_form(features="a", model=None, inputs="`--data PATH`", of_model={"--data": None})

    """
    if (features is None) == (model is None):
        raise OptionError(
            f"Give exactly one of `--features PATH`, for features that are there, and `--model NAME` with {inputs}, "
            f"to run the model: got {'neither' if features is None else 'both'}.",
        )
    here, other, foreign = (
        ("--model", "--features", of_features or {}) if features is None else ("--features", "--model", of_model)
    )
    wrong = [name for name, value in foreign.items() if value is not None]
    if wrong:
        raise OptionError(f"{', '.join(wrong)} cannot go with `{here}`: only `{other}` has a use for it.")


def warn_unless_held_out(validation: Path | None, *, training: Path) -> None:
    """Warn if held-out samples are the training samples: one path, or files of one content.

    Warns:
        HeldOutWarning: If so.

    """
    from opnp.data import file_digest

    if validation is None or not (validation.exists() and training.exists()):  # where it is read that is told
        return
    files, sizes = (validation, training), (validation.stat().st_size, training.stat().st_size)
    is_same = validation.samefile(training)
    if not is_same and all(path.is_file() for path in files) and sizes[0] == sizes[1]:
        is_same = file_digest(validation) == file_digest(training)
    if is_same:
        warnings.warn(
            f"`--validation` holds the training samples ({validation}): a threshold by samples that the model was "
            f"trained on is too low, so that more known inputs are flagged than `--keep` says. Give held-out ones.",
            HeldOutWarning,
            stacklevel=2,
        )


def one_of(place: Path | None, named: Path | None, *, option: str) -> Path:
    """Return a path that is given by its place among the arguments, or by an option.

    Raises:
        OptionError: If both are given, or none.

    """
    if (place is None) == (named is None):
        what = option.removeprefix("--").upper()
        raise OptionError(f"Give {what} once, first or as `{option}`: got {'none' if place is None else 'both'}.")
    return place or named or Path()


def head_layer_name(name: str | None, *, old: object) -> str | None:
    """Return the name of a model's head: ``--head-layer``, or what the old ``--head`` says, with a warning.

    Raises:
        OptionError: If both are given.

    """
    if old is None:
        return name
    if name is not None:
        raise OptionError("`--head` is the old name of `--head-layer`: give `--head-layer` alone.")
    warnings.warn(
        f"with `--model`, `--head` is now `--head-layer`, and will go: give `--head-layer {old}`.",
        FutureWarning,
        stacklevel=2,
    )
    return str(old)


def checked_device(name: str | None) -> str | None:
    """Return the name of a device that tensors can be on, or None for None.

    Raises:
        OptionError: If there is no such device.

    """
    import torch

    if name is not None:
        try:
            is_real = torch.empty(0, device=name).device.type != "meta"
        except (RuntimeError, AssertionError, ImportError) as error:  # the last where torch knows a name and no more
            reason = str(error).partition("\n")[0]
            raise OptionError(f"`--device` must be a device of this machine, got {name!r} ({reason}).") from error
        if not is_real:
            raise OptionError(f"`--device` must be a device that computes, got {name!r}, which holds no numbers.")
    return name


def listed(texts: Iterable[str]) -> list[str]:
    """Return names that are separated by commas, of an option that may be given several times.

    Example:
        >>> listed(["msp, energy", "knn,"])
        ['msp', 'energy', 'knn']

    """
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


def ood_paths(texts: Iterable[str] | None) -> dict[str, Path]:
    """Return the paths of OOD sets by name, from texts ``NAME=PATH``.

    Raises:
        OptionError: If a text is not of this form, or a name occurs twice.

    Example:
        >>> sorted(ood_paths(["dtd=images/dtd", "noise=noise.safetensors"]))
        ['dtd', 'noise']

    """
    found: dict[str, Path] = {}
    for text in texts or ():
        name, separator, path = text.partition("=")
        if not separator or not name or not path:
            raise OptionError(f"`--ood` must be NAME=PATH, such as `--ood textures=images/dtd`, got {text!r}.")
        if name in found:
            raise OptionError(f"`--ood` names must differ, got {name!r} twice.")
        found[name] = Path(path)
    return found


def _numbers(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(
            f"`{option}` must be numbers separated by commas, such as 0.485,0.456,0.406, got {text!r}."
        ) from None


def shaping_from(text: str) -> "Shaping | None":
    """Return the shaping that a text such as ``react:0.95``, ``ash-s:0.9``, ``scale:0.85`` or ``none`` names.

    Raises:
        OptionError: If it names none, or the number is no fraction.

    Example:
        >>> shaping_from("scale:0.85"), shaping_from("none"), shaping_from("react")
        (SCALE(quantile=0.85), None, ReAct(quantile=0.9))

    """
    from opnp.fitted import SHAPINGS

    name, _, quantile = text.partition(":")
    if text == "none":
        return None
    try:
        kind = SHAPINGS[name.replace("-", "_")]
        return kind(float(quantile)) if quantile else kind()
    except (KeyError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(
            f"`--shaping` must be none, react:Q, ash-s:Q or scale:Q with a fraction Q such as 0.9, got {text!r}.",
        ) from None


def shaping_text(shaping: "Shaping") -> str:
    """Return the text that `shaping_from` reads as this shaping.

    Example:
        >>> from opnp import SCALE
        >>> shaping_text(SCALE(0.85))
        'scale:0.85'

    """
    from opnp.fitted import SHAPINGS

    name = next(name for name, kind in SHAPINGS.items() if isinstance(shaping, kind))
    return f"{name.replace('_', '-')}:{shaping.quantile:g}"


# --------------------------------------------------------------------------------- what is written, and asked for first


def require_out_file(*paths: Path | None) -> None:
    """Raise unless each of these files, None left out, can be begun; what is there stays as it was.

    Raises:
        MissingFileError: If a folder does not exist, or a path is a folder itself.
        OSError: If no file can be made there.

    """
    for path in paths:
        if path is not None:
            require_writable(path)


def require_out_folder(path: Path) -> None:
    """Raise unless files can be made in the folder ``--out``, or, before it exists, in the nearest that does.

    Raises:
        OptionError: If it, or what it shall lie in, is a file.
        OSError: If nothing can be made there.

    """
    there = next((each for each in (path, *path.absolute().parents) if os.path.lexists(each)), path)
    if not there.is_dir():
        raise OptionError(f"`--out` must be a folder, or a name for a new one, got {path}: {there} is a file.")
    with tempfile.TemporaryDirectory(dir=there, prefix=".opnp."):
        pass


def require_report(path: Path | None, *, made: Path | None = None) -> None:
    """Raise, before anything is computed, what would keep a report from being written.

    Args:
        path: The report, or None where none is asked for.
        made: Folder that the command makes if it does not exist yet; a report may be written there.

    Raises:
        MissingExtraError: If a package that reports need is not installed.
        MissingFileError: If its folder does not exist, or it is a folder itself.
        OSError: If no file can be made there.

    """
    if path is None:
        return
    require_installed("`--report` needs", "altair", "jinja2", "pyarrow", "vl_convert", extra="report")
    if path.parent.is_dir() or made is None or path.parent.absolute() != made.absolute():
        require_out_file(path)


def tell_report(folder: Path, path: Path | None, *, is_quiet: bool, models: Collection[str] | None = None) -> None:
    """Write the report of a folder of results, or of some models in it, if one is asked for, and say where it is."""
    if path is None:
        return
    from opnp.report import write_report

    write_report(folder, path, models=models)
    if not is_quiet:
        typer.echo(f"Report: {path}")
