"""Ctrl-C put off for the length of a few steps that belong together."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

__all__ = ["Undisturbed"]


class Undisturbed:
    """Lets a block of short steps come to its end before Ctrl-C is heard: a model is lent, or given back, as a whole.

    Signals are Python's affair in the main thread alone; in others there is nothing to put off.
    """

    def __init__(self) -> None:
        """Begin with nothing heard."""
        self._heard: list[FrameType | None] = []
        self._before: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> Self:
        """Put off; Ctrl-C that falls into this very step as well."""
        try:
            self._put_off()
        except KeyboardInterrupt:
            self._heard.append(None)
            self._put_off()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Hear what came meanwhile, unless an error is on its way already."""
        if callable(self._before):
            signal.signal(signal.SIGINT, self._before)
            if self._heard and kind is None:
                self._before(signal.SIGINT, self._heard[0])

    def _put_off(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = self._before or signal.getsignal(signal.SIGINT)
            if callable(self._before):
                signal.signal(signal.SIGINT, lambda _, frame: self._heard.append(frame))
