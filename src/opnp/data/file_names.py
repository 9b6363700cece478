"""Names of files that need not be text: on Linux a name may be any bytes."""

__all__ = ["name_bytes", "printable_name", "shown_text"]

_SHOWN = 160


def name_bytes(name: str) -> bytes:
    r"""Return a name in UTF-8, or, of a file whose name is no UTF-8, the bytes that it has on disk.

    Example:
        >>> name_bytes("große.png"), name_bytes("\udcff.png")
        (b'gro\xc3\x9fe.png', b'\xff.png')

    """
    return name.encode("utf-8", "surrogateescape")


def printable_name(name: str) -> str:
    r"""Return a name as it is, or, where it is no UTF-8, with escapes for the bytes that are none.

    Example:
        >>> print(printable_name("große.png"), printable_name("\udcff.png"))
        große.png \xff.png

    """
    return name_bytes(name).decode("utf-8", "backslashreplace")


def shown_text(text: str) -> str:
    r"""Return a text of any content for a message: with escapes for what steers a terminal, and cut where it is long.

    Example:
        >>> print(shown_text("große.png"), shown_text("a\x1b[31m\nb"), len(shown_text("x" * 10**6)))
        große.png a\x1b[31m\nb 163

    """
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text[: _SHOWN + 1])
    return shown if len(text) <= _SHOWN else f"{shown[:_SHOWN]}..."
