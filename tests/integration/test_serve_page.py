"""The page of the service in a real browser: a picture is dropped, the verdict is read."""

import base64
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from opnp import OPNP, Ratios
from opnp.adapters import transformers_model
from opnp.serve.app import listening_socket, serve_app
from tests.unit.adapters.hub_folders import WORDS, write_bert
from tests.unit.serve.serve_world import fitted, image_bytes, inputs_of, pictures, service, verdict_json

pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("axe_core_python", reason="needs axe-core-python")


DROP = """([name, type, content]) => {
  const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type }));
  const options = { dataTransfer: data, bubbles: true, cancelable: true };
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", options));
}"""


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Yield the address of an application that is answered for by a thread of this process."""
    from uvicorn import Config, Server

    with listening_socket("127.0.0.1", 0) as listening:
        server = Server(Config(app, lifespan="on", log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        port = listening.getsockname()[1]
        thread.start()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=60):
                yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(60)


@contextmanager
def opened(browser: Any, address: str, *, noted: Sequence[str] = (), **options: Any) -> Iterator[Any]:
    """Yield the page in a new window; messages other than `noted` and requests to other hosts fail the test."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((address, "blob:", "data:")) else errors.append(f"asked {request.url}")
        ),
    )
    page.goto(address)
    yield page
    context.close()
    assert errors == list(noted)


def drop(page: Any, name: str, content: bytes, *, kind: str = "image/png") -> None:
    page.evaluate(DROP, [name, kind, base64.b64encode(content).decode()])


def require_accessible(page: Any) -> None:
    """Fail if axe finds a serious violation."""
    page.evaluate(files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("() => axe.run()")["violations"]
    assert [item["id"] for item in found if item["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_dropped_picture_gets_the_librarys_verdict(browser: Any, scheme: str, tmp_path: Path) -> None:
    detector, model = fitted()
    images = pictures(40, seed=9)
    flags = [answer["is_ood"] for answer in verdict_json(detector, model, inputs_of(images))]
    shown = images[flags.index(False)], images[flags.index(True)]
    app = service(class_names=["red <b>", "green", "blue", "yellow"])
    with running(app) as address, opened(browser, address, color_scheme=scheme) as page:
        require_accessible(page)
        for image, title in zip(shown, ("Not flagged: familiar", "Flagged: unfamiliar"), strict=True):
            (wanted,) = verdict_json(detector, model, inputs_of([image]))
            drop(page, "some.png", image_bytes(image))
            page.get_by_role("heading", name=title).wait_for()
            name = ["red <b>", "green", "blue", "yellow"][wanted["class"]]
            assert page.inner_text("#class") == f"{name} ({wanted['class']})"
            assert float(page.inner_text("#p-value")) == pytest.approx(wanted["p_value"], rel=1e-3)
            assert float(page.inner_text("#score")) == pytest.approx(wanted["score"], rel=1e-3)
            assert float(page.inner_text("#confidence").removesuffix(" %")) == pytest.approx(
                100 * wanted["confidence"], rel=1e-2
            )
            assert name in page.inner_text("#sentence")
            page.wait_for_selector("#preview", state="visible")
            require_accessible(page)
            page.screenshot(path=tmp_path / f"{scheme}-{title.split(':')[0]}.png", full_page=True)


def test_a_refusal_is_told_with_its_reason(browser: Any) -> None:
    noted = ["Failed to load resource: the server responded with a status of 422 (Unprocessable Entity)"]
    with running(service()) as address, opened(browser, address, noted=noted) as page:
        drop(page, "bad.png", b"no picture")
        page.get_by_role("heading", name="No verdict").wait_for()
        assert "no image" in page.inner_text("#sentence")
        assert not page.is_visible("#values")
        assert not page.is_visible("#preview")
        require_accessible(page)


def test_the_page_works_behind_a_prefix(browser: Any) -> None:
    outer = FastAPI()
    outer.mount("/models/tiny", service())

    @asynccontextmanager
    async def running_inside(_app: FastAPI) -> AsyncIterator[None]:
        async with outer.routes[-1].app.router.lifespan_context(outer):  # type: ignore[attr-defined]  # that of a mount
            yield

    outer.router.lifespan_context = running_inside
    with running(outer) as address, opened(browser, f"{address}/models/tiny/") as page:
        drop(page, "some.png", image_bytes(pictures(1, seed=9)[0]))
        page.get_by_role("heading", name="lagged").wait_for()


def test_the_page_is_used_by_keyboard_and_fits_a_phone(browser: Any, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(image_bytes(pictures(1, seed=9)[0]))
    with running(service()) as address, opened(browser, address, viewport={"width": 400, "height": 800}) as page:
        page.on("filechooser", lambda chooser: chooser.set_files(picture))  # before a key is pressed: it takes a while
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "file"
        page.keyboard.press("Space")
        page.get_by_role("heading", name="lagged").wait_for()
        assert page.evaluate("document.activeElement.id") == "verdict"
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
        page.keyboard.press("Enter")
        assert "at most 5 % of the familiar ones" in page.inner_text("details")
        page.screenshot(path=tmp_path / "phone.png", full_page=True)


def test_a_text_is_asked_about_in_a_box(browser: Any, tmp_path: Path) -> None:
    found: Any = transformers_model(write_bert(tmp_path / "bert"))
    model, transform = found
    texts = [" ".join(WORDS[5 + (row * step) % 8] for step in range(1, 6)) for row in range(60)]
    batch = transform.batch([transform(text) for text in texts])
    detector = OPNP(ratios=Ratios(w_min=0.1)).fit(model, [batch]).calibrate([batch])
    app = serve_app(detector, model, transform)
    with running(app) as address, opened(browser, address) as page:
        page.get_by_label("Text").fill("this film is very good")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="lagged").wait_for()
        wanted = detector.verdict(transform.batch([transform("this film is very good")]))
        assert float(page.inner_text("#p-value")) == pytest.approx(float(wanted.p_value), rel=1e-3)
        assert not page.is_visible("#drop")
        require_accessible(page)
        page.screenshot(path=tmp_path / "text.png", full_page=True)
