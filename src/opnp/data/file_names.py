"""Names of files that need not be text: on Linux a name may be any bytes."""

__all__ = ["name_bytes", "printable_name"]


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
