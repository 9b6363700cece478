"""The performance page of the documentation, from the record of a run and from arithmetic.

python -m benchmarks.page docs/records/benchmarks.json docs/explanation/performance.md
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Head", "main", "performance_page"]

_FORWARD = 4.1e9
"""Multiply-adds of a ResNet-50 on one image of 224 x 224 (He et al., CVPR 2016, give 3.8e9 without the shortcuts)."""
_IMAGES = {"ImageNet-1k": 1_281_167, "ImageNet-21k": 14_197_122}


@dataclass(frozen=True, slots=True)
class Head:
    """Sizes of a head, and what fitting it takes at least.

    Attributes:
        name: Data set.
        classes: C.
        features: D.

    """

    name: str
    classes: int
    features: int

    @property
    def operations(self) -> int:
        """Multiply-adds a sample beyond the forward pass: P'H and PW."""
        return 2 * self.classes * self.features

    @property
    def state(self) -> int:
        """Bytes of the float64 sums."""
        return 8 * (self.classes * self.features + self.features)

    @property
    def cached(self) -> int:
        """Bytes of all training features in float16."""
        return 2 * self.features * _IMAGES[self.name]


_HEADS = (Head("ImageNet-1k", 1000, 2048), Head("ImageNet-21k", 21_843, 2048))


def performance_page(record: Mapping[str, Any]) -> str:
    """Return the page as Markdown."""
    machine = record["machine"]
    packages = {"Python": machine["python"]} | record["versions"]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    rows = [_row(each) for each in record["outcomes"]]
    floors = [
        f"| {head.name}, C {head.classes}, D {head.features} | {head.operations / 1e6:.1f} M | "
        f"{100 * head.operations / _FORWARD:.2g} % | {head.state / 1e6:.0f} MB | {head.cached / 1e9:.1f} GB |"
        for head in _HEADS
    ]
    extra = 100 * _HEADS[0].operations / _FORWARD
    return (
        "\n\n".join(
            part.strip()
            for part in (
                _PREFACE,
                _FLOORS,
                "\n".join(
                    [
                        "| head | multiply-adds a sample besides | of a ResNet-50 forward | state | cached features |",
                        "|---|---:|---:|---:|---:|",
                        *floors,
                    ]
                ),
                _MEANING.format(extra=f"{extra:.1f}", state=f"{_HEADS[1].state / 1e6:.0f}"),
                "## What was measured",
                f"On {machine['device']} with {machine['cores']} cores; one thread unless a line says otherwise.",
                f"{versions}.",
                "\n".join(["| what | median | range | bound |", "|---|---:|---:|---:|", *rows]),
            )
        )
        + "\n"
    )


def _row(outcome: Mapping[str, Any]) -> str:
    unit, values = outcome["unit"], outcome["values"]
    bound = "" if outcome["bound"] is None else f"{outcome['kind']} {outcome['bound']:g}{unit}"
    bound += "" if outcome["is_met"] else ", **missed**"
    spread = f"{min(values):.3g} to {max(values):.3g}"
    return f"| {outcome['name']} | {outcome['median']:.3g}{unit} | {spread} | {bound} |"


_PREFACE = """
# Performance

<!-- Made by `make bench` from docs/records/benchmarks.json; do not edit. -->

Speed is given as a ratio to a floor or a rival, measured in turns in one run: absolute times mean little on shared
machines. `make bench` measures it again, prints every line with its bound and fails where one is missed.
"""

_FLOORS = """
## The two floors

**Operations.** Fitting needs the model's forward pass on every training sample, and beyond it two matrix products:
P'H for the weights and PW for the neurons, C x D multiply-adds each. There is no backward pass. Masks need one
selection by k-th value over C x D entries, once.

**Bytes.** From cached features every sample is read once, 2 D bytes in float16. The state is C x D float64 sums,
whatever the number of samples; it is what is written to a checkpoint and what ranks add up.
"""

_MEANING = """
What it means: on ImageNet-1k the sensitivities add {extra} % to the operations of the forward pass of a ResNet-50, so
a fit costs what running the model over the training data costs; with cached features it is bounded by reading them.
On N GPUs each rank runs 1/N of the data and adds its state once at the end: 16 MB for ImageNet-1k and {state} MB for
21k, less than a second over any link between GPUs. Runs on GPUs have not been measured yet.
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="record that `python -m benchmarks` wrote")
    parser.add_argument("out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    page = performance_page(json.loads(options.record.read_text(encoding="utf-8")))
    options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
