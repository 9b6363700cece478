"""Sensitivity of any layers of a model, in one pass over data: forward, and backward to the first of them."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from opnp.core.checks import checked_temperature, require_finite
from opnp.core.layer_sensitivity import Geometry, LayerSensitivitySum
from opnp.core.position_products import checked_chunk
from opnp.core.sensitivity import Precision, Sensitivity, product_dtype
from opnp.errors import EmptyDataError, InputTypeError, LayerError, LayerNotFoundError, LayerWarning
from opnp.model.batches import Inputs, inputs_of, is_empty
from opnp.model.head_search import find_head
from opnp.model.layer_tap import Use, Watch, layer_tap
from opnp.model.layers import chosen_layers
from opnp.model.outputs import LogitsSelector
from opnp.model.state import unwrapped

__all__ = ["sensitivity", "sensitivity_sums"]

_SHOWN = 20


def sensitivity(
    model: nn.Module,
    loader: Iterable[object],
    *,
    layers: Iterable[str | nn.Module] | None = None,
    head: str | nn.Module | None = None,
    logits: LogitsSelector | None = None,
    temperature: float = 1.0,
    precision: Precision = "float32",
    chunk_bytes: int | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Sensitivity]:
    """Return the sensitivities of the energy to the weights and inputs of any layers, by name of the layer.

    For a weight it is the mean over samples of the absolute gradient of the sample's energy, exactly: where a layer
    sees many positions of a sample (tokens, pixels), or runs more than once, or shares its weight with another layer,
    the gradient is the sum over all of those, and the absolute value comes after. For an input feature or channel it is
    the same of the gradient at that input through this layer, summed over positions (reading `gradient`), or the mean
    over all weights that read it (reading `aggregate`).

    The model runs in eval mode and is the same after the call, bit for bit; frozen layers have sensitivities as others
    have. It costs a forward and a backward pass, and for each layer a product the size of its weight's gradient. Memory
    is that of training with this batch size, from the first of the layers on, without gradients of weights.

    Args:
        model: Any classifier whose layers are plain `nn.Linear` and `nn.Conv2d`, with the batch as the first axis.
        loader: Batches of inputs: tensors, (inputs, labels), or mappings; no labels are needed. Samples weigh alike.
        layers: Layers or their dotted names; None for every `nn.Linear` and `nn.Conv2d` that takes part.
        head: The layer whose output are the logits, or its name; None where the model's output are the logits.
        logits: Where the logits are in the model's output: index of a tuple, key or attribute, or a function of it.
        temperature: Temperature T of the energy, above 0.
        precision: Precision of the products; the model's own are those of its weights. Sums over samples are float64.
        chunk_bytes: Bytes that the gradients of single samples may take at once; None for what suits the device.
            The result is the same for all.
        device: Where to run; None for where the model is.

    Returns:
        By name, in the order given: the sensitivities, float64, that of the weight in the weight's shape.

    Raises:
        LayerNotFoundError: If there is no such layer, or one that was named never runs.
        LayerError: If a layer is of another kind, or its gradient cannot be told sample by sample.
        HeadNotFoundError: If the model's output holds no logits, or there is no such `head`.
        OptionError: If `logits` leads nowhere.
        EmptyDataError: If `loader` yields no sample.
        NonFiniteError: If logits or gradients are not finite.
        InputTypeError: If `model` is no module, or `loader` or `layers` cannot be read.

    Warns:
        LayerWarning: If `layers` is None and some layers were left out, with the reason.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
        >>> found = sensitivity(model, torch.rand(20, 1, 4, 4).split(5), layers=["0", "3"])
        >>> {name: tuple(layer.weight.shape) for name, layer in found.items()}
        {'0': (4, 1, 3, 3), '3': (3, 16)}

    References:
        Chen et al., NeurIPS 2023, the sensitivity of a parameter; of any layer, not of the last alone.

    """
    sums = sensitivity_sums(
        model,
        loader,
        layers=layers,
        head=head,
        logits=logits,
        temperature=temperature,
        precision=precision,
        chunk_bytes=chunk_bytes,
        device=device,
    )
    return {name: total.mean() for name, total in sums.items()}


def sensitivity_sums(
    model: nn.Module,
    loader: Iterable[object],
    *,
    layers: Iterable[str | nn.Module] | None = None,
    head: str | nn.Module | None = None,
    logits: LogitsSelector | None = None,
    temperature: float = 1.0,
    precision: Precision = "float32",
    chunk_bytes: int | None = None,
    device: torch.device | str | None = None,
) -> dict[str, LayerSensitivitySum]:
    """Return the sums that `sensitivity` takes the means of: parts of the data add up by ``+``, layer by layer.

    Arguments, errors and warnings are those of `sensitivity`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3))
        >>> first, second = (sensitivity_sums(model, [torch.rand(5, 4)], layers=["0"]) for _ in range(2))
        >>> (first["0"] + second["0"]).mean().count
        10

    """
    inner = _checked_model(model)
    product_dtype(precision=precision)
    checked_temperature(temperature)
    checked_chunk(chunk_bytes, torch.device("cpu"))
    chosen, left_out = chosen_layers(inner, layers)
    first, batches = _opened(loader)
    found = None if head is None else find_head(inner, first, head=head, logits=logits, device=device)
    by_weight: dict[nn.Module, Watch] = {}
    watches = {name: by_weight.setdefault(layer.sharing[0], Watch(layer)) for name, layer in chosen.items()}
    totals: dict[Watch, LayerSensitivitySum] = {}

    def deliver(watch: Watch, uses: list[Use], samples: int) -> None:
        part = _part(watch, uses, samples, precision=precision, chunk_bytes=chunk_bytes)
        totals[watch] = totals[watch] + part if watch in totals else part

    with layer_tap(
        inner,
        list(by_weight.values()),
        deliver,
        temperature=temperature,
        head=found,
        logits=logits,
        is_strict=layers is not None,
        device=device,
    ) as tap:
        count = sum(tap(inputs, f" in batch {index}") for index, inputs in batches)
    absent = {name: reason for name, watch in watches.items() if (reason := _absence(watch))}
    if absent and layers is not None:
        kind = LayerError if all(watches[name].has_run for name in absent) else LayerNotFoundError
        raise kind(f"`layers` holds layers that have no sensitivity. {_listed(absent)}. Leave them out.")
    if len(absent) == len(watches):
        raise LayerError(f"No layer of the model has a sensitivity. {_listed(left_out | absent)}.")
    if left_out | absent:
        message = f"{len(left_out | absent)} layers were left out. {_listed(left_out | absent)}."
        warnings.warn(message, LayerWarning, stacklevel=3)
    sums = {name: replace(totals[watch], count=count) for name, watch in watches.items() if name not in absent}
    for name, total in sums.items():
        require_finite(total.weight, name=f"gradient for {name}.weight")
        require_finite(total.neuron, name=f"gradient for the inputs of {name}")
    return sums


def _part(
    watch: Watch, uses: list[Use], samples: int, *, precision: Precision, chunk_bytes: int | None
) -> LayerSensitivitySum:
    """Return the sums of one batch from what the layers with one weight were given and what came back."""
    weight = watch.layer.module.weight
    pairs = [(use.module, use.inputs, use.gradient) for use in uses if use.gradient is not None]
    if isinstance(watch.layer.module, nn.Linear):
        by_position = [
            (_by_sample(inputs, samples).flatten(1, -2), _by_sample(gradient, samples).flatten(1, -2))
            for _, inputs, gradient in pairs
        ]
        return LayerSensitivitySum.from_linear(by_position, weight, precision=precision, chunk_bytes=chunk_bytes)
    by_image = [
        (image, back, geometry)
        for module, inputs, gradient in pairs
        if isinstance(module, nn.Conv2d)
        for padded, geometry in [_laid_out(module, inputs)]
        for image, back in zip(
            _by_sample(padded, samples).unbind(1), _by_sample(gradient, samples).unbind(1), strict=True
        )
    ]
    return LayerSensitivitySum.from_convolution(by_image, weight, precision=precision, chunk_bytes=chunk_bytes)


def _by_sample(rows: Tensor, samples: int) -> Tensor:
    """Return rows as (batch, rows of a sample, ...): one sample after the other."""
    by_sample: Tensor = rows.unflatten(0, (samples, -1))
    return by_sample


def _laid_out(module: nn.Conv2d, inputs: Tensor) -> tuple[Tensor, Geometry]:
    """Return a convolution's inputs, padded where the padding is not zeros, and how its kernel slides over them."""
    if isinstance(module.padding, str):
        totals = [
            d * (k - 1) if module.padding == "same" else 0
            for d, k in zip(module.dilation, module.kernel_size, strict=True)
        ]
        before, after = [total // 2 for total in totals], [total - total // 2 for total in totals]
    else:
        before = after = list(module.padding)
    top, left = before
    if module.padding_mode != "zeros":
        inputs = nn.functional.pad(inputs, (left, after[1], top, after[0]), mode=module.padding_mode)
        top = left = 0
    stride, dilation = module.stride, module.dilation
    return inputs, Geometry(stride=(stride[0], stride[1]), padding=(top, left), dilation=(dilation[0], dilation[1]))


def _absence(watch: Watch) -> str:
    """Return why there is no sensitivity of a layer after the pass over the data; empty if there is one."""
    if watch.problem or watch.is_reached:
        return watch.problem
    if watch.has_run:
        return "the logits do not depend on its output in a way that autograd can follow"
    return "never ran; another module may read the weight, as nn.MultiheadAttention does with `out_proj`"


def _listed(reasons: Mapping[str, str]) -> str:
    """Return layers and reasons in words, reason by reason, the first layers where there are many."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(repr(name))
    return "; ".join(
        f"{', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''}: {reason}"
        for reason, names in by_reason.items()
    )


def _checked_model(model: nn.Module) -> nn.Module:
    """Return the unwrapped model, once it is seen that autograd can run through it."""
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
    inner = unwrapped(model)
    if any(is_lazy(parameter) for parameter in inner.parameters()):
        raise LayerError(
            "The model has lazy layers that were never run: they would get their weights now, at random. Run it once "
            "first, or load its weights.",
        )
    if any(tensor.is_inference() for tensor in chain(inner.parameters(), inner.buffers())):
        raise LayerError(
            "The model's tensors were made under `torch.inference_mode()`, so that autograd cannot use them. Build or "
            "load the model outside of it.",
        )
    return inner


def _opened(loader: Iterable[object]) -> tuple[Inputs, Iterator[tuple[int, Inputs]]]:
    """Return the inputs of the first batch that holds samples, and all such batches with their numbers."""
    if isinstance(loader, Tensor | str) or not isinstance(loader, Iterable):
        hint = " For a single batch pass a list of one: `[inputs]`." if isinstance(loader, Tensor) else ""
        raise InputTypeError(f"`loader` must be an iterable of batches, got {type(loader).__name__}.{hint}")
    numbered = ((index, inputs) for index, inputs in enumerate(map(inputs_of, loader)) if not is_empty(inputs))
    for index, inputs in numbered:
        return inputs, chain([(index, inputs)], numbered)
    raise EmptyDataError("`loader` yields no sample: there is nothing to read.")
