"""Image classifiers of timm, with the preprocessing that their configuration asks for."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from math import floor
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from opnp.data import Interpolation, Preprocessing
from opnp.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["TimmTransform", "timm_model"]


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
        name: Its name in timm, with a tag or without, such as ``resnet18`` or ``resnet18.a1_in1k``.
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
    return model, _preprocessing(timm.data.resolve_data_config(model=model))


def _preprocessing(config: Mapping[str, Any]) -> Preprocessing | TimmTransform:
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
    if find_spec("timm") is None:
        raise MissingExtraError("`timm:` models need timm, which is not installed: `pip install 'opnp[vision]'`.")
    import timm
    import timm.data

    return timm
