"""torch without what it writes to the terminal while it refuses a model."""

import contextlib
import io
import logging
import sys
from collections.abc import Iterator

__all__ = ["quiet_torch"]

_SILENT = logging.CRITICAL + 1


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Hold torch's loggers silent, and keep back what is written to standard error until the block has succeeded.

    Levels are set back afterwards. What was written is dropped if the block raises: the error says it.

    Example:
        >>> with contextlib.suppress(ValueError), quiet_torch():
        ...     print("a graph of twenty lines", file=sys.stderr)
        ...     raise ValueError

    """
    known = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("torch.")]
    levels = {logger: logger.level for logger in (logging.getLogger("torch"), *known)}
    for logger, level in levels.items():
        if level or logger.name == "torch":  # the others have the level of one above them
            logger.setLevel(_SILENT)
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            yield
        sys.stderr.write(written.getvalue())
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
