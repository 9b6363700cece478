"""``opnp export``: a model and its detector as one file for other programs, with a model card beside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from opnp.cli.options import (
    DetectorFile,
    DetectorModelName,
    DetectorOption,
    ForceFlag,
    JsonFlag,
    ModelOptions,
    one_of,
    require_out_file,
)
from opnp.cli.output import print_result
from opnp.errors import NotCalibratedError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from opnp.data import Transform

_TEXTS = (
    "Which of these do you know?",
    "No.",
    "The weather of tomorrow is not known before tomorrow, and then it is that of today.",
)
_IMAGES = 3
_SIDE = 256


_ENDINGS: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2"}
"""Endings of exported files by their format."""


def export(
    detector_file: DetectorFile = None,
    *,
    detector: DetectorOption = None,
    model: DetectorModelName = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write, ending in .onnx or .pt2. Default: beside the detector, with its name."),
    ] = None,
    file_format: Annotated[
        Literal["onnx", "torch"] | None,
        typer.Option("--format", help="onnx, or torch for a program of torch.export. Default: by the ending of --out."),
    ] = None,
    options: ModelOptions,
    force: ForceFlag = False,
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
    from opnp.detector import OPNP
    from opnp.export import OUTPUT_NAMES, require_onnx, write_onnx, write_program
    from opnp.files import write_atomically

    file = one_of(detector_file, detector, option="--detector")
    out = file.with_suffix(_ENDINGS[file_format or "onnx"]) if out is None else out
    chosen, card = _format(file_format, out), out.with_suffix(".card.md")
    require_out_file(out, card)
    if not 0 <= tolerance < 1:
        raise OptionError(f"`--tolerance` must be a share in [0, 1), such as 1e-5, got {tolerance:g}.")
    loaded = OPNP.load(file)
    if not loaded.is_calibrated:
        raise NotCalibratedError(
            f"{file} is not calibrated, and an exported file holds p-values and verdicts: fit with `--validation`."
        )
    if chosen == "onnx":
        require_onnx()
    _require_another_file(out, model or (loaded.origin.model if loaded.origin else ""), file)
    opened, transform = options.opened_for(loaded, file, model, is_forced=force)
    example, is_text = _example(transform), transform.kind == "text"
    module = loaded.to_module(opened)
    if chosen == "onnx":
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
        "format": chosen,
        "bytes": out.stat().st_size,
        "card": str(card),
        "outputs": list(OUTPUT_NAMES),
        "keep": loaded.keep,
        "threshold": loaded.threshold if loaded.calibrated_by is None else "one of each predicted class",
        "calibration_samples": len(loaded.calibration_scores),
    }
    print_result(facts, json=json)


def _require_another_file(out: Path, model: str, detector: Path) -> None:
    """Raise if the file to write is the graph that the model is."""
    kind, _, place = model.partition(":")
    graphs = [each for each in (Path(place), detector.absolute().parent / place) if each.is_file()]
    if kind == "onnx" and out.exists() and any(out.samefile(each) for each in graphs):
        raise OptionError(f"`--out` would write over {out}, which is the model itself: name another file.")


def _format(given: str | None, out: Path) -> str:
    """Return the format that was asked for, or that the ending says."""
    by_ending = next((name for name, ending in _ENDINGS.items() if ending == out.suffix), None)
    if by_ending is None or given not in (None, by_ending):
        wanted = " or ".join(_ENDINGS.values()) if given is None else f"{_ENDINGS[given]} with --format {given}"
        raise OptionError(f"`--out` must end in {wanted}, got {out}.")
    return by_ending


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
