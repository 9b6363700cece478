"""Whatever is sent, the service answers in JSON, never with a 500, and goes on."""

import asyncio
import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.serve.serve_world import image_bytes, inputs_of, pictures, service

KINDS = ["image/png", "image/jpeg", "image/tiff", "image/webp", "application/json", "application/octet-stream"]
FORMS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]
IMAGES = [image_bytes(pictures(1, seed=0)[0], form) for form in FORMS]
ARRAY = json.dumps(inputs_of(pictures(1, seed=0))[0].tolist()).encode()

numbers = st.floats() | st.integers() | st.booleans() | st.none() | st.text(max_size=3)
trees = st.recursive(numbers, lambda part: st.lists(part, max_size=8) | st.dictionaries(st.text(max_size=4), part))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a good body with bytes changed, cut off or added."""
    body = bytearray(draw(st.sampled_from([*IMAGES, ARRAY])))
    for _ in range(draw(st.integers(0, 6))):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return bytes(body[: draw(st.integers(0, len(body)))]) + draw(st.binary(max_size=9))


@st.composite
def shaped(draw: st.DrawFn) -> bytes:
    """Return arrays of nearly the right shape, with numbers of any kind."""
    value = draw(numbers)
    for length in (8, 8, 3, 2)[: draw(st.integers(2, 4))]:
        value = [value] * draw(st.sampled_from([length, length, length, length + 1, 0]))  # type: ignore[assignment]  # a list of itself
    return json.dumps(value).encode()


bodies = st.binary(max_size=300) | damaged() | shaped() | trees.map(lambda tree: json.dumps(tree).encode())
kinds = st.sampled_from(KINDS) | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
names = st.sampled_from(
    ["accept", "content-encoding", "content-length", "expect", "host", "origin", "range", "transfer-encoding", "x-path"]
)
values = st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=12)
headers = st.dictionaries(names, values, max_size=3)


async def _answer(client: httpx.AsyncClient, line: str, headers: dict[str, str], body: bytes) -> httpx.Response:
    method, path = line.split()
    pairs = headers.items()
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
    request = httpx.Request(method, f"http://service{path}", content=body)
    request.headers = httpx.Headers(raw, encoding="latin-1")
    return await client.send(request)


@pytest.mark.slow
def test_no_request_gets_a_500() -> None:
    app = service()
    loop = asyncio.new_event_loop()
    transport = httpx.ASGITransport(app)  # an exception that nobody caught would come through
    client = httpx.AsyncClient(transport=transport)
    lifespan = app.router.lifespan_context(app)
    loop.run_until_complete(lifespan.__aenter__())
    seen: set[int] = set()

    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(
        method=st.sampled_from(["POST"] * 8 + ["GET", "PUT", "HEAD", "PATCH"]),
        path=st.sampled_from(
            ["/score"] * 8 + ["/", "/healthz", "/metrics", "/score/", "/%2e%2e/etc/passwd", "/score?path=a"]
        ),
        kind=kinds,
        more=headers,
        body=bodies,
    )
    def answers(method: str, path: str, kind: str, more: dict[str, str], body: bytes) -> None:
        answer = loop.run_until_complete(_answer(client, f"{method} {path}", {"content-type": kind} | more, body))
        seen.add(answer.status_code)
        assert answer.status_code in {200, 404, 405, 413, 415, 422}, answer.text
        if method != "HEAD" and path.startswith("/score"):
            found = json.loads(answer.content, parse_constant=pytest.fail)
            assert answer.status_code == 200 or list(found) == ["detail"]

    try:
        answers()
        good = loop.run_until_complete(_answer(client, "POST /score", {"content-type": "image/png"}, IMAGES[0]))
        assert good.status_code == 200
        assert {200, 405, 415, 422} <= seen
    finally:
        loop.run_until_complete(lifespan.__aexit__(None, None, None))
        loop.run_until_complete(client.aclose())
        loop.close()
