"""Steps 2 and 3 of the method: the pruned head, and the score of what is left."""

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp.core.checks import require_finite
from opnp.core.masks import Masks, pruned_weight
from opnp.core.scores import score_logits
from opnp.core.sensitivity import product_dtype
from opnp.core.shaping import ReAct, shaped
from opnp.detector.fitting import Fitted
from opnp.detector.masking import neurons_kept, require_known_order, weights_kept
from opnp.detector.settings import Settings

__all__ = ["Scorer"]


@dataclass(frozen=True, eq=False, slots=True)
class Scorer:
    """A pruned head with its settings: features in, scores out.

    Attributes:
        masks: What stays of the head.
        weight: Pruned weight, shape ``(classes, features)``.
        fitted: What it was made from.
        settings: Resolved settings.

    """

    masks: Masks
    weight: Tensor
    fitted: Fitted
    settings: Settings
    _copies: dict[tuple[bool, torch.device, torch.dtype], tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    @classmethod
    def from_fitted(cls, fitted: Fitted, settings: Settings, *, is_stored: bool = False) -> Self:
        """Return the scorer of these sensitivities under these (resolved) settings.

        Args:
            fitted: Sensitivities and head.
            settings: Resolved settings.
            is_stored: Whether they come from a saved detector, which gives the masks that it gave: that the order at
                a cut is known was a matter of its fit.

        Raises:
            RatioError: If the ratios leave no entry, or cut among sensitivities whose order was lost.

        Warns:
            RatioWarning: If a ratio above 0 removes no entry.

        """
        masks = Masks(weight=weights_kept(fitted, settings), neuron=neurons_kept(fitted, settings))
        if not is_stored:
            require_known_order(fitted, settings)
        return cls(masks=masks, weight=pruned_weight(fitted.weight, masks), fitted=fitted, settings=settings)

    def scores(self, features: Tensor) -> Tensor:
        """Return the scores of checked features, shape ``(batch, features)``, as shape ``(batch,)``."""
        return score_logits(self.logits(features), score=self.settings.score, temperature=self.settings.temperature)

    def logits(self, features: Tensor) -> Tensor:
        """Return the pruned head's logits of the shaped features, shape ``(batch, classes)``; refuse overflow."""
        shaping = self.settings.fixed_shaping
        threshold = self.fitted.react_thresholds[shaping.quantile] if isinstance(shaping, ReAct) else None
        inputs = shaped(self._prepared(features), shaping, threshold=threshold)
        logits = _product(inputs, *self._head(inputs, is_pruned=True))
        require_finite(logits, name="logits", where=" of the pruned head")
        return logits

    def classes(self, features: Tensor) -> Tensor:
        """Return the classes that the original head predicts, shape ``(batch,)``, int64; refuse overflow."""
        inputs = self._prepared(features)
        logits = _product(inputs, *self._head(inputs, is_pruned=False))
        require_finite(logits, name="logits")
        return logits.argmax(1)

    def pruned_head(self) -> nn.Linear:
        """Return the pruned head as a new, plain `nn.Linear` with the dtype and device of the original."""
        return _plain(self.weight, self.fitted.bias)

    def original_head(self) -> nn.Linear:
        """Return the original head as a new, plain `nn.Linear`."""
        return _plain(self.fitted.weight, self.fitted.bias)

    def _prepared(self, features: Tensor) -> Tensor:
        return features.detach().to(product_dtype(features, precision=self.settings.precision))

    def _head(self, inputs: Tensor, *, is_pruned: bool) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias in device and dtype of the inputs; copies are kept for the next batch."""
        key = (is_pruned, inputs.device, inputs.dtype)
        if key not in self._copies:
            weight, bias = self.weight if is_pruned else self.fitted.weight, self.fitted.bias
            self._copies[key] = weight.to(inputs), None if bias is None else bias.to(inputs)
        return self._copies[key]


def _plain(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    classes, features = weight.shape
    module: nn.Linear = nn.utils.skip_init(
        nn.Linear, features, classes, bias=bias is not None, device=weight.device, dtype=weight.dtype
    )
    with torch.no_grad():
        module.weight.copy_(weight)
        if bias is not None:
            module.bias.copy_(bias)
    module.requires_grad_(requires_grad=False)
    return module


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the linear map in the dtype of its inputs, whatever autocast the caller is in."""
    with torch.autocast(inputs.device.type, enabled=False):
        return linear(inputs, weight, bias)
