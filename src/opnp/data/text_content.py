"""What counts as a text."""

from opnp.errors import DataFileError

__all__ = ["checked_text"]


def checked_text(value: object) -> str:
    """Return a value if it is a text with something in it.

    Raises:
        DataFileError: If it is none; the message is the reason alone.

    Example:
        >>> checked_text("a word")
        'a word'

    """
    if not isinstance(value, str):
        raise DataFileError("no text" if value is None else f"a text is needed, got {type(value).__name__}")
    if not value.strip():
        raise DataFileError("the text is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataFileError("the text is no valid Unicode") from error
    return value
