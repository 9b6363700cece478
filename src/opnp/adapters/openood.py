"""OPNP as a postprocessor of OpenOOD v1.5, which is no package to install: without it this module works as well.

Where OpenOOD can be imported, `OPNPPostprocessor` derives from its `BasePostprocessor`, as its evaluator demands.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opnp.adapters.toolkits import (
    OPTION_DEFAULTS,
    RATIO_NAMES,
    EncodedClassifier,
    blank_pass,
    bytes_of,
    checked_names,
    detector_from,
    encoded,
    reset,
    settings_of,
)
from opnp.core.checks import checked_head, two_class_head
from opnp.detector import OPNP, Settings
from opnp.detector.fit_pass import shown
from opnp.errors import EmptyDataError, HeadMismatchError, InputTypeError, NotFittedError, OptionError, ShapeError
from opnp.model import unwrapped

__all__ = ["CONFIG_FILE", "OPNPPostprocessor"]

CONFIG_FILE = Path(__file__).with_name("openood.yml")
"""The configuration in OpenOOD's format, to be copied to its ``configs/postprocessors/opnp.yml``."""

_SWEEP: dict[str, Sequence[object]] = {
    "w_min_list": [0.0, 0.3, 0.5, 0.8],
    "w_max_list": [0.0, 0.005],
    "o_min_list": [0.0, 0.3],
    "o_max_list": [0.0, 0.05],
}
_SWEPT = (*RATIO_NAMES, "neuron", "scope")
"""Options that one pass over the training data serves for whatever value."""


class _BasePostprocessor:
    """What OpenOOD's class of this name does, where there is none to derive from."""

    def __init__(self, config: object) -> None:
        self.config = config


def _base() -> type:
    """Return OpenOOD's base class, or the one above where OpenOOD is not installed."""
    if find_spec("openood") is None:
        return _BasePostprocessor
    found: type = import_module("openood.postprocessors").BasePostprocessor
    return found


class OPNPPostprocessor(_base()):  # type: ignore[misc]  # the class is known when OpenOOD is looked for
    """OPNP with the interface of OpenOOD's postprocessors: confidence, so larger = more ID.

    The predicted class is that of the unpruned head. A hyper-parameter that is set takes effect at once, and the pass
    over the training data serves all that the sweep may hold. The net comes back as it was, mode and all.

    Args:
        config: OpenOOD's configuration, a mapping or object of the same layout, or None for that of `CONFIG_FILE`. Its
            ``postprocessor_args`` are options of `OPNP`, with each ratio by itself; where all are null, scores are
            fused. With ``APS_mode`` the evaluator searches ratios of the paper's method. Its ``postprocessor_sweep``
            may hold ratios, `neuron` and `scope`, each with or without ``_list`` behind it.

    Attributes:
        args_dict: Values to try by name, in the order of `set_hyperparam`.
        APS_mode: Whether the evaluator is to search for hyper-parameters.
        hyperparam_search_done: Whether it has; the evaluator writes it.
        setup_flag: Whether `setup` has been through.

    Raises:
        OptionError: If an option is unknown or out of range, or the sweep cannot be made.

    Example:
        >>> postprocessor = OPNPPostprocessor({"postprocessor": {"postprocessor_args": {"w_min": 0.3}}})
        >>> postprocessor.options["w_min"], postprocessor.APS_mode
        (0.3, False)

    References:
        Yang et al., "OpenOOD: Benchmarking Generalized Out-of-Distribution Detection", NeurIPS 2022.

    """

    def __init__(self, config: object = None) -> None:
        """Read the configuration, and check all of it."""
        super().__init__(config)
        section = _item(config, "postprocessor")
        self.APS_mode = bool(_item(section, "APS_mode"))
        self.hyperparam_search_done = False
        self.setup_flag = False
        self.args_dict = dict(_SWEEP) if config is None else _mapping(_item(section, "postprocessor_sweep"))
        self._options = {**OPTION_DEFAULTS, **_mapping(_item(section, "postprocessor_args"))}
        settings_of(self._options)
        self._check_sweep()
        self._head: tuple[Tensor, Tensor | None] | None = None
        self._fitted: OPNP | None = None
        self._ready: dict[Settings, OPNP] = {}

    def setup(
        self,
        net: nn.Module,
        id_loader_dict: Mapping[str, Iterable[Mapping[str, Any]]],
        ood_loader_dict: object = None,  # noqa: ARG002  # OpenOOD's evaluator gives it
    ) -> None:
        """Take the sensitivities in one pass of the net over the ID training data.

        A postprocessor that has been through it on a net with the same head, as one that OpenOOD has stored, is left
        as it is; set `setup_flag` to False to go through again. No OOD data are used.

        Args:
            net: Has ``forward(inputs, return_feature=True)``, which gives logits and features, and ``get_fc()``.
            id_loader_dict: Loaders of batches with ``data`` and ``label``; ``train`` is read.
            ood_loader_dict: Not used.

        Raises:
            InputTypeError: If the net or a batch is of another kind.
            EmptyDataError: If there are no training samples.
            RatioError: If the ratios leave nothing of this head.

        """
        head = _head_of(net)
        if self.setup_flag and self._head is not None and _is_same(self._head, head):
            return
        settings = self._swept_settings()
        classifier = EncodedClassifier(partial(_features, net, head[0]), *_placed(head, net), owner=net)
        fitted = OPNP.from_settings(blank_pass(settings)).fit(
            classifier, _pairs(id_loader_dict["train"]), head=classifier.head
        )
        ready = {settings: reset(fitted, settings)}
        self._head, self._fitted, self._ready, self.setup_flag = head, fitted, ready, True

    def postprocess(self, net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        """Return predicted classes, int64, and confidences, larger = more ID, of a batch; shape ``(batch,)`` each.

        Raises:
            NotFittedError: If `setup` has not been through.
            HeadMismatchError: If the net's head is not that of `setup`.
            NonFiniteError: If features are not finite.

        """
        detector, head = self.opnp, _head_of(net)
        if self._head is None or not _is_same(self._head, head):
            raise HeadMismatchError(
                "The net's head is not the one that this postprocessor was set up on: call `setup` with this net."
            )
        features = encoded(partial(_features, net, head[0]), data, owner=net)
        return detector.classify_features(features), -detector.score_features(features)

    def inference(
        self,
        net: nn.Module,
        data_loader: Iterable[Mapping[str, Any]],
        progress: bool = True,  # noqa: FBT001, FBT002  # OpenOOD's evaluator gives it by position
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return predicted classes, confidences and labels of all batches as arrays; the net may be on any device.

        Labels that are missing are -1, which stands for OOD in OpenOOD.

        Raises:
            EmptyDataError: If there are no batches.
            NotFittedError: If `setup` has not been through.

        """
        found: list[tuple[Tensor, ...]] = []
        for batch in shown(data_loader, progress):
            inputs, labels = _pair(batch)
            answers = self.postprocess(net, inputs)
            found.append((*answers, torch.full_like(answers[0], -1) if labels is None else labels))
        if not found:
            raise EmptyDataError("`data_loader` yields no batch: there is nothing to score.")
        classes, confidences, labels = (torch.cat([part.cpu() for part in parts]) for parts in zip(*found, strict=True))
        return classes.numpy().astype(int), confidences.numpy(), labels.numpy().astype(int)

    def set_hyperparam(self, hyperparam: Sequence[object]) -> None:
        """Set one value for each name of `args_dict`, in its order; masks follow.

        Raises:
            OptionError: If there is another number of values, or one is out of range.
            RatioError: If a ratio is out of range, or two of one layer leave nothing.

        """
        names = self._swept()
        if len(hyperparam) != len(names):
            raise OptionError(
                f"`hyperparam` must hold a value for each of {', '.join(names)}, got {len(hyperparam)} values."
            )
        changed = {**self._options, **dict(zip(names, hyperparam, strict=True))}
        settings_of(changed)
        self._options = changed

    def get_hyperparam(self) -> list[object]:
        """Return the values in force, in the order of `args_dict`."""
        return [self._options[name] for name in self._swept()]

    @property
    def options(self) -> dict[str, object]:
        """The options in force, by name."""
        return dict(self._options)

    @property
    def opnp(self) -> OPNP:
        """The detector of this project under the options in force: its masks, `pruned_head`, `save` and all.

        Raises:
            NotFittedError: If `setup` has not been through.

        """
        if self._fitted is None:
            raise NotFittedError("This postprocessor has seen no data: call `setup(net, id_loader_dict, ...)` first.")
        settings = settings_of(self._options)
        if settings not in self._ready:
            self._ready = {settings: reset(self._fitted, settings)}
        return self._ready[settings]

    def __getstate__(self) -> dict[str, object]:
        """Return what OpenOOD's scripts pickle: the detector as the file it is saved in, without the net."""
        fitted = None if self._fitted is None else bytes_of(self._fitted)
        return {**vars(self), "_fitted": fitted, "_ready": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `__getstate__` gave."""
        fitted = state["_fitted"]
        self.__dict__.update({**state, "_fitted": None if fitted is None else detector_from(fitted)})

    def _swept_settings(self) -> Settings:
        """Return the settings in force; where ratios are to be searched, those of the paper's method in any case."""
        settings = settings_of(self._options)
        is_first = self.APS_mode and settings.is_fusion
        return settings_of({**self._options, "w_min": 0.0}) if is_first else settings

    def _swept(self) -> list[str]:
        return [name.removesuffix("_list") for name in self.args_dict]

    def _check_sweep(self) -> None:
        checked_names(dict.fromkeys(self._swept()), allowed=dict.fromkeys(_SWEPT))
        empty = [name for name, values in self.args_dict.items() if not values]
        if empty or (self.APS_mode and not self.args_dict):
            what = f"`{empty[0]}` of `postprocessor_sweep`" if empty else "`postprocessor_sweep`, with APS_mode,"
            raise OptionError(f"{what} must hold values to try, and holds none.")


def _features(net: nn.Module, weight: Tensor, inputs: Tensor) -> Tensor:
    """Return the features that the net gives beside its logits; of a list of them, those that fit the head."""
    output = net(inputs, return_feature=True)
    if not isinstance(output, tuple | list) or len(output) != 2:
        raise InputTypeError(
            f"`net(inputs, return_feature=True)` must return logits and features, got {type(output).__name__}."
        )
    found = output[1]
    listed = [each for each in (found if isinstance(found, tuple | list) else [found]) if isinstance(each, Tensor)]
    width = weight.shape[1]
    for features in listed:
        if features.ndim > 1 and features.flatten(1).shape[1] == width:
            return features
    shapes = ", ".join(str(tuple(each.shape)) for each in listed)
    raise ShapeError(
        f"`net(inputs, return_feature=True)` must give features of shape (batch, {width}), got {shapes or 'no tensor'}."
    )


def _head_of(net: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return copies of weight and bias on the CPU."""
    get_fc = getattr(unwrapped(net), "get_fc", None)
    if not callable(get_fc):
        raise InputTypeError(
            f"`net` must have `get_fc()`, which returns weight and bias of its last layer, got {type(net).__name__}."
        )
    weight, bias = (
        None if each is None else torch.as_tensor(each, device="cpu").detach().cpu().clone() for each in get_fc()
    )
    if weight is not None and weight.ndim > 2:  # a 1x1 convolution
        weight = weight.flatten(1)
    return checked_head(*two_class_head(weight, bias))  # type: ignore[arg-type]  # None is refused there


def _placed(head: tuple[Tensor, Tensor | None], net: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return the head where the net is."""
    place = next(iter(net.parameters()), head[0]).device
    return head[0].to(place), None if head[1] is None else head[1].to(place)


def _is_same(one: tuple[Tensor, Tensor | None], other: tuple[Tensor, Tensor | None]) -> bool:
    if one[1] is None or other[1] is None:
        return one[1] is other[1] and torch.equal(one[0], other[0])
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def _pairs(loader: Iterable[Mapping[str, Any]]) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
    """Yield inputs and labels, or inputs alone where there are no labels."""
    for batch in loader:
        inputs, labels = _pair(batch)
        yield inputs if labels is None else (inputs, labels)


def _pair(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Return inputs and labels of a batch."""
    if not isinstance(batch, Mapping) or not isinstance(batch.get("data"), Tensor):
        raise InputTypeError(f"A batch must be a mapping with tensors `data` and `label`, got {type(batch).__name__}.")
    labels = batch.get("label")
    return batch["data"], None if labels is None else torch.as_tensor(labels, device="cpu")


def _item(container: object, name: str) -> object:
    """Return what a mapping or an object holds under a name, or None."""
    return container.get(name) if isinstance(container, Mapping) else getattr(container, name, None)


def _mapping(values: object) -> dict[str, Any]:
    """Return a mapping, or the attributes of an object, as a dictionary; of None an empty one."""
    if values is None:
        return {}
    return dict(values) if isinstance(values, Mapping) else dict(vars(values))
