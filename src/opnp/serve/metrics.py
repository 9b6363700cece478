"""What a service counts, in the text format of Prometheus, and the verdicts that it notes for ``opnp monitor``."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from opnp.errors import DataFileError, OptionError
from opnp.files import existing_file, require_writable
from opnp.serve.engine import Answer

__all__ = ["METRICS_TYPE", "Metrics", "ScoreLog"]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of the text."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_P_VALUES = tuple(step / 10 for step in range(1, 11))
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one service, in a registry of their own.

    The share flagged is ``opnp_flagged_total / opnp_inputs_total``. The p-values fall into ten equal parts of [0, 1]:
    of ID inputs, each part gets a tenth, or less in the lowest ones.

    Args:
        requests: Tells how many requests are in work.

    """

    def __init__(self, requests: Callable[[], int]) -> None:
        """Make the counters."""
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = Counter("opnp_requests", "Requests by path and status.", ["path", "status"], registry=registry)
        self._seconds = Histogram(
            "opnp_request_seconds", "Seconds from request to answer.", ["path"], buckets=_SECONDS, registry=registry
        )
        self._inputs = Counter("opnp_inputs", "Inputs that got a verdict.", registry=registry)
        self._flagged = Counter("opnp_flagged", "Inputs that were flagged as OOD.", registry=registry)
        self._p_values = Histogram("opnp_p_value", "p-values of the inputs.", buckets=_P_VALUES, registry=registry)
        self._batches = Histogram("opnp_batch_size", "Inputs a batch.", buckets=_BATCHES, registry=registry)
        Gauge("opnp_requests_in_work", "Requests to /score in work.", registry=registry).set_function(requests)

    def count_request(self, path: str, *, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_answers(self, answers: Iterable[Answer]) -> None:
        """Count verdicts that were given."""
        for answer in answers:
            self._inputs.inc()
            self._flagged.inc(int(answer.is_ood))
            self._p_values.observe(answer.p_value)

    def count_batch(self, size: int) -> None:
        """Count a batch that was run."""
        self._batches.observe(size)

    def text(self) -> bytes:
        """Return all counters as text."""
        return generate_latest(self._registry)


class ScoreLog:
    """A score file that grows by a row for each verdict, as ``opnp score`` writes them and ``opnp monitor`` reads them.

    It is opened anew for each request, so that it may be renamed at any time: then a new one is begun.

    Args:
        path: File to write, ending in ``.csv``. One that is there is appended to.

    Raises:
        DataFileError: If it has another ending.
        OptionError: If what is there is no such file.
        MissingFileError: If its folder does not exist, or it is no file.
        OSError: If it cannot be written.

    """

    columns = ("predicted_class", "score", "p_value", "is_ood", "calibration_samples", "calibration_group")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Check the file."""
        self._path = Path(path)
        if self._path.suffix.lower() != ".csv":
            raise DataFileError(f"{self._path}: the file of scores must end in .csv.")
        require_writable(self._path)
        if self._path.exists():
            wanted = self._row(self.columns)
            with existing_file(self._path, content="scores").open("rb") as file:
                head = file.read(len(wanted))
            if head not in (b"", wanted):
                raise OptionError(f"{self._path} is no log of scores that can be appended to: name another file.")

    def write(self, answers: Sequence[Answer]) -> None:
        """Append a row for each answer, all in one piece."""
        values = ([getattr(each, name) for name in self.columns] for each in answers)
        rows = (self._row(["" if value is None else value for value in each]) for each in values)
        with self._path.open("ab") as file:
            file.write(b"".join([b"" if file.tell() else self._row(self.columns), *rows]))

    def _row(self, values: Sequence[object]) -> bytes:
        return (",".join(map(str, values)) + "\n").encode()
