"""The service under load, and stopped under load: every request is answered, and as the library answers."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.serve_process import Served, all_begun, serving
from tests.unit.serve.serve_world import fitted, image_bytes, inputs_of, pictures, require_equal, verdict_json

CLIENTS, REQUESTS, PICTURES = 64, 2000, 50


async def all_answers(address: str, bodies: Sequence[bytes], *, clients: int) -> list[tuple[int, Any]]:
    """Return status and JSON of the answers to bodies, from clients that each send their next when they have one."""
    waiting = list(enumerate(bodies))
    found: dict[int, tuple[int, Any]] = {}
    host, _, port = address.removeprefix("http://").partition(":")

    async def send() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            while waiting:
                place, body = waiting.pop()
                head = f"POST /score HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\nContent-Length: {len(body)}"
                writer.write(f"{head}\r\n\r\n".encode() + body)
                answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(answer.partition("content-length: ")[2].split()[0])
                found[place] = int(answer.split()[1]), json.loads(await reader.readexactly(length))
        finally:
            writer.close()
            await writer.wait_closed()

    await asyncio.gather(*(send() for _ in range(clients)))
    return [found[place] for place in range(len(bodies))]


@pytest.mark.slow
def test_every_one_of_64_clients_gets_the_librarys_answers(tmp_path: Path) -> None:
    detector, model = fitted()
    images = pictures(PICTURES, seed=7)
    expected = verdict_json(detector, model, inputs_of(images))
    bodies = [image_bytes(image) for image in images]
    with serving(tmp_path) as served:
        answers = asyncio.run(all_answers(served.address, bodies * (REQUESTS // PICTURES), clients=CLIENTS))
        metrics = httpx.get(f"{served.address}/metrics").text
        stop(served, signal.SIGTERM)
    assert [status for status, _ in answers] == [200] * REQUESTS
    for place, (_, answer) in enumerate(answers):
        require_equal(answer, expected[place % PICTURES], detector.calibration_scores)
    assert f"opnp_inputs_total {REQUESTS:.1f}" in metrics
    batches = float(metrics.partition("opnp_batch_size_count ")[2].split()[0])
    assert batches < REQUESTS  # some are run together


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_begun_is_answered_when_the_service_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    detector, model = fitted()
    images = pictures(12, seed=8)
    expected = verdict_json(detector, model, inputs_of(images))

    async def burst(served: Served) -> list[tuple[int, Any]]:
        bodies = [image_bytes(image) for image in images]
        asking = asyncio.create_task(all_answers(served.address, bodies, clients=len(bodies)))
        await all_begun(served.address, len(bodies))
        os.kill(served.process.pid or 0, number)
        return await asking

    with serving(tmp_path, "--max-batch", "4", model="tests.integration.serve_process:slow_model") as served:
        answers = asyncio.run(burst(served))
        served.process.join(30)
        assert served.process.exitcode == 0, served.log.read_text(encoding="utf-8")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.address}/healthz")
    assert [status for status, _ in answers] == [200] * len(images)
    for (_, answer), wanted in zip(answers, expected, strict=True):
        require_equal(answer, wanted, detector.calibration_scores)
    assert "Traceback" not in served.log.read_text(encoding="utf-8")


def stop(served: Served, number: signal.Signals) -> None:
    began = time.monotonic()
    os.kill(served.process.pid or 0, number)
    served.process.join(30)
    assert served.process.exitcode == 0, served.log.read_text(encoding="utf-8")
    assert time.monotonic() - began < 10
