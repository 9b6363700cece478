"""Intents of short sentences: 150 known ones, and 1 000 sentences that ask for none of them.

    python -m examples.clinc150_intents clinc150.json --out intents.json

The data are CLINC150 (Larson et al., "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction",
EMNLP 2019, CC BY 3.0) as their authors publish them, ``data_full.json``. The classifier is a perceptron on TF-IDF,
trained in seconds. Detectors are fitted on ``train`` and calibrated on ``val``, which holds known intents only;
``oos_train`` and ``oos_val`` are not used. The energy is a strong score here, and the fusion of `OPNP()` stays within a
point of AUROC of the best single one.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from studies.comparison import Comparison, Split, accuracy_of, compared, trained

__all__ = ["classifier", "intents", "main", "run"]

_WORDS = 2000


def intents(path: Path) -> tuple[Split, int]:
    """Return the sentences as TF-IDF of the most frequent words, and the number of intents."""
    content: dict[str, list[tuple[str, str]]] = json.loads(path.read_text(encoding="utf-8"))
    vectors = TfidfVectorizer(min_df=2, max_features=_WORDS, sublinear_tf=True)
    vectors.fit(sentence for sentence, _ in content["train"])
    names = sorted({intent for _, intent in content["train"]})
    index = {name: place for place, name in enumerate(names)}

    def sentences(part: str) -> Tensor:
        rows: Tensor = torch.from_numpy(vectors.transform(sentence for sentence, _ in content[part]).toarray())
        return rows.float()

    def labelled(part: str) -> tuple[Tensor, Tensor]:
        return sentences(part), torch.tensor([index[intent] for _, intent in content[part]])

    split = Split(
        train=labelled("train"),
        validation=labelled("val"),
        test=labelled("test"),
        ood={"out_of_scope": sentences("oos_test")},
    )
    return split, len(names)


def classifier(split: Split, *, classes: int, seed: int) -> nn.Sequential:
    """Return the perceptron, trained."""
    return trained(split, classes=classes, width=256, epochs=6, batch=256, rate=5e-3, dropout=0.3, seed=seed)


def run(path: Path, *, seeds: int = 3) -> Comparison:
    """Train a classifier for each seed, and compare the detectors on it."""
    split, classes = intents(path)
    accuracy, results = [], []
    for seed in range(seeds):
        model = classifier(split, classes=classes, seed=seed)
        accuracy.append(accuracy_of(model, *split.test))
        results += compared(model, split, seed=seed)
    return Comparison(
        title="CLINC150: 150 intents against out-of-scope sentences",
        counts=split.counts,
        accuracy=accuracy,
        results=results,
    )


def main() -> None:
    """Print the table, and write the record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="clinc150.json, or data_full.json of its authors")
    parser.add_argument("--seeds", type=int, default=3, help="number of classifiers to train")
    parser.add_argument("--out", type=Path, help="JSON record to write")
    options = parser.parse_args()
    comparison = run(options.data, seeds=options.seeds)
    sys.stdout.write(comparison.table())
    if options.out is not None:
        comparison.write(options.out)


if __name__ == "__main__":
    main()
