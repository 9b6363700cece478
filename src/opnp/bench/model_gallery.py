"""The gallery of a benchmark on images: what the product mistakes most easily, from the inputs behind the features."""

from collections.abc import Mapping

import torch
from torch import Tensor

from opnp.bench.feature_folder import ModelData
from opnp.bench.gallery import ImageVerdicts, gallery_set
from opnp.bench.picture_record import GallerySet
from opnp.data import InputSet
from opnp.detector import OPNP

__all__ = ["model_gallery"]


def model_gallery(
    detector: OPNP, model: ModelData, inputs: Mapping[str, InputSet], *, rows: Tensor
) -> tuple[GallerySet, ...]:
    """Return the most OOD-looking images of ``test``, and the most ID-looking ones of every OOD set.

    Args:
        detector: The product, fitted and calibrated on features of the model.
        model: The features.
        inputs: What they were made of, by set: ``test`` and ``ood_*``. Sets that hold no images, or another number of
            inputs than there are features, are left out.
        rows: Rows of ``test`` that the detector was not given for validation.

    """
    parts = {"test": (rows, model.test.features[rows])}
    parts |= {f"ood_{name}": (torch.arange(len(found)), found) for name, found in model.ood.items()}
    everything = {"test": model.test.features, **{f"ood_{name}": found for name, found in model.ood.items()}}
    return tuple(
        _gallery(name, detector, inputs[name], index, features, labels=model.test.labels if name == "test" else None)
        for name, (index, features) in parts.items()
        if name in inputs
        and inputs[name].source.kind == "image"
        and len(inputs[name].readable) == len(everything[name])
    )


def _gallery(
    name: str, detector: OPNP, inputs: InputSet, index: Tensor, features: Tensor, *, labels: Tensor | None
) -> GallerySet:
    verdict = detector.verdict_features(features)
    readable = inputs.readable
    verdicts = ImageVerdicts(
        index=index,
        score=verdict.score.double(),
        predicted_class=verdict.predicted_class,
        p_value=verdict.p_value,
        is_ood=verdict.is_ood,
        label=None if labels is None else labels[index],
    )
    return gallery_set(
        name,
        verdicts,
        image_of=lambda row: inputs.source.sample(int(readable[row])),
        name_of=lambda row: inputs.names[int(readable[row])],
        class_names=inputs.source.class_names if name == "test" else None,
    )
