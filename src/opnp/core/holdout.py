"""Class holdout: how well a setting detects classes that the head does not know, measured without OOD data.

Drop some rows of the head; then ID samples of the dropped classes are OOD to what is left, and samples of the other
classes are ID. The AUROC of the score over the rows that stay, averaged over random draws of the dropped classes,
ranks settings (ratios, shaping) as real OOD data would, near enough to choose by. All draws read one logits matrix.

This is the project's own criterion; the paper tunes on OOD images.
"""

import torch
from torch import Tensor

from opnp.core.checks import checked_fraction, require_class_indices
from opnp.core.metrics import auroc
from opnp.core.scores import ScoreName, score_logits
from opnp.errors import EmptyDataError, InputTypeError, ShapeError

__all__ = ["class_draws", "holdout_auroc"]


def class_draws(labels: Tensor, classes: int, *, shares: tuple[float, ...], draws: int, seed: int = 0) -> Tensor:
    """Return random draws of the classes that stay: `draws` of them, the shares left out in turn.

    A draw keeps at least two classes and leaves out at least one, and there are samples on both sides of it. Draws are
    distinct; where the classes are too few for as many, there are fewer.

    Args:
        labels: Class indices of the samples, shape ``(batch,)``, int64.
        classes: Number of classes C.
        shares: Shares of the classes to leave out, each in (0, 1).
        draws: Number of draws, at least 1.
        seed: Seed of the draws.

    Returns:
        True = the class stays, shape ``(draws, classes)``, bool, on the CPU.

    Raises:
        EmptyDataError: If no draw leaves samples on both sides.
        OptionError: If a share lies outside (0, 1), or a label is no class index.

    Example:
        >>> import torch
        >>> kept = class_draws(torch.arange(10), 10, shares=(0.4, 0.6), draws=4)
        >>> kept.sum(1).tolist()
        [6, 4, 6, 4]

    """
    for share in shares:
        checked_fraction(share, name="shares")
    require_class_indices(labels, classes=classes)
    generator = torch.Generator().manual_seed(seed)
    present = torch.bincount(labels.cpu(), minlength=classes) > 0
    found: list[Tensor] = []
    seen: set[bytes] = set()
    for _attempt in range(20 * draws):
        left_out = min(max(1, round(shares[len(found) % len(shares)] * classes)), classes - 2)
        kept = torch.ones(classes, dtype=torch.bool)
        kept[torch.randperm(classes, generator=generator)[: max(left_out, 0)]] = False
        key = kept.numpy().tobytes()
        if key not in seen and bool((present & kept).any()) and bool((present & ~kept).any()):
            seen.add(key)
            found.append(kept)
        if len(found) == draws:
            break
    if not found:
        raise EmptyDataError(
            f"Class holdout needs samples of at least two classes, and three classes in all: got {classes} classes, "
            f"{int(present.sum())} of them with samples.",
        )
    return torch.stack(found)


def holdout_auroc(
    logits: Tensor, labels: Tensor, kept: Tensor, *, score: ScoreName = "energy", temperature: float = 1.0
) -> Tensor:
    """Return, for each draw, the AUROC of the score over the kept classes: left-out classes' samples count as OOD.

    Args:
        logits: Logits of ID samples, shape ``(batch, classes)``.
        labels: Their class indices, shape ``(batch,)``, int64.
        kept: Draws of the classes that stay, shape ``(draws, classes)``, bool.
        score: The score to judge.
        temperature: Its temperature, above 0.

    Returns:
        AUROC in [0, 1], shape ``(draws,)``, float64, on the CPU.

    Raises:
        ShapeError: If the shapes do not fit together.
        InputTypeError: If `kept` is not boolean.
        EmptyDataError: If a draw has samples on one side alone.

    Example:
        The sample of the third class has no large logit among the first two:

        >>> import torch
        >>> kept = torch.tensor([[True, True, False]])
        >>> holdout_auroc(5 * torch.eye(3), torch.arange(3), kept).tolist()
        [1.0]

    """
    if kept.ndim != 2 or kept.shape[1:] != logits.shape[1:] or labels.shape != logits.shape[:1]:
        raise ShapeError(
            f"`kept` must be (draws, classes) and `labels` (batch,) for `logits` {tuple(logits.shape)}, got "
            f"{tuple(kept.shape)} and {tuple(labels.shape)}.",
        )
    if kept.dtype != torch.bool:
        raise InputTypeError(f"`kept` must be boolean, True where the class stays, got {kept.dtype}.")
    values = []
    for stays in kept.to(logits.device):
        scores = score_logits(logits[:, stays], score=score, temperature=temperature)
        is_inside = stays[labels]
        values.append(auroc(scores[is_inside], scores[~is_inside]))
    return torch.tensor(values, dtype=torch.float64)
