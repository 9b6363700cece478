"""Models by name, with what makes their inputs and what is said where they fail.

A name is ``timm:NAME``, ``torchvision:NAME``, ``hf:FOLDER`` or ``module:callable``.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module, invalidate_caches
from pathlib import Path

import torch
from torch import Tensor, nn

from opnp.adapters.timm_models import timm_model
from opnp.adapters.torchvision_models import torchvision_model
from opnp.adapters.transformers_models import named_weights, transformers_model
from opnp.data import Preprocessing, Transform, load_weights, read_weights
from opnp.data.inputs import is_lost_worker, lost_worker_text
from opnp.errors import OptionError
from opnp.model import head_layers, is_out_of_memory

__all__ = ["chosen_preprocessing", "folder_name", "model_failure_text", "model_from_name"]

_Builder = Callable[..., tuple[nn.Module, Transform]]
_HUBS: dict[str, _Builder] = {"timm": timm_model, "torchvision": torchvision_model, "hf": transformers_model}
_KINDS = "`timm:NAME`, `torchvision:NAME`, `hf:FOLDER`, or `module:callable` such as `mymodels:resnet`"
_EXAMPLE = "`--image-size 32 --mean 0.4914,0.4822,0.4465 --std 0.2023,0.1994,0.2010`"


def model_from_name(text: str, *, weights: str | os.PathLike[str] | None = None) -> tuple[nn.Module, Transform | None]:
    """Return the model that a text names, and what makes its inputs where the text tells that.

    A model of timm or torchvision without `weights` has their pretrained ones, one of transformers those of its folder.
    With `weights` it gets as many classes as the head in the file has, and nothing is downloaded. A callable is
    imported, from the current folder too, and called without arguments.

    Args:
        text: ``timm:NAME``, ``torchvision:NAME``, ``hf:FOLDER`` (a folder of transformers on this machine, with image
            processor or tokenizer) or ``module:callable``.
        weights: State dict to load, every name of it: a ``.safetensors`` file, or one that `torch.save` wrote.

    Returns:
        The model, and the transform of its inputs, None for a callable.

    Raises:
        OptionError: If the text names no model, or the model cannot be made.
        MissingExtraError: If timm, torchvision or transformers is needed and not installed.
        MissingFileError: If there is no file of weights, or no folder.
        DataFileError: If the weights cannot be read, or do not fit the model.

    Example:
        >>> model, transform = model_from_name("torch.nn:Identity")
        >>> model, transform is None
        (Identity(), True)

    """
    kind, separator, name = text.partition(":")
    if not separator or not kind or not name:
        raise OptionError(f"`model` must be {_KINDS}, got {text!r}.")
    state = None if weights is None else read_weights(weights)
    transform: Transform | None = None
    if kind in _HUBS:
        build = partial(_HUBS[kind], name)
        model, transform = build(is_pretrained=state is None)
        classes = None if state is None else _other_classes(model, state)
        if classes is not None:
            model, transform = build(is_pretrained=False, classes=classes)
    else:
        model = _called(kind, name)
    if state is not None and weights is not None:
        state = named_weights(model, state) if kind == "hf" else state
        load_weights(model, state, path=weights)
    return model, transform


def chosen_preprocessing(
    known: Transform | None,
    *,
    model: str,
    image_size: int | None = None,
    resize: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Transform:
    """Return a known preprocessing with some values replaced, or one of given values alone.

    Args:
        known: What comes with the model, or None.
        model: Name of the model, for the message.
        image_size: Side of the model's input. A known `resize` grows in proportion.
        resize: Shorter side before the crop; None for the known one, or for `image_size`.
        mean: Means of the channels.
        std: Standard deviations of the channels.

    Raises:
        OptionError: If nothing is known and a value is missing, one is out of range, or what comes with the model is
            its own code, in which single values cannot be replaced.

    Example:
        >>> made = chosen_preprocessing(None, model="mine:net", image_size=32, mean=[0.5] * 3, std=[0.25] * 3)
        >>> made.kind, made.facts()["resize"]
        ('image', 32)

    """
    given = {"--image-size": image_size, "--resize": resize, "--mean": mean, "--std": std}
    named = [option for option, value in given.items() if value is not None]
    if known is not None and not isinstance(known, Preprocessing):
        if not named:
            return known
        if known.kind != "image":
            raise OptionError(f"The model {model!r} takes texts: leave {', '.join(named)} out, which are for images.")
    if isinstance(known, Preprocessing):
        size = known.size if image_size is None else image_size
        return replace(
            known,
            size=size,
            resize=known.resize * size // known.size if resize is None else resize,
            mean=known.mean if mean is None else tuple(mean),
            std=known.std if std is None else tuple(std),
        )
    if image_size is None or mean is None or std is None:
        missing = ", ".join(name for name, value in given.items() if value is None and name != "--resize")
        if known is not None:
            raise OptionError(
                f"The images of the model {model!r} are prepared by its own {type(known).__name__}, in which single "
                f"values cannot be replaced: leave {', '.join(named)} out, or give {missing} too.",
            )
        raise OptionError(
            f"No preprocessing is known for the model {model!r}: give {missing} as in its training, with pixels in "
            f"[0, 1]. For a model of CIFAR-10, say: {_EXAMPLE}.",
        )
    return Preprocessing(size=image_size, resize=resize or image_size, mean=tuple(mean), std=tuple(std))


def folder_name(text: str) -> str:
    """Return the name of a model as the name of a folder.

    Example:
        >>> folder_name("timm:resnet18.a1_in1k"), folder_name("my.models:net")
        ('timm-resnet18.a1_in1k', 'my.models-net')

    """
    return re.sub(r"[^\w.]+", "-", text).strip("-.") or "model"


def model_failure_text(error: BaseException, model: nn.Module, *, place: Path | str) -> str:
    """Return in one line that a model raised an error on inputs, named or by their path, and what to look at.

    Example:
        >>> model = nn.Linear(2, 2).half()
        >>> print(model_failure_text(RuntimeError("Half and float"), model, place=Path("images")))
        The model failed on images: RuntimeError: Half and float. Its weights are float16, and inputs are made as float32: give a model in float32, as `model.float()` returns it.

    """  # noqa: E501  # the line is the message
    reason = " ".join(str(error).split()) or "no reason given"
    stop = "" if reason[-1] in ".!?" else "."
    if is_out_of_memory(error):
        return f"Memory ran out on {place}: {type(error).__name__}: {reason}{stop} Give a smaller `--batch-size`."
    if is_lost_worker(error):
        return lost_worker_text(error)
    others = [each.dtype for each in model.parameters() if each.is_floating_point() and each.dtype is not torch.float32]
    kinds = sorted({str(each).removeprefix("torch.") for each in others})
    hint = (
        f"Its weights are {' and '.join(kinds)}, and inputs are made as float32: give a model in float32, as "
        f"`model.float()` returns it."
        if kinds
        else "Do size, channels and device fit it?"
    )
    return f"The model failed on {place}: {type(error).__name__}: {reason}{stop} {hint}"


def _other_classes(model: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Return the rows of the one possible head that has another number of rows in `state`; None if there is not one."""
    rows = [
        len(found)
        for name, layer in head_layers(model).items()
        for found in [state.get(f"{name}.weight")]
        if found is not None and found.shape[1:] == layer.weight.shape[1:] and len(found) != len(layer.weight)
    ]
    return rows[0] if len(rows) == 1 else None


def _called(module: str, name: str) -> nn.Module:
    """Return what the callable of this name in this module makes."""
    with _current_folder_importable():
        try:
            found: object = import_module(module)
        except (Exception, SystemExit) as error:  # a script that leaves would end this process, as if all were well
            raise OptionError(
                f"`model` must be {_KINDS}: importing {module!r} raised {type(error).__name__}: {error}.",
            ) from error
        for attribute in name.split("."):
            try:
                found = getattr(found, attribute)
            except Exception as error:  # modules and classes may look names up by code of their own
                raise OptionError(f"`model`: the module {module!r} has no {name!r}.") from error
        if not callable(found):
            raise OptionError(f"`model`: {module}:{name} must be callable, got {type(found).__name__}.")
        try:
            with torch.random.fork_rng(devices=[]):
                model = found()
        except (Exception, SystemExit) as error:
            raise OptionError(
                f"`model`: {module}:{name}() raised {type(error).__name__}: {error}. It must return the model when it "
                f"is called without arguments.",
            ) from error
    if not isinstance(model, nn.Module):
        raise OptionError(f"`model`: {module}:{name}() must return a torch.nn.Module, got {type(model).__name__}.")
    return model


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Let modules of the current folder be imported, as ``python -m`` does."""
    folder = str(Path.cwd())
    invalidate_caches()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
