"""How many rows a compressed table may declare: what is read takes memory in proportion to the file."""

__all__ = ["require_few_rows"]

_ALWAYS = 1 << 23
_ROWS_A_BYTE = 16


def require_few_rows(rows: int, *, file_bytes: int) -> None:
    """Raise if a table declares more rows than can be in a file of this size: 16 a byte, where there are over 2^23.

    Equal values take next to nothing in a compressed table, so that a few bytes could fill any memory.

    Raises:
        ValueError: If so.

    Example:
        >>> require_few_rows(1_000_000, file_bytes=2_000)
        >>> require_few_rows(1_000_000_000, file_bytes=2_000)
        Traceback (most recent call last):
            ...
        ValueError: it declares 1000000000 rows in 2000 bytes

    """
    if rows > max(_ALWAYS, _ROWS_A_BYTE * file_bytes):
        message = f"it declares {rows} rows in {file_bytes} bytes"
        raise ValueError(message)
