"""Models by name, of timm and torchvision too, with what makes their inputs and what is said where they fail.

A name is ``timm:NAME``, ``torchvision:NAME``, ``hf:NAME``, ``sentence-transformers:NAME``, ``onnx:FILE`` or
``module:callable``.
"""

import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module, invalidate_caches
from importlib.metadata import version
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from opnp.adapters.encoders import sentence_model
from opnp.adapters.hub_cache import did_you_mean, failure_text
from opnp.adapters.onnx_models import onnx_model
from opnp.adapters.transformers_models import named_weights, transformers_model
from opnp.data import Interpolation, Preprocessing, Transform, fitting_names, load_weights, read_weights
from opnp.data.inputs import is_lost_worker, lost_worker_text
from opnp.errors import OptionError, require_installed
from opnp.model import head_layers, is_out_of_memory

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "DEFAULT_WEIGHTS",
    "TimmTransform",
    "chosen_preprocessing",
    "folder_name",
    "model_failure_text",
    "model_from_name",
    "timm_model",
    "torchvision_model",
]

DEFAULT_WEIGHTS = "DEFAULT"
"""In the place of a file of weights: those that a hub gives by itself."""
_KINDS = (
    "`timm:NAME`, `torchvision:NAME`, `hf:NAME`, `sentence-transformers:NAME`, `onnx:FILE`, or `module:callable` such "
    "as `mymodels:resnet`"
)
_OF_HUB = ("hf-hub:", "hf_hub:")
"""What timm has before names of models that lie on the hub of Hugging Face."""
_EXAMPLE = "`--image-size 32 --mean 0.4914,0.4822,0.4465 --std 0.2023,0.1994,0.2010`"


class TimmTransform:
    """Image in, tensor out, by timm's own transform for tests. Satisfies `opnp.data.Transform`.

    It serves configurations that `opnp.data.Preprocessing` has no words for, such as inputs that are no squares.

    Args:
        config: What timm's `resolve_data_config` gave.

    Raises:
        MissingExtraError: If timm is not installed.

    """

    kind: Literal["image"] = "image"

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Make the transform."""
        self.config = dict(config)
        self._transform = _timm().data.create_transform(**self.config, is_training=False)

    @property
    def std(self) -> tuple[float, ...]:
        """What the channels are divided by."""
        return tuple(self.config["std"])

    def __call__(self, sample: "Image") -> Tensor:
        """Return the model's input of one image, shape ``(channels, height, width)``, float32."""
        inputs: Tensor = self._transform(sample.convert("L" if self.config["input_size"][0] == 1 else "RGB"))
        return inputs

    def batch(self, items: Sequence[Tensor]) -> Tensor:
        """Return inputs of several images as one tensor, shape ``(batch, channels, height, width)``."""
        return torch.stack(list(items))

    def facts(self) -> Mapping[str, object]:
        """Return what makes these inputs the same as others: timm's configuration and version."""
        return {"timm": version("timm"), "config": json.loads(json.dumps(self.config, default=str))}


def timm_model(
    name: str, *, classes: int | None = None, is_pretrained: bool
) -> tuple[nn.Module, Preprocessing | TimmTransform]:
    """Return a model of timm, and the preprocessing of its test images.

    Args:
        name: Its name in timm, with a tag or without, such as ``resnet18`` or ``resnet18.a1_in1k``; or that of a model
            of timm on the hub of Hugging Face, ``hf-hub:org/name``.
        classes: Rows of the head; None for those of the pretrained model.
        is_pretrained: Whether timm shall give it its pretrained weights, which may be downloaded; random ones else.

    Returns:
        The model, and the preprocessing from timm's `resolve_data_config`; timm's own transform where that cannot be
        said as `opnp.data.Preprocessing`.

    Raises:
        OptionError: If timm has no such model, it has no classes, or its weights cannot be had.
        MissingExtraError: If timm is not installed.

    """
    timm = _timm()
    plain, _, tag = name.partition(".")
    if not name.startswith(_OF_HUB) and not timm.is_model(name):
        similar = did_you_mean(plain, timm.list_models(), prefix="timm:")
        raise OptionError(
            f"timm has no model {name!r}.{similar} `python -c 'import timm; print(timm.list_models())'` lists them "
            f"all; one on the hub of Hugging Face is `timm:hf-hub:org/name`.",
        )
    tagged = timm.list_pretrained(f"{plain}.*") if tag and not name.startswith(_OF_HUB) else []
    similar = "" if name in tagged else did_you_mean(name, tagged, prefix="timm:")
    options = {} if classes is None else {"num_classes": classes}
    with _making("timm", name, is_pretrained=is_pretrained, similar=similar):
        model: nn.Module = timm.create_model(name, pretrained=is_pretrained, **options)
    return model, _timm_preprocessing(timm.data.resolve_data_config(model=model))


def _timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing | TimmTransform:
    """Return the preprocessing of a resolved configuration, as timm's own transform for tests does it."""
    channels, height, width = config["input_size"]
    mode = config["crop_mode"]
    is_usual = height == width and mode in ("center", "squash") and len(config["mean"]) == channels
    if not is_usual or config["interpolation"] not in get_args(Interpolation):
        return TimmTransform(config)
    return Preprocessing(
        size=height,
        resize=floor(height / config["crop_pct"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        is_squashed=mode == "squash",
    )


def _timm() -> Any:  # noqa: ANN401  # a module
    require_installed("`timm:` models need", "timm", extra="vision")
    import timm
    import timm.data

    return timm


def torchvision_model(name: str, *, classes: int | None = None, is_pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """Return an image classifier of torchvision, and the preprocessing of its test images.

    Args:
        name: Its name in torchvision, such as ``resnet18``; with ``@`` and the name of weights those, as in
            ``resnet50@IMAGENET1K_V1``, and the default ones without.
        classes: Rows of the head; None for the 1000 of ImageNet.
        is_pretrained: Whether torchvision shall give it these weights, which may be downloaded; random ones else.

    Returns:
        The model, and the preprocessing that belongs to these weights, whether or not it has them.

    Raises:
        OptionError: If torchvision has no such classifier or weights, or they cannot be had.
        MissingExtraError: If torchvision is not installed.

    """
    models = _torchvision()
    known: list[str] = models.list_models(module=models)
    name, _, chosen = name.partition("@")
    if name not in known:
        similar = did_you_mean(name, known, prefix="torchvision:") or f" It has {', '.join(known)}."
        raise OptionError(f"torchvision has no classifier {name!r}.{similar}")
    of_name = models.get_model_weights(name)
    if chosen and chosen not in of_name.__members__:
        raise OptionError(
            f"torchvision has no weights {chosen!r} of {name}. It has {', '.join(of_name.__members__)}: "
            f"`torchvision:{name}@{of_name.DEFAULT.name}`.",
        )
    weights = of_name[chosen or "DEFAULT"]
    options = {} if classes is None else {"num_classes": classes}
    with _making("torchvision", name, is_pretrained=is_pretrained), warnings.catch_warnings():
        # Inception and GoogLeNet announce another initialisation; the weights are replaced or given anyway.
        warnings.simplefilter("ignore", FutureWarning)
        model: nn.Module = models.get_model(name, weights=weights if is_pretrained else None, **options)
    return model, _torchvision_preprocessing(weights.transforms())


def _torchvision_preprocessing(preset: Any) -> Preprocessing:  # noqa: ANN401  # the package ships no types
    (size,), (resize,) = preset.crop_size, preset.resize_size
    return Preprocessing(
        size=size,
        resize=resize,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def _torchvision() -> Any:  # noqa: ANN401  # a module without types
    require_installed("`torchvision:` models need", "torchvision", extra="vision")
    from torchvision import models

    return models


@contextmanager
def _making(hub: str, name: str, *, is_pretrained: bool, similar: str = "") -> Iterator[None]:
    """Keep the random state, and say what to do, and what may have been meant, where a hub cannot make a model."""
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except Exception as error:
        reason = failure_text(error)
        if not is_pretrained:
            raise OptionError(f"{hub} could not make {name!r}: {reason}.{similar}") from error
        raise OptionError(
            f"{hub} could not get the pretrained weights of {name!r} ({reason}).{similar} Give weights that are on "
            f"this machine: `--weights FILE`.",
        ) from error


_Builder = Callable[..., tuple[nn.Module, Transform]]
_HUBS: dict[str, _Builder] = {"timm": timm_model, "torchvision": torchvision_model, "hf": transformers_model}
_SENTENCES = "sentence-transformers"


def model_from_name(text: str, *, weights: str | os.PathLike[str] | None = None) -> tuple[nn.Module, Transform | None]:
    """Return the model that a text names, and what makes its inputs where the text tells that.

    A model of a hub has its pretrained weights, which are downloaded unless they are in the hub's cache. With `weights`
    it gets as many classes as the head in the file has, and no other weights are downloaded. A callable is imported,
    from the current folder too, and called without arguments.

    Args:
        text: ``timm:NAME`` or ``timm:hf-hub:org/name``; ``torchvision:NAME`` or ``torchvision:NAME@WEIGHTS``;
            ``hf:NAME``, a folder of transformers with image processor or tokenizer, or the name of such a model on the
            hub of Hugging Face, ``org/name``; ``sentence-transformers:NAME``, as `sentence_model` takes it;
            ``onnx:FILE``, a graph that ends in a linear layer; or ``module:callable``.
        weights: State dict to load, every name of it: a ``.safetensors`` file, or one that `torch.save` wrote; None or
            ``"DEFAULT"`` for the pretrained ones of a hub. Of a sentence encoder the file of its head, as
            `opnp.data.write_head` writes it.

    Returns:
        The model, and the transform of its inputs, None for a graph or a callable.

    Raises:
        OptionError: If the text names no model, the model cannot be made, or weights are given for a graph.
        MissingExtraError: If timm, torchvision, transformers or onnxruntime is needed and not installed.
        MissingFileError: If there is no file of weights, no folder or no graph.
        DataFileError: If the weights cannot be read, or do not fit the model; or the graph cannot be read.
        HeadNotFoundError: If a graph does not end in a linear layer.

    Example:
        >>> model, transform = model_from_name("torch.nn:Identity")
        >>> model, transform is None
        (Identity(), True)

    """
    kind, separator, name = text.partition(":")
    if not separator or not kind or not name:
        raise OptionError(f"`model` must be {_KINDS}, got {text!r}.")
    if kind == "onnx":
        if weights is not None:
            raise OptionError(f"{text} has its weights in the file: leave `--weights` out.")
        return onnx_model(name), None
    weights = _file_of_weights(weights, kind, text)
    if kind == _SENTENCES:
        return sentence_model(name, weights)
    state = None if weights is None else read_weights(weights)
    transform: Transform | None = None
    if kind in _HUBS:
        build = partial(_HUBS[kind], name)
        model, transform = build(is_pretrained=state is None)
        classes = None if state is None else _other_classes(model, fitting_names(model, state))
        if classes is not None:
            model, transform = build(is_pretrained=False, classes=classes)
    else:
        model = _called(kind, name)
    if state is not None and weights is not None:
        state = named_weights(model, fitting_names(model, state)) if kind == "hf" else state
        load_weights(model, state, path=weights)
    return model, transform


def _file_of_weights(weights: str | os.PathLike[str] | None, kind: str, text: str) -> str | os.PathLike[str] | None:
    """Return the file of weights; None where none is given, or DEFAULT for a model of a hub."""
    if weights is None or os.fspath(weights) != DEFAULT_WEIGHTS:
        return weights
    if kind == _SENTENCES:
        raise OptionError(
            f"{text!r} always has its pretrained weights: `--weights` is the file of its head, which "
            f"`opnp.data.write_head(path, weight, bias=bias)` writes."
        )
    if kind not in _HUBS:
        raise OptionError(
            f"`--weights`: {DEFAULT_WEIGHTS} stands for the pretrained weights of a hub, and {text!r} is of none: "
            f"leave it out, or give a file."
        )
    return None


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
                f"`model` must be {_KINDS}: importing {module!r} raised {type(error).__name__}: {error}."
                f"{_meant_module(module, name)}",
            ) from error
        for attribute in name.split("."):
            try:
                found = getattr(found, attribute)
            except Exception as error:  # modules and classes may look names up by code of their own
                similar = did_you_mean(name, dir(found), prefix=f"{module}:")
                raise OptionError(f"`model`: the module {module!r} has no {name!r}.{similar}") from error
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


def _meant_module(module: str, name: str) -> str:
    """Return what was meant by the name of a module that cannot be imported, as a question, or ""."""
    if module.endswith(".py"):
        meant = ".".join(Path(module.removesuffix(".py")).parts)
        return f" The `.py` is no part of a module's name. Did you mean `{meant}:{name}`?"
    return did_you_mean(module, [*_HUBS, _SENTENCES, "onnx"])


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
