"""Files that somebody made on purpose: whole, with the right digest, and full of what must not be believed."""

import copy
import json
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from opnp.artifact import tensors_digest
from opnp.bench.origin import FeatureSource
from opnp.data.shards import ShardIndex
from opnp.errors import ArtifactError, DataFileError, MissingFileError, OpnpError
from opnp.values.bench import BenchRecord, DemoRecord
from opnp.values.fit import FitRecord
from opnp.values.pictures import PictureRecord
from opnp.values.reading import json_values
from opnp.values.sweep import SweepRecord
from tests.in_process import Opnp
from tests.reliability.files_world import KINDS, Kind, chance, kind
from tests.tried import Tried

ARTIFACTS = [each for each in KINDS if each.name.startswith(("detector files", "monitor states", "checkpoints"))]
TENSORS = [each for each in KINDS if each.is_safetensors]
JSON = [each for each in KINDS if each.file.endswith(".json")]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**62, 10**400, -0.5, 0.5, 1e308, float("nan"), float("inf"), "", "x", "auto"),
    *("\ud800", "a" * 100, [], [1], ["x"], [[]], {}, {"x": 1}, [[0.9, "x"]], [[float("nan"), 1.0]]),
]
Place = tuple[str | int, ...]


def parts(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Return tensors and body of an artifact, unchecked."""
    with safe_open(path, framework="pt") as file:
        body = json.loads(json.loads(file.metadata()["opnp"])["body"])
        return {name: file.get_tensor(name).clone() for name in sorted(file.keys())}, body


def forge(path: Path, tensors: dict[str, Tensor], body: object) -> None:
    """Write an artifact of any content, with the digest that belongs to it."""
    text, plain = json.dumps(body), {name: tensor.contiguous() for name, tensor in tensors.items()}
    header = json.dumps({"body": text, "sha256": tensors_digest(plain, text=text)})
    path.write_bytes(save(plain, metadata={"opnp": header}))


def places(values: object, at: Place = ()) -> Iterator[Place]:
    """Yield the place of every value in JSON, of lists the first two and the last."""
    yield at
    if isinstance(values, dict):
        for name, item in values.items():
            yield from places(item, (*at, name))
    elif isinstance(values, list):
        for number in sorted({0, 1, len(values) - 1} & set(range(len(values)))):
            yield from places(values[number], (*at, number))


def changed(values: object, at: Place, *new: object) -> object:
    """Return a copy with another value at a place, or with none."""
    if not at:
        return new[0] if new else None
    result: Any = copy.deepcopy(values)
    inner = result
    for step in at[:-1]:
        inner = inner[step]
    if new:
        inner[at[-1]] = new[0]
    else:
        del inner[at[-1]]
    return result


def other_tensors(tensor: Tensor) -> list[Tensor]:
    """Return what may stand in the place of a tensor, each of the wrong kind in one way."""
    plain = tensor.float()
    return [
        *(tensor.int(), tensor.bool(), tensor.half(), tensor.double(), tensor.bfloat16(), tensor.to(torch.complex64)),
        *(plain.to(torch.float8_e4m3fn), plain * float("nan"), plain + float("inf"), -plain, tensor[:0]),
        *(tensor.flatten()[:1], tensor.reshape(-1), tensor.reshape(*tensor.shape, 1), torch.tensor(3.0)),
        *(torch.zeros(2**40, 0), torch.zeros(2**62, 0), torch.zeros(0), tensor.flatten().repeat(2)),
        tensor + 2**40 if not tensor.is_floating_point() and tensor.dtype != torch.bool else tensor * 2,
    ]


def read_or_refused(each: Kind, path: Path) -> None:
    """Read a file; what opnp refuses is fine, any other error is not."""
    try:
        each.read(path)
    except OpnpError:
        return


@pytest.mark.parametrize("share", [0.02, pytest.param(1.0, marks=pytest.mark.long)])
@pytest.mark.parametrize("each", ARTIFACTS, ids=lambda each: each.name)
def test_metadata_of_any_kind_under_the_right_digest(
    own: Path, each: Kind, share: float, tried: Tried, opnp: Opnp
) -> None:
    path, draw = own / each.file, chance(each.name)
    tensors, body = parts(path)
    bodies = [changed(body, at, value) for at in places(body) for value in VALUES]
    bodies += [changed(body, at) for at in places(body)]
    chosen = [each for each in bodies if draw.random() < share]
    tried("files", f"{each.name} with wrong metadata under the right digest", len(chosen))
    for number, new in enumerate(chosen):
        forge(path, tensors, new)
        read_or_refused(each, path)
        if number % 4 == 0 and each.arguments is not None:
            assert opnp(*each.arguments(own)).code in (0, 2)


@pytest.mark.parametrize("share", [0.12, pytest.param(1.0, marks=pytest.mark.long)])
@pytest.mark.parametrize("each", ARTIFACTS, ids=lambda each: each.name)
def test_tensors_of_any_kind_under_the_right_digest(
    own: Path, each: Kind, share: float, tried: Tried, opnp: Opnp
) -> None:
    path, draw = own / each.file, chance(each.name)
    tensors, body = parts(path)
    cases = [{**tensors, name: other} for name in tensors for other in other_tensors(tensors[name])]
    cases += [{other: tensors[other] for other in tensors if other != name} for name in tensors]
    chosen = [case for case in cases if draw.random() < share]
    tried("files", f"{each.name} with a wrong tensor under the right digest", len(chosen))
    for case in chosen:
        forge(path, case, body)
        read_or_refused(each, path)
        assert each.arguments is not None
        assert opnp(*each.arguments(own)).code in (0, 2)


@pytest.mark.parametrize("most", [8, pytest.param(400, marks=pytest.mark.long)])
@pytest.mark.parametrize("each", JSON, ids=lambda each: each.name)
def test_json_with_a_wrong_value_anywhere(own: Path, each: Kind, most: int, tried: Tried) -> None:
    path, draw = own / each.file, chance(each.name)
    body = json.loads(path.read_text(encoding="utf-8"))
    spots = list(places(body))
    few = [spot for spot in spots if draw.random() < most / len(spots)]
    cases = [changed(body, at, value) for at in few for value in draw.permutation(len(VALUES))[:3].tolist()]
    cases = [changed(body, at, VALUES[int(draw.integers(len(VALUES)))]) for at in few] + [
        changed(body, at) for at in few
    ]
    tried("files", f"{each.name} with a wrong value, or without one", len(cases))
    for case in cases:
        path.write_text(json.dumps(case), encoding="utf-8")
        read_or_refused(each, path)


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[" * 300 + "]" * 300, "nested too deeply"),
        ('{"a": NaN}', "finite"),
        ('{"a": [-Infinity]}', "finite"),
        ('{"a": 1e999}', "finite"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "'c' twice"),
        ('["\\ud800"]', "surrogates not allowed"),
        ("1" * 5000, "digits"),
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
    ],
)
def test_json_that_must_not_be_read(text: str, reason: str, tried: Tried) -> None:
    tried("files", "texts of JSON that must not be read")
    with pytest.raises(ValueError, match=reason):
        json_values(text)


BOMBS = [
    *("[" * 100_000, '{"record_version": 1, "x": NaN}', '{"format": 1, "format": 1}', '{"a": 1' + "0" * 5000 + "}"),
    *("\0", "null", "[]", '"x"', "1"),
]


@pytest.mark.reliability
@pytest.mark.parametrize("each", JSON, ids=lambda each: each.name)
def test_bombs_in_the_place_of_json(own: Path, each: Kind, tried: Tried) -> None:
    contents = [*(text.encode() for text in BOMBS), b"\xff\xfe\x00", b"\x80" * 100]
    tried("files", f"{each.name} that are bombs, or no UTF-8", len(contents))
    path = own / each.file
    for content in contents:
        path.write_bytes(content)
        assert each.outcome(path, "") == "refused", content[:20]


@pytest.mark.reliability
@pytest.mark.parametrize("text", BOMBS, ids=range(len(BOMBS)))
def test_bombs_in_the_metadata_of_artifacts(own: Path, text: str, tried: Tried) -> None:
    path = own / "detector.safetensors"
    tensors, _ = parts(path)
    inner = json.dumps({"body": text, "sha256": tensors_digest(tensors, text=text)})
    odin = own / "odin.safetensors"
    tried("files", "bombs in the metadata of safetensors files", 3)
    for header in (text, inner):
        path.write_bytes(save(tensors, metadata={"opnp": header}))
        with pytest.raises(ArtifactError, match="metadata that cannot be read"):
            kind("detector files").read(path)
    odin.write_bytes(save({}, metadata={"odin": text}))
    assert kind("scores of ODIN").outcome(odin, "") == "refused"


def declared(dtype: str, shape: list[Any], end: int, *, length: int | None = None) -> bytes:
    """Return a safetensors file of a few bytes that declares this tensor under every name that is read."""
    names = ("features", "weight", "test", "calibration", "head.weight")
    facts = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, end]} for name in names[: 1 if end else 5]}
    header = json.dumps(facts | ({"weight": facts["features"]} if end == 4 else {})).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + b"\1\1\1\1"[:end]


CLAIMS = [
    *(declared("F32", shape, 0) for shape in ([2**62, 0], [2**63, 0], [2**64 - 1, 0], [2**40, 2**40], [2**62, 4])),
    *(declared("F32", shape, 2**40) for shape in ([2**38], [1, 2**38], [2**19, 2**19])),
    *(declared("F32", [0], 0, length=length) for length in (0, 1, 7, 2**20, 2**31, 2**62, 2**63, 2**64 - 1)),
    *(declared(dtype, [1, 1], 4) for dtype in ("F4", "F6_E2M3", "F8_E8M0", "C64", "F64", "XX", "U64", "BOOL")),
    *(declared("F32", shape, 4) for shape in ([-1], [1.5], ["1"], [], [1] * 70, [10**30])),
]


@pytest.mark.reliability
@pytest.mark.parametrize("each", TENSORS, ids=lambda each: each.name)
def test_claims_that_the_file_does_not_hold(own: Path, each: Kind, tried: Tried) -> None:
    tried("files", f"{each.name} of 200 bytes with huge or senseless claims", len(CLAIMS))
    path = own / each.file
    for content in CLAIMS:
        path.write_bytes(content)
        assert each.outcome(path, "") == "refused", content


@pytest.mark.reliability
@pytest.mark.parametrize("version", [0, 3, 99, 10**30, "1", None])
@pytest.mark.parametrize("each", [*ARTIFACTS, *JSON], ids=lambda each: each.name)
def test_another_version(own: Path, each: Kind, version: object, tried: Tried) -> None:
    tried("files", "files of another version")
    path = own / each.file
    if each.is_safetensors:
        tensors, body = parts(path)
        forge(path, tensors, body | {"format_version": version})
    else:
        body = json.loads(path.read_text(encoding="utf-8"))
        name = next(name for name in ("record_version", "version", "format") if isinstance(body.get(name), int))
        path.write_text(json.dumps(body | {name: version}), encoding="utf-8")
    assert each.outcome(path, "") == "refused"


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.reliability
@pytest.mark.parametrize("form", ["pickle", "torch", "old torch"])
@pytest.mark.parametrize("each", KINDS, ids=lambda each: each.name)
def test_nothing_in_a_file_is_run(own: Path, each: Kind, form: str, tried: Tried, opnp: Opnp) -> None:
    tried("files", "pickles with the name of another file")
    path, sprung = own / each.file, own / "sprung"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Trap(sprung)))
    else:
        torch.save({"features": Trap(sprung)}, path, _use_new_zipfile_serialization=form == "torch")
    assert each.outcome(path, "") == "refused"
    if each.arguments is not None and "report" not in each.arguments(own):
        assert opnp(*each.arguments(own)).code == 2
    assert not sprung.exists()


@pytest.mark.reliability
def test_a_record_may_not_name_files_outside_its_folder(own: Path, tried: Tried) -> None:
    """What is replaced is removed by the names that the record tells."""
    tried("files", "records that name files outside their folder", 4)
    path = own / "source.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    for name in ("../detector", "/etc/hosts", "ood_/../../x"):
        path.write_text(json.dumps(body | {"sets": {name: body["sets"]["train"]}}), encoding="utf-8")
        with pytest.raises(DataFileError, match=r"`sets` must be called"):
            FeatureSource.read(own)
    index = ShardIndex.read(own / "shards").to_json().replace("features-00000", "../features-00000")
    (own / "shards" / "index.json").write_text(index, encoding="utf-8")
    with pytest.raises(DataFileError, match="do not add up"):
        ShardIndex.read(own / "shards")


READERS: list[Callable[[str], object]] = [
    *(record.from_json for record in (BenchRecord, SweepRecord, PictureRecord, FitRecord, DemoRecord, ShardIndex)),
    lambda text: FeatureSource.from_content(text.encode("utf-8", "surrogatepass"), path=Path("source.json")),
]
NAMES = st.sampled_from(["record_version", "version", "format", "models", "rows", "x"])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@settings(derandomize=True, max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values=ANY_JSON, text=st.text(max_size=40))
def test_readers_of_records_raise_nothing_but_their_own_error(values: object, text: str) -> None:
    for reader in READERS:
        for content in (json.dumps(values), text):
            with pytest.raises(DataFileError):
                reader(content)


def test_a_missing_shard_is_named(own: Path) -> None:
    (own / "shards" / "features-00000.safetensors").unlink()
    with pytest.raises(MissingFileError, match="features-00000"):
        ShardIndex.read(own / "shards")
