"""The figures that pages quote, written into them from the records.

    python -m studies.quotes docs/records README.md docs

Below a paragraph, an item of a list or a table stands which of its numbers are what, in their order:

    On 7 models the mean regret is 0.15, of `w_min = 0.5` 9.09.
    <!-- figures: models; OPNP() mean regret; OPP w_min 0.5 mean regret -->

A number keeps its decimals. What stands in code, and digits within a name (ResNet-50), are no numbers. A number that is
no figure of a record, such as the 0.1 of "better by 0.1 or more", stands there as itself.
"""

import argparse
import difflib
import itertools
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opnp.values.bench import MethodRow
from studies.result_tables import NOTABLE
from studies.results_page import Records, best_single
from studies.robustness_tables import failure_means, side_regrets

__all__ = ["figures", "main", "quoted", "unquoted"]

_COMMENT = re.compile(r"<!-- figures: (?P<names>[^>]*?) -->")
_NUMBER = re.compile(r"(?<![\w.\N{HYPHEN-MINUS}^])\d+(?:\.\d+)?(?![\w^]|\.\d)")
_MASKED = re.compile(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->", flags=re.DOTALL)
_FENCED = re.compile(r"^ *```.*?^ *```$", flags=re.MULTILINE | re.DOTALL)
_START = re.compile(r"\n\s*\n|\n *(?:[-*]|\d+\.) |-->\n")
_OF_RECORDS = re.compile(r"AUROC|FPR95|\bECE\b|\bregrets?\b|\bpoints\b|[Aa]ccuracy (?:is|of)")


def figures(records: Records) -> dict[str, float]:
    """Return every figure that a page may quote, by name; shares in percent."""
    panel = records.panel
    found: dict[str, float] = {
        "models": len(panel["best_single"]),
        "splits": panel["splits"],
        "single settings": sum(row["kind"] == "single" for row in panel["rows"].values()),
        "notable models": sum(value >= NOTABLE for value in panel["rows"]["OPNP()"]["regret"].values()),
        "other classifiers": len(records.panel_other["best_single"]),
    }
    for prefix, record in {"": panel, "other: ": records.panel_other}.items():
        rows = record["rows"]
        _, best = best_single(rows)
        found |= _of_rows({f"{prefix}{name}": row for name, row in (rows | {"best single": best}).items()})
        for what, each in record["left_out"].items():
            found |= {f"{prefix}{what} left out {key} regret": each[key] for key in ("mean", "worst")}
    return found | _of_bench(records) | _of_spread(records.spread) | _of_robustness(records.robustness)


def _of_rows(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, row in rows.items():
        found |= {f"{name} AUROC on {model}": value for model, value in row["auroc"].items()}
        found |= {f"{name} regret on {model}": value for model, value in row["regret"].items()}
        by_split = row["mean_regret_by_split"]
        found |= {
            f"{name} mean AUROC": row["mean_auroc"],
            f"{name} mean regret": row["mean_regret"],
            f"{name} worst regret": row["worst_regret"],
            f"{name} lowest mean regret": min(by_split),
            f"{name} highest mean regret": max(by_split),
        }
    return found


def _of_bench(records: Records) -> dict[str, float]:
    found: dict[str, float] = {}
    for model in records.bench.models:
        for row in model.methods:
            for side, each in {"": row.mean, "near ": row.near, "far ": row.far}.items():
                if each is not None:
                    found[f"bench: {row.method} {side}AUROC on {model.model}"] = 100 * each.auroc
    kinds: dict[str, dict[str, list[MethodRow]]] = {}
    for model in records.other.models:
        of_kind = kinds.setdefault(model.model.partition("_seed")[0], {})
        for row in model.methods:
            of_kind.setdefault(row.method, []).append(row)
    for kind, methods in kinds.items():
        for name, rows in methods.items():
            if aurocs := [100 * row.mean.auroc for row in rows if row.mean is not None]:
                found[f"bench: {name} AUROC on {kind}"] = statistics.fmean(aurocs)
    return found


def _of_spread(record: Mapping[str, Any]) -> dict[str, float]:
    methods = next(iter(record["models"].values()))["methods"]
    regrets = {
        f"{name} {what} regret by {title}": value
        for name in methods
        for title, each in side_regrets(record, name).items()
        for what, value in (("mean", statistics.fmean(each)), ("worst", max(each)))
    }
    return regrets | {
        f"spread: {name} {side} {figure}{what} on {model}": value
        for model, each in record["models"].items()
        for name, sides in each["methods"].items()
        for side, of_side in sides.items()
        for figure, pair in of_side.items()
        for what, value in zip(("", " deviation"), pair, strict=True)
    }


def _of_robustness(record: Mapping[str, Any]) -> dict[str, float]:
    found = {f"failures: {name} mean": value for name, value in failure_means(record).items()}
    for model, each in record["models"].items():
        found |= {f"{name} of {model}": each["failures"][name] for name in ("accuracy", "ece")}
        found |= {f"failures: {name} on {model}": value for name, value in each["failures"]["auroc"].items()}
        found |= {f"labels: {name} on {model}": value for name, value in each["labels"].items()}
        for share, of in each["training"].items():
            mean, lowest, _ = of["auroc"]
            parts = {"": mean, " lowest": lowest, " samples": of["samples"]}
            parts |= {f" {name} alone": value for name, value in of["members"].items()}
            found |= {f"training: {share}{what} on {model}": value for what, value in parts.items()}
    return found


def quoted(page: str, known: Mapping[str, float]) -> str:
    r"""Return a page with its figures as the records have them.

    Raises:
        ValueError: If a name is no figure, or names and numbers of a paragraph differ in number.

    Example:
        >>> quoted("It is 0.15, `w=0.5` 9, not 0.1.\n<!-- figures: a; b; 0.1 -->", {"a": 0.2, "b": 8.7})
        'It is 0.20, `w=0.5` 9, not 0.1.\n<!-- figures: a; b; 0.1 -->'

    """
    for start, end, names in reversed(list(_quotes(page))):
        text = page[start:end]
        places = list(_NUMBER.finditer(_masked(text)))
        if len(places) != len(names):
            numbers = ", ".join(each[0] for each in places)
            message = f"{text.strip()[:80]!r} has the numbers {numbers}, and below it are named {'; '.join(names)}."
            raise ValueError(message)
        for place, name in reversed(list(zip(places, names, strict=True))):
            text = text[: place.start()] + _written(place[0], name, known) + text[place.end() :]
        page = page[:start] + text + page[end:]
    return page


def _written(number: str, name: str, known: Mapping[str, float]) -> str:
    if name == number:
        return number
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, 3)) or "none like it"
        message = f"{name!r} is no figure of the records, and {number} not that number; there are: {near}."
        raise ValueError(message)
    return f"{known[name]:.{len(number.partition('.')[2])}f}"


def _quotes(page: str) -> Iterator[tuple[int, int, list[str]]]:
    """Yield where a text with figures begins and ends, and the names of its numbers."""
    for comment in _COMMENT.finditer(page):
        starts = [each.end() for each in _START.finditer(page, 0, comment.start())]
        before = page[: comment.start()].rstrip()
        begin = max((start for start in starts if start < len(before)), default=0)
        yield begin, len(before), [" ".join(name.split()) for name in comment["names"].split(";")]


def _masked(text: str) -> str:
    return _MASKED.sub(lambda found: "`" * len(found[0]), text)


def unquoted(page: str) -> list[str]:
    r"""Return the paragraphs and items that speak of figures, with a decimal number, and do not say whose they are.

    Example:
        >>> unquoted("The regret is 0.15.\n\n- AUROC `0.5`\n- a ratio of 0.3\n- ECE 1.5\n<!-- figures: a -->")
        ['The regret is 0.15.']

    """
    page = _FENCED.sub("", page)
    held = list(_quotes(page))
    starts = [0, *(each.end() for each in _START.finditer(page)), len(page)]
    found = []
    for start, end in itertools.pairwise(starts):
        text = _masked(page[start:end])
        is_held = any(begin <= start < stop for begin, stop, _ in held)
        if not is_held and _OF_RECORDS.search(text) and any("." in each[0] for each in _NUMBER.finditer(text)):
            found.append(page[start:end].strip())
    return found


def pages(paths: Sequence[Path]) -> list[Path]:
    """Return the pages among files and below folders."""
    return [page for path in paths for page in (sorted(path.rglob("*.md")) if path.is_dir() else [path])]


def main() -> None:
    """Write the figures into the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="folder of the records")
    parser.add_argument("pages", type=Path, nargs="+", help="Markdown files, or folders of them")
    options = parser.parse_args()
    known = figures(Records.read(options.records))
    for page in pages(options.pages):
        before = page.read_text(encoding="utf-8")
        after = quoted(before, known)
        if after != before:
            page.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
