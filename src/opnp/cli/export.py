"""``opnp export``: a model and its detector as one file for other programs, with a model card beside it."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opnp.cli.model_options import ImageSize, Means, ModelOptions, Resize, StandardDeviations, WeightsFile
from opnp.cli.options import DetectorFile, JsonFlag
from opnp.errors import NotCalibratedError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from opnp.data import Transform

__all__ = ["export"]

_TEXTS = (
    "Which of these do you know?",
    "No.",
    "The weather of tomorrow is not known before tomorrow, and then it is that of today.",
)
_IMAGES = 3
_SIDE = 256


class FormatName(StrEnum):
    """Formats of exported files."""

    onnx = "onnx"
    torch = "torch"

    @property
    def ending(self) -> str:
        """The ending of such a file."""
        return {"onnx": ".onnx", "torch": ".pt2"}[self.value]


def export(
    *,
    detector: DetectorFile,
    model: Annotated[
        str,
        typer.Option(
            help="The model it was fitted on: timm:NAME, torchvision:NAME, hf:FOLDER (a folder of transformers on this "
            "machine), or module:callable that returns it."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write, ending in .onnx or .pt2.")],
    file_format: Annotated[
        FormatName | None,
        typer.Option("--format", help="onnx, or torch for a program of torch.export. Default: by the ending of --out."),
    ] = None,
    weights: WeightsFile = None,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Means = None,
    std: StandardDeviations = None,
    tolerance: Annotated[
        float,
        typer.Option(
            help="How far onnxruntime may lie from torch: as a share of the largest, or of 1 + |S| for fused scores S."
        ),
    ] = 1e-5,
    json: JsonFlag = False,
) -> None:
    """Write model and detector as one graph, for any batch size, with a model card beside it.

    The outputs are logits, score, p_value and is_ood; calibration and threshold are in the graph. Larger score = more
    OOD. The file gets its name once it was run and gave the numbers of the detector.
    """
    from opnp.cli.out_checks import require_out_file
    from opnp.cli.output import print_facts, print_json
    from opnp.detector import OPNP
    from opnp.export import OUTPUT_NAMES, require_onnx, write_onnx, write_program
    from opnp.files import write_atomically

    chosen, card = _format(file_format, out), out.with_suffix(".card.md")
    require_out_file(out, card)
    _require_tolerance(tolerance)
    loaded = OPNP.load(detector)
    if not loaded.is_calibrated:
        raise NotCalibratedError(
            f"{detector} is not calibrated, and an exported file holds p-values and verdicts: fit with `--validation`."
        )
    if chosen is FormatName.onnx:
        require_onnx()
    options = ModelOptions(name=model, weights=weights, image_size=image_size, resize=resize, mean=mean, std=std)
    opened, transform = options.opened()
    example, is_text = _example(transform), transform.kind == "text"
    module = loaded.to_module(opened)
    if chosen is FormatName.onnx:
        write_onnx(out, module, example, is_length_dynamic=is_text, tolerance=tolerance)
    else:
        write_program(out, module, example, is_length_dynamic=is_text)
    try:
        write_atomically(card, loaded.model_card(inputs=transform.facts()).encode())
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    facts: dict[str, object] = {
        "out": str(out),
        "format": chosen.value,
        "bytes": out.stat().st_size,
        "card": str(card),
        "outputs": list(OUTPUT_NAMES),
        "keep": loaded.keep,
        "threshold": loaded.threshold,
        "calibration_samples": len(loaded.calibration_scores),
    }
    if json:
        print_json(facts)
    else:
        print_facts(facts)


def _format(given: FormatName | None, out: Path) -> FormatName:
    """Return the format that was asked for, or that the ending says."""
    by_ending = next((each for each in FormatName if each.ending == out.suffix), None)
    chosen = given or by_ending
    if chosen is None or chosen is not by_ending:
        wanted = " or ".join(each.ending for each in FormatName) if given is None else given.ending
        raise OptionError(
            f"`--out` must end in {wanted}{'' if given is None else f' with --format {given}'}, got {out}."
        )
    return chosen


def _require_tolerance(tolerance: float) -> None:
    if not 0 <= tolerance < 1:
        raise OptionError(f"`--tolerance` must be a share in [0, 1), such as 1e-5, got {tolerance:g}.")


def _example(transform: "Transform") -> "Tensor | Mapping[str, Tensor]":
    """Return a batch of inputs that the transform makes: of images of noise, or of a few sentences."""
    if transform.kind == "text":
        return transform.batch([transform(text) for text in _TEXTS])
    from opnp.data import require_pillow

    require_pillow()
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (_IMAGES, _SIDE, _SIDE, 3), dtype=np.uint8)
    return transform.batch([transform(Image.fromarray(image)) for image in pixels])
