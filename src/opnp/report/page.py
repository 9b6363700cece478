"""The page of a results folder: from what it says to one HTML file that needs no other."""

import base64
import gzip
import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opnp.errors import DataFileError, MissingExtraError
from opnp.files import write_atomically
from opnp.report.content import PageContent, page_content
from opnp.report.explorer import band_text, explorer_values, require_keep
from opnp.report.panels import CONFIG, Figure
from opnp.report.results import fitting_records, read_results
from opnp.report.wording import count_text, method_label, unbroken

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["script_json", "vega_script", "write_report"]

_TEMPLATES = "templates"


def write_report(
    results_folder: str | os.PathLike[str],
    out_html: str | os.PathLike[str],
    *,
    keep: float = 0.95,
    models: Collection[str] | None = None,
) -> Path:
    """Write what a results folder holds as one HTML file that needs no network; return its path.

    Args:
        results_folder: Folder of `opnp bench`, `opnp sweep`, `opnp fit` or `opnp demo`.
        out_html: File to write; an existing one is replaced. The same results give the same bytes.
        keep: Share of ID to keep at the thresholds that are shown first, in [0.5, 0.999].
        models: Of a folder of benchmarks, one a model, the names of the folders to read; None for all.

    Returns:
        The path of the file.

    Raises:
        MissingExtraError: If jinja2 or vl-convert-python, or pyarrow for scores in Parquet, is not installed.
        MissingFileError: If there is no such results folder, or no folder to write into.
        DataFileError: If it holds no results, a file in it cannot be read, or `out_html` is a folder.
        OptionError: If `keep` lies outside [0.5, 0.999].

    """
    require_keep(keep)
    path = Path(out_html)
    if path.is_dir():
        raise DataFileError(f"{path} is a folder: name a file for the report, such as {path / 'report.html'}.")
    results = read_results(results_folder, models=models)
    with fitting_records(results_folder):
        html = _page_html(page_content(results, keep=keep)).encode()
    write_atomically(path, html)
    return path


def _page_html(content: PageContent) -> str:
    """Return the page. The same content gives the same text.

    Scripts and styles stand in it; a policy in its head forbids everything from elsewhere, and scripts that are not its
    own. Values from records are escaped.
    """
    environment = _environment()
    vega, script = vega_script(), _resource("report.js")
    figures = [*content.figures, *(figure for model in content.models for figure in model.figures)]
    explorers = {model.key: explorer_values(model.explorer) for model in content.models if model.explorer is not None}
    specifications = {figure.name: _panels(figure) for figure in figures}
    page = environment.get_template("report.html.j2").render(
        content=content,
        style=_resource("report.css"),
        script=script,
        vega=_packed(vega),
        script_hashes=[_digest(script), _digest(vega)],
        data=script_json({"explorers": explorers}),
        figures=_packed(json.dumps({"config": CONFIG, "figures": specifications}, allow_nan=False)),
    )
    return page + "\n"


def _panels(figure: Figure) -> list[dict[str, Any]]:
    """Return the panels of a figure as JSON values for the script of the page."""
    return [
        {
            "specification": panel.specification,
            "follows": [asdict(each) for each in panel.follows],
            "drag": None if panel.drag is None else asdict(panel.drag),
        }
        for panel in figure.panels
    ]


@cache
def vega_script() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script to be put into a page: it draws without a network.

    Raises:
        MissingExtraError: If vl-convert-python is not installed.

    """
    try:
        import vl_convert
    except ImportError as error:
        raise MissingExtraError(
            "The page needs vl-convert-python, which is not installed: `pip install 'opnp[report]'`."
        ) from error
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script


def script_json(values: object) -> str:
    r"""Return JSON that can stand in a script element: no text in it ends the element or opens a comment.

    Example:
        >>> script_json({"model": "</script>"})
        '{"model":"\\u003c/script\\u003e"}'

    """
    text = json.dumps(values, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _environment() -> "Environment":
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError(
            "The page needs jinja2, which is not installed: `pip install 'opnp[report]'`."
        ) from error
    environment = Environment(
        loader=PackageLoader("opnp.report", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "band_text": band_text,
        "count": count_text,
        "method_label": method_label,
        "unbroken": unbroken,
    }
    return environment


def _resource(name: str) -> str:
    return files("opnp.report").joinpath(_TEMPLATES, name).read_text(encoding="utf-8")


def _packed(script: str) -> str:
    """Return a script compressed, as base64: a third of its size, and nothing to parse before the page is shown."""
    return base64.b64encode(gzip.compress(script.encode(), compresslevel=9, mtime=0)).decode("ascii")


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
