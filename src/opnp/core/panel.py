"""The panel of the fusion: which scores there are, the formula of each, and what they need of the training data.

The default panel, its constants and what leaving one out costs are set on data: docs/explanation/results.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from opnp.core.members import (
    ClassGaussian,
    PrincipalSpace,
    boundary_weights,
    fdbd_score,
    mahalanobis_score,
    nci_score,
    norm_score,
    relative_mahalanobis_score,
    vim_score,
)
from opnp.core.scores import energy_rows, gen_score
from opnp.core.shaping import ASHS, SCALE, shaped_rows

__all__ = ["MEMBERS", "PANEL", "PANEL_SHAPING", "PRUNED_HEAD", "REACT_QUANTILE", "Panel", "member_scores"]

PRUNED_HEAD = "opnp"
"""The member that is the paper's method: the energy of the pruned head, under SCALE."""
PANEL = ("gen", "react", "fdbd", "mahalanobis", "vim", PRUNED_HEAD, "norm")
"""The members of `OPNP()`."""
REACT_QUANTILE = 0.95
PANEL_SHAPING = SCALE(0.85)
"""The shaping before the pruned head, and of the member `scale`."""
_ASH_S = ASHS(0.9)
_MOST_CLASSES = 2048
"""Classes up to which the distances between all rows of the head are computed once and held."""


@dataclass(frozen=True, eq=False, slots=True)
class Panel:
    """What the members need, all of one dtype on one device; None where no member of the panel needs it.

    Attributes:
        weight: Weight of the head, shape ``(classes, features)``.
        bias: Bias of the head, shape ``(classes,)``, or None.
        pruned_weight: Weight of the pruned head, shape ``(classes, features)``.
        mean: Mean of the training features, shape ``(features,)``.
        react_threshold: Threshold of ReAct: the 95 % quantile of the training features.
        typical_norm: Median norm of training features, for the norm guard.
        gaussian: Gaussians of the directions, for Mahalanobis++.
        space: Principal subspace, for ViM.
        boundaries: 1 / |w_i - w_j| for fDBD, shape ``(classes, classes)``; None to compute what each batch needs.

    """

    weight: Tensor
    bias: Tensor | None
    pruned_weight: Tensor
    mean: Tensor
    react_threshold: float
    typical_norm: float
    gaussian: ClassGaussian | None
    space: PrincipalSpace | None
    boundaries: Tensor | None = None

    def logits(self, features: Tensor) -> Tensor:
        """Return f = W h + b, shape ``(batch, classes)``."""
        return linear(features, self.weight, self.bias)

    def pruned_logits(self, features: Tensor) -> Tensor:
        """Return the logits of the pruned head, shape ``(batch, classes)``."""
        return linear(features, self.pruned_weight, self.bias)

    def with_boundaries(self) -> Self:
        """Return the panel with what fDBD needs of all classes, where they are few enough to hold it."""
        return self if len(self.weight) > _MOST_CLASSES else replace(self, boundaries=boundary_weights(self.weight))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the panel with every tensor changed, such as moved to a device."""
        return type(self).from_parts({name: change(tensor) for name, tensor in self.tensors().items()}, self.numbers())

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name, those of its parts as ``part.name``."""
        found: dict[str, Tensor] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Tensor):
                found[each.name] = value
            elif isinstance(value, ClassGaussian | PrincipalSpace):
                parts = {part.name: getattr(value, part.name) for part in fields(value)}
                found |= {f"{each.name}.{name}": part for name, part in parts.items() if isinstance(part, Tensor)}
        return found

    def numbers(self) -> dict[str, float]:
        """Return what is no tensor by name, for `from_parts`."""
        numbers = {"react_threshold": self.react_threshold, "typical_norm": self.typical_norm}
        return numbers if self.space is None else numbers | {"alpha": self.space.alpha}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> Self:
        """Return the panel that `tensors` and `numbers` gave.

        Raises:
            KeyError: If a part of the head, a mean or a number is missing; Gaussians and subspace may be.

        """
        gaussian = space = None
        if "gaussian.whitening" in tensors:
            gaussian = ClassGaussian(
                center=tensors["gaussian.center"],
                whitening=tensors["gaussian.whitening"],
                means=tensors["gaussian.means"],
                background=tensors.get("gaussian.background"),
            )
        if "space.basis" in tensors:
            space = PrincipalSpace(tensors["space.origin"], tensors["space.basis"], numbers["alpha"])
        return cls(
            weight=tensors["weight"],
            bias=tensors.get("bias"),
            pruned_weight=tensors["pruned_weight"],
            mean=tensors["mean"],
            react_threshold=numbers["react_threshold"],
            typical_norm=numbers["typical_norm"],
            gaussian=gaussian,
            space=space,
            boundaries=tensors.get("boundaries"),
        )


def _gaussian(panel: Panel) -> ClassGaussian:
    if panel.gaussian is None:
        raise KeyError("gaussian")
    return panel.gaussian


def _space(panel: Panel) -> PrincipalSpace:
    if panel.space is None:
        raise KeyError("space")
    return panel.space


_FORMULAS: dict[str, Callable[[Tensor, Tensor, Panel], Tensor]] = {
    "gen": lambda _, f, panel: gen_score(f),  # noqa: ARG005  # one signature for all
    "energy": lambda _, f, panel: energy_rows(f),  # noqa: ARG005  # as above
    "react": lambda h, _, panel: energy_rows(panel.logits(h.clamp_max(panel.react_threshold))),
    "scale": lambda h, _, panel: energy_rows(panel.logits(shaped_rows(h, PANEL_SHAPING))),
    "ash_s": lambda h, _, panel: energy_rows(panel.logits(shaped_rows(h, _ASH_S))),
    "fdbd": lambda h, f, panel: fdbd_score(h, f, weight=panel.weight, mean=panel.mean, boundaries=panel.boundaries),
    "nci": lambda h, f, panel: nci_score(h, f, weight=panel.weight, mean=panel.mean),
    "mahalanobis": lambda h, _, panel: mahalanobis_score(h, _gaussian(panel)),
    "relative_mahalanobis": lambda h, _, panel: relative_mahalanobis_score(h, _gaussian(panel)),
    "vim": lambda h, f, panel: vim_score(h, f, _space(panel)),
    "opnp": lambda h, _, panel: energy_rows(panel.pruned_logits(shaped_rows(h, PANEL_SHAPING))),
    "opnp_gen": lambda h, _, panel: gen_score(panel.pruned_logits(h)),
    "norm": lambda h, _, panel: norm_score(h, typical=panel.typical_norm),
}

MEMBERS = tuple(_FORMULAS)
"""Every score that a fusion can be made of."""


def member_scores(features: Tensor, panel: Panel, members: Sequence[str]) -> Tensor:
    """Return the scores of each member, shape ``(batch, members)``, dtype and device of features and panel alike.

    Args:
        features: Shape ``(batch, features)``.
        panel: What the members need.
        members: Their names, of `MEMBERS`.

    Raises:
        KeyError: If a name is unknown, or the panel lacks what a member needs.

    """
    logits = panel.logits(features)
    return torch.stack([_FORMULAS[name](features, logits, panel) for name in members], dim=1)
