"""What the service answers: the library's verdicts, and a reason where there is none."""

import asyncio
import json
import re
import zlib
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from opnp import OPNP, Ratios
from opnp.adapters import transformers_model
from opnp.data.class_order import model_class_names
from opnp.data.images import image_formats
from opnp.data.tables import read_score_table
from opnp.errors import (
    DataFileError,
    HeadMismatchError,
    MissingFileError,
    ModelRunError,
    NotCalibratedError,
    OptionError,
)
from opnp.monitor import DriftMonitor
from opnp.serve.app import serve_app
from opnp.serve.engine import Engine
from opnp.serve.limits import Limits
from tests.unit.adapters.hub_folders import WORDS, write_bert
from tests.unit.bench.image_world import INPUTS, tiny_model
from tests.unit.serve.serve_world import (
    answered,
    fitted,
    image_bytes,
    in_service,
    inputs_of,
    pictures,
    service,
    verdict_json,
)

ALONE = Limits(max_batch=1)
PNG = {"content-type": "image/png"}


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG", "AVIF", "JPEG2000"])
def test_a_picture_gets_the_librarys_verdict_to_the_bit(form: str) -> None:
    if form not in image_formats():
        pytest.skip(f"this Pillow has no {form}")
    image = pictures(1, seed=3)[0]
    content = image_bytes(image, form)
    with Image.open(BytesIO(content)) as opened:
        wanted = verdict_json(*fitted(), inputs_of([opened.convert("RGB")]))
    kind = {"PPM": "image/x-portable-pixmap", "JPEG2000": "image/jp2"}.get(form, f"image/{form.lower()}")
    for content_type in (kind, "application/octet-stream", "image/png"):  # the bytes decide
        answer = answered(service(ALONE), "POST", "/score", content=content, headers={"content-type": content_type})
        assert (answer.status_code, answer.json()) == (200, wanted[0])


@pytest.mark.parametrize("is_fusion", [True, False], ids=["fusion", "paper"])
def test_arrays_get_the_librarys_verdicts_one_or_a_list(is_fusion: bool) -> None:
    inputs = inputs_of(pictures(5, seed=4))
    wanted = verdict_json(*fitted(is_fusion=is_fusion), inputs)
    alone = service(ALONE, is_fusion=is_fusion)
    assert answered(alone, "POST", "/score", json=inputs[0].tolist()).json() == wanted[0]
    assert answered(alone, "POST", "/score", json=inputs.tolist()).json() == wanted
    together = answered(service(is_fusion=is_fusion), "POST", "/score", json=inputs.tolist()).json()
    for one, other in zip(together, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_a_score_that_is_infinite_is_flagged_and_null() -> None:
    detector, _ = fitted()
    far = torch.full((1, 3, 8, 8), 1e25)
    assert detector.score(far).tolist() == [float("inf")]
    answer = answered(service(), "POST", "/score", json=far[0].tolist())
    assert answer.status_code == 200
    found = answer.json()
    assert (found["score"], found["is_ood"], found["p_value"]) == (None, True, 1 / 200)


def test_texts_are_answered(tmp_path: Path) -> None:
    found: Any = transformers_model(write_bert(tmp_path / "bert"))
    model, transform = found
    texts = [" ".join(WORDS[5 + (row * step) % 8] for step in range(1, 2 + row % 9)) for row in range(60)]
    batch = transform.batch([transform(text) for text in texts])
    detector = OPNP(ratios=Ratios(w_min=0.1)).fit(model, [batch]).calibrate([batch])
    app = serve_app(detector, model, transform, limits=ALONE)

    async def ask(client: httpx.AsyncClient) -> None:
        for text in texts[:3]:
            verdict = detector.verdict(transform.batch([transform(text)]))
            answer = (await client.post("/score", json={"text": text})).json()
            assert answer["score"] == float(verdict.score)
            assert answer["p_value"] == float(verdict.p_value)
        several = (await client.post("/score", json=texts[:9])).json()
        assert [answer["score"] for answer in several] == [
            float(detector.score(transform.batch([transform(text)]))) for text in texts[:9]
        ]
        for refused in (
            {"text": ""},
            {"text": 3},
            {"text": "a", "path": "/etc/passwd"},
            [],
            3,
            [3],
            {"text": "\ud800"},
        ):
            answer = await client.post(
                "/score", content=json.dumps(refused), headers={"content-type": "application/json"}
            )
            assert answer.status_code == 422, refused
        assert (await client.post("/score", content=b"x", headers=PNG)).status_code == 415

    in_service(app, ask)


def test_answers_explain_themselves_where_asked() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Linear(12, 4))
    inputs = torch.rand(400, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    detector = OPNP().fit(model, [inputs[:300]]).calibrate([inputs[300:]])
    app = serve_app(detector, model, INPUTS, is_explained=True, limits=ALONE)
    pictures = inputs[:3].tolist()

    async def ask(client: httpx.AsyncClient) -> None:
        answers = (await client.post("/score", json=pictures)).json()
        for row, answer in enumerate(answers):
            why = detector.explain(inputs[row : row + 1])
            assert list(answer["members"]) == list(why.members)
            for place, name in enumerate(why.members):
                assert answer["members"][name]["p_value"] == pytest.approx(float(why.p_value[0, place]))
                assert answer["members"][name]["share"] == pytest.approx(float(why.share[0, place]), abs=1e-5)

    in_service(app, ask)


ROW = [[0.5] * 8] * 8


@pytest.mark.parametrize(
    ("body", "kind", "status", "reason"),
    [
        (b"", "image/png", 422, "the body is empty"),
        (b"no picture", "image/png", 422, "no image, or none of .*BMP, GIF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/png", 422, "no image, or none of"),
        (image_bytes(pictures(1, seed=0)[0])[:90], "image/png", 422, "truncated|broken|incomplete"),
        (image_bytes(Image.new("I;16", (8, 8))), "image/png", 422, "more than 8 bits a channel"),
        (image_bytes(Image.new("L", (1, 400))), "image/png", 422, "1 x 400 pixels"),
        (image_bytes(Image.new("1", (1001, 1000))), "image/png", 422, "1001 x 1000 pixels, and 1000000 are the limit"),
        (b"[1, 2", "application/json", 422, "no JSON"),
        (b"\xff\xfe\xff", "application/json", 422, "no JSON"),
        (b"[" * 100_000, "application/json", 422, "nested too deeply"),
        (b"{}", "application/json", 422, "an array of 3 x 8 x 8 numbers is needed, got an object"),
        (b'"file:///etc/passwd"', "application/json", 422, "got a text"),
        (b"[]", "application/json", 422, "3 entries are needed|1 to 64 inputs"),
        (b"[[[]]]", "application/json", 422, "3 entries are needed, got 1"),
        (json.dumps([ROW, ROW]).encode(), "application/json", 422, "3 entries are needed, got 2"),
        (json.dumps([ROW, ROW, [[0.5] * 8] * 7]).encode(), "application/json", 422, r"at \[2\], got 7"),
        (json.dumps([ROW, ROW, [[0.5] * 7 + [True]] * 8]).encode(), "application/json", 422, r"\[2\]\[0\], got true"),
        (json.dumps([ROW, ROW, [[0.5] * 7 + ["1"]] * 8]).encode(), "application/json", 422, "got a text"),
        (json.dumps([ROW, ROW, [[0.5] * 7 + [None]] * 8]).encode(), "application/json", 422, "got null"),
        (json.dumps([ROW, ROW, [[float("nan")] * 8] * 8]).encode(), "application/json", 422, "NaN is no finite number"),
        (json.dumps([ROW, ROW, [[-float("inf")] * 8] * 8]).encode(), "application/json", 422, "-Infinity is no"),
        (json.dumps([ROW, ROW, [[1e39] * 8] * 8]).encode(), "application/json", 422, "too large for float32"),
        (json.dumps([ROW, ROW, [[10**400] * 8] * 8]).encode(), "application/json", 422, "too large for float32"),
        (json.dumps([ROW, ROW, [[3e38] * 8] * 8]).encode(), "application/json", 422, "not finite"),
        (json.dumps([[ROW] * 3] * 65).encode(), "application/json", 422, "1 to 64 inputs a request, got 65"),
        (b"x", "text/plain", 415, "the content type 'text/plain' is not read: send the bytes of a picture"),
        (b"x", "multipart/form-data; boundary=a", 415, "multipart/form-data"),
        (b"x" * 200_001, "image/png", 413, "more than 200000 bytes"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(body: bytes, kind: str, status: int, reason: str) -> None:
    app = service(Limits(max_bytes=200_000, max_pixels=1_000_000))
    answer = answered(app, "POST", "/score", content=body, headers={"content-type": kind})
    assert answer.status_code == status
    assert list(answer.json()) == ["detail"]
    assert re.search(reason, answer.json()["detail"])


@pytest.mark.filterwarnings("ignore:Image size .* exceeds limit")  # Pillow's own bound, which is lower
def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    header = bytearray(image_bytes(Image.new("1", (1, 1))))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    answer = answered(service(), "POST", "/score", content=bytes(header), headers=PNG)
    assert answer.status_code == 422
    assert re.search("exceeds limit|60000 x 60000 pixels", answer.json()["detail"])


def test_a_body_in_parts_that_is_too_large_and_a_compressed_one_are_refused() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"x"
        yield b"x" * 150
        await asyncio.sleep(30)

    large = answered(service(Limits(max_bytes=150)), "POST", "/score", content=parts(), headers=PNG)
    assert (large.status_code, large.json()["detail"]) == (413, "the body has more than 150 bytes")
    packed = answered(service(), "POST", "/score", content=b"x", headers=PNG | {"content-encoding": "gzip"})
    assert packed.status_code == 415


def test_other_paths_and_methods_and_the_headers_of_all() -> None:
    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        asked = [
            ("GET", "/nothing"),
            ("GET", "/score"),
            ("POST", "/"),
            ("GET", "/"),
            ("GET", "/healthz"),
            ("GET", "/docs"),
        ]
        return [await client.request(method, path) for method, path in asked]

    answers = in_service(service(), ask)
    assert [answer.status_code for answer in answers] == [404, 405, 405, 200, 200, 404]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        if answer.status_code >= 400:
            assert list(answer.json()) == ["detail"]
    assert answers[4].json() == {"status": "ready"}
    assert "unsafe" not in answers[3].headers["content-security-policy"]
    assert "http" not in re.sub(r"\bhttps?://www\.w3\.org\S*", "", answers[3].text)


def test_head_is_answered_as_get() -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        for path in ("/", "/healthz", "/metrics", "/openapi.json"):
            got, head = await client.get(path), await client.head(path)
            assert head.status_code == got.status_code
            if path != "/metrics":  # it counts this request, and so has another length
                assert head.headers == got.headers
        refused = await client.head("/score")
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")

    in_service(service(), ask)


def test_the_metrics_count_requests_verdicts_and_p_values() -> None:
    inputs = inputs_of(pictures(60, seed=6))
    wanted = verdict_json(*fitted(), inputs)

    async def ask(client: httpx.AsyncClient) -> str:
        await client.post("/score", json=inputs.tolist())
        await client.post("/score", content=b"", headers=PNG)
        await client.get("/a/path/that/nobody/knows")
        return (await client.get("/metrics")).text

    found = dict(line.rsplit(" ", 1) for line in in_service(service(ALONE), ask).splitlines() if line[0] != "#")
    assert found['opnp_requests_total{path="/score",status="200"}'] == "1.0"
    assert found['opnp_requests_total{path="/score",status="422"}'] == "1.0"
    assert found['opnp_requests_total{path="other",status="404"}'] == "1.0"
    assert found['opnp_request_seconds_count{path="/score"}'] == "2.0"
    assert float(found["opnp_inputs_total"]) == 60
    assert float(found["opnp_flagged_total"]) == sum(answer["is_ood"] for answer in wanted)
    for tenth in range(1, 11):
        below = sum(answer["p_value"] <= tenth / 10 for answer in wanted)
        assert float(found[f'opnp_p_value_bucket{{le="{tenth / 10}"}}']) == below


class Moody(nn.Module):
    """A model that fails on bright inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_model()

    def forward(self, inputs: Tensor) -> Any:
        if bool((inputs > 100).any()):
            message = "secret of the model"
            raise KeyError(message)
        if bool((inputs < -100).any()):
            raise SystemExit(3)
        return self.inner(inputs)


def test_an_input_that_the_model_fails_on_fails_alone_and_nothing_inside_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    detector, _ = fitted()
    inputs = inputs_of(pictures(8, seed=2))
    wanted = verdict_json(*fitted(), inputs)
    bad = torch.full((3, 8, 8), 101.0)

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        bodies = [*inputs[:4], bad, *inputs[4:], -bad]
        return await asyncio.gather(*(client.post("/score", json=body.tolist()) for body in bodies))

    answers = in_service(serve_app(detector, Moody(), INPUTS), ask)
    assert [answer.status_code for answer in answers] == [200] * 4 + [500] + [200] * 4 + [500]
    assert answers[4].json() == {"detail": "the service failed on this request; its log says why"}
    assert "secret of the model" in caplog.text
    for answer, other in zip(answers[:4] + answers[5:9], wanted, strict=True):
        assert answer.json() == pytest.approx(other, rel=1e-5)


def test_one_input_that_the_model_fails_on_costs_others_little() -> None:
    """A batch of 32 is halved down to the one that fails: 11 runs and not 33, or one sender would slow all."""
    runs = list[int]()

    class Counting(Moody):
        def forward(self, inputs: Tensor) -> Any:
            runs.append(len(inputs))
            return super().forward(inputs)

    detector, _ = fitted()
    inputs = inputs_of(pictures(31, seed=2))
    engine = Engine.opened(detector, Counting(), INPUTS)
    answers = engine.answers([*inputs[:20], torch.full((3, 8, 8), 101.0), *inputs[20:]])
    assert [isinstance(answer, Exception) for answer in answers] == [place == 20 for place in range(32)]
    assert sorted(runs, reverse=True) == [32, 16, 16, 8, 8, 4, 4, 2, 2, 1, 1]


def test_more_requests_than_there_are_places_are_told_to_come_back() -> None:
    inputs = inputs_of(pictures(1, seed=2))[0].tolist()

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post("/score", json=inputs) for _ in range(6)))

    answers = in_service(service(Limits(max_requests=2)), ask)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503, 503, 503]
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 503)


def test_what_does_not_fit_together_is_refused_at_the_start() -> None:
    detector, model = fitted()
    with pytest.raises(NotCalibratedError, match="no verdict to serve"):
        serve_app(detector.with_ratios(Ratios()), model, INPUTS)
    with pytest.raises(HeadMismatchError, match="other weights"):
        serve_app(detector, tiny_model(seed=1), INPUTS)
    with pytest.raises(OptionError, match="`class_names` must be 4"):
        serve_app(detector, model, INPUTS, class_names=["one"])
    with pytest.raises(ModelRunError, match="failed on a first image: RuntimeError"):
        serve_app(detector, nn.Sequential(nn.Flatten(), nn.Linear(7, 3), *model.children()), INPUTS)
    with pytest.raises(OptionError, match="`max_batch` must be finite and at least 1, got 0"):
        Limits(max_batch=0)


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        ({"config": SimpleNamespace(id2label={1: "dog", 0: "cat"})}, ("cat", "dog")),
        ({"config": SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})}, None),
        ({"config": SimpleNamespace(id2label={0: "cat"})}, None),
        ({"pretrained_cfg": {"label_names": ["cat", "dog"]}}, ("cat", "dog")),
        ({"pretrained_cfg": {"label_names": ["cat", "dog", "cow"]}}, None),
        ({"pretrained_cfg": {"label_names": None}, "config": SimpleNamespace()}, None),
        ({}, None),
    ],
)
def test_names_of_classes_are_those_that_the_model_brings(facts: dict[str, Any], names: tuple[str, ...] | None) -> None:
    model = nn.Linear(3, 2)
    for name, value in facts.items():
        setattr(model, name, value)
    assert model_class_names(model, 2) == names


def test_names_of_a_model_are_answered_unless_others_are_given() -> None:
    detector, _ = fitted()
    model = tiny_model()
    setattr(model, "config", SimpleNamespace(id2label=dict(enumerate("abcd"))))  # noqa: B010  # a module takes any
    inputs = inputs_of(pictures(1, seed=4))[0].tolist()
    for given, names in ((None, "abcd"), (["e", "f", "g", "h"], "efgh")):
        app = serve_app(detector, model, INPUTS, class_names=given)
        answer = answered(app, "POST", "/score", json=inputs).json()
        assert answer["class_name"] == names[answer["class"]]


def test_the_log_of_scores_is_what_the_monitor_reads(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    inputs = inputs_of(pictures(30, seed=6))
    found = []
    for part in inputs.split(15):  # a service that is started again goes on
        app = service(ALONE, log_scores=path)
        found += answered(app, "POST", "/score", json=part.tolist()).json()
        answered(app, "POST", "/score", content=b"", headers=PNG)
    table = read_score_table(path)
    assert table.p_values is not None
    assert table.is_ood is not None
    assert table.scores.tolist() == [answer["score"] for answer in found]
    assert table.p_values.tolist() == [answer["p_value"] for answer in found]
    assert table.is_ood.tolist() == [answer["is_ood"] for answer in found]
    assert table.calibration_samples is not None
    assert set(table.calibration_samples.tolist()) == {len(fitted()[0].calibration_scores)}
    assert table.calibration_groups is None
    monitor = DriftMonitor(fitted()[0].calibration_scores)
    assert monitor.update(table.scores).shape == (30,)


def test_verdicts_by_class_name_the_group_that_judged_them(tmp_path: Path) -> None:
    detector, model = fitted()
    grouped = OPNP.from_settings(detector.settings)
    grouped._state = detector._fitted()
    grouped.attach(model).calibrate([inputs_of(pictures(100, seed=1))], by="predicted")
    app = serve_app(grouped, model, INPUTS, log_scores=tmp_path / "scores.csv")
    inputs = inputs_of(pictures(30, seed=6))
    found = answered(app, "POST", "/score", json=inputs.tolist()).json()
    judging = [grouped.calibration_group_of(answer["class"]) for answer in found]
    assert [answer["calibration_group"] for answer in found] == [group.name for group in judging]
    assert [answer["p_value"] for answer in found] == grouped.p_value(inputs).tolist()
    table = read_score_table(tmp_path / "scores.csv")
    assert table.calibration_groups == tuple(group.name for group in judging)


def test_a_log_of_scores_that_is_renamed_is_begun_anew_and_one_that_cannot_be_written_costs_no_verdict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, inputs = tmp_path / "scores.csv", inputs_of(pictures(1, seed=6)).tolist()

    async def ask(client: httpx.AsyncClient) -> list[int]:
        statuses = [(await client.post("/score", json=inputs)).status_code]
        path.rename(tmp_path / "monday.csv")
        statuses.append((await client.post("/score", json=inputs)).status_code)
        path.unlink()
        path.mkdir()
        return [*statuses, (await client.post("/score", json=inputs)).status_code]

    app = service(log_scores=path)
    assert not path.exists()
    assert in_service(app, ask) == [200, 200, 200]
    assert len(read_score_table(tmp_path / "monday.csv").scores) == 1
    assert "verdicts were not added to the file of scores" in caplog.text


def test_a_log_of_scores_that_is_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("name,score\na,1\n", encoding="utf-8")
    for name, error, message in (
        ("other.csv", OptionError, "no log of scores that can be appended to"),
        ("scores.parquet", DataFileError, r"must end in \.csv"),
        ("none/scores.csv", MissingFileError, "is no folder"),
    ):
        with pytest.raises(error, match=message):
            service(log_scores=tmp_path / name)
    assert (tmp_path / "other.csv").read_text(encoding="utf-8") == "name,score\na,1\n"


def test_senders_that_stall_keep_nobody_from_an_answer() -> None:
    """There are 4 places, and 40 stall: every good request is answered, and at once."""
    images = pictures(6, seed=2)
    wanted = verdict_json(*fitted(), inputs_of(images))
    gate = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield b"x"
        await gate.wait()

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        stalled = [asyncio.create_task(client.post("/score", content=stalling(), headers=PNG)) for _ in range(40)]
        await asyncio.sleep(0.05)
        answers = [await client.post("/score", content=image_bytes(image), headers=PNG) for image in images]
        assert not any(task.done() for task in stalled)
        gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*stalled)} <= {422, 503}
        return answers

    answers = in_service(service(Limits(max_requests=4)), ask)
    for answer, other in zip(answers, wanted, strict=True):
        assert answer.status_code == 200
        assert answer.json() == pytest.approx(other, rel=1e-5)
