"""The page to try a service: one text without anything from elsewhere, and the policy that holds it to that."""

import base64
import hashlib
import html
import json
from functools import cache
from importlib.resources import files

from opnp.data import SampleKind

__all__ = ["page_policy", "page_text"]


def page_text(*, kind: SampleKind, keep: float, max_bytes: int) -> str:
    """Return the page.

    Args:
        kind: What the service takes.
        keep: Share of ID inputs that is not flagged.
        max_bytes: Bytes that may be sent.

    """
    facts = json.dumps({"kind": kind, "keep": keep, "maxBytes": max_bytes})
    page = _part("page.html").replace("{{ style }}", _part("page.css")).replace("{{ script }}", _part("page.js"))
    return page.replace("{{ kind }}", kind).replace("{{ facts }}", html.escape(facts))


@cache
def page_policy() -> str:
    """Return the content security policy of the page: its own script and style, and requests to this service alone."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_digest(_part('page.js'))}'",
            f"style-src '{_digest(_part('page.css'))}'",
            "img-src blob: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


@cache
def _part(name: str) -> str:
    return files("opnp.serve").joinpath("page", name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
