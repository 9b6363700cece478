"""``opnp serve``: verdicts over HTTP, with a page to try them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from opnp.cli.options import (
    DetectorFile,
    DetectorModelName,
    DetectorOption,
    ForceFlag,
    ModelOptions,
    checked_device,
    one_of,
)
from opnp.errors import DataFileError, OptionError
from opnp.files import existing_file
from opnp.values.serving import DEFAULT_LIMITS as LIMITS
from opnp.values.serving import Limits

_WAIT = 1000 * LIMITS.max_wait
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def serve(
    detector_file: DetectorFile = None,
    *,
    detector: DetectorOption = None,
    model: DetectorModelName = None,
    options: ModelOptions,
    force: ForceFlag = False,
    class_names: Annotated[
        Path | None, typer.Option(help="Text file with the name of one class a line. Default: those of the model.")
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Answer each fused score's own p-value and its share of the score as well."),
    ] = False,
    device: Annotated[str | None, typer.Option(help="Where to run, such as cuda. Default: the CPU.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 for one that is free.")] = 8000,
    max_bytes: Annotated[
        str, typer.Option(help="Largest body of a request, such as 10MB or 512KiB.")
    ] = f"{LIMITS.max_bytes // 10**6}MB",
    max_pixels: Annotated[int, typer.Option(help="Most pixels of an image.")] = LIMITS.max_pixels,
    max_batch: Annotated[
        int, typer.Option(help="Most inputs the model is run on at once. 1: answers equal `opnp score` to the bit.")
    ] = LIMITS.max_batch,
    max_wait_ms: Annotated[float, typer.Option(help="Longest wait for others to join a batch.")] = _WAIT,
    max_requests: Annotated[
        int, typer.Option(help="Most requests in work at once; more are answered with 503.")
    ] = LIMITS.max_requests,
    threads: Annotated[int, typer.Option(help="Threads that decode images.")] = LIMITS.threads,
    log_scores: Annotated[
        Path | None, typer.Option(help="File ending in .csv, to append every verdict to: `opnp monitor` reads it.")
    ] = None,
) -> None:
    """Answer over HTTP: POST /score an image, numbers or a text, get class, confidence, score, p-value and verdict.

    Open the address in a browser to try it. /healthz and /metrics (Prometheus) are for machines. SIGTERM or Ctrl-C
    stops the service once the requests in work are answered.
    """
    from opnp.detector import OPNP
    from opnp.serve.app import listening_socket, require_serving, run_service, serve_app

    require_serving()
    limits = Limits(
        max_bytes=bytes_from(max_bytes),
        max_pixels=max_pixels,
        max_batch=max_batch,
        max_wait=max_wait_ms / 1000,
        max_requests=max_requests,
        threads=threads,
    )
    place = checked_device(device)
    file = one_of(detector_file, detector, option="--detector")
    loaded = OPNP.load(file)
    names: Sequence[str] | None = loaded.class_names if class_names is None else _lines(class_names)
    network, transform = options.opened_for(loaded, file, model, is_forced=force)
    if place is not None:
        network.to(place)
    app = serve_app(
        loaded,
        network,
        transform,
        class_names=names,
        is_explained=explain,
        limits=limits,
        log_scores=log_scores,
    )
    listening = listening_socket(host, port)
    kind = f"{transform.kind}s"
    run_service(
        app,
        listening,
        started=lambda address: typer.echo(f"opnp: verdicts on {kind} at {address}; Ctrl-C stops it.", err=True),
    )


def bytes_from(text: str) -> int:
    """Return the number of bytes that a text such as ``10MB`` or ``512KiB`` names.

    Raises:
        OptionError: If it names none.

    Example:
        >>> bytes_from("10MB"), bytes_from("512 KiB"), bytes_from("2000")
        (10000000, 524288, 2000)

    """
    found = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,12})?)\s*([a-zA-Z]*)\s*", text)
    if found is None or found[2].upper() not in _UNITS:
        raise OptionError(f"`--max-bytes` must be a number of bytes such as 10MB or 512KiB, got {text!r}.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _lines(path: Path) -> list[str]:
    path = existing_file(path, content="the name of one class a line")
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path} is no text in UTF-8: expected the name of one class a line.") from error
