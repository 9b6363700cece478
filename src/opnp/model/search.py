"""Finding the head by running one batch: which layer's output are the model's logits. The model is not changed."""

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from opnp.errors import HeadNotFoundError, OpnpWarning
from opnp.model.borrow import borrowed, in_this_thread, unwrapped
from opnp.model.forward import Inputs, LogitsSelector, logits_of, no_logits_message, plain_tensor, run_model, sole_input
from opnp.model.head import (
    Head,
    HeadLayer,
    OwnLogits,
    head_layers,
    head_outcome,
    is_as_its_kind,
    is_vector_a_sample,
    require_classifier,
    require_exclusive,
    require_values,
    token_message,
)

__all__ = ["find_head", "head_run"]

_SAME = 1e-3
"""How far features of a second run may move, relative to the largest: rounding."""


@dataclass(frozen=True, eq=False, slots=True)
class _Call:
    """One call of a layer.

    Attributes:
        received: Its input; of a convolution the mean over positions, else of what is not one vector a sample the
            shape alone.
        shape: Shape of its input.
        output: Its output; of a convolution the mean over positions.
        version: How often the output had been written to then.
        is_plain: Whether the output is what a layer of its kind makes of that input.

    """

    received: Tensor
    shape: tuple[int, ...]
    output: Tensor
    version: int
    is_plain: bool


def find_head(
    model: nn.Module,
    inputs: Inputs,
    *,
    head: str | nn.Module | None = None,
    logits: LogitsSelector | None = None,
    device: torch.device | str | None = None,
) -> Head:
    """Return the head: the one given, else the `nn.Linear` or 1x1 convolution whose output is the model's output.

    One batch is run. Where the layers' outputs are compared, the same memory counts before equal values. The output of
    a convolution may be averaged over positions, with nothing between: that is seen in a second run, in which the
    layer's output is replaced by numbers of either sign.

    Args:
        model: Any classifier; `torch.compile` and `DataParallel` wrappers are looked through.
        inputs: One batch of inputs.
        head: The layer, or its dotted name in the unwrapped model, or a module that holds one such layer alone; None
            to search.
        logits: Where the logits are in the model's output: index of a tuple, key or attribute, or a function of the
            output; None for the output itself, its `.logits` or its ``["logits"]``.
        device: Where to run; None for where the model is.

    Returns:
        The head.

    Raises:
        HeadNotFoundError: If no layer, or more than one, fits. The message lists the candidates.
        ShapeError: If the logits are no matrix.
        OptionError: If `logits` leads nowhere, or the model is none of exclusive classes.
        InputTypeError: If `model` is no module, or the head's weights are no plain numbers.
        NonFiniteError: If the head's weights are not finite.

    Warns:
        OpnpWarning: If a batch norm takes mean and variance of the batch in eval mode too.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> find_head(model, torch.ones(2, 4)).name
        '2'

    """
    return head_run(model, inputs, head=head, logits=logits, device=device, with_outcome=False)[0]


def head_run(
    model: nn.Module,
    inputs: Inputs,
    *,
    head: str | nn.Module | None = None,
    logits: LogitsSelector | None = None,
    device: torch.device | str | None = None,
    labels: Tensor | None = None,
    with_outcome: bool = True,
) -> tuple[Head, tuple[Tensor, Tensor] | None]:
    """Return the head as `find_head` does, and features and logits of the batch, which then needs no second run.

    Labels of the batch, where there are any, say how many samples it holds. Without `with_outcome` there are no
    features and logits, and nothing is asked of them.
    """
    require_values(model)
    model = unwrapped(model)
    require_exclusive(model)
    layers = head_layers(model)
    if not layers:
        raise _no_layer(model)
    chosen = _given(model, layers, head) if head is not None else None
    recorded = layers if chosen is None else {chosen: layers[chosen]}
    with borrowed(model, device=device) as target:
        run = partial(run_model, model, inputs, device=target)
        state = _random_state(target)
        with _told_batch_statistics(model), _recorded(recorded) as calls:
            answer = run()
        is_random = state != _random_state(target)
        output = logits_of(answer, logits)
        matching = _matching(recorded, calls, output, lambda: logits_of(run(), logits))
        if chosen is None:
            chosen = _only(matching, layers, calls, output, answer)
        made = calls[chosen]
        is_averaged = bool(made) and chosen in matching and _positions(made[-1]) > 1
        found = Head(chosen, layers[chosen], is_output=chosen in matching, is_averaged=is_averaged, logits=logits)
        require_classifier(found, is_plain=all(call.is_plain for call in made))
        if isinstance(found.module, nn.Conv2d) and not found.is_output and made and _positions(made[-1]) > 1:
            if output is None:
                raise HeadNotFoundError(no_logits_message(answer))
            raise _of_positions(found.label, made[-1])
        outcome = None
        if with_outcome:
            outcome = head_outcome(found, [call.received for call in made], answer, inputs, labels)
            OwnLogits(found).require(*outcome)
            if is_random:
                _tell_random_features(found, outcome[0], run)
        return found, outcome


# ------------------------------------------------------------------------------------- what is said where there is none
_SHOWN = 20
_NO_LAYER = "The model has no nn.Linear layer and no 1x1 convolution"
_MESSAGES = {
    "no layer": (
        f"{_NO_LAYER}, so it has no linear head to prune.{{other}} Where the head is of another kind, cache its "
        "features and use `fit_features` with the weight and bias of an equal linear layer."
    ),
    "other kinds": (
        " It has layers of other kinds, as scripted, exported or quantised models do: {found}. Give the model that it "
        "was made from."
    ),
    "head of no model": "`head` must be a layer of the model, but it is no part of the model. {listed}",
    "head of no name": "`head` = {head!r} is no layer of the model. {listed}",
    "head of several": "{what} is of type {kind} and holds {count} layers: name one. {listed}",
    "head of another kind": (
        "{what} is of type {kind}, not nn.Linear, nor a 1x1 convolution with stride 1, one group and no padding. "
        "{listed}"
    ),
    "several match": ('{count} layers have the model\'s output as theirs: {names}. Choose one with `head="{last}"`.'),
    "no logits": "{no_logits} Or name the head itself: `head=...`. {listed}",
    "none": "No nn.Linear has the model's output, of shape {shape}, as its own",
    "none fits": (
        "{none}, nor as many rows as that has columns. If the logits are made of a layer's output in another way, name "
        "that layer: `head=...`; if they are not linear in any features, there is nothing to prune. {listed}"
    ),
    "never called": (
        "{none}. The layer `{name}` has as many rows as that has columns, and was never called: does the model take "
        "its weight alone, by `functional.linear`? Call the layer instead. {listed}"
    ),
    "ran often": (
        "{none}. The layer `{name}` has as many rows as that has columns, but ran {runs} times in one forward pass, "
        "and the model may combine what it made: a head must run once. Cache the features, pooled as the model "
        "combines them, and use `fit_features` with this layer's weight and bias. {listed}"
    ),
    "followed": (
        "{none}. If something follows the head (a softmax, a second output), name the head yourself: "
        '`head="{name}"`, say. {listed}'
    ),
    "adapter": (
        "{none}. It is the sum of what the parts of an adapter make: {lines}. Merge the adapter into its layer first, "
        "`model.merge_adapter()` or `model = model.merge_and_unload()` in PEFT: then that layer is the head."
    ),
    "several fit": (
        "{none}. {count} layers have as many rows as the logits, {relation}{few}: {lines}. Choose one with {names}: "
        "features, sensitivities, scores and predicted classes are then those of that layer's own logits, not of the "
        "model's.{exact}"
    ),
    "mean": (
        " For the mean itself, cache the inputs of these layers side by side and use `fit_features` with "
        "`weight=torch.cat([...], dim=1) / {count}` and the mean of the biases."
    ),
    "positions": (
        "The head {label} is a 1x1 convolution at {positions} positions, and the model's logits are not the mean of "
        "its output: something stands between that is not linear (a ReLU, as in SqueezeNet; a maximum) or weighs "
        "positions. So no linear layer gives these logits, and there is nothing to prune. Replace the head by pooling "
        "and an nn.Linear, and train that."
    ),
}


def _refusal(message: str, **facts: object) -> HeadNotFoundError:
    return HeadNotFoundError(_MESSAGES[message].format(**facts))


def _listed(layers: Mapping[str, HeadLayer]) -> str:
    """Return the layers that can be a head in words, the last ones where there are many."""
    few = " (the last ones)" if len(layers) > _SHOWN else ""
    kinds = "nn.Linear layers" if all(isinstance(layer, nn.Linear) for layer in layers.values()) else "layers"
    lines = ", ".join(f"{name!r} {_size(layer)}" for name, layer in list(layers.items())[-_SHOWN:])
    return f"Its {kinds} that a head can be{few}: {lines}."


def _size(layer: HeadLayer) -> str:
    if isinstance(layer, nn.Conv2d):
        return f"({layer.in_channels} -> {layer.out_channels}, a 1x1 convolution)"
    return f"({layer.in_features} -> {layer.out_features})"


def _no_layer(model: nn.Module) -> HeadNotFoundError:
    """Return the error for a model none of whose layers can be a head, with what looks like one."""
    kinds = {
        name: str(getattr(module, "original_name", type(module).__name__)) for name, module in model.named_modules()
    }
    alike = [f"{name!r} ({kind})" for name, kind in kinds.items() if "linear" in kind.lower()]
    other = _MESSAGES["other kinds"].format(found=", ".join(alike[-_SHOWN:])) if alike else ""
    return _refusal("no layer", other=other)


def _of_positions(label: str, call: _Call) -> HeadNotFoundError:
    return _refusal("positions", label=label, positions=" x ".join(map(str, call.shape[2:])))


def _given(model: nn.Module, layers: Mapping[str, HeadLayer], head: str | nn.Module) -> str:
    """Return the name of a head given by module or name, or as the only layer of a module given so."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(head, nn.Module):
        given, what = unwrapped(head), "`head`"
        if not any(module is given for module in modules.values()):
            raise _refusal("head of no model", listed=_listed(layers))
    elif head in modules:
        given, what = unwrapped(modules[head]), f"`head` = {head!r}"
    else:
        raise _refusal("head of no name", head=head, listed=_listed(layers))
    parts = set(given.modules())
    inside = {name: layer for name, layer in layers.items() if layer in parts}
    if len(inside) == 1:
        return next(iter(inside))
    facts = {"what": what, "kind": type(given).__name__, "count": len(inside), "listed": _listed(inside or layers)}
    raise _refusal("head of several" if inside else "head of another kind", **facts)


def _only(
    matching: list[str],
    layers: Mapping[str, HeadLayer],
    calls: Mapping[str, list[_Call]],
    output: Tensor | None,
    answer: object,
) -> str:
    """Return the single matching name, or say why there is none."""
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = ", ".join(map(repr, matching))
        raise _refusal("several match", count=len(matching), names=names, last=matching[-1])
    listed = _listed(layers)
    if output is None:
        raise _refusal("no logits", no_logits=no_logits_message(answer), listed=listed)
    classes = output.flatten(1).shape[1] if output.ndim > 1 else 1
    fitting = {
        name: made
        for name, made in calls.items()
        if made and made[-1].output.ndim > 1 and made[-1].output.shape[-1] == classes
    }
    none = _MESSAGES["none"].format(shape=tuple(output.shape))
    if len(fitting) > 1:
        raise _combination(none, layers, {name: made[-1] for name, made in fitting.items()}, output)
    for name, made in fitting.items():
        call = made[-1]
        if len(made) > 1:
            raise _refusal("ran often", none=none, name=name, runs=len(made), listed=listed)
        if isinstance(layers[name], nn.Conv2d):
            raise _of_positions(f"`{name}`", call)
        if not is_vector_a_sample(call.shape):
            read = " The model returns its output at one token of each sequence." if _is_one_token(call, output) else ""
            raise HeadNotFoundError(token_message(f"The layer `{name}`", call.shape, read=read))
        raise _refusal("followed", none=none, name=name, listed=listed)
    idle = [name for name, made in calls.items() if not made and len(layers[name].weight) == classes]
    raise _refusal("never called" if idle else "none fits", none=none, name=idle[-1] if idle else "", listed=listed)


def _combination(
    none: str, layers: Mapping[str, HeadLayer], calls: Mapping[str, _Call], logits: Tensor
) -> HeadNotFoundError:
    """Return the error for logits that several layers may make together."""
    tokens = [
        name
        for name, call in calls.items()
        if isinstance(layers[name], nn.Linear) and not is_vector_a_sample(call.shape)
    ]
    lines = ", ".join(
        f"{name!r} {_size(layers[name])}{', on every token and so none to choose' if name in tokens else ''}"
        for name in list(calls)[-_SHOWN:]
    )
    if any("lora_" in name for name in calls):
        return _refusal("adapter", none=none, lines=lines)
    vectors = [name for name in calls if name not in tokens] or list(calls)
    outputs = [calls[name].output for name in vectors]
    is_mean = len(outputs) > 1 and all(each.shape == logits.shape for each in outputs)
    if is_mean:
        mean = torch.stack([each.to(logits.dtype) for each in outputs]).mean(0)
        is_mean = torch.allclose(mean, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
    return _refusal(
        "several fit",
        none=none,
        count=len(calls),
        relation="and the logits are the mean of what they make" if is_mean else "and the model may combine them",
        few=" (the last ones)" if len(calls) > _SHOWN else "",
        lines=lines,
        names=" or ".join(f'`head="{name}"`' for name in (vectors if len(vectors) == 2 else vectors[-1:])),
        exact=_MESSAGES["mean"].format(count=len(vectors)) if is_mean else "",
    )


def _is_one_token(call: _Call, logits: Tensor) -> bool:
    """Return whether each row of the logits is the output at one position of that sample."""
    output = call.output
    if logits.ndim != 2 or len(output) != len(logits):
        return False
    rows = output.reshape(len(output), -1, output.shape[-1])
    return bool((rows == logits[:, None].to(rows.dtype)).all(2).any(1).all())


# ---------------------------------------------------------------------------------------------- outputs that are logits
def _matching(
    layers: Mapping[str, HeadLayer],
    calls: Mapping[str, list[_Call]],
    logits: Tensor | None,
    rerun: Callable[[], Tensor | None],
) -> list[str]:
    """Return the names of the layers an output of which is `logits`: the same memory, else equal values."""
    if logits is None:
        return []
    outputs = [
        (name, call.output)
        for name, made in calls.items()
        for call in made
        if _version(call.output) == call.version
        and call.output.numel() == logits.numel()
        and call.output.device == logits.device
    ]
    same = [
        name
        for name, output in outputs
        if isinstance(layers[name], nn.Linear) and output.data_ptr() == logits.data_ptr() and not logits.is_meta
    ]
    found = same or [
        name
        for name, output in outputs
        if (
            _is_close(output, logits, 0.0)
            if isinstance(layers[name], nn.Linear)
            else _is_mean(layers[name], output, logits, rerun)
        )
    ]
    return list(dict.fromkeys(found))


def _is_mean(layer: HeadLayer, mean: Tensor, logits: Tensor, rerun: Callable[[], Tensor | None]) -> bool:
    """Return whether the logits are the mean of a convolution's output, on this batch and on made-up outputs."""
    tolerance = max(torch.finfo(mean.dtype).eps, torch.finfo(logits.dtype).eps) ** 0.5
    if not _is_close(mean, logits, tolerance):
        return False
    expected: list[Tensor] = []

    def replaced(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        sign = torch.arange(output.shape[0] * output.shape[1], device=output.device).reshape(output.shape[:2]) % 2
        wave = torch.arange(output.shape[2] * output.shape[3], device=output.device).reshape(output.shape[2:]).sin()
        values = ((2 * sign - 1)[..., None, None] + wave / 2).to(output.dtype)
        expected.append(values.mean((2, 3)))
        return values

    with layer.register_forward_hook(in_this_thread(replaced)):
        found = rerun()
    return found is not None and len(expected) == 1 and _is_close(expected[0], found, tolerance)


def _is_close(output: Tensor, logits: Tensor, tolerance: float) -> bool:
    """Return whether an output has the values of the logits, up to a tolerance relative to the largest of them."""
    finite = logits[logits.isfinite()]
    atol = tolerance * float(finite.abs().max()) if tolerance and finite.numel() else 0.0
    return torch.allclose(output.reshape(logits.shape).to(logits.dtype), logits, rtol=0, atol=atol, equal_nan=True)


def _version(output: Tensor) -> int:
    """Return how often the tensor was written to; 0 where torch does not count."""
    return 0 if output.is_inference() else output._version  # noqa: SLF001  # torch's only counter of in-place changes


def _positions(call: _Call) -> int:
    """Return at how many positions of each image a convolution ran; 1 of a linear layer."""
    return call.shape[-2] * call.shape[-1] if len(call.shape) == 4 else 1


@contextmanager
def _recorded(layers: Mapping[str, HeadLayer]) -> Iterator[dict[str, list[_Call]]]:
    """Yield, by layer, the calls in this thread's forward pass run inside."""
    calls: dict[str, list[_Call]] = {name: [] for name in layers}

    def record(
        made: list[_Call],
        module: HeadLayer,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Tensor],
        output: Tensor,
    ) -> None:
        made.append(_call(module, plain_tensor(sole_input(args, kwargs)), plain_tensor(output)))

    with ExitStack() as stack:
        for name, layer in layers.items():
            hook = in_this_thread(partial(record, calls[name]))
            stack.enter_context(layer.register_forward_hook(hook, with_kwargs=True))
        yield calls


def _call(module: HeadLayer, received: Tensor, output: Tensor) -> _Call:
    """Return what is kept of a call: of a convolution means, since there may be many and their outputs are large."""
    shape, is_plain = tuple(received.shape), is_as_its_kind(module, received, output)
    if isinstance(module, nn.Conv2d) and received.ndim == 4 and output.ndim == 4:
        kept, output = received.mean((2, 3)), output.mean((2, 3))
    else:
        kept = (
            received.clone() if is_vector_a_sample(shape) or received.ndim == 1 else torch.empty(shape, device="meta")
        )
    return _Call(kept, shape, output, _version(output), is_plain)


def _random_state(device: torch.device | None) -> tuple[object, ...]:
    """Return the states of the generators of random numbers that a forward may draw from, as values that compare."""
    of_torch = [torch.random.get_rng_state()]
    if device is not None and device.type == "cuda":
        of_torch.append(torch.cuda.get_rng_state(device))
    of_numpy = repr(np.random.get_state(legacy=True))  # noqa: NPY002  # the generator that a model would draw from
    return *(state.numpy().tobytes() for state in of_torch), random.getstate(), of_numpy


def _tell_random_features(head: Head, first: Tensor, run: Callable[[], object]) -> None:
    """Warn if the features of a batch are others in a second run.

    Warns:
        OpnpWarning: If they are.

    """
    with _recorded({head.name: head.module}) as calls:
        run()
    again = [call.received.flatten(1) for call in calls[head.name]]
    if len(again) == 1 and again[0].shape == first.shape and _is_close(again[0], first, _SAME):
        return
    warnings.warn(
        "The model draws random numbers in eval mode, and has other features for the same inputs in a second run: a "
        "dropout that ignores eval mode (`functional.dropout` with `training=True`), noise, or random crops in its "
        "forward. Scores, p-values and verdicts of one input will differ from run to run. Leave that out in eval mode, "
        "as nn.Dropout does: `functional.dropout(..., training=self.training)`.",
        OpnpWarning,
        stacklevel=2,
    )


@contextmanager
def _told_batch_statistics(model: nn.Module) -> Iterator[None]:
    """Warn if a batch norm that runs inside takes mean and variance of the batch, although in eval mode it has others.

    Warns:
        OpnpWarning: If so.

    """
    found: dict[str, str] = {}

    def look(name: str, module: _BatchNorm, _args: object) -> None:
        if module.training or module.running_mean is None:
            found[name] = "the model sets it to training mode" if module.training else "it has no running statistics"

    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    with ExitStack() as stack:
        for name, module in norms.items():
            stack.enter_context(module.register_forward_pre_hook(in_this_thread(partial(look, name))))
        yield
    if not found:
        return
    name, reason = next(iter(found.items()))
    more = f", and {len(found) - 1} more," if len(found) > 1 else ""
    warnings.warn(
        f"The layer {name!r} ({type(norms[name]).__name__}){more} normalises by mean and variance of the batch in eval "
        f"mode too: {reason}. If the head's features come through it, features, scores and verdicts of an input depend "
        f"on the other inputs of its batch. Train with `track_running_stats=True`, and leave the layer in eval mode.",
        OpnpWarning,
        stacklevel=2,
    )
