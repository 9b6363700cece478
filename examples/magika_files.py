"""File types: should a classifier in daily use name the type of this file at all?

    python -m examples.magika_files features/magika_v3_3

Magika (Apache-2.0; PyPI ``magika``) tells 214 types of files by their bytes. The folder holds what the last layer of
its model takes in, cached: ``head``, ``train``, ``test`` and ``ood_*``, each ``.safetensors``, as `opnp cache` writes.
The OOD sets are files of formats that it does not know, and fragments out of the middle of files. Half of ``test``
calibrates, the other half and the OOD sets are judged.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from opnp import OPNP, Ratios, auroc
from opnp.data import open_features, read_features, read_head

__all__ = ["lines", "main"]


def lines(folder: Path) -> Iterator[str]:
    """Yield what the example shows, line by line."""
    head = read_head(folder / "head.safetensors")
    known = read_features(folder / "test.safetensors").features
    known = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(0))]  # they are in class order
    held_out, judged = known.tensor_split(2)
    training = open_features(folder / "train.safetensors")  # read block by block
    detectors = {
        name: each.fit_features(training, weight=head.weight, bias=head.bias, validation=held_out, keep=0.95)
        for name, each in {"OPNP()": OPNP(), "energy": OPNP(ratios=Ratios())}.items()
    }
    yield f"{training.rows} files to fit, {len(held_out)} to calibrate, {len(judged)} known ones to judge by"
    yield "set             | files | AUROC: OPNP() | energy | flagged by OPNP() | most often because of"
    flagged = detectors["OPNP()"].predict_features(judged).double().mean()
    yield f"{'known':15} | {len(judged):5} | {'':13} | {'':6} | {100 * flagged:15.1f} % |"
    for path in sorted(folder.glob("ood_*.safetensors")):
        unknown = read_features(path).features
        found = [100 * auroc(each.score_features(judged), each.score_features(unknown)) for each in detectors.values()]
        flagged = detectors["OPNP()"].predict_features(unknown).double().mean()
        why = detectors["OPNP()"].explain_features(unknown)
        reason = why.members[int(why.share.argmax(1).mode().values)]
        name = path.stem.removeprefix("ood_")
        yield f"{name:15} | {len(unknown):5} | {found[0]:13.1f} | {found[1]:6.1f} | {100 * flagged:15.1f} % | {reason}"


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, help="folder of cached features")
    for line in lines(parser.parse_args().features):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
