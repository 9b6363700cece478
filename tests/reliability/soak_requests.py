"""Requests for a service that is soaked: good ones with the verdicts of the library, and bad ones of every kind."""

import json
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image

from tests.unit.serve.serve_world import fitted, image_bytes, inputs_of, pictures, verdict_json

__all__ = ["LIMITS", "Bad", "Good", "bad_requests", "good_requests", "request"]

LIMITS = ("--max-bytes", "200KB", "--max-pixels", "1000000")
"""Options of the service that is soaked: limits that small requests go beyond."""


def request(
    path: str = "/score", body: bytes = b"", *, kind: str | None = None, method: str = "POST", **more: str
) -> bytes:
    """Return a request of HTTP/1.1 as bytes."""
    headers = {"Host": "soak", "Content-Length": str(len(body)), **more}
    if kind is not None:
        headers["Content-Type"] = kind
    lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Good:
    """A good request: its bytes, and what the library says of its inputs."""

    content: bytes
    expected: tuple[dict[str, Any], ...]
    is_list: bool


@cache
def good_requests() -> list[Good]:
    """Return good requests: pictures, arrays, and lists of arrays."""
    detector, model = fitted()
    images = pictures(40, seed=21)
    inputs = inputs_of(images)
    wanted = verdict_json(detector, model, inputs)
    found = [
        Good(request(body=image_bytes(image), kind="image/png"), (verdict,), is_list=False)
        for image, verdict in zip(images, wanted, strict=True)
    ]
    for start in range(0, 40, 8):
        rows = inputs[start : start + 8]
        body = json.dumps(rows.tolist()).encode()
        found.append(Good(request(body=body, kind="application/json"), tuple(wanted[start : start + 8]), is_list=True))
        body = json.dumps(rows[0].tolist()).encode()
        found.append(Good(request(body=body, kind="application/json"), (wanted[start],), is_list=False))
    return found


@dataclass(frozen=True)
class Bad:
    """A request that gets no verdict: its bytes, and the status of its answer.

    The end of a connection with bytes that nobody read may overtake the answer: such a sender may see itself cut off.
    """

    name: str
    content: bytes
    status: int
    may_be_cut_off: bool = False


def _array(value: object) -> bytes:
    return json.dumps([[[value] * 8] * 8] * 3).encode()


@cache
def bad_requests() -> list[Bad]:
    """Return bad requests that are answered all the same."""
    picture = image_bytes(pictures(1, seed=0)[0])
    numbers = _array(0.5)
    kind = {"kind": "application/json"}
    large = b"x" * 300_000
    chunked = b"".join(b"%x\r\n" % 50_000 + b"x" * 50_000 + b"\r\n" for _ in range(6)) + b"0\r\n\r\n"
    chunks = request(kind="image/png", Transfer_Encoding="chunked").replace(b"Content-Length: 0\r\n", b"")
    wide = Image.new("1", (1100, 1000))
    return [
        Bad("malformed JSON", request(body=numbers[:-7], **kind), 422),
        Bad("JSON that is no text", request(body=b"\xff\xfe\x00" * 9, **kind), 422),
        Bad("nested JSON", request(body=b"[" * 50_000, **kind), 422),
        Bad("a wrong shape", request(body=json.dumps([[0.5] * 8] * 8).encode(), **kind), 422),
        Bad("NaN", request(body=_array(float("nan")), **kind), 422),
        Bad("a number beyond float32", request(body=_array(1e300), **kind), 422),
        Bad("numbers at which the model overflows", request(body=_array(3e38), **kind), 422),
        Bad("a text for a number", request(body=_array("1"), **kind), 422),
        Bad("too many inputs", request(body=json.dumps([[[[0] * 8] * 8] * 3] * 65).encode(), **kind), 422),
        Bad("an empty body", request(kind="image/png"), 422),
        Bad("half a picture", request(body=picture[: len(picture) // 2], kind="image/png"), 422),
        Bad("a picture of too many pixels", request(body=image_bytes(wide), kind="image/png"), 422),
        Bad("no picture", request(body=os.urandom(64), kind="image/png"), 422),
        Bad("an unknown content type", request(body=b"x", kind="text/plain"), 415),
        Bad("no content type", request(body=b"x"), 415),
        Bad("a compressed body", request(body=b"x", kind="image/png", Content_Encoding="gzip"), 415),
        Bad("a huge body", request(body=large, kind="image/png"), 413),
        Bad("a huge body in chunks", chunks + chunked, 413),
        Bad("a huge length", request(kind="image/png").replace(b"Length: 0", b"Length: 99999999999999999999"), 413),
        Bad(
            "a length beyond all numbers", request(kind="image/png").replace(b"Length: 0", b"Length: " + b"9" * 30), 400
        ),
        Bad("a wrong method", request(method="PUT", body=numbers, **kind), 405),
        Bad("GET of /score", request(method="GET"), 405),
        Bad("an unknown path", request("/no/such/path"), 404),
        Bad("a path upwards", request("/../../etc/passwd", method="GET"), 404),
        Bad("garbage", b"\x00\xff garbage \x01\r\n\r\n", 400),
        Bad("the beginning of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n", 400),
        Bad(
            "a head without end", b"GET / HTTP/1.1\r\nHost: soak\r\nX-Long: " + b"x" * 70_000, 400, may_be_cut_off=True
        ),
        Bad("no host", b"GET / HTTP/1.1\r\n\r\n", 400),
        Bad("two lengths", request(body=b"x").replace(b"\r\n\r\n", b"\r\nContent-Length: 7\r\n\r\n", 1), 400),
    ]
