r"""The scores that the fusion is made of, one function each, and the panel that holds what they need.

Larger means more OOD, for every one of them.

Each is a function of features h, logits f = W h + b and what the training data left. GEN and the energy are in
`scores`, ReAct, ASH-S and SCALE in `shaping`; here are those that need sums of the training features (`moments`):

    fDBD            -(1 / (C - 1)) sum over c of (f_p - f_c) / |w_p - w_c|, over |h - mean|
    NCI             -w_p . (h - mean) / |h - mean|
    Mahalanobis++   min over classes c of (z - mu_c)' S^-1 (z - mu_c),  z = h / |h|
    ViM             alpha |residual of h outside the principal subspace| - logsumexp(f)
    norm guard      the factor by which |h| differs from its median: max(|h| / m, m / |h|)

with p the predicted class. None of them looks at the values it is given, so that each is one graph of operations; what
overflows gives infinite or NaN scores. The default panel, its constants and what leaving one out costs are set on data:
docs/explanation/results.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self, TypeVar

import torch
from torch import Tensor

from opnp.core.moments import LARGEST_WIDTH, FeatureMoments, directions
from opnp.core.scores import energy_rows, gen_score
from opnp.core.shaping import ASHS, SCALE, shaped_rows
from opnp.errors import EmptyDataError, OptionError

__all__ = [
    "MEMBERS",
    "PANEL",
    "PANEL_SHAPING",
    "PRUNED_HEAD",
    "REACT_QUANTILE",
    "ClassGaussian",
    "Panel",
    "PrincipalSpace",
    "boundary_weights",
    "fdbd_score",
    "mahalanobis_score",
    "member_scores",
    "nci_score",
    "norm_score",
    "relative_mahalanobis_score",
    "vim_score",
]

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
_SAME = 1e-12
"""Two rows of the head closer than this, squared and relative to their squared lengths, are one row twice."""
_ROUNDED = 1e-8
"""Directions of the head this much weaker than its strongest, squared, are rounding: rows often sum to nothing."""
_PRIOR = 2.0
"""Samples that the mean over all classes counts for in the mean of each class."""
_SHRINKAGE = 0.01
"""Share of the covariance that becomes a multiple of the identity where samples are many."""
_MANY = 20
"""Samples a feature from which on they are many."""


def boundary_weights(weight: Tensor, predicted: Tensor | None = None) -> Tensor:
    """Return 1 / |w_p - w_c|, the weight of each class in fDBD: one over the distance that a unit of logit stands for.

    Args:
        weight: Weight of the head, shape ``(classes, features)``.
        predicted: Classes p to return the rows of, shape ``(batch,)``, int64; None for all classes.

    Returns:
        Shape ``(batch, classes)`` or ``(classes, classes)``, dtype of `weight`; 0 for a row of the head that equals
        that of p, p itself among them. Computed in float64.

    Example:
        >>> import torch
        >>> boundary_weights(torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 2.0]])).tolist()
        [[0.0, 0.5, 0.5], [0.5, 0.0, 0.0], [0.5, 0.0, 0.0]]

    """
    every = weight.double()
    chosen = every if predicted is None else every[predicted]
    sizes = (chosen * chosen).sum(1, keepdim=True) + (every * every).sum(1)
    squares = sizes - 2 * chosen @ every.T
    is_other = squares > _SAME * sizes
    return torch.where(is_other, squares, torch.inf).rsqrt().to(weight.dtype)


def fdbd_score(
    features: Tensor, logits: Tensor, *, weight: Tensor, mean: Tensor, boundaries: Tensor | None = None
) -> Tensor:
    """Return minus the mean distance to the decision boundaries, over the distance to the mean feature.

    The distance to the boundary between the predicted class p and class c is (f_p - f_c) / |w_p - w_c|. Classes whose
    row of the head equals that of p have no boundary and are left out of the mean.

    Args:
        features: Shape ``(batch, features)``.
        logits: Shape ``(batch, classes)``.
        weight: Weight of the head, shape ``(classes, features)``.
        mean: Mean of the training features, shape ``(features,)``.
        boundaries: `boundary_weights` of all classes, to be computed once; None to compute those that are needed.

    Returns:
        Scores, at most 0, shape ``(batch,)``; NaN where all rows of the head are equal.

    Example:
        One boundary, 2 away, and the mean feature at distance 4:

        >>> import torch
        >>> head, features = torch.tensor([[0.0, 1.0], [0.0, -1.0]]), torch.tensor([[4.0, 2.0]])
        >>> fdbd_score(features, features @ head.T, weight=head, mean=torch.tensor([0.0, 2.0])).tolist()
        [-0.5]

    References:
        Liu and Qin, "Fast Decision Boundary based Out-of-Distribution Detector", ICML 2024, equation 8.

    """
    largest, predicted = logits.max(1, keepdim=True)
    weights = boundary_weights(weight, predicted[:, 0]) if boundaries is None else boundaries[predicted[:, 0]]
    distance = ((largest - logits) * weights).sum(1) / (weights > 0).sum(1)
    return -distance / _lengths(features - mean)


def nci_score(features: Tensor, logits: Tensor, *, weight: Tensor, mean: Tensor) -> Tensor:
    """Return minus the length of the predicted class's weight along the centred feature: -w_p . (h - m) / |h - m|.

    Args:
        features: Shape ``(batch, features)``.
        logits: Shape ``(batch, classes)``.
        weight: Weight of the head, shape ``(classes, features)``.
        mean: Mean m of the training features, shape ``(features,)``.

    Returns:
        Scores, shape ``(batch,)``; NaN at the mean itself.

    Example:
        >>> import torch
        >>> head, features = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> nci_score(features, features @ head.T, weight=head, mean=torch.zeros(2)).tolist()
        [-4.0]

    References:
        Liu and Qin, "Detecting Out-of-Distribution through the Lens of Neural Collapse", CVPR 2025; without the norm
        of h, whose weight the authors tune.

    """
    centred = features - mean
    return -(weight[logits.argmax(1)] * centred).sum(1) / _lengths(centred)


@dataclass(frozen=True, eq=False, slots=True)
class ClassGaussian:
    """Gaussians of the directions z = h / |h|, one mean a class and one covariance, in whitened coordinates.

    Attributes:
        center: Mean of all directions, shape ``(features,)``.
        whitening: A with A A' = S^-1, shape ``(features, features)``.
        means: Whitened class means (mu_c - center) A, shape ``(classes, features)``; classes without a sample are left
            out.
        background: A for the covariance round the mean of all directions, for the relative form; None where not asked.

    """

    center: Tensor
    whitening: Tensor
    means: Tensor
    background: Tensor | None

    @classmethod
    def from_moments(cls, moments: FeatureMoments, *, is_relative: bool = False) -> Self:
        """Return the Gaussians that the sums of the training features give, float64.

        With n samples of a class its mean is shrunk to the mean of all by n / (n + 2), so that one sample a class is
        no zero distance; the covariance round the shrunk means, sum of z z' - S mu' - mu S' + mu' n mu for class sums
        S, is shrunk to a multiple of the identity by 0.01, and where there are fewer than 20 samples a feature by
        min(1, features / (2 samples)).

        Raises:
            EmptyDataError: If no sample was summed, or the directions do not vary.
            OptionError: If the features are too many for products of pairs.

        """
        products, sums = _summed(moments.direction_product, moments), moments.class_direction
        counts = moments.class_count.double()[:, None]
        center = sums.sum(0) / moments.count
        means = center + (sums / counts.clamp_min(1) - center) * counts / (counts + _PRIOR)
        within = products - sums.T @ means - means.T @ sums + (means * counts).T @ means
        whitening = _whitening(within / moments.count, moments.count)
        background = None
        if is_relative:
            background = _whitening(products / moments.count - torch.outer(center, center), moments.count)
        return cls(center, whitening, ((means - center) @ whitening)[moments.class_count > 0], background)


def mahalanobis_score(features: Tensor, gaussian: ClassGaussian) -> Tensor:
    """Return the squared Mahalanobis distance of the direction to the nearest class mean: Mahalanobis++.

    Args:
        features: Shape ``(batch, features)``.
        gaussian: Gaussians of the training directions.

    Returns:
        Scores, shape ``(batch,)``.

    Example:
        >>> import torch
        >>> unit = ClassGaussian(torch.zeros(2), torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), None)
        >>> mahalanobis_score(torch.tensor([[5.0, 0.0], [-5.0, 0.0]]), unit).tolist()
        [0.0, 2.0]

    References:
        Mueller and Hein, "Mahalanobis++: Improving OOD Detection via Feature Normalization", ICML 2025; Lee et al.,
        NeurIPS 2018.

    """
    whitened = (directions(features) - gaussian.center) @ gaussian.whitening
    nearest = (2 * whitened @ gaussian.means.T - (gaussian.means * gaussian.means).sum(1)).amax(1)
    return (whitened * whitened).sum(1) - nearest


def relative_mahalanobis_score(features: Tensor, gaussian: ClassGaussian) -> Tensor:
    """Return the squared Mahalanobis distance less that to the mean of all directions, under their own covariance.

    Args:
        features: Shape ``(batch, features)``.
        gaussian: Gaussians of the training directions, with `background`.

    Returns:
        Scores, shape ``(batch,)``.

    Raises:
        OptionError: If the Gaussians have no background.

    Example:
        >>> import torch
        >>> means = torch.tensor([[1.0, 0.0]])
        >>> unit = ClassGaussian(torch.zeros(2), torch.eye(2), means, torch.eye(2))
        >>> relative_mahalanobis_score(torch.tensor([[5.0, 0.0], [-5.0, 0.0]]), unit).tolist()
        [-1.0, 3.0]

    References:
        Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", 2021, on directions.

    """
    if gaussian.background is None:
        raise OptionError("The Gaussians hold no background: build them with `is_relative=True`.")
    whitened = (directions(features) - gaussian.center) @ gaussian.background
    return mahalanobis_score(features, gaussian) - (whitened * whitened).sum(1)


@dataclass(frozen=True, eq=False, slots=True)
class PrincipalSpace:
    """The subspace that holds most of the training features, for ViM.

    Attributes:
        origin: u = -W^+ b, where all logits are equal up to W, shape ``(features,)``.
        basis: Orthonormal basis of the principal subspace, shape ``(features, dimension)``.
        alpha: Factor from residual to logit: mean largest logit over mean residual.

    """

    origin: Tensor
    basis: Tensor
    alpha: float

    @classmethod
    def from_moments(
        cls, moments: FeatureMoments, *, weight: Tensor, bias: Tensor | None, features: Tensor, logits: Tensor
    ) -> Self:
        """Return the subspace that the sums of the training features give, float64.

        Its dimension is 100 below 1000 features, 256 from there, at most half of them.

        Args:
            moments: Sums over training features.
            weight: Weight of the head, shape ``(classes, features)``.
            bias: Bias of the head, or None.
            features: Training features that are not in the sums, for alpha, shape ``(rows, features)``.
            logits: Their logits, shape ``(rows, classes)``.

        Raises:
            EmptyDataError: If no sample was summed, or nothing is left outside the subspace.
            OptionError: If the features are too many for products of pairs.

        """
        products, width = _summed(moments.product, moments), len(moments.feature)
        origin = -_least_solution(weight.double(), weight.new_zeros(len(weight)) if bias is None else bias)
        shift = torch.outer(moments.feature, origin)
        around = (products - shift - shift.T) / moments.count + torch.outer(origin, origin)
        dimension = min(100 if width < 1000 else 256, width // 2)
        basis = torch.linalg.eigh(around).eigenvectors[:, width - dimension :].contiguous()  # as a file gives it back
        space = cls(origin, basis, 1.0)
        residual = _residual(features.double(), space)
        if not bool(residual.mean() > _SAME**0.5 * _lengths(features.double() - origin).mean()):
            raise EmptyDataError(f"all features lie in the principal subspace of {dimension} dimensions")
        return cls(origin, basis, float(logits.double().amax(1).mean().abs() / residual.mean()))


def vim_score(features: Tensor, logits: Tensor, space: PrincipalSpace) -> Tensor:
    """Return alpha times the residual outside the principal subspace, plus the energy: ViM.

    Args:
        features: Shape ``(batch, features)``.
        logits: Shape ``(batch, classes)``.
        space: Principal subspace of the training features.

    Returns:
        Scores, shape ``(batch,)``, in units of the logits.

    Example:
        >>> import torch
        >>> plane = PrincipalSpace(torch.zeros(2), torch.tensor([[1.0], [0.0]]), 2.0)
        >>> vim_score(torch.tensor([[7.0, 3.0]]), torch.tensor([[0.0]]), plane).tolist()
        [6.0]

    References:
        Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022, in the form of its appendix.

    """
    return space.alpha * _residual(features, space) + energy_rows(logits)


def norm_score(features: Tensor, *, typical: float) -> Tensor:
    """Return the factor by which the norm of the features differs from the typical one: max(|h| / m, m / |h|).

    Directions and decisions of a network say little of how long its features are. This guards against features that
    are scaled or vanish: a row of zeros has the score infinity.

    Args:
        features: Shape ``(batch, features)``.
        typical: Median m of the norms of training features, above 0.

    Returns:
        Scores, at least 1, shape ``(batch,)``.

    Example:
        >>> import torch
        >>> norm_score(torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0]]), typical=10.0).tolist()
        [2.0, 1.0, inf]

    """
    largest = features.abs().amax(1)
    scaled = features / torch.where(largest > 0, largest, 1.0)[:, None]  # squares of the entries could overflow
    ratio = largest * (_lengths(scaled) / typical)
    return torch.maximum(ratio, 1 / ratio)


def _residual(features: Tensor, space: PrincipalSpace) -> Tensor:
    shifted = features - space.origin
    return _lengths(shifted - (shifted @ space.basis) @ space.basis.T)


def _lengths(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths


def _summed(product: Tensor | None, moments: FeatureMoments) -> Tensor:
    """Return a sum of products of pairs of features, refusing one that is not held, or of no sample."""
    if product is None:
        raise OptionError(
            f"it needs a covariance of {len(moments.feature)} features, and at most {LARGEST_WIDTH} are held"
        )
    if moments.count == 0:
        raise EmptyDataError("no sample was summed")
    return product


def _whitening(covariance: Tensor, samples: int) -> Tensor:
    """Return A with A A' = S^-1 for the shrunk covariance S."""
    width = len(covariance)
    level = covariance.trace() / width
    if not bool(level > _SAME / width):  # directions have length 1
        raise EmptyDataError("the directions of the features do not vary")
    share = min(1.0, width / (2 * samples)) if samples < _MANY * width else _SHRINKAGE
    unit = torch.eye(width, dtype=covariance.dtype, device=covariance.device)
    root = torch.linalg.cholesky((1 - share) * covariance + share * level * unit)
    inverse: Tensor = torch.linalg.solve_triangular(root, unit, upper=False)
    return inverse.T.contiguous()


def _least_solution(weight: Tensor, bias: Tensor) -> Tensor:
    """Return W^+ b, the least u with W u nearest to b, by the pseudoinverse of the smaller of W W' and W' W."""
    is_wide = len(weight) <= weight.shape[1]
    smaller = weight @ weight.T if is_wide else weight.T @ weight
    inverse: Tensor = torch.linalg.pinv(smaller, rtol=_ROUNDED, hermitian=True)
    return weight.T @ (inverse @ bias.double()) if is_wide else inverse @ (weight.T @ bias.double())


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
        return self._product(features, self.weight)

    def pruned_logits(self, features: Tensor) -> Tensor:
        """Return the logits of the pruned head, shape ``(batch, classes)``."""
        return self._product(features, self.pruned_weight)

    def _product(self, features: Tensor, weight: Tensor) -> Tensor:
        logits = features @ weight.T
        return logits if self.bias is None else logits + self.bias

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


_Part = TypeVar("_Part")


def _held(part: _Part | None, name: str) -> _Part:
    if part is None:
        raise KeyError(name)
    return part


_FORMULAS: dict[str, Callable[[Tensor, Tensor, Panel], Tensor]] = {
    "gen": lambda _, f, panel: gen_score(f),  # noqa: ARG005  # one signature for all
    "energy": lambda _, f, panel: energy_rows(f),  # noqa: ARG005  # as above
    "react": lambda h, _, panel: energy_rows(panel.logits(h.clamp_max(panel.react_threshold))),
    "scale": lambda h, _, panel: energy_rows(panel.logits(shaped_rows(h, PANEL_SHAPING))),
    "ash_s": lambda h, _, panel: energy_rows(panel.logits(shaped_rows(h, _ASH_S))),
    "fdbd": lambda h, f, panel: fdbd_score(h, f, weight=panel.weight, mean=panel.mean, boundaries=panel.boundaries),
    "nci": lambda h, f, panel: nci_score(h, f, weight=panel.weight, mean=panel.mean),
    "mahalanobis": lambda h, _, panel: mahalanobis_score(h, _held(panel.gaussian, "gaussian")),
    "relative_mahalanobis": lambda h, _, panel: relative_mahalanobis_score(h, _held(panel.gaussian, "gaussian")),
    "vim": lambda h, f, panel: vim_score(h, f, _held(panel.space, "space")),
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
