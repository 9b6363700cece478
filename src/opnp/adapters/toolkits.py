"""What a detector inside another toolkit needs: flat options, a head behind an encoder, and bytes to pickle."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from opnp.detector import OPNP, Ratios, Settings
from opnp.detector.settings import settings_from
from opnp.errors import InputTypeError, NotFittedError, OptionError
from opnp.fitted import shaping_from_json
from opnp.model import borrowed

__all__ = [
    "OPTION_DEFAULTS",
    "RATIO_NAMES",
    "EncodedClassifier",
    "blank_pass",
    "bytes_of",
    "checked_names",
    "detector_from",
    "encoded",
    "owner_of",
    "reset",
    "settings_of",
]

RATIO_NAMES = tuple(asdict(Ratios()))
"""``w_min``, ``w_max``, ``o_min``, ``o_max``."""

OPTION_DEFAULTS: dict[str, object] = dict.fromkeys(RATIO_NAMES) | {
    name: parameter.default for name, parameter in signature(settings_from).parameters.items() if name != "ratios"
}
"""Every option with its default, None for one that is not given; names beside the ratios are those of `OPNP`."""


def settings_of(options: Mapping[str, object]) -> Settings:
    """Return the settings that flat options stand for.

    Args:
        options: Values by name, of `OPTION_DEFAULTS`; what is left out has its default. Without any but `members` and
            `precision` they are those of a fusion. Ratios that are None count as 0 beside other options. A shaping may
            be given as a mapping such as ``{"name": "scale", "quantile": 0.85}``.

    Raises:
        OptionError: If a name is unknown, a value is out of range, or options do not go together.
        RatioError: If a ratio is out of range, or two of one layer leave nothing.

    Example:
        >>> settings_of({"w_min": 0.3}).ratios
        Ratios(w_min=0.3, w_max=0.0, o_min=0.0, o_max=0.0)
        >>> settings_of({}).is_fusion
        True

    """
    checked_names(options, allowed=OPTION_DEFAULTS)
    given = {**OPTION_DEFAULTS, **options}
    shares = {name: given.pop(name) for name in RATIO_NAMES}
    ratios = {name: share for name, share in shares.items() if share is not None}
    try:
        given["shaping"] = shaping_from_json(given["shaping"])
    except (KeyError, TypeError):
        raise OptionError(
            f"`shaping` must be None, or a mapping with `name` (react, ash_s or scale) and `quantile`, got "
            f"{given['shaping']!r}."
        ) from None
    return settings_from(ratios=Ratios(**ratios) if ratios else None, **given)  # type: ignore[arg-type]  # checked there


def checked_names(names: Mapping[str, object], *, allowed: Mapping[str, object]) -> None:
    """Refuse names that are no options, which would otherwise change nothing.

    Raises:
        OptionError: If a name is not among those allowed.

    """
    unknown = sorted(str(name) for name in names if name not in allowed)
    if unknown:
        raise OptionError(f"Options must be among {', '.join(allowed)}, got {', '.join(unknown)}.")


def blank_pass(settings: Settings) -> Settings:
    """Return what a pass over the training data depends on: of the paper's method not on ratios, reading and scope."""
    if settings.is_fusion:
        return settings
    default = Settings()
    return replace(settings, ratios=Ratios(), neuron=default.neuron, scope=default.scope)


def reset(detector: OPNP, settings: Settings) -> OPNP:
    """Return a fitted detector under other ratios, reading and scope; a fusion stays as it is.

    Raises:
        NotFittedError: If the one is a fusion, and the other is not: they take other sums.

    """
    if settings.is_fusion != detector.settings.is_fusion:
        raise NotFittedError("The fusion and the pruned head alone take another pass each: fit again.")
    if settings.is_fusion:
        return detector
    return detector.with_ratios(settings.ratios, neuron=settings.neuron, scope=settings.scope)


Encoder = Callable[[Tensor], Tensor]


class EncodedClassifier(nn.Module):
    """A linear head on what an encoder gives; the encoder's module is part of it, so that its mode can be held.

    Args:
        encoder: Function from inputs to features; trailing axes are flattened.
        weight: The head's weight, shape ``(classes, features)``; used as it is.
        bias: The head's bias, shape ``(classes,)``, or None.
        owner: The module that the encoder runs; None for the one found by `owner_of`.

    Example:
        >>> import torch
        >>> model = EncodedClassifier(lambda inputs: 2 * inputs, torch.eye(2), None)
        >>> model(torch.tensor([[1.0, 3.0]])).tolist()
        [[2.0, 6.0]]

    """

    def __init__(
        self, encoder: Encoder, weight: Tensor, bias: Tensor | None, *, owner: nn.Module | None = None
    ) -> None:
        """Keep the encoder, and make the head."""
        super().__init__()
        self.owner = owner_of(encoder) if owner is None else owner
        self.encoder = encoder
        classes, width = weight.shape
        self.head: nn.Linear = nn.utils.skip_init(nn.Linear, width, classes, bias=bias is not None, device="meta")
        self.head.weight = nn.Parameter(weight.detach(), requires_grad=False)
        if bias is not None:
            self.head.bias = nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits, shape ``(batch, classes)``."""
        logits: Tensor = self.head(_flat(self.encoder(inputs)).to(self.head.weight))
        return logits


def encoded(encoder: Encoder, inputs: Tensor, *, owner: nn.Module | None = None) -> Tensor:
    """Return the features of a batch, shape ``(batch, features)``, taken in eval mode and without autograd.

    Args:
        encoder: Function from inputs to features; trailing axes are flattened.
        inputs: A batch; it is moved to where the encoder's module is.
        owner: The module that the encoder runs, which comes back as it was; None for the one found by `owner_of`.

    Raises:
        InputTypeError: If the encoder gives no tensor.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> encoded(nn.Dropout(0.5), torch.ones(1, 2, 1, 1)).tolist()
        [[1.0, 1.0]]

    """
    owner = owner_of(encoder) if owner is None else owner
    if owner is None:
        with torch.no_grad():
            return _flat(encoder(inputs))
    with borrowed(owner) as device:
        return _flat(encoder(inputs.to(device)))


def owner_of(encoder: object) -> nn.Module | None:
    """Return the module that an encoder is or is a method of; None for a function, whose module cannot be known.

    Example:
        >>> from torch import nn
        >>> layer = nn.Linear(2, 2)
        >>> owner_of(layer) is layer and owner_of(layer.forward) is layer
        True
        >>> owner_of(lambda inputs: layer(inputs)) is None
        True

    """
    while isinstance(encoder, partial):
        encoder = encoder.func
    found = encoder if isinstance(encoder, nn.Module) else getattr(encoder, "__self__", None)
    return found if isinstance(found, nn.Module) else None


def _flat(features: Tensor) -> Tensor:
    if not isinstance(features, Tensor):
        raise InputTypeError(
            f"The encoder must return a tensor of features, shape (batch, features), got {type(features).__name__}."
        )
    return features.flatten(1)


def bytes_of(detector: OPNP) -> bytes:
    """Return the file that `OPNP.save` writes: tensors and JSON, no model.

    Raises:
        NotFittedError: If the detector was not fitted.

    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "detector.safetensors"
        detector.save(path)
        return path.read_bytes()


def detector_from(data: bytes) -> OPNP:
    """Return the detector, without a model: it scores features.

    Raises:
        ArtifactError: If the bytes are those of no detector.

    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "detector.safetensors"
        path.write_bytes(data)
        return OPNP.load(path)
