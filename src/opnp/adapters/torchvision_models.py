"""Image classifiers of torchvision, with the preprocessing of their pretrained weights."""

import warnings
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from opnp.data import Preprocessing
from opnp.errors import MissingExtraError, OptionError

__all__ = ["torchvision_model"]


def torchvision_model(name: str, *, classes: int | None = None, is_pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """Return an image classifier of torchvision, and the preprocessing of its test images.

    Args:
        name: Its name in torchvision, such as ``resnet18``.
        classes: Rows of the head; None for the 1000 of ImageNet.
        is_pretrained: Whether torchvision shall give it its default weights, which may be downloaded; random ones else.

    Returns:
        The model, and the preprocessing that belongs to its default weights, whether or not it has them.

    Raises:
        OptionError: If torchvision has no such classifier, or its weights cannot be had.
        MissingExtraError: If torchvision is not installed.

    """
    models = _models()
    known: list[str] = models.list_models(module=models)
    if name not in known:
        similar = ", ".join(item for item in known if item.startswith(name[:3]))
        raise OptionError(
            f"torchvision has no classifier {name!r}. It has {similar or ', '.join(known)}.",
        )
    weights = models.get_model_weights(name).DEFAULT
    options = {} if classes is None else {"num_classes": classes}
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # Inception and GoogLeNet announce another initialisation; the weights are replaced or given anyway.
            warnings.simplefilter("ignore", FutureWarning)
            model: nn.Module = models.get_model(name, weights=weights if is_pretrained else None, **options)
    except (OSError, RuntimeError, ValueError) as error:
        if not is_pretrained:
            raise OptionError(f"torchvision could not make {name!r}: {type(error).__name__}: {error}") from error
        raise OptionError(
            f"torchvision could not get the pretrained weights of {name!r} ({type(error).__name__}: {error}). Give "
            f"weights that are on this machine: `--weights FILE`.",
        ) from error
    return model, _preprocessing(weights.transforms())


def _preprocessing(preset: Any) -> Preprocessing:  # noqa: ANN401  # the package ships no types
    (size,), (resize,) = preset.crop_size, preset.resize_size
    return Preprocessing(
        size=size,
        resize=resize,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def _models() -> Any:  # noqa: ANN401  # a module without types
    if find_spec("torchvision") is None:
        raise MissingExtraError(
            "`torchvision:` models need torchvision, which is not installed: `pip install 'opnp[vision]'`.",
        )
    from torchvision import models

    return models
