"""Signals that stop a command: it unwinds as after an error, says so in a line, and leaves with the code of shells."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Stopped", "stopped_by_signals"]

_NAMES = ("SIGTERM", "SIGHUP")
"""Ctrl-C, SIGINT, is a `KeyboardInterrupt` of Python's own already. Windows has no SIGHUP."""


class Stopped(BaseException):
    """A signal came that asks the process to end; not an `Exception`, so that nothing takes it for a failed step.

    Attributes:
        number: Number of the signal.

    """

    def __init__(self, number: int) -> None:
        """Keep the number."""
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What shells report of a process that this signal ended: 143 for SIGTERM."""
        return 128 + self.number

    def __str__(self) -> str:
        """Return the signal in words."""
        name = signal.Signals(self.number).name
        return "interrupted" if name == "SIGINT" else f"stopped by {name}"


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise `Stopped` where a signal arrives inside that would end the process without unwinding, or for Ctrl-C.

    A second such signal ends the process at once. Handlers that others have set are left alone.

    Raises:
        Stopped: If such a signal comes.

    """
    owner, changed = os.getpid(), []

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != owner:  # a worker that was forked: it has nothing to give back
            signal.raise_signal(number)
            sys.exit(128 + number)
        raise Stopped(number)

    is_main = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in _NAMES if is_main and hasattr(signal, name)]
    try:
        for number in numbers:
            if signal.getsignal(number) is signal.SIG_DFL:
                changed.append(number)
                signal.signal(number, stop)
        yield
    except KeyboardInterrupt as error:
        raise Stopped(signal.SIGINT) from error
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
