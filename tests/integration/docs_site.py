"""A built site, read back: the targets of its links, its anchors, and what it loads."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["Page", "dead_links", "read_site"]

_LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
_FOLLOWED = {"canonical", "next", "prev", "edit", "alternate"}


@dataclass(slots=True)
class Page(HTMLParser):
    """One page.

    Attributes:
        ids: Its anchors.
        links: Targets of its links.
        loaded: Targets of what a browser loads with it.

    """

    ids: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        HTMLParser.__init__(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of one element."""
        found = {name: value or "" for name, value in attrs}
        if found.get("id"):
            self.ids.add(found["id"])
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        elif tag in _LOADING and _LOADING[tag] in found and found.get("rel") not in _FOLLOWED:
            self.loaded.add(found[_LOADING[tag]])


def read_site(folder: Path) -> dict[str, Page]:
    """Return the pages of a site by their path in it."""
    found = {}
    for path in sorted(folder.rglob("*.html")):
        page = Page()
        page.feed(path.read_text(encoding="utf-8"))
        found[path.relative_to(folder).as_posix()] = page
    return found


def dead_links(folder: Path) -> list[str]:
    """Return the links inside a site, and what it loads from itself, that lead nowhere; anchors too."""
    site = read_site(folder)
    dead = []
    for name, page in site.items():
        if name == "404.html":  # its links begin at the root of a server
            continue
        for link in sorted(page.links | page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = unquote(parts.path)
            target = (folder / name).parent / path if path else folder / name
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                dead.append(f"{name}: {link}")
            elif parts.fragment and target.suffix == ".html":
                other = site[target.resolve().relative_to(folder.resolve()).as_posix()]
                if unquote(parts.fragment) not in other.ids:
                    dead.append(f"{name}: {link}")
    return dead
