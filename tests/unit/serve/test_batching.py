"""Batches: order kept, sizes bounded, failures alone, nobody forgotten."""

import asyncio
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opnp.serve.batching import Batcher
from opnp.serve.limits import Refusal


def doubled(contents: Sequence[int]) -> list[int | Exception]:
    """Return the doubles; an error for those below 0."""
    return [2 * value if value >= 0 else ValueError(f"{value} is below 0") for value in contents]


@settings(max_examples=25, deadline=None)
@given(
    requests=st.lists(st.lists(st.integers(-3, 50), min_size=1, max_size=5), min_size=1, max_size=20),
    max_batch=st.integers(1, 7),
)
def test_each_request_gets_its_own_outputs_in_order_and_failures_are_alone(
    requests: list[list[int]], max_batch: int
) -> None:
    sizes: list[int] = []

    async def run() -> list[list[int] | BaseException]:
        batcher = Batcher(doubled, max_batch=max_batch, max_wait=0.001, max_requests=99, observe=sizes.append)

        async def ask(contents: list[int]) -> list[int]:
            with batcher.request() as place:
                return await place.outputs(contents)

        async with batcher:
            return await asyncio.gather(*map(ask, requests), return_exceptions=True)

    found = asyncio.run(run())
    for contents, outputs in zip(requests, found, strict=True):
        failing = [value for value in contents if value < 0]
        if failing:
            assert str(outputs) == f"{failing[0]} is below 0"
        else:
            assert outputs == [2 * value for value in contents]
    assert sum(sizes) == sum(map(len, requests))
    assert max(sizes) <= max_batch


def test_requests_that_come_while_the_model_runs_are_run_together_on_one_thread() -> None:
    gate, batches, threads = threading.Event(), list[list[int]](), set[int]()

    def slow(contents: Sequence[int]) -> list[int]:
        threads.add(threading.get_ident())
        batches.append(list(contents))
        assert gate.wait(60)
        return list(contents)

    async def run() -> None:
        async with Batcher(slow, max_batch=4, max_wait=0, max_requests=99) as batcher:

            async def ask(value: int) -> list[int]:
                with batcher.request() as place:
                    return await place.outputs([value])

            first = asyncio.create_task(ask(0))
            while not batches:  # noqa: ASYNC110  # set by another thread
                await asyncio.sleep(0.001)
            others = [asyncio.create_task(ask(value)) for value in range(1, 7)]
            await asyncio.sleep(0.01)
            gate.set()
            assert [await task for task in (first, *others)] == [[value] for value in range(7)]

    asyncio.run(run())
    assert batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert len(threads) == 1


def test_a_batch_waits_for_a_request_that_is_being_read_and_not_for_ever() -> None:
    batches: list[list[int]] = []

    def noted(contents: Sequence[int]) -> list[int]:
        batches.append(list(contents))
        return list(contents)

    async def run() -> None:
        async with Batcher(noted, max_batch=8, max_wait=60, max_requests=9) as batcher:
            with batcher.request() as first, batcher.request() as second:
                asking = asyncio.create_task(first.outputs([1]))
                await asyncio.sleep(0.01)
                assert batches == []
                assert await second.outputs([2]) == [2]
                assert await asking == [1]
                assert batches == [[1, 2]]
        async with Batcher(noted, max_batch=8, max_wait=0.01, max_requests=9) as batcher:
            with batcher.request() as first, batcher.request():
                assert await first.outputs([3]) == [3]  # the second never comes to ask

    asyncio.run(run())
    assert batches == [[1, 2], [3]]


def test_one_request_too_many_is_told_to_come_back_and_places_are_given_back() -> None:
    async def run() -> None:
        async with Batcher(doubled, max_batch=8, max_wait=0, max_requests=2) as batcher:
            with batcher.request(), batcher.request():
                assert batcher.requests == 2
                with pytest.raises(Refusal, match="2 requests are in work") as refused, batcher.request():
                    pass
                assert refused.value.status == 503
                assert refused.value.headers == {"Retry-After": "1"}
            with pytest.raises(ValueError, match="-1 is below 0"), batcher.request() as place:
                await place.outputs([-1])
            assert batcher.requests == 0
            with batcher.request() as place:
                assert await place.outputs([4]) == [8]

    asyncio.run(run())


def test_what_waits_is_answered_before_the_end_and_nothing_new_is_taken() -> None:
    async def run() -> None:
        batcher: Batcher[int, int] = Batcher(doubled, max_batch=1, max_wait=0, max_requests=9)
        assert not batcher.is_ready
        async with batcher:
            assert batcher.is_ready
            with batcher.request() as place:
                asking = asyncio.create_task(place.outputs([1, 2, 3]))
                await asyncio.sleep(0)
        assert await asking == [2, 4, 6]
        with pytest.raises(Refusal, match="stopping"), batcher.request():
            pass
        async with batcher:  # and it can be started again
            with batcher.request() as place:
                assert await place.outputs([5]) == [10]

    asyncio.run(run())


def test_a_run_that_fails_as_a_whole_fails_its_batch_alone_and_who_has_left_is_left_out() -> None:
    batches: list[list[int]] = []

    def fragile(contents: Sequence[int]) -> list[int]:
        batches.append(list(contents))
        if 13 in contents:
            message = "unlucky"
            raise LookupError(message)
        return list(contents)

    async def run() -> None:
        async with Batcher(fragile, max_batch=1, max_wait=0, max_requests=9) as batcher:
            with batcher.request() as one, batcher.request() as other, batcher.request() as third:
                leaving = asyncio.create_task(third.outputs([3]))
                await asyncio.sleep(0)
                leaving.cancel()
                with pytest.raises(LookupError, match="unlucky"):
                    await one.outputs([13])
                assert await other.outputs([4]) == [4]

    asyncio.run(run())
    assert batches == [[13], [4]]
