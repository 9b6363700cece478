"""A detector's module as a file: a program of `torch.export`, or an ONNX file with the same graph.

Outputs are logits, score, p-value and verdict, for any batch size. A file gets its name once it was run and gave the
numbers of the module.
"""

import contextlib
import copy
import inspect
import io
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from opnp.errors import InputTypeError, ModelRunError, OptionError, require_installed
from opnp.export.graph_models import GraphModel, head_part, joined
from opnp.export.module import DetectorModule
from opnp.files import require_writable, write_atomically

__all__ = [
    "OUTPUT_NAMES",
    "arguments",
    "exported_program",
    "quiet_torch",
    "require_onnx",
    "rows",
    "write_onnx",
    "write_program",
]

OUTPUT_NAMES = ("logits", "score", "p_value", "is_ood")
"""Outputs of a graph, in this order."""

_TOLERANCE = 1e-5
_LARGEST = 2**31 - 2**20
"""Bytes of tensors that one ONNX file can hold, less what the graph itself takes."""
_AXES = ("batch", "length")
_SILENT = logging.CRITICAL + 1

_Batch = Tensor | Mapping[str, Any]
"""Inputs of a model: a tensor, or tensors by the model's keywords."""


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
    require_writable(path)
    module, batch = _on_cpu(detector_module, example)
    program = exported_program(module, batch, is_length_dynamic=is_length_dynamic)
    _require_repeatable(module, batch)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    content = buffer.getvalue()
    loaded = torch.export.load(io.BytesIO(content)).module()
    for other in _tried(batch):
        args, named = arguments(module, other)
        with torch.no_grad():
            found = loaded(*args, **named)
        if _difference(found, module, other, tolerance=_TOLERANCE) is not None:
            raise ModelRunError("The program read back gives other numbers than the model. Nothing was written.")
    write_atomically(path, content)


def write_onnx(
    path: str | os.PathLike[str],
    detector_module: DetectorModule,
    example: Tensor | Mapping[str, Any],
    *,
    is_length_dynamic: bool = False,
    tolerance: float = _TOLERANCE,
) -> None:
    """Write a module as one ONNX file, once onnxruntime has given the same numbers as torch.

    Inputs have the names that the model gives them. The file's metadata are the module's `facts`.

    Args:
        path: File to write; an existing one is replaced.
        detector_module: What `OPNP.to_module` returns.
        example: A batch of at least two inputs: a tensor, or tensors by the model's keywords.
        is_length_dynamic: Whether the second axis is of any length too, as that of tokens is.
        tolerance: How far logits and scores may lie from torch's, relative to the largest of them; a score S of a
            fusion, which has no largest, in units of 1 + |S|.

    Raises:
        MissingExtraError: If onnx, onnxscript or onnxruntime is not installed.
        InputTypeError: If the example holds fewer than two inputs.
        ModelRunError: If the model cannot be exported, gives other numbers in each run, or the graph gives other
            numbers than torch.
        OptionError: If the model is too large for one ONNX file, or `tolerance` is no share.
        OSError: If the file cannot be written; then nothing is left behind.

    """
    require_onnx()
    require_writable(path)
    if not 0 <= tolerance < 1:
        raise OptionError(f"`tolerance` must be a share in [0, 1), such as 1e-5, got {tolerance:g}.")
    module, batch = _on_cpu(detector_module, example)
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > _LARGEST:
        raise OptionError(
            f"The model has {size:,} bytes of tensors, and one ONNX file holds 2 GiB: use the torch format."
        )
    content = _content(module, batch, is_length_dynamic=is_length_dynamic)
    _require_repeatable(module, batch)
    for other in _tried(batch):
        difference = _difference(_outputs(content, module, other), module, other, tolerance=tolerance)
        if difference is not None:
            raise ModelRunError(difference)
    write_atomically(path, content)


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
    tensors = {_first_name(module): args[0]} if args else kwargs
    if any(not isinstance(tensor, Tensor) or tensor.ndim < 1 or len(tensor) < 2 for tensor in tensors.values()):
        raise InputTypeError("`example` must be a batch of at least two inputs: tensors with a batch axis in front.")
    shapes = {
        name: dict.fromkeys(range(2 if is_length_dynamic and tensor.ndim == 2 else 1), Dim.DYNAMIC)
        for name, tensor in tensors.items()
    }
    judged = _judged(module, list(tensors))
    try:
        with torch.no_grad():
            judged(*args, **kwargs)  # what a model keeps of its first run must be there before torch watches
    except (Exception, SystemExit) as error:
        raise ModelRunError(f"The model failed on the example: {_first_line(error)}") from error
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
    parameters = inspect.signature(module.model.forward).parameters
    is_open = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    if len(batch) == 1 and not is_open and not set(batch) <= set(parameters):
        return tuple(batch.values()), {}
    return (), dict(batch)


def rows(batch: _Batch, places: list[int]) -> Tensor | dict[str, Tensor]:
    """Return these inputs of a batch, as a batch."""
    if isinstance(batch, Tensor):
        return batch[places]
    return {name: tensor[places] for name, tensor in batch.items()}


def require_onnx() -> None:
    """Raise if a package that writing and checking ONNX files takes is not installed.

    Raises:
        MissingExtraError: If one is not; the message names the command that installs it.

    """
    require_installed("ONNX files need", "onnx", "onnxruntime", "onnxscript", extra="onnx")


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Hold torch's loggers silent, and keep back what is written to standard error until the block has succeeded.

    Levels are set back afterwards. What was written is dropped if the block raises: the error says it.

    Example:
        >>> with contextlib.suppress(ValueError), quiet_torch():
        ...     print("a graph of twenty lines", file=sys.stderr)
        ...     raise ValueError

    """
    known = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("torch.")]
    levels = {logger: logger.level for logger in (logging.getLogger("torch"), *known)}
    for logger, level in levels.items():
        if level or logger.name == "torch":  # the others have the level of one above them
            logger.setLevel(_SILENT)
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            yield
        sys.stderr.write(written.getvalue())
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _judged(module: DetectorModule, names: Iterable[str]) -> torch.nn.Module:
    """Return a detector's module with the verdict as a fourth output, and inputs of these names.

    `torch.export` names a graph's inputs by the signature of `forward`.
    """

    class Judged(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Tensor, **named: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            features, logits = self.module.features_and_logits(*inputs, **named)
            return logits, *self.module.judge(features, logits)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *names)]
    Judged.forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by `inspect`
    return Judged().eval()


def _first_name(module: DetectorModule) -> str:
    """Return the name of the input that a model takes first by position."""
    parameters = inspect.signature(module.model.forward).parameters.values()
    named = (item.name for item in parameters if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD))
    return next(named, "inputs")


def _content(module: DetectorModule, batch: _Batch, *, is_length_dynamic: bool) -> bytes:
    """Return the bytes of an ONNX file, checked by the rules of the format."""
    import onnx

    before = module.model.graph_before_head() if isinstance(module.model, GraphModel) else None
    if before is None:
        program = exported_program(module, batch, is_length_dynamic=is_length_dynamic)
    else:
        program = exported_program(*head_part(module, *arguments(module, batch)))
    names = [str(name) for name in program.graph_signature.user_inputs]
    try:
        with quiet_torch():
            graph: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=names, output_names=list(OUTPUT_NAMES)
            )
        proto = graph.model_proto
        _name_axes(proto)
        for node in proto.graph.node:
            del node.metadata_props[:]  # what torch notes of the model's code, paths of this machine among it
        if before is not None:
            proto = joined(before, proto)
        onnx.helper.set_model_props(proto, module.facts)
        onnx.checker.check_model(proto)
    except ModelRunError:
        raise
    except Exception as error:
        raise ModelRunError(f"torch.onnx refuses this model: {_first_line(error)}") from error
    content: bytes = proto.SerializeToString()
    return content


def _name_axes(proto: Any) -> None:  # noqa: ANN401  # a protocol buffer
    """Call the axes of any length ``batch`` and ``length`` instead of by torch's symbols."""
    axes = [item.type.tensor_type.shape.dim[:2] for item in proto.graph.input]
    symbols = {dim.dim_param: name for dims in axes for dim, name in zip(dims, _AXES, strict=False) if dim.dim_param}
    for item in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in item.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda match: symbols.get(match[0], match[0]), dim.dim_param)


def _tried(batch: _Batch) -> tuple[_Batch, ...]:
    """Return batches of several sizes and orders that a file is run on."""
    return batch, rows(batch, [0]), rows(batch, [1, 0, 1])


def _outputs(content: bytes, module: DetectorModule, batch: _Batch) -> list[Tensor]:
    """Return what onnxruntime makes of a batch."""
    import onnxruntime  # type: ignore[import-untyped]  # the package ships no types

    args, named = arguments(module, batch)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        if isinstance(module.model, GraphModel):
            feeds = module.model.feeds(*args, **named)
        else:
            pairs = zip([item.name for item in session.get_inputs()], (*args, *named.values()), strict=True)
            feeds = {name: tensor.numpy() for name, tensor in pairs}
        found = session.run(list(OUTPUT_NAMES), feeds)
    except Exception as error:
        raise ModelRunError(f"onnxruntime refuses the graph of this model: {_first_line(error)}") from error
    return [torch.from_numpy(values) for values in found]


def _difference(found: Sequence[Tensor], module: DetectorModule, batch: _Batch, *, tolerance: float) -> str | None:
    """Return what is wrong with a file's outputs of a batch, if anything.

    Its logits and scores are to be those of the module, its p-values and verdicts those of its own scores.
    """
    logits, score, p_value, is_ood = found
    args, named = arguments(module, batch)
    with torch.no_grad():
        expected = module(*args, **named)
    for name, got, wanted in zip(OUTPUT_NAMES, (logits, score), expected, strict=False):
        is_fused = name == "score" and module.judge.settings.is_fusion
        worst = _worst_difference(got, wanted, is_fused=is_fused)
        if not worst <= tolerance:
            unit = "1 + |score|" if is_fused else "the largest"
            return (
                f"{worst:.2g} of {unit} lie between the graph's {name} and torch's, and {tolerance:g} is allowed. "
                f"Nothing was written. A larger `tolerance` lets rounding pass; where it is more, the graph is another "
                f"function than the model."
            )
    judge, own = module.judge, (score, logits)
    if not torch.equal(p_value, judge.p_value(*own)) or not torch.equal(is_ood, judge.is_ood(*own)):
        return "The graph's p-values or verdicts are not those of its scores. Nothing was written."
    return None


def _worst_difference(found: Tensor, wanted: Tensor, *, is_fused: bool = False) -> float:
    """Return how far numbers lie from those wanted at most: relative to the largest, or in units of 1 + |S|.

    Two infinities of one sign are equal, and anything else is infinitely far from one; NaN is NaN.

    Args:
        found: Logits or scores.
        wanted: What they should be.
        is_fused: Whether they are scores S of a fusion, which have no largest.

    Example:
        >>> found, wanted = torch.tensor([2.0, 9.0, torch.inf]), torch.tensor([1.0, 9.0, torch.inf])
        >>> _worst_difference(found, wanted, is_fused=True)
        0.5

    """
    off = torch.where(found == wanted, 0.0, (found.double() - wanted.double()).abs())
    size = 1 + wanted.double().abs() if is_fused else wanted.double().abs().amax()
    return float(torch.where(off == 0, 0.0, off / size.where(size.isfinite(), 1.0)).amax())


def _require_repeatable(module: DetectorModule, batch: _Batch) -> None:
    """Raise if the model answers the same batch otherwise in a second run, so that no graph can be held against it."""
    args, kwargs = arguments(module, batch)
    with torch.no_grad():
        first, second = module(*args, **kwargs), module(*args, **kwargs)
    if not bool(first[0].isfinite().all()) or bool(first[1].isnan().any()):
        raise ModelRunError(
            "The features or logits of the example are not finite: give another, as no file can be checked by it."
        )
    if any(not torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(first, second, strict=True)):
        raise ModelRunError(
            "The model gives other numbers when it is run on the same batch again: random numbers, or what it keeps of "
            "earlier batches, are in its forward, and a file cannot be checked against it. Nothing was written. Leave "
            "them out in eval mode, as nn.Dropout does.",
        )


def _on_cpu(
    module: DetectorModule, example: Tensor | Mapping[str, Any]
) -> tuple[DetectorModule, Tensor | dict[str, Tensor]]:
    """Return copies on the CPU of what is to be written, and of its example."""
    if not isinstance(module, DetectorModule):
        raise InputTypeError(
            f"A file is made of a detector's module: give `detector.to_module(model)`, got {type(module).__name__}."
        )
    if isinstance(example, Tensor):
        return copy.deepcopy(module).cpu(), example.cpu()
    if not isinstance(example, Mapping) or not all(isinstance(value, Tensor) for value in example.values()):
        raise InputTypeError(
            f"`example` must be a batch as a tensor, or as a mapping of tensors by the model's keywords, got "
            f"{type(example).__name__}."
        )
    return copy.deepcopy(module).cpu(), {name: tensor.cpu() for name, tensor in example.items()}


def _refusal(error: BaseException) -> str:
    """Return in one line why `torch.export` refuses a model, and where in its code, if torch says so."""
    found = re.search(r'File ".*?([^/\\"]+)", line (\d+), in (\w+)\n\s*(.+)', str(error))
    place = "" if found is None else f" ({found[1]}, line {found[2]}, in {found[3]}: {found[4].strip()})"
    if "data-dependent" in str(error).partition("\n")[0].lower():
        return (
            f"its forward depends on values of tensors where a graph cannot, as a branch or a shape does{place}. Say "
            f"it by tensor operations, such as torch.where."
        )
    return f"{_first_line(error)}{place}"


def _first_line(error: BaseException) -> str:
    """Return in one line what an error began with: kind and first line of the first of its causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
