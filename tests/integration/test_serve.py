"""``opnp serve``: what it refuses before it listens, and what it answers once it does, under load and in the end."""

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from opnp import OPNP, Ratios
from opnp.cli.app import named_command
from opnp.cli.serve import bytes_from
from opnp.errors import MissingExtraError, MissingFileError, NotCalibratedError, OpnpError, OptionError
from opnp.serve.app import listening_socket, run_service
from tests.integration.serve_process import Served, all_begun, serving
from tests.unit.bench.image_world import OPTIONS
from tests.unit.serve.serve_world import fitted, image_bytes, inputs_of, pictures, require_equal, service, verdict_json

CLIENTS, REQUESTS, PICTURES = 64, 640, 40
MODEL = "tests.unit.bench.image_world:tiny_model"


def refused(error: type[OpnpError], message: str, detector: Path, *options: str) -> None:
    """Fail unless the command raises an error with this message, which `opnp` prints."""
    arguments = ["--detector", str(detector), "--model", MODEL, *OPTIONS, *options]
    with pytest.raises(error, match=message):
        named_command("serve").main(args=arguments, standalone_mode=False)


def posted(served: Served, content: bytes) -> httpx.Response:
    headers = {"Content-Type": "image/png"}
    return httpx.post(f"{served.address}/score", content=content, headers=headers, timeout=60)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "detector.safetensors"
    fitted()[0].save(path)
    return path


def test_what_cannot_be_served_is_refused(saved: Path, tmp_path: Path) -> None:
    refused(OptionError, "`--max-bytes` must be a number of bytes such as 10MB", saved, "--max-bytes", "much")
    refused(OptionError, "`max_batch` must be finite and at least 1", saved, "--max-batch", "0")
    refused(OptionError, "`max_wait` must be finite and at least 0", saved, "--max-wait-ms", "nan")
    refused(OptionError, "`--port` must lie in 0 to 65535", saved, "--port", "70000")
    refused(OptionError, "cannot listen at `--host` 192.0.2.1", saved, "--host", "192.0.2.1")
    refused(OptionError, "`--device` must be a device", saved, "--device", "nowhere")
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\n", encoding="utf-8")
    refused(OptionError, "`class_names` must be 4, one a class, got 2", saved, "--class-names", str(names))
    os.mkfifo(tmp_path / "pipe")
    refused(MissingFileError, "pipe is a pipe or a device: exp", saved, "--class-names", str(tmp_path / "pipe"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(OptionError, rf"cannot listen at `--host` 127.0.0.1 and `--port` {port} \(", saved, "--port", port)


@pytest.mark.filterwarnings("ignore:.*calibrat:opnp.errors.UncalibratedWarning")  # said when such a one is saved
def test_an_uncalibrated_detector_is_refused_with_the_way_out(tmp_path: Path) -> None:
    _, model = fitted()
    path = tmp_path / "uncalibrated.safetensors"
    OPNP(ratios=Ratios(w_min=0.1)).fit(model, [inputs_of(pictures(60, seed=0))]).save(path)
    refused(NotCalibratedError, "opnp fit ... --validation PATH", path)


def test_a_missing_package_names_the_extra(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opnp.errors.find_spec", lambda name: None if name == "uvicorn" else object())
    refused(MissingExtraError, r"needs uvicorn, not installed here: `pip install 'opnp\[serve\]'`", saved)


def test_with_a_batch_of_one_the_answers_are_the_librarys_to_the_bit(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("red\ngreen\nblue\nyellow\n", encoding="utf-8")
    images = pictures(3, seed=11)
    wanted = verdict_json(*fitted(), inputs_of(images))
    with serving(tmp_path, "--max-batch", "1", "--class-names", str(names), "--max-bytes", "1KB") as served:
        for image, expected in zip(images, wanted, strict=True):
            answer = posted(served, image_bytes(image)).json()
            assert answer.pop("class_name") == ["red", "green", "blue", "yellow"][expected["class"]]
            assert answer == expected
        assert posted(served, b"x" * 3000).status_code == 413
        served.process.terminate()
        served.process.join(60)
        assert served.process.exitcode == 0
        assert "verdicts on images at http://127.0.0.1:" in served.log.read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_and_the_handlers_are_put_back(number: signal.Signals) -> None:
    assert threading.current_thread() is threading.main_thread()
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    _, model = fitted()
    modes = [module.training for module in model.modules()]
    told: list[str] = []

    def started(address: str) -> None:
        told.append(address)
        signal.raise_signal(number)

    listening = listening_socket("127.0.0.1", 0)
    run_service(service(), listening, started=started)
    assert told
    assert listening.fileno() == -1
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    assert [module.training for module in model.modules()] == modes


def test_small_answers_do_not_wait_for_an_acknowledgement() -> None:
    with listening_socket("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP  # by which asyncio knows that it may switch the waiting off


def test_sizes_in_words() -> None:
    assert [bytes_from(text) for text in ("7", "1.5 KB", "2MiB", "1gb")] == [7, 1500, 2 << 20, 10**9]
    for text in ("", "MB", "-1", "1e9", "10 bananas"):
        with pytest.raises(OptionError, match="`--max-bytes`"):
            bytes_from(text)


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
        metrics = httpx.get(f"{served.address}/metrics", timeout=60).text
        os.kill(served.process.pid or 0, signal.SIGTERM)
        served.process.join(60)
        assert served.process.exitcode == 0, served.log.read_text(encoding="utf-8")
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
        served.process.join(60)
        assert served.process.exitcode == 0, served.log.read_text(encoding="utf-8")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.address}/healthz")
    assert [status for status, _ in answers] == [200] * len(images)
    for (_, answer), wanted in zip(answers, expected, strict=True):
        require_equal(answer, wanted, detector.calibration_scores)
    assert "Traceback" not in served.log.read_text(encoding="utf-8")
