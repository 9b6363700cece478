"""The fusion on embeddings as they are, and on those of length 1 with class prototypes as their head.

    python -m studies.embeddings FOLDER... --out embeddings.json --page docs/how-to/embeddings.md

Three heads on the same features: the one that was trained with them; `PrototypeHead` of the class means, which sees
directions alone; and the same with the mean of all training features taken off first, so that features have either
sign, as embeddings of sentences and of CLIP have. AUROC in percent is the mean over the OOD sets. The best single
member is that with the highest, which nobody knows beforehand.
"""

import argparse
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from opnp import MEMBERS, OPNP, auroc
from opnp.adapters import PrototypeHead
from opnp.bench.features import ModelData, read_feature_folder
from opnp.errors import OpnpWarning

__all__ = ["main", "table", "with_table"]

_START = "<!-- Made by `make embeddings` from docs/records/embeddings.json; do not edit. -->\n"
_END = "\n<!-- End of the table. -->"


def _cases(data: ModelData) -> Iterator[tuple[str, Tensor, Tensor | None, dict[str, Tensor]]]:
    """Yield a name, the weight and bias of a linear head, and the features by name of the set that this head gets."""
    sets = {"train": data.train.features, "test": data.test.features, **data.ood}
    sets = {name: features.float() for name, features in sets.items()}
    yield "as they are, trained head", data.head.weight, data.head.bias, sets
    labels = data.train.labels
    known = [] if labels is None else labels.unique().tolist()
    for name, center in {
        "of length 1, class prototypes": torch.zeros(()),
        "centred, of length 1, class prototypes": sets["train"].mean(0),
    }.items():
        units = {each: normalize(features - center, dim=1) for each, features in sets.items()}
        means = [units["train"][labels == label].mean(0) for label in known]
        head = PrototypeHead(torch.stack(means))
        yield name, head.linear.weight, None, units


def _auroc(members: Sequence[str] | None, weight: Tensor, bias: Tensor | None, sets: Mapping[str, Tensor]) -> float:
    """Return the mean AUROC of a fusion in percent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OpnpWarning)
        detector = OPNP(members=members).fit_features(sets["train"], weight=weight, bias=bias)
    known = detector.score_features(sets["test"])
    found = [auroc(known, detector.score_features(sets[name])) for name in sets if name not in ("train", "test")]
    return 100 * sum(map(float, found)) / len(found)


def measured(folder: Path) -> list[dict[str, Any]]:
    """Return a row of figures for each head on the features of a folder."""
    data, rows = read_feature_folder(folder), []
    for name, weight, bias, sets in _cases(data):
        singles = {member: _auroc((member,), weight, bias, sets) for member in MEMBERS if member != "norm"}
        negative = float((sets["train"] < 0).double().mean())
        rows.append(
            {
                "model": data.name,
                "features": name,
                "negative": round(negative, 4),
                "opnp": round(_auroc(None, weight, bias, sets), 2),
                "members": {member: round(value, 2) for member, value in singles.items()},
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a table of Markdown.

    Example:
        >>> members = {"energy": 90.0, "vim": 91.0}
        >>> print(table([{"model": "m", "features": "f", "negative": 0.5, "opnp": 90.5, "members": members}]))
        | model | features | negative | `OPNP()` | best single member | energy |
        |---|---|---:|---:|---:|---:|
        | m | f | 50 % | 90.50 | 91.00 (`vim`) | 90.00 |

    """
    lines = [
        "| model | features | negative | `OPNP()` | best single member | energy |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        members = row["members"]
        best = max(members, key=members.get)
        lines.append(
            f"| {row['model']} | {row['features']} | {100 * row['negative']:.0f} % | {row['opnp']:.2f} | "
            f"{members[best]:.2f} (`{best}`) | {members['energy']:.2f} |"
        )
    return "\n".join(lines)


def with_table(page: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a page with the table of these rows in the place of the one that it holds."""
    before, start, rest = page.partition(_START)
    _, end, after = rest.partition(_END)
    if not start or not end:
        message = f"the page must hold {_START!r} and after it {_END!r}"
        raise ValueError(message)
    return f"{before}{start}\n{table(rows)}\n{end}{after}"


def main() -> None:
    """Measure, and write the record and the table of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of features, as `opnp cache` writes them")
    parser.add_argument("--out", type=Path, required=True, help="record to write")
    parser.add_argument("--page", type=Path, required=True, help="page to write the table into")
    options = parser.parse_args()
    rows = [row for folder in options.folders for row in measured(folder)]
    options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    options.page.write_text(with_table(options.page.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main()
