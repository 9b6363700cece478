"""The baselines and their published settings: a frozen table, chosen with no look at any OOD data."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PublishedSetting", "published_settings"]

_MANY = 1000
"""From this number of classes on, the settings published for ImageNet hold."""

_WIDE = 512
"""From this number of features on, ViM has its larger subspace."""


@dataclass(frozen=True, slots=True)
class PublishedSetting:
    """A baseline at one setting.

    Attributes:
        method: One of `opnp.adapters.BASELINE_NAMES`.
        settings: Settings by the names that pytorch-ood gives them.
        citation: Where they come from.

    """

    method: str
    settings: Mapping[str, float]
    citation: str

    @property
    def label(self) -> str:
        """Method and settings in one line.

        Example:
            >>> PublishedSetting("DICE", {"p": 0.9}, "").label
            'DICE p=0.9'

        """
        return " ".join([self.method, *(f"{name}={value:g}" for name, value in self.settings.items())])


_FIXED = (
    PublishedSetting("MSP", {}, "Hendrycks and Gimpel, ICLR 2017"),
    PublishedSetting("MaxLogit", {}, "Hendrycks et al., ICML 2022"),
    PublishedSetting("Energy", {}, "Liu et al., NeurIPS 2020: temperature 1"),
    PublishedSetting("Entropy", {}, "Chan et al., ICCV 2021"),
    PublishedSetting("GEN", {"gamma": 0.1, "M": 100}, "Liu et al., CVPR 2023: ImageNet"),
    PublishedSetting("KL-Matching", {}, "Hendrycks et al., ICML 2022; here from training samples"),
    PublishedSetting("ReAct", {"percentile": 0.9}, "Sun, Guo and Li, NeurIPS 2021: the 90th percentile"),
    PublishedSetting("ReAct", {"percentile": 0.95}, "a value of OpenOOD's search space"),
    PublishedSetting("ReAct", {"percentile": 0.99}, "a value of OpenOOD's search space"),
    PublishedSetting("ASH-S", {"percentile": 0.65}, "the default of pytorch-ood and of the authors' functions"),
    PublishedSetting("ASH-S", {"percentile": 0.9}, "Djurisic et al., ICLR 2023: ImageNet, ResNet-50"),
    PublishedSetting("ASH-S", {"percentile": 0.95}, "Djurisic et al., ICLR 2023: CIFAR-10 and CIFAR-100, DenseNet"),
    PublishedSetting("SCALE", {"percentile": 0.65}, "the default of pytorch-ood"),
    PublishedSetting("SCALE", {"percentile": 0.85}, "Xu et al., ICLR 2024"),
    PublishedSetting("SCALE", {"percentile": 0.9}, "a value of OpenOOD's search space"),
    PublishedSetting("SCALE", {"percentile": 0.95}, "a value of OpenOOD's search space"),
    PublishedSetting("Mahalanobis", {}, "Lee et al., NeurIPS 2018: last layer, no input preprocessing"),
    PublishedSetting("RMD", {}, "Ren et al., arXiv 2106.09022, 2021"),
    PublishedSetting("fDBD", {}, "Liu and Qin, ICML 2024"),
    PublishedSetting("NCI", {"alpha": 0.0}, "Liu and Qin, CVPR 2025: without the norm, whose weight they tune"),
    PublishedSetting("NNGuide", {"k": 10}, "Park, Jung and Teoh, ICCV 2023; here the bank is all of train"),
    PublishedSetting("SHE", {}, "Zhang et al., ICLR 2023: inner product"),
)
_DICE_CIFAR = PublishedSetting("DICE", {"p": 0.9}, "Sun and Li, ECCV 2022: CIFAR")
_DICE_IMAGENET = PublishedSetting("DICE", {"p": 0.7}, "Sun and Li, ECCV 2022: ImageNet")


def published_settings(*, classes: int, features: int, samples: int) -> tuple[PublishedSetting, ...]:
    """Return the baselines for a model, in the order of the tables.

    What the papers set by data set is set by size here: DICE at 0.9, and from 1000 classes on at 0.7 beside it; KNN at
    50 for up to 10 classes, 200 for up to 999 and 1000 from there, but no more than 1 % of the training samples, as its
    paper does on parts of ImageNet; ViM with a subspace of 100 for fewer than 512 features and 256 from there, but no
    more than half of them.

    Args:
        classes: Classes of the model.
        features: Width of its last layer.
        samples: Training samples there are.

    Returns:
        The settings.

    Example:
        >>> chosen = {each.method: each.label for each in published_settings(classes=1000, features=1280, samples=1000)}
        >>> chosen["KNN"], chosen["ViM"]
        ('KNN k=10', 'ViM d=256')

    """
    neighbours = 1000 if classes >= _MANY else 200 if classes > 10 else 50
    dimensions = 256 if features >= _WIDE else 100
    return (
        *_FIXED,
        *((_DICE_CIFAR, _DICE_IMAGENET) if classes >= _MANY else (_DICE_CIFAR,)),
        PublishedSetting(
            "KNN",
            {"k": max(1, min(neighbours, samples // 100))},
            "Sun et al., ICML 2022: 50, 200, 1000 for CIFAR-10, CIFAR-100, ImageNet; at most 1 % of the samples",
        ),
        PublishedSetting(
            "ViM",
            {"d": max(1, min(dimensions, features // 2))},
            "Wang et al., CVPR 2022: 1000 of 2048, 512 of fewer; here scaled down to the width of the head",
        ),
    )
