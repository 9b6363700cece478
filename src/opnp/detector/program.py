"""A detector's module as one graph: what `torch.export` makes of it, with a batch axis of any length."""

import copy
import inspect
import io
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from opnp.detector.exported import DetectorModule
from opnp.detector.quiet_torch import quiet_torch
from opnp.errors import InputTypeError, ModelRunError
from opnp.files import write_atomically

__all__ = [
    "OUTPUT_NAMES",
    "arguments",
    "exported_program",
    "first_line",
    "input_names",
    "on_cpu",
    "require_repeatable",
    "rows",
    "worst_difference",
    "write_program",
]

OUTPUT_NAMES = ("logits", "score", "p_value", "is_ood")
"""Outputs of a graph, in this order."""

_TOLERANCE = 1e-5


class _Judged(nn.Module):
    """A detector's module with the verdict as a fourth output, under the names of the model's inputs."""

    def __init__(self, module: DetectorModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor, **named: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits, score, p-value and verdict."""
        features, logits = self.module.features_and_logits(*inputs, **named)
        return logits, *self.module.judge(features)


def exported_program(
    module: DetectorModule, example: Tensor | Mapping[str, Any], *, is_length_dynamic: bool = False
) -> ExportedProgram:
    """Return the program of `torch.export`: inputs in; logits, score, p-value and verdict out, for any batch size.

    Args:
        module: What `OPNP.to_module` returns.
        example: A batch of at least two inputs: a tensor, or tensors by the model's keywords.
        is_length_dynamic: Whether the second axis is of any length too, as that of tokens is.

    Returns:
        The program. Its inputs have the names that the model gives them; it is called as the example says, by position
        for a tensor, by keyword for a mapping.

    Raises:
        InputTypeError: If the example holds fewer than two inputs, or what is no tensor.
        ModelRunError: If the model fails on the example, or `torch.export` refuses it or any batch size but one.

    """
    args, kwargs = arguments(module, example)
    tensors = dict(zip(_names(module, example), (*args, *kwargs.values()), strict=True))
    if any(not isinstance(tensor, Tensor) or tensor.ndim < 1 or len(tensor) < 2 for tensor in tensors.values()):
        raise InputTypeError("`example` must be a batch of at least two inputs: tensors with a batch axis in front.")
    shapes = {name: _axes(tensor, is_length_dynamic=is_length_dynamic) for name, tensor in tensors.items()}
    judged = _named(tuple(tensors))(module).eval()
    try:
        with torch.no_grad():
            judged(*args, **kwargs)  # what a model keeps of its first run must be there before torch watches
    except (Exception, SystemExit) as error:
        raise ModelRunError(f"The model failed on the example: {first_line(error)}") from error
    try:
        with torch.no_grad(), quiet_torch():
            program = torch.export.export(judged, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise ModelRunError(f"torch.export refuses this model: {_refusal(error)}") from error
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine, and most of the file of a small model
    return program


def arguments(
    module: DetectorModule, batch: Tensor | Mapping[str, Any]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return what a batch is in a call of the module: arguments by position and by keyword.

    A mapping is passed by keyword; one with a single tensor that the model has no such keyword for, by position.
    """
    if isinstance(batch, Tensor):
        return (batch,), {}
    if len(batch) == 1 and not _accepts(module, batch):
        return tuple(batch.values()), {}
    return (), dict(batch)


def rows(batch: Tensor | Mapping[str, Any], places: list[int]) -> Tensor | dict[str, Tensor]:
    """Return these inputs of a batch, as a batch."""
    if isinstance(batch, Tensor):
        return batch[places]
    return {name: tensor[places] for name, tensor in batch.items()}


def input_names(program: ExportedProgram) -> list[str]:
    """Return the names of a program's inputs."""
    return [str(name) for name in program.graph_signature.user_inputs]


def write_program(
    path: str | os.PathLike[str],
    detector_module: DetectorModule,
    example: Tensor | Mapping[str, Any],
    *,
    is_length_dynamic: bool = False,
) -> None:
    """Write the program of a module to a file of `torch.export.save`, once it has been read back and run.

    `torch.export.load(path).module()` gives it back. It computes on the CPU.

    Args:
        path: File to write; an existing one is replaced.
        detector_module: What `OPNP.to_module` returns.
        example: A batch of at least two inputs: a tensor, or tensors by the model's keywords.
        is_length_dynamic: Whether the second axis is of any length too, as that of tokens is.

    Raises:
        InputTypeError: If the example holds fewer than two inputs.
        ModelRunError: If `torch.export` refuses the model, it gives other numbers in each run, or so does the program
            read back.
        OSError: If the file cannot be written; then nothing is left behind.

    """
    module, batch = copy.deepcopy(detector_module).cpu(), on_cpu(example)
    program = exported_program(module, batch, is_length_dynamic=is_length_dynamic)
    require_repeatable(module, batch)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    content = buffer.getvalue()
    loaded = torch.export.load(io.BytesIO(content)).module()
    for other in (batch, rows(batch, [0]), rows(batch, [1, 0, 1])):
        args, kwargs = arguments(module, other)
        with torch.no_grad():
            found, expected = loaded(*args, **kwargs), module(*args, **kwargs)
        logits, score, p_value, is_ood = found
        is_fused = module.judge.settings.is_fusion
        is_same = (
            worst_difference(logits, expected[0]) <= _TOLERANCE
            and worst_difference(score, expected[1], is_fused=is_fused) <= _TOLERANCE
        )
        verdicts = module.judge.p_value(score), module.judge.is_ood(score)
        if not is_same or not torch.equal(p_value, verdicts[0]) or not torch.equal(is_ood, verdicts[1]):
            raise ModelRunError("The program read back gives other numbers than the model. Nothing was written.")
    write_atomically(path, content)


def worst_difference(found: Tensor, wanted: Tensor, *, is_fused: bool = False) -> float:
    """Return how far numbers lie from those wanted at most: relative to the largest, or in units of 1 + |S|.

    Two infinities of one sign are equal, and anything else is infinitely far from one; NaN is NaN.

    Args:
        found: Logits or scores.
        wanted: What they should be.
        is_fused: Whether they are scores S of a fusion, which have no largest.

    Example:
        >>> found, wanted = torch.tensor([2.0, 9.0, torch.inf]), torch.tensor([1.0, 9.0, torch.inf])
        >>> worst_difference(found, wanted, is_fused=True)
        0.5

    """
    off = torch.where(found == wanted, 0.0, (found.double() - wanted.double()).abs())
    size = 1 + wanted.double().abs() if is_fused else wanted.double().abs().amax()
    return float(torch.where(off == 0, 0.0, off / size.where(size.isfinite(), 1.0)).amax())


def on_cpu(batch: Tensor | Mapping[str, Any]) -> Tensor | dict[str, Tensor]:
    """Return a batch on the CPU."""
    return batch.cpu() if isinstance(batch, Tensor) else {name: tensor.cpu() for name, tensor in batch.items()}


def first_line(error: BaseException) -> str:
    """Return in one line what an error began with: kind and first line of the first of its causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def require_repeatable(module: DetectorModule, batch: Tensor | Mapping[str, Any]) -> None:
    """Raise if the model answers the same batch otherwise in a second run, so that no graph can be held against it.

    Raises:
        ModelRunError: If so.

    """
    args, kwargs = arguments(module, batch)
    with torch.no_grad():
        first, second = module(*args, **kwargs), module(*args, **kwargs)
    if any(not torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(first, second, strict=True)):
        raise ModelRunError(
            "The model gives other numbers when it is run on the same batch again: random numbers, or what it keeps of "
            "earlier batches, are in its forward, and a file cannot be checked against it. Nothing was written. Leave "
            "them out in eval mode, as nn.Dropout does.",
        )


def _refusal(error: BaseException) -> str:
    """Return in one line why `torch.export` refuses a model, and where in its code, if torch says so."""
    found = re.search(r'File ".*?([^/\\"]+)", line (\d+), in (\w+)\n\s*(.+)', str(error))
    place = "" if found is None else f" ({found[1]}, line {found[2]}, in {found[3]}: {found[4].strip()})"
    if "data-dependent" in str(error).partition("\n")[0].lower():
        return (
            f"its forward depends on values of tensors where a graph cannot, as a branch or a shape does{place}. Say "
            f"it by tensor operations, such as torch.where."
        )
    return f"{first_line(error)}{place}"


def _named(names: tuple[str, ...]) -> type[_Judged]:
    """Return a module whose forward takes inputs of these names: `torch.export` names a graph's inputs by them."""

    class Named(_Judged):
        def forward(self, *inputs: Tensor, **named: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            return super().forward(*inputs, **named)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *names)]
    Named.forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by `inspect`
    return Named


def _names(module: DetectorModule, batch: Tensor | Mapping[str, Any]) -> list[str]:
    """Return the names of the inputs: keywords of a mapping, else that of the first parameter of the model."""
    if not isinstance(batch, Tensor) and (len(batch) > 1 or _accepts(module, batch)):
        return list(batch)
    parameters = inspect.signature(module.model.forward).parameters.values()
    names = [item.name for item in parameters if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)]
    return [names[0] if names else "inputs"]


def _accepts(module: DetectorModule, batch: Mapping[str, Tensor]) -> bool:
    """Return whether the model takes these names as keywords."""
    parameters = inspect.signature(module.model.forward).parameters
    is_open = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    return is_open or all(name in parameters for name in batch)


def _axes(tensor: Tensor, *, is_length_dynamic: bool) -> dict[int, Any]:
    axes: dict[int, Any] = {0: Dim.DYNAMIC}
    if is_length_dynamic and tensor.ndim == 2:
        axes[1] = Dim.DYNAMIC
    return axes
