"""Records that are of the right form each, but do not fit together: one message, whatever it is that they lack."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from opnp.errors import DataFileError, OpnpError

__all__ = ["fitting_records"]


@contextmanager
def fitting_records(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong while the records of a folder are drawn into one message.

    A record is checked part by part when it is read. That its parts agree, as the points of a curve with its name or
    the edges of bins with their counts, is seen where they are used.

    Args:
        folder: The folder of results.

    Raises:
        DataFileError: If the records do not fit together.

    """
    try:
        yield
    except OpnpError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise DataFileError(
            f"{folder} holds records that do not fit together ({type(error).__name__}: {error}). Make them again."
        ) from error
