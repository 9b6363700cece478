"""Connections without a request are closed after a while; those at work, and those just used, are not."""

from dataclasses import dataclass

from opnp.serve.idle_connections import IdleConnections


@dataclass(eq=False)
class Cycle:
    """A request, as uvicorn keeps it."""

    response_complete: bool = False


@dataclass(eq=False)
class Line:
    """A connection."""

    cycle: object = None
    is_closed: bool = False

    def shutdown(self) -> None:
        self.is_closed = True


def test_what_never_sends_a_head_is_closed_after_its_time_and_not_before() -> None:
    idle, silent, new = IdleConnections(5), Line(), Line()
    for now in range(5):
        idle.close([silent], now=100 + now)
        assert not silent.is_closed
    idle.close([silent, new], now=105)
    assert (silent.is_closed, new.is_closed) == (True, False)


def test_a_request_in_work_keeps_a_connection_and_each_answer_starts_the_time_again() -> None:
    idle, line = IdleConnections(5), Line(Cycle())
    for now in range(20):
        idle.close([line], now=now)
    line.cycle = Cycle(response_complete=True)
    for now in range(20, 25):
        idle.close([line], now=now)
    line.cycle = Cycle(response_complete=True)  # another one, answered between two looks
    for now in range(25, 30):
        idle.close([line], now=now)
    assert not line.is_closed
    idle.close([line], now=30)
    assert line.is_closed
