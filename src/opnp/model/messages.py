"""Why no head was found, in words: what the layers are, and the way out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Candidate", "absence_message", "listed", "no_layer_message", "positions_message", "token_message"]

_SHOWN = 20
_NO_LAYER = "The model has no nn.Linear layer and no 1x1 convolution"


@dataclass(frozen=True, eq=False, slots=True)
class Candidate:
    """A layer that makes as many outputs as there are logits.

    Attributes:
        name: Its dotted name.
        shape: Shape of what it was given.
        is_convolution: Whether it is a 1x1 convolution.
        output: What it made, one row for each of its inputs' rows; means over positions of a convolution.
        runs: How often it ran.

    """

    name: str
    shape: tuple[int, ...]
    is_convolution: bool
    output: Tensor
    runs: int = 1


def listed(layers: Mapping[str, nn.Linear | nn.Conv2d]) -> str:
    """Return the layers that can be a head in words, the last ones where there are many."""
    if not layers:
        return f"{_NO_LAYER}."
    few = " (the last ones)" if len(layers) > _SHOWN else ""
    kinds = "nn.Linear layers" if all(isinstance(layer, nn.Linear) for layer in layers.values()) else "layers"
    lines = ", ".join(f"{name!r} {_size(layer)}" for name, layer in list(layers.items())[-_SHOWN:])
    return f"Its {kinds} that a head can be{few}: {lines}."


def absence_message(
    layers: Mapping[str, nn.Linear | nn.Conv2d],
    candidates: Sequence[Candidate],
    logits: Tensor,
    *,
    idle: Sequence[str] = (),
) -> str:
    """Return why no layer is the head of a model with these logits, and what can be done.

    Args:
        layers: Every layer that can be a head.
        candidates: Those among them that ran and have as many rows as the logits have columns.
        logits: The model's logits.
        idle: Names of layers that did not run and have as many rows.

    Returns:
        The message.

    """
    reason = f"No nn.Linear has the model's output, of shape {tuple(logits.shape)}, as its own"
    if len(candidates) > 1:
        return _combination_message(reason, layers, candidates, logits)
    if not candidates:
        return f"{reason}{_nothing_fits(idle)} {listed(layers)}"
    (only,) = candidates
    if only.runs == 1 and only.is_convolution:
        return positions_message(f"`{only.name}`", only.shape)
    if only.runs == 1 and len(only.shape) != 2:
        is_one_of_many = _is_one_token(only.output, logits)
        return token_message(f"The layer `{only.name}`", only.shape, is_one_of_many=is_one_of_many)
    return f"{reason}. {_something_else(only)} {listed(layers)}"


def _nothing_fits(idle: Sequence[str]) -> str:
    if idle:
        return (
            f". The layer `{idle[-1]}` has as many rows as that has columns, and was never called: does the model take "
            f"its weight alone, by `functional.linear`? Call the layer instead."
        )
    return (
        ", nor as many rows as that has columns. If the logits are made of a layer's output in another way, name that "
        "layer: `head=...`; if they are not linear in any features, there is nothing to prune."
    )


def _something_else(only: Candidate) -> str:
    if only.runs > 1:
        return (
            f"The layer `{only.name}` has as many rows as that has columns, but ran {only.runs} times in one forward "
            f"pass, and the model may combine what it made: a head must run once. Cache the features, pooled as the "
            f"model combines them, and use `fit_features` with this layer's weight and bias."
        )
    return (
        f"If something follows the head (a softmax, a second output), name the head yourself: "
        f'`head="{only.name}"`, say.'
    )


def no_layer_message(model: nn.Module) -> str:
    """Return what to say of a model none of whose layers can be a head, with what looks like one."""
    alike = [
        (name, kind)
        for name, module in model.named_modules()
        for kind in [str(getattr(module, "original_name", type(module).__name__))]
        if "linear" in kind.lower()
    ]
    found = ", ".join(f"{name!r} ({kind})" for name, kind in alike[-_SHOWN:])
    other = (
        f" It has layers of other kinds, as scripted, exported or quantised models do: {found}. Give the model that it "
        f"was made from."
        if alike
        else ""
    )
    return (
        f"{_NO_LAYER}, so it has no linear head to prune.{other} Where the head is of another kind, cache its features "
        f"and use `fit_features` with the weight and bias of an equal linear layer."
    )


def token_message(label: str, shape: tuple[int, ...], *, is_one_of_many: bool = False) -> str:
    """Return what to say of a layer that runs on every token."""
    read = " The model returns its output at one token of each sequence." if is_one_of_many else ""
    return (
        f"{label} received features of shape {shape}: it runs on every token or position, but a head must get one "
        f"vector a sample, (batch, features).{read} Cache the features of the token whose logits the model returns "
        f"(in GPT-2 and Llama the last one that is not padding), or pool them as the model does, and use "
        f"`fit_features` and the other `*_features` methods with this layer's weight and bias."
    )


def positions_message(label: str, shape: tuple[int, ...]) -> str:
    """Return what to say of a 1x1 convolution whose output is made into logits in another way than by its mean."""
    return (
        f"The head {label} is a 1x1 convolution at {' x '.join(map(str, shape[2:]))} positions, and the model's logits "
        f"are not the mean of its output: something stands between that is not linear (a ReLU, as in SqueezeNet; a "
        f"maximum) or weighs positions. So no linear layer gives these logits, and there is nothing to prune. Replace "
        f"the head by pooling and an nn.Linear, and train that."
    )


def _combination_message(
    reason: str, layers: Mapping[str, nn.Linear | nn.Conv2d], candidates: Sequence[Candidate], logits: Tensor
) -> str:
    vectors = [each for each in candidates if each.is_convolution or len(each.shape) == 2] or list(candidates)
    lines = ", ".join(f"{each.name!r} {_size(layers[each.name])}{_on_tokens(each)}" for each in candidates[-_SHOWN:])
    few = " (the last ones)" if len(candidates) > _SHOWN else ""
    is_mean = _is_mean_of_all([each.output for each in vectors], logits)
    relation = "and the logits are the mean of what they make" if is_mean else "and the model may combine them"
    names = [f'`head="{each.name}"`' for each in (vectors if len(vectors) == 2 else vectors[-1:])]
    exact = (
        " For the mean itself, cache the inputs of these layers side by side and use `fit_features` with "
        f"`weight=torch.cat([...], dim=1) / {len(vectors)}` and the mean of the biases."
    )
    if any("lora_" in each.name for each in candidates):
        return (
            f"{reason}. It is the sum of what the parts of an adapter make: {lines}. Merge the adapter into its layer "
            f"first, `model.merge_adapter()` or `model = model.merge_and_unload()` in PEFT: then that layer is the "
            f"head."
        )
    return (
        f"{reason}. {len(candidates)} layers have as many rows as the logits, {relation}{few}: {lines}. Choose one "
        f"with {' or '.join(names)}: features, sensitivities, scores and predicted classes are then those of that "
        f"layer's own logits, not of the model's.{exact if is_mean else ''}"
    )


def _is_mean_of_all(outputs: Sequence[Tensor], logits: Tensor) -> bool:
    """Return whether the logits are the mean of several outputs, up to rounding."""
    if len(outputs) < 2 or any(output.shape != logits.shape for output in outputs):
        return False
    mean = torch.stack([output.to(logits.dtype) for output in outputs]).mean(0)
    return torch.allclose(mean, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))


def _on_tokens(candidate: Candidate) -> str:
    is_on_tokens = len(candidate.shape) != 2 and not candidate.is_convolution
    return ", on every token and so none to choose" if is_on_tokens else ""


def _is_one_token(output: Tensor, logits: Tensor) -> bool:
    """Return whether each row of the logits is the output at one position of that sample."""
    if logits.ndim != 2 or len(output) != len(logits) or output.shape[-1] != logits.shape[-1]:
        return False
    rows = output.reshape(len(output), -1, output.shape[-1])
    return bool((rows == logits[:, None].to(rows.dtype)).all(2).any(1).all())


def _size(layer: nn.Linear | nn.Conv2d) -> str:
    if isinstance(layer, nn.Conv2d):
        return f"({layer.in_channels} -> {layer.out_channels}, a 1x1 convolution)"
    return f"({layer.in_features} -> {layer.out_features})"
