"""Options of the commands that run a model on images or texts, and their reading."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opnp.errors import OptionError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from opnp.data import Transform

__all__ = [
    "AmpName",
    "AmpOption",
    "AutoBatch",
    "BatchSize",
    "ChannelsLast",
    "DataPath",
    "DeviceName",
    "DtypeName",
    "FeaturesDtype",
    "HeadName",
    "ImageSize",
    "LogitsPlace",
    "Means",
    "ModelName",
    "ModelOptions",
    "Resize",
    "StandardDeviations",
    "Strict",
    "WeightsFile",
    "Workers",
    "checked_device",
    "logits_place",
    "named_paths",
]

ModelName = Annotated[
    str | None,
    typer.Option(
        help="Instead of --features: timm:NAME, torchvision:NAME, hf:FOLDER (a folder of transformers on this "
        "machine), or module:callable that returns the model; with --data."
    ),
]
DataPath = Annotated[
    Path | None,
    typer.Option(
        help="With --model: inputs, as a folder of images (subfolders are classes), a list of files, .safetensors, "
        ".npy, a data set of Hugging Face saved to disk, or .jsonl and .csv with texts."
    ),
]
LogitsPlace = Annotated[
    str | None,
    typer.Option(
        help="With --model: where the logits are in its output, if that is no tensor: a number for a place in a tuple, "
        "else a key or attribute."
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first input that cannot be read.")]
WeightsFile = Annotated[
    Path | None,
    typer.Option(
        help="State dict of the model: a .safetensors file, or one of torch.save. Without it, timm and "
        "torchvision give their pretrained weights, and hf those of its folder."
    ),
]
HeadName = Annotated[str | None, typer.Option(help="Dotted name of the head. Default: found by itself.")]
BatchSize = Annotated[int, typer.Option(help="Images a batch.")]
DeviceName = Annotated[str | None, typer.Option(help="Where to run, such as cuda. Default: the CPU.")]
ImageSize = Annotated[int | None, typer.Option(help="Side of the model's input in pixels. Default: the model's own.")]
Resize = Annotated[
    int | None, typer.Option(help="Shorter side of images before the crop. Default: the model's own, or --image-size.")
]
Means = Annotated[
    str | None,
    typer.Option(metavar="R,G,B", help="Mean of pixels in [0, 1]; one number for grey inputs. Default: the model's."),
]
StandardDeviations = Annotated[str | None, typer.Option(metavar="R,G,B", help="Standard deviation, as --mean.")]

Workers = Annotated[
    int, typer.Option(help="Processes that read and prepare images ahead of time. The features are the same.")
]
AutoBatch = Annotated[
    bool,
    typer.Option("--auto-batch", help="Where a batch needs more memory than there is, warn, and run it in halves."),
]
ChannelsLast = Annotated[
    bool, typer.Option("--channels-last", help="Run convolutions with channels last in memory, mostly faster on GPUs.")
]


class AmpName(StrEnum):
    """Precisions of the model's forward pass."""

    none = "none"
    bf16 = "bf16"


AmpOption = Annotated[
    AmpName, typer.Option(help="Precision of the forward pass: none as the model is, bf16 by autocast of torch.")
]


class FeaturesDtype(StrEnum):
    """Types that features are stored in."""

    float16 = "float16"
    float32 = "float32"

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The type of torch."""
        import torch

        return {"float16": torch.float16, "float32": torch.float32}[self.value]


DtypeName = Annotated[FeaturesDtype, typer.Option(help="Type to store features in.")]

_PLACE_DIGITS = 5


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What was said of a model and its inputs.

    Attributes:
        name: ``timm:NAME``, ``torchvision:NAME``, ``hf:FOLDER`` or ``module:callable``.
        weights: File of weights, or None.
        image_size: Side of the input, or None for the model's own.
        resize: Shorter side before the crop, or None for the model's own.
        mean: Means of the channels, separated by commas, or None for the model's own.
        std: Standard deviations, in the same way.

    """

    name: str
    weights: Path | None
    image_size: int | None
    resize: int | None
    mean: str | None
    std: str | None

    def opened(self) -> "tuple[nn.Module, Transform]":
        """Return the model and what makes its inputs.

        Raises:
            OpnpError: If the options name no model, or do not say how to make its inputs.

        """
        from opnp.adapters import chosen_preprocessing, model_from_name

        mean, std = _numbers("--mean", self.mean), _numbers("--std", self.std)
        model, known = model_from_name(self.name, weights=self.weights)
        return model, chosen_preprocessing(
            known, model=self.name, image_size=self.image_size, resize=self.resize, mean=mean, std=std
        )


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


def logits_place(text: str | None) -> int | str | None:
    """Return where the logits are in a model's output: an index of a tuple, a key or attribute, or None for None.

    Raises:
        OptionError: If it is a number of more than five characters.

    Example:
        >>> logits_place("0"), logits_place("-1"), logits_place("logits")
        (0, -1, 'logits')

    """
    if text is None or not text.removeprefix("-").isdecimal():
        return text
    if len(text) > _PLACE_DIGITS:
        raise OptionError(f"`--logits` must be a place in a tuple or a name, got a number of {len(text)} characters.")
    return int(text)


def named_paths(texts: Iterable[str], *, option: str) -> dict[str, Path]:
    """Return paths by name from texts ``NAME=PATH``.

    Raises:
        OptionError: If a text is not of this form, or a name occurs twice.

    Example:
        >>> sorted(named_paths(["dtd=images/dtd", "noise=noise.safetensors"], option="--ood"))
        ['dtd', 'noise']

    """
    found: dict[str, Path] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or not name or not path:
            raise OptionError(f"`{option}` must be NAME=PATH, such as `{option} textures=images/dtd`, got {text!r}.")
        if name in found:
            raise OptionError(f"`{option}` names must differ, got {name!r} twice.")
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
