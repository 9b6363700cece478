"""What is said where the user's model fails on its inputs."""

from pathlib import Path

import torch
from torch import nn

from opnp.data.inputs import is_lost_worker, lost_worker_text
from opnp.model import is_out_of_memory

__all__ = ["model_failure_text"]


def model_failure_text(error: BaseException, model: nn.Module, *, place: Path | str) -> str:
    """Return in one line that a model raised an error on inputs, named or by their path, and what to look at.

    Example:
        >>> model = nn.Linear(2, 2).half()
        >>> print(model_failure_text(RuntimeError("Half and float"), model, place=Path("images")))
        The model failed on images: RuntimeError: Half and float. Its weights are float16, and inputs are made as float32: give a model in float32, as `model.float()` returns it.

    """  # noqa: E501  # the line is the message
    reason = " ".join(str(error).split()) or "no reason given"
    stop = "" if reason[-1] in ".!?" else "."
    if is_out_of_memory(error):
        return f"Memory ran out on {place}: {type(error).__name__}: {reason}{stop} Give a smaller `--batch-size`."
    if is_lost_worker(error):
        return lost_worker_text(error)
    kinds = sorted({str(each.dtype).removeprefix("torch.") for each in model.parameters() if _is_other(each)})
    hint = (
        f"Its weights are {' and '.join(kinds)}, and inputs are made as float32: give a model in float32, as "
        f"`model.float()` returns it."
        if kinds
        else "Do size, channels and device fit it?"
    )
    return f"The model failed on {place}: {type(error).__name__}: {reason}{stop} {hint}"


def _is_other(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() and parameter.dtype is not torch.float32
