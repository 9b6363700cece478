"""Image classifiers of timm, with the preprocessing that their configuration asks for."""

from importlib.util import find_spec
from math import floor
from typing import Any

import torch
from torch import nn

from opnp.data import Preprocessing
from opnp.errors import MissingExtraError, OptionError

__all__ = ["timm_model"]


def timm_model(name: str, *, classes: int | None = None, is_pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """Return a model of timm, and the preprocessing of its test images.

    Args:
        name: Its name in timm, with a tag or without, such as ``resnet18`` or ``resnet18.a1_in1k``.
        classes: Rows of the head; None for those of the pretrained model.
        is_pretrained: Whether timm shall give it its pretrained weights, which may be downloaded; random ones else.

    Returns:
        The model, and the preprocessing from timm's `resolve_data_config`.

    Raises:
        OptionError: If timm has no such model, it has no classes, its weights cannot be had, or its preprocessing is
            of a kind that this package has not.
        MissingExtraError: If timm is not installed.

    """
    timm = _timm()
    # A tag names weights, so that timm refuses a wrong one by itself.
    if not timm.is_model(name):
        similar = ", ".join(timm.list_models(f"*{name.split('.', maxsplit=1)[0]}*")[:8])
        raise OptionError(
            f"timm has no model {name!r}.{f' It has {similar}.' if similar else ''} "
            f"`python -c 'import timm; print(timm.list_models())'` lists them all.",
        )
    options = {} if classes is None else {"num_classes": classes}
    try:
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = timm.create_model(name, pretrained=is_pretrained, **options)
    except Exception as error:
        if not is_pretrained:
            raise OptionError(f"timm could not make {name!r}: {type(error).__name__}: {error}") from error
        raise OptionError(
            f"timm could not get the pretrained weights of {name!r} ({type(error).__name__}: {error}). Give weights "
            f"that are on this machine: `--weights FILE`.",
        ) from error
    return model, _preprocessing(timm.data.resolve_data_config(model=model), name)


def _preprocessing(config: dict[str, Any], name: str) -> Preprocessing:
    """Return the preprocessing of a resolved configuration, as timm's own transform for tests does it."""
    _, height, width = config["input_size"]
    mode = config["crop_mode"]
    if height != width or mode not in ("center", "squash"):
        raise OptionError(
            f"timm crops the images of {name!r} in a way that is not known here (mode {mode!r}, {height} x {width} "
            f"pixels): cache its features yourself, and use them with `--features`.",
        )
    return Preprocessing(
        size=height,
        resize=floor(height / config["crop_pct"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        is_squashed=mode == "squash",
    )


def _timm() -> Any:  # noqa: ANN401  # a module
    if find_spec("timm") is None:
        raise MissingExtraError("`timm:` models need timm, which is not installed: `pip install 'opnp[vision]'`.")
    import timm
    import timm.data

    return timm
