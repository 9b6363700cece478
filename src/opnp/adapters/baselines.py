"""Detectors of pytorch-ood on cached features, and ODIN on a model: theirs do the work, this file feeds them.

What it takes care of: logits and feature maps are given in float64, so that softmax scores do not tie at 1; rows come
in blocks, as DICE forms a product of batch x classes x features; a head without bias is given zeros; pooled features
become maps of shape ``(batch, features, 1, 1)`` for ReAct, ASH and SCALE, and ReAct's threshold is taken here, from one
copy of the training features in place of four of twice the size; autograd is off; labels are asked for only by
the methods that use them; and conditions that pytorch-ood asserts, or meets with a meaningless inverse, are told in
words.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp.core.checks import checked_matrix, two_class_logits
from opnp.errors import EmptyDataError, InputTypeError, NotFittedError, OptionError, require_installed
from opnp.model import BatchHalving, BatchReader, Inputs, borrowed, logits_of, run_model, unwrapped

__all__ = [
    "BASELINE_NAMES",
    "ODIN_EPS",
    "ODIN_TEMPERATURE",
    "BaselineOutput",
    "PytorchOodBaseline",
    "odin_scores",
    "require_odin",
    "require_pytorch_ood",
]

ODIN_TEMPERATURE = 1000.0
ODIN_EPS = 0.0014
"""The perturbation of its paper, on the scale of pixels in [0, 1]."""

_ON_LOGITS: dict[str, tuple[str, tuple[str, ...]]] = {
    "MSP": ("MaxSoftmax", ()),
    "MaxLogit": ("MaxLogit", ()),
    "Energy": ("EnergyBased", ()),
    "Entropy": ("Entropy", ()),
    "GEN": ("GEN", ("gamma", "M")),
    "KL-Matching": ("KLMatching", ()),
}
"""Class in pytorch-ood, and the settings that are passed on."""

_ON_MAPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ReAct": ("ReAct", ("percentile",)),
    "ASH-S": ("ASH", ("percentile",)),
    "SCALE": ("SCALE", ("percentile",)),
}

_ON_FEATURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "DICE": ("DICE", ("p",)),
    "KNN": ("KNN", ("k",)),
    "ViM": ("ViM", ("d",)),
    "Mahalanobis": ("Mahalanobis", ()),
    "RMD": ("RMD", ()),
    "fDBD": ("fDBD", ()),
    "NCI": ("NCI", ("alpha",)),
    "NNGuide": ("NNGuide", ("k",)),
    "SHE": ("SHE", ()),
}

_ALL = _ON_LOGITS | _ON_MAPS | _ON_FEATURES

BASELINE_NAMES: tuple[str, ...] = tuple(_ALL)
"""The methods, by the names their papers use."""

_BY_CLASS = ("Mahalanobis", "RMD", "SHE")
"""These need the labels of the training samples."""

_ROWS = 256
"""Rows a block: what NNGuide and Mahalanobis form of it stays small enough for memory to be used again."""
_DENSE_ENTRIES = 2**22
"""Entries of the product batch x classes x features that DICE may form at once, for the same reason."""


class BaselineOutput(NamedTuple):
    """What a method answers.

    Attributes:
        scores: Larger = more OOD, shape ``(batch,)``, float64.
        logits: The logits that the score was read off, shape ``(batch, classes)``, float64; None if there are none.

    """

    scores: Tensor
    logits: Tensor | None


class PytorchOodBaseline:
    """One method of pytorch-ood on the features and the head of a classifier.

    Args:
        name: One of `BASELINE_NAMES`.
        weight: The head's weight, shape ``(classes, features)``; a pruned one combines the method with pruning.
        bias: The head's bias, shape ``(classes,)``, or None.
        settings: Settings by the names that pytorch-ood gives them; what is left out stays at its default.

    Raises:
        OptionError: If there is no such method, or it has no such setting.
        MissingExtraError: If pytorch-ood, or scikit-learn for KNN, is not installed.

    Example:
        >>> import torch
        >>> from opnp.adapters import PytorchOodBaseline
        >>> method = PytorchOodBaseline("MaxLogit", weight=torch.eye(2), bias=None)
        >>> method.fit(torch.tensor([[1.0, 0.0]])).output(torch.tensor([[3.0, 1.0], [0.5, 0.5]])).scores.tolist()
        [-3.0, -0.5]

    """

    def __init__(
        self,
        name: str,
        *,
        weight: Tensor,
        bias: Tensor | None,
        settings: Mapping[str, float] | None = None,
    ) -> None:
        """Check name and settings, and make the detector."""
        if name not in _ALL:
            raise OptionError(f"`name` must be one of {', '.join(BASELINE_NAMES)}, got {name!r}.")
        checked_matrix(weight, name="weight", axes="(classes, features)")
        given = dict(settings or {})
        allowed = _ALL[name][1]
        unknown = sorted(given.keys() - set(allowed))
        if unknown:
            known = f"takes {', '.join(allowed)}" if allowed else "takes none"
            raise OptionError(f"`settings` of {name} must be its own: it {known}, got {', '.join(unknown)}.")
        require_pytorch_ood()
        self.name = name
        self.settings = given
        self._weight = weight.detach().double()
        self._bias = weight.new_zeros(len(weight)).double() if bias is None else bias.detach().double()
        self._detector: Any = self._made()
        self._is_fitted = False

    @property
    def needs_labels(self) -> bool:
        """Whether `fit` must be given labels."""
        return self.name in _BY_CLASS

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor | None = None) -> Self:
        """Fit to features of training data, and return self. Methods that need no training data learn nothing.

        Args:
            features: Shape ``(batch, features)``, any floating dtype.
            labels: Class indices, shape ``(batch,)``; only Mahalanobis, RMD and SHE need them.

        Returns:
            This method.

        Raises:
            EmptyDataError: If labels are needed and missing, or do not cover all classes, or there are too few
                samples for the covariance that the method inverts.
            Exception: Whatever pytorch-ood raises of its own.

        """
        checked_matrix(features, name="features", axes="(batch, features)")
        if self.needs_labels:
            self._check_labels(features, labels)
        targets = features.new_zeros(len(features), dtype=torch.int64) if labels is None else labels.long()
        if self.name in _ON_FEATURES:
            self._detector.fit_features(features.float(), targets)
        elif self.name == "ReAct":
            self._detector.threshold = _quantile(features, self._detector.percentile)
        elif self.name == "KL-Matching":
            self._detector.fit_logits(self._logits(features), targets)
        self._is_fitted = True
        return self

    @torch.no_grad()
    def output(self, features: Tensor) -> BaselineOutput:
        """Return scores, and the logits they were read off, of features of shape ``(batch, features)``.

        Raises:
            NotFittedError: If `fit` was not called.
            ShapeError: If `features` is no matrix.

        """
        checked_matrix(features, name="features", axes="(batch, features)")
        if not self._is_fitted:
            raise NotFittedError(f"{self.name} has seen no data: call `fit(features)` first.")
        parts = [self._block(block) for block in features.split(self._rows())]
        logits = [part.logits for part in parts if part.logits is not None]
        return BaselineOutput(
            scores=torch.cat([part.scores.double() for part in parts]),
            logits=torch.cat(logits).double() if logits else None,
        )

    def _block(self, features: Tensor) -> BaselineOutput:
        if self.name in _ON_LOGITS:
            logits = self._logits(features)
            return BaselineOutput(self._detector.predict_logits(logits), logits)
        if self.name in _ON_MAPS:
            return _energy_of(self._detector.predict_feature_maps(_as_maps(features)))
        if self.name == "DICE":
            return _energy_of(self._detector.predict_features(features.float()))
        return BaselineOutput(self._detector.predict_features(features.float()), None)

    def _logits(self, features: Tensor) -> Tensor:
        return linear(features.double(), self._weight, self._bias)

    def _rows(self) -> int:
        return max(1, min(_ROWS, _DENSE_ENTRIES // self._weight.numel())) if self.name == "DICE" else _ROWS

    def _made(self) -> Any:  # noqa: ANN401  # the package ships no types
        from pytorch_ood import detector as package

        kind = getattr(package, _ALL[self.name][0])
        if self.name in _ON_LOGITS:
            return kind(None, **self.settings)
        if self.name in _ON_MAPS:
            # With `detector` the identity it answers with logits; their energy, its default, is taken in `_energy_of`.
            return kind(None, lambda maps: self._logits(maps.flatten(1)), detector=_identity, **self.settings)
        given: dict[str, Any] = dict(self.settings)
        match self.name:
            case "DICE":
                given |= {"w": self._weight.float(), "b": self._bias.float(), "detector": _identity}
            case "ViM":
                given |= {"w": self._weight.float(), "b": self._bias.float()}
            case "fDBD":
                kind = _frugal_fdbd(kind)
                given |= {"head": self._head()}
            case "NCI" | "NNGuide" | "SHE":
                given |= {"head": self._head()}
        return kind(None, **given)

    def _head(self) -> nn.Linear:
        """Return the head as a float32 module, for the methods that ask for one."""
        classes, features = self._weight.shape
        head: nn.Linear = nn.utils.skip_init(nn.Linear, features, classes, device=self._weight.device)
        with torch.no_grad():
            head.weight.copy_(self._weight)
            head.bias.copy_(self._bias)
        return head.requires_grad_(requires_grad=False)

    def _check_labels(self, features: Tensor, labels: Tensor | None) -> None:
        classes, width = self._weight.shape
        if labels is None:
            raise EmptyDataError(f"{self.name} needs the labels of the training samples, and there are none.")
        seen = len(labels.unique())
        if seen < classes:
            raise EmptyDataError(f"{self.name} needs training samples of all {classes} classes, but {seen} occur.")
        if self.name != "SHE" and len(features) - classes < width:
            raise EmptyDataError(
                f"{self.name} inverts the covariance of {width} features within classes, which {len(features)} samples "
                f"of {classes} classes leave singular: at least {width + classes} are needed.",
            )


def require_pytorch_ood() -> None:
    """Load pytorch-ood, or raise if it or scikit-learn, which its KNN needs, is not installed.

    Raises:
        MissingExtraError: If one is missing; the message names the command that installs it.

    """
    require_installed("The baselines need", "pytorch_ood", "sklearn", extra="bench")
    import_module("pytorch_ood.detector")


def _energy_of(logits: Tensor) -> BaselineOutput:
    """Return the logits with the score that pytorch-ood's shaping methods read off them by default."""
    from pytorch_ood.detector import EnergyBased

    return BaselineOutput(EnergyBased.score(logits), logits)


def _as_maps(features: Tensor) -> Tensor:
    return features.double()[:, :, None, None]


def _quantile(features: Tensor, share: float) -> float:
    """Return the quantile that NumPy finds among all entries in float64, to the bit: only two are converted.

    Example:
        >>> _quantile(torch.tensor([[0.0, 1.0], [2.0, 4.0]]), 0.75)
        2.5

    """
    values = features.to(torch.promote_types(features.dtype, torch.float32), copy=True).flatten().cpu().numpy()
    place = share * (values.size - 1)
    beside = [int(place), min(int(place) + 1, values.size - 1)]
    values.partition(beside)
    return float(np.quantile(values[beside].astype(np.float64), place - beside[0]))


def _identity(logits: Tensor) -> Tensor:
    return logits


def _frugal_fdbd(kind: Any) -> Callable[..., Any]:  # noqa: ANN401  # as in `_made`
    """Return fDBD with the distances between the classes' weights taken pair by pair.

    Its own way forms a tensor of classes x classes x features: 5 GB for a head of 1000 x 1280.
    """

    class FrugalFDBD(kind):  # type: ignore[misc]  # the package ships no types
        def _precompute_denom_matrix(self) -> None:
            weight = self.head.weight.data
            distances = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
            self._denom_matrix = distances.fill_diagonal_(1.0)  # no division by zero: the difference there is zero

    return FrugalFDBD


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
        return two_class_logits(logits.double())


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

        reader = BatchReader.of(inner, is_inside=False)
        for batch in batches:
            scores += halving.outcome(scored, reader.read(batch).inputs)
    if not scores:
        raise EmptyDataError("There is no batch to score.")
    return torch.cat(scores)


def require_odin() -> None:
    """Raise if pytorch-ood is not installed.

    Raises:
        MissingExtraError: If it is not; the message names the command that installs it.

    """
    way_out = "Or leave ODIN out, with `opnp cache --no-odin`."
    require_installed("ODIN needs", "pytorch_ood", extra="bench", way_out=way_out)
