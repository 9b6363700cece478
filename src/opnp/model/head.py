"""Finding the head: the `nn.Linear` that turns features into the model's logits. The model is not changed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from opnp.errors import HeadNotFoundError, ShapeError
from opnp.model.batches import Inputs, logits_of, run_model
from opnp.model.state import borrowed, unwrapped

__all__ = ["Head", "HeadRun", "find_head", "head_outcome", "head_run", "linear_layers"]

_SHOWN = 20


@dataclass(frozen=True, eq=False, slots=True)
class Head:
    """The classifier's last layer within its model.

    Attributes:
        name: Dotted name in the unwrapped model; empty if the model is nothing but its head.
        module: The layer itself.
        is_output: Whether the model's logits are this layer's output as it stands.

    """

    name: str
    module: nn.Linear
    is_output: bool

    @property
    def label(self) -> str:
        """The name, in words for messages."""
        return f"`{self.name}`" if self.name else "the model itself"


@dataclass(frozen=True, eq=False, slots=True)
class HeadRun:
    """The head, with what the batch that it was found by left.

    Attributes:
        head: The head.
        outcome: Features and logits of that batch, where they were asked for.

    """

    head: Head
    outcome: tuple[Tensor, Tensor] | None


@dataclass(frozen=True, eq=False, slots=True)
class _Call:
    """One call of a layer.

    Attributes:
        received: Its input; of inputs that are not one vector a sample, the shape alone.
        output: Its output.
        version: How often the output had been written to then.

    """

    received: Tensor
    output: Tensor
    version: int


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the model's `nn.Linear` layers by dotted name, in the order of their registration."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def find_head(
    model: nn.Module,
    inputs: Inputs,
    *,
    head: str | nn.Module | None = None,
    device: torch.device | str | None = None,
) -> Head:
    """Return the head: the one given, else the `nn.Linear` whose output is the model's output.

    One batch is run. Where the layers' outputs are compared, the same memory counts before equal values.

    Args:
        model: Any classifier; `torch.compile` and `DataParallel` wrappers are looked through.
        inputs: One batch of inputs.
        head: The layer, or its dotted name in the unwrapped model; None to search.
        device: Where to run; None for where the model is.

    Returns:
        The head.

    Raises:
        HeadNotFoundError: If no layer, or more than one, fits. The message lists the candidates.
        ShapeError: If the head has fewer than two rows, or the logits are no matrix.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> find_head(model, torch.ones(2, 4)).name
        '2'

    """
    return head_run(model, inputs, head=head, device=device, with_outcome=False).head


def head_run(
    model: nn.Module,
    inputs: Inputs,
    *,
    head: str | nn.Module | None = None,
    device: torch.device | str | None = None,
    with_outcome: bool = True,
) -> HeadRun:
    """Return the head as `find_head` does, with the outcome of the batch, which then needs no second run."""
    model = unwrapped(model)
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise HeadNotFoundError(
            "The model has lazy layers that were never run: they would get their weights now, at random. Run it once "
            "first, or load its weights.",
        )
    layers = linear_layers(model)
    chosen = _given(model, layers, head) if head is not None else None
    recorded = layers if chosen is None else {chosen: layers[chosen]}
    with borrowed(model, device=device) as target:
        with _recorded(recorded) as calls:
            answer = run_model(model, inputs, device=target)
        output = logits_of(answer)
        matching = _matching(calls, output)
        if chosen is None:
            chosen = _only(matching, layers, output)
        found = Head(name=chosen, module=layers[chosen], is_output=chosen in matching)
        if found.module.out_features < 2:
            raise ShapeError(
                f"The head {found.label} has one output: a classifier needs at least two classes. One logit z says the "
                f"same as the two logits -z/2 and z/2: give `fit_features` the weight `torch.cat([-w, w]) / 2`, and "
                f"the bias alike.",
            )
        received = [call.received for call in calls[chosen]]
        return HeadRun(found, None if not with_outcome else head_outcome(found, received, answer))


def head_outcome(head: Head, received: list[Tensor], answer: object) -> tuple[Tensor, Tensor]:
    """Return the (features, logits) of one forward pass, from what the head received and what the model answered."""
    features = _one_vector_a_sample(received, head)
    logits = logits_of(answer) if head.is_output else None
    if logits is None:
        logits = torch.nn.functional.linear(features, head.module.weight, head.module.bias)
    return features.detach(), logits.detach()


def _one_vector_a_sample(received: list[Tensor], head: Head) -> Tensor:
    if len(received) != 1:
        raise HeadNotFoundError(
            f"The head {head.label} ran {len(received)} times in one forward pass: it must run once. Choose another "
            f"layer with `head=`, or compute the features yourself and use the `*_features` methods.",
        )
    features = received[0]
    if features.ndim != 2:
        raise ShapeError(
            f"The head {head.label} received features of shape {tuple(features.shape)}: it runs on every token or "
            f"position, but must get one vector a sample, (batch, features). Pool them yourself and use the "
            f"`*_features` methods.",
        )
    return features


def _given(model: nn.Module, layers: dict[str, nn.Linear], head: str | nn.Module) -> str:
    """Return the name of a head given by module or name."""
    if isinstance(head, nn.Module):
        inner = unwrapped(head)
        name = next((name for name, module in layers.items() if module is inner), None)
        if name is not None:
            return name
        is_inside = any(module is inner for module in model.modules())
        place = "of type " + type(inner).__name__ if is_inside else "no part of the model"
        raise HeadNotFoundError(f"`head` must be an nn.Linear of the model, but it is {place}. {_listed(layers)}")
    modules = dict(model.named_modules(remove_duplicate=False))
    if head in modules:
        inner = unwrapped(modules[head])
        name = next((name for name, module in layers.items() if module is inner), None)
        if name is not None:
            return name
    reason = (
        f"is of type {type(modules[head]).__name__}, not nn.Linear" if head in modules else "is no layer of the model"
    )
    raise HeadNotFoundError(f"`head` = {head!r} {reason}. {_listed(layers)}")


def _only(matching: list[str], layers: dict[str, nn.Linear], output: Tensor | None) -> str:
    """Return the single matching name, or say why there is none."""
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise HeadNotFoundError(
            f"{len(matching)} layers have the model's output as theirs: {', '.join(map(repr, matching))}. Choose one "
            f'with `head="{matching[-1]}"`.',
        )
    if not layers:
        raise HeadNotFoundError(
            "The model has no nn.Linear layer, so it has no linear head to prune. Where the head is of another kind, "
            "cache its features and use `fit_features` with the weight and bias of an equal linear layer.",
        )
    if output is None:
        reason = "The model's output is neither a tensor nor holds `.logits`"
    else:
        reason = f"No nn.Linear has the model's output, of shape {tuple(output.shape)}, as its own"
    raise HeadNotFoundError(
        f"{reason}. If something follows the head (a softmax, a second output), name the head yourself: "
        f'`head="{list(layers)[-1]}"`, say. {_listed(layers)}',
    )


def _matching(calls: dict[str, list[_Call]], logits: Tensor | None) -> list[str]:
    """Return the names of the layers whose last output is `logits`: the same memory, else equal values."""
    if logits is None:
        return []
    last = {name: made[-1].output for name, made in calls.items() if made and _is_intact(made[-1])}
    last = {name: output for name, output in last.items() if output.numel() == logits.numel()}
    same = [name for name, output in last.items() if output.data_ptr() == logits.data_ptr()]
    return same or [
        name
        for name, output in last.items()
        if output.device == logits.device
        and torch.allclose(output.reshape(logits.shape).to(logits.dtype), logits, rtol=0, atol=0, equal_nan=True)
    ]


def _version(output: Tensor) -> int:
    """Return how often the tensor was written to; 0 where torch does not count."""
    return 0 if output.is_inference() else output._version  # noqa: SLF001  # torch's only counter of in-place changes


def _is_intact(call: _Call) -> bool:
    """Return whether an output is still what the layer put out: nothing has written to it in place."""
    return _version(call.output) == call.version


@contextmanager
def _recorded(layers: dict[str, nn.Linear]) -> Iterator[dict[str, list[_Call]]]:
    """Yield, by layer, the calls in this thread's forward pass run inside."""
    calls: dict[str, list[_Call]] = {name: [] for name in layers}
    owner = threading.get_ident()
    handles = []

    def hook(made: list[_Call]) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Tensor], None]:
        def record(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            if threading.get_ident() == owner:
                received = args[0] if args else kwargs["input"]
                kept = received if received.ndim == 2 else torch.empty(received.shape, device="meta")
                made.append(_Call(kept, output, _version(output)))

        return record

    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_hook(hook(calls[name]), with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _listed(layers: dict[str, nn.Linear]) -> str:
    """Return the layers in words, the last ones where there are many."""
    if not layers:
        return "The model has no nn.Linear layer."
    shown = list(layers.items())[-_SHOWN:]
    lines = ", ".join(f"{name!r} ({layer.in_features} -> {layer.out_features})" for name, layer in shown)
    return f"Its nn.Linear layers{' (the last ones)' if len(layers) > _SHOWN else ''}: {lines}."
