"""Cached features of the two classifiers that see no images: intents of sentences, and rows of a table.

    python -m studies.other_features FOLDER --text clinc150.json

The classifiers are those of the examples. Each seed gives a folder of its own, in the layout that ``opnp bench`` reads;
``test`` holds all held-out ID inputs, which the benchmark splits anew. They are trained in float64, features and head
stored in float16, so that every machine stores the same: which rows a fit keeps out of its sums hangs on every bit.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from examples import clinc150_intents, tabular_digits
from opnp.data import write_features, write_head
from opnp.model import head_stream
from studies.comparison import Split

__all__ = ["main", "write_feature_folder"]

_ROWS = 512


def write_feature_folder(folder: Path, model: nn.Module, split: Split) -> None:
    """Write head, train, test and OOD sets of a trained classifier."""
    folder.mkdir(parents=True, exist_ok=True)
    held_out = [torch.cat(parts) for parts in zip(split.validation, split.test, strict=True)]
    sets: dict[str, tuple[Tensor, Tensor | None]] = {"train": split.train, "test": (held_out[0], held_out[1])}
    sets |= {f"ood_{name}": (inputs, None) for name, inputs in split.ood.items()}
    for name, (inputs, labels) in sets.items():
        with head_stream(model, inputs.split(_ROWS)) as stream:
            features = torch.cat([batch for batch, _, _ in stream.batches]).half()
            head = stream.head.module
        write_features(folder / f"{name}.safetensors", features, labels=labels)
    write_head(folder / "head.safetensors", head.weight.half(), bias=None if head.bias is None else head.bias.half())


def main() -> None:
    """Train the classifiers and write their features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the folders of features into")
    parser.add_argument("--text", type=Path, required=True, help="clinc150.json, or data_full.json of its authors")
    parser.add_argument("--seeds", type=int, default=3, help="number of classifiers of each kind")
    options = parser.parse_args()
    sentences, intents = clinc150_intents.intents(options.text)
    sentences = sentences.double()
    for seed in range(options.seeds):
        model = clinc150_intents.classifier(sentences, classes=intents, seed=seed)
        write_feature_folder(options.out / f"clinc150_seed{seed}", model, sentences)
        rows, classes = tabular_digits.rows(seed=seed)
        rows = rows.double()
        model = tabular_digits.classifier(rows, classes=classes, seed=seed)
        write_feature_folder(options.out / f"digits_seed{seed}", model, rows)


if __name__ == "__main__":
    main()
