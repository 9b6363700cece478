"""From what the page says to one HTML file that needs no other."""

import base64
import gzip
import hashlib
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from opnp.errors import MissingExtraError
from opnp.report.figures.page_figure import page_figure, plotly_script
from opnp.report.figures.page_layout import PAGE_TEMPLATES
from opnp.report.page.explorer import explorer_values
from opnp.report.page.sections import PageContent
from opnp.report.page.wording import count_text, unbroken
from opnp.report.series.wording import method_label

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["page_html", "script_json"]

_TEMPLATES = "templates"


def page_html(content: PageContent) -> str:
    """Return the page. The same content gives the same text.

    Scripts and styles stand in it; a policy in its head forbids everything from elsewhere, and scripts that are not its
    own. Values from records are escaped.

    Args:
        content: What it shows.

    Raises:
        MissingExtraError: If jinja2 or plotly is not installed.

    """
    environment = _environment()
    plotly, script = plotly_script(), _resource("report.js")
    page = environment.get_template("report.html.j2").render(
        content=content,
        style=_resource("report.css"),
        script=script,
        plotly=_packed(plotly),
        script_hashes=[_digest(script), _digest(plotly)],
        data=script_json(_page_data(content)),
        layouts={figure.name: page_figure(figure.series)["layout"] for model in content.models
                 for figure in model.figures},
    )  # fmt: skip
    return page + "\n"


def script_json(values: object) -> str:
    r"""Return JSON that can stand in a script element: no text in it ends the element or opens a comment.

    Example:
        >>> script_json({"model": "</script>"})
        '{"model":"\\u003c/script\\u003e"}'

    """
    text = json.dumps(values, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _page_data(content: PageContent) -> dict[str, Any]:
    explorers = {model.key: explorer_values(model.explorer) for model in content.models if model.explorer is not None}
    return {
        "templates": PAGE_TEMPLATES,
        "figures": {figure.name: page_figure(figure.series) for model in content.models for figure in model.figures},
        "explorers": explorers,
    }


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
    environment.filters |= {"count": count_text, "method_label": method_label, "unbroken": unbroken}
    return environment


def _resource(name: str) -> str:
    return files("opnp.report").joinpath(_TEMPLATES, name).read_text(encoding="utf-8")


def _packed(script: str) -> str:
    """Return a script compressed, as base64: a third of its size, and nothing to parse before the page is shown."""
    return base64.b64encode(gzip.compress(script.encode(), compresslevel=9, mtime=0)).decode("ascii")


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
