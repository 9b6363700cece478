"""ODIN of pytorch-ood on a model and its inputs: the only baseline here that cannot work on cached features."""

from collections.abc import Iterable, Sequence
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from opnp.errors import EmptyDataError, InputTypeError, MissingExtraError
from opnp.model import BatchHalving, Inputs, borrowed, inputs_of, logits_of, run_model, unwrapped

__all__ = ["ODIN_EPS", "ODIN_TEMPERATURE", "odin_scores", "require_odin"]

ODIN_TEMPERATURE = 1000.0
ODIN_EPS = 0.0014
"""The perturbation of its paper, on the scale of pixels in [0, 1]."""


class _Logits(nn.Module):
    """A model's logits, in float64, without holding the model as a part of itself.

    At a temperature of 1000 all probabilities are close to 1 / classes, and in float32 they would tie.
    """

    def __init__(self, model: nn.Module, device: torch.device | None) -> None:
        super().__init__()
        self._run = partial(run_model, model, device=device)

    def forward(self, inputs: Tensor) -> Tensor:
        # A copy, because a model may begin with something in place, which autograd forbids on the inputs themselves.
        logits = logits_of(self._run(inputs.clone()))
        if logits is None:
            raise InputTypeError("ODIN needs a model whose output is a tensor of logits, or holds `.logits`.")
        return logits.double()


def odin_scores(
    model: nn.Module,
    batches: Iterable[object],
    *,
    std: Sequence[float] | None,
    temperature: float = ODIN_TEMPERATURE,
    eps: float = ODIN_EPS,
    device: torch.device | str | None = None,
    halving: BatchHalving | None = None,
) -> Tensor:
    r"""Return ODIN's scores of all inputs; the model comes back as it was, and gathers no gradients.

    .. math:: -\max_c \operatorname{softmax}_c(f(\hat x) / T), \quad
        \hat x = x - \frac{\epsilon}{\sigma} \operatorname{sign} \nabla_x \bigl(-\log \max_c
        \operatorname{softmax}_c(f(x) / T)\bigr)

    Args:
        model: A classifier of floating-point inputs, ``(batch, channels, ...)``.
        batches: Batches of inputs, as loaders yield them.
        std: Standard deviations that each channel of the inputs was divided by, so that `eps` holds for pixels in
            [0, 1], as in the authors' code; None for inputs that were not.
        temperature: Temperature.
        eps: Step of the perturbation.
        device: Where to run; None for where the model is.
        halving: How batches are run that need more memory than there is; None to refuse them.

    Returns:
        Scores, larger = more OOD, shape ``(samples,)``, float64, on the CPU.

    Raises:
        EmptyDataError: If there is no batch.
        InputTypeError: If the inputs are no floating-point tensors, or the model's output holds no logits.
        InsufficientMemoryError: If the model, or a batch in it, needs more memory than there is.
        MissingExtraError: If pytorch-ood is not installed.
        Exception: Whatever model or pytorch-ood raise of their own.

    References:
        Liang, Li and Srikant, "Enhancing the reliability of out-of-distribution image detection in neural networks",
        ICLR 2018, equations 1 and 2.

    """
    require_odin()
    from pytorch_ood.detector import ODIN

    inner, halving = unwrapped(model), halving or BatchHalving()
    scores: list[Tensor] = []
    with borrowed(inner, device=device) as target:
        per_channel = None if std is None else list(std)
        detector = ODIN(_Logits(inner, target), temperature=temperature, eps=eps, norm_std=per_channel)

        def scored(inputs: Inputs) -> tuple[Tensor]:
            if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
                raise InputTypeError("ODIN changes the inputs by a small step: they must be floating-point tensors.")
            return (detector.predict(inputs.to(target)).double().cpu(),)

        for batch in batches:
            scores += halving.outcome(scored, inputs_of(batch))
    if not scores:
        raise EmptyDataError("There is no batch to score.")
    return torch.cat(scores)


def require_odin() -> None:
    """Raise if pytorch-ood is not installed.

    Raises:
        MissingExtraError: If it is not; the message names the command that installs it.

    """
    if find_spec("pytorch_ood") is None:
        raise MissingExtraError(
            "ODIN needs pytorch-ood, which is not installed: `pip install 'opnp[bench]'`. Or leave ODIN out, with "
            "`opnp cache --no-odin`.",
        )
