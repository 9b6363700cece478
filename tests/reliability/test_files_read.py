"""Files that are damaged, or made on purpose to mislead: each is refused by name, or read as it was written."""

import copy
import json
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from opnp.artifact import tensors_digest
from opnp.bench.origin import FeatureSource
from opnp.data.shards import ShardIndex
from opnp.errors import ArtifactError, DataFileError, OpnpError
from opnp.report import write_figures, write_report
from tests.in_process import Opnp
from tests.reliability.files_world import KINDS, Kind, chance, flipped, kind
from tests.reliability.inputs_world import Trap
from tests.tried import Tried


def of(*kinds: Kind) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("each", kinds, ids=lambda each: each.name)


ARTIFACTS = [each for each in KINDS if each.name.startswith(("detector files", "monitor states", "checkpoints"))]
TENSORS = [each for each in KINDS if each.is_safetensors]
JSON = [each for each in KINDS if each.file.endswith(".json")]
RECORDS = [each for each in KINDS if each.name.startswith("records of")]
RUN = [each for each in KINDS if each.arguments is not None and each.file.endswith(("safetensors", "scored.parquet"))]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**62, 10**400, -0.5, 0.5, 1e308, float("nan"), float("inf"), "", "x", "auto"),
    *("\ud800", "a" * 100, [], [1], ["x"], [[]], {}, {"x": 1}, [[0.9, "x"]], [[float("nan"), 1.0]]),
]
Place = tuple[str | int, ...]
Damages = Callable[[Kind, bytes, int], Iterator[bytes]]


@of(*KINDS)
def test_the_whole_file_is_read_alike_twice(own: Path, each: Kind) -> None:
    """Without this the other tests of this module could not tell a change."""
    path = own / each.file
    assert each.outcome(path, each.read(path)) == "same"


def header_length(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def some(number: int, trials: int) -> list[int]:
    """Return at most so many places among `number`, the first and the last among them, evenly spread."""
    return sorted({*range(0, number, max(1, number // trials)), number - 1})


def cut_in_header(_: Kind, content: bytes, trials: int) -> Iterator[bytes]:
    return (content[:length] for length in some(header_length(content) + 1, trials))


def cut_anywhere(_: Kind, content: bytes, trials: int) -> Iterator[bytes]:
    return (content[:length] for length in some(len(content) - 1, trials))


def turned_in_header(_: Kind, content: bytes, trials: int) -> Iterator[bytes]:
    for place in (*range(8), *some(header_length(content), trials)):
        yield from (flipped(content, place, mask) for mask in (1 << (place % 8), 0xFF))


def turned_anywhere(each: Kind, content: bytes, trials: int) -> Iterator[bytes]:
    draw = chance(each.name)
    for _ in range(trials):
        damaged = content
        for _ in range(draw.integers(1, 5)):
            damaged = flipped(damaged, int(draw.integers(len(content))), int(draw.integers(1, 256)))
        yield damaged


DAMAGES: list[tuple[str, list[Kind], Damages, int]] = [
    ("cut short in their header", TENSORS, cut_in_header, 10**6),
    ("with a byte of the header turned over", TENSORS, turned_in_header, 10**6),
    ("with one to four bytes turned over", [*KINDS], turned_anywhere, 400),
    ("cut short anywhere", [*KINDS], cut_anywhere, 300),
]


@pytest.mark.parametrize(
    ("each", "damage", "damages", "trials"),
    [
        pytest.param(each, damage, damages, trials, id=f"{each.name} {damage}, {trials}", marks=marks)
        for damage, kinds, damages, most in DAMAGES
        for each in kinds
        for trials, marks in ((6, ()), (most, pytest.mark.long))
    ],
)
def test_damaged_files_are_refused_or_read_as_they_were(
    own: Path,
    *,
    each: Kind,
    damage: str,
    damages: Damages,
    trials: int,
    tried: Tried,
) -> None:
    """Some files have no seal, and another digit is another number; but what is read is then of the right form."""
    path = own / each.file
    content, expected = path.read_bytes(), each.read(path)
    cases = list(damages(each, content, trials))
    tried("files", f"{each.name} {damage}", len(cases))
    for damaged in cases:
        path.write_bytes(damaged)
        found, length = each.outcome(path, expected), len(damaged)
        if damages is cut_in_header:
            is_right = False
        elif damages is cut_anywhere:  # a table of lines may end after any of them, and without a last line feed
            is_right = b"\n" in content[length - 1 : length + 1] or length == len(content.rstrip())
        else:
            is_right = not each.is_sealed or damaged == content
        assert found == "refused" or is_right, (found, length)


@pytest.mark.parametrize("trials", [12, pytest.param(1500, marks=pytest.mark.long)])
@of(kind("score files in Parquet"), kind("scores of benchmarks"))
def test_no_score_in_parquet_changes_unseen(own: Path, each: Kind, trials: int, tried: Tried) -> None:
    """Pages have checksums; what says how they are to be read stands behind them."""
    from pyarrow import parquet

    path = own / each.file
    content, expected, draw = path.read_bytes(), each.read(path), chance(each.name)
    group = parquet.read_metadata(path).row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    column = next(column for column in columns if column.path_in_schema == "score")
    start, size = column.dictionary_page_offset or column.data_page_offset, column.total_compressed_size
    tried("files", f"{each.name} with a byte of their scores turned over", trials)
    for _ in range(trials):
        place = int(draw.integers(start, start + size))
        path.write_bytes(flipped(content, place, int(draw.integers(1, 256))))
        assert each.outcome(path, expected) != "other", place


@pytest.mark.parametrize("trials", [2, pytest.param(60, marks=pytest.mark.long)])
@of(*RUN)
def test_the_command_line_refuses_damage_with_one_message(
    own: Path, each: Kind, trials: int, tried: Tried, opnp: Opnp
) -> None:
    assert each.arguments is not None
    path, draw = own / each.file, chance(each.name)
    content = path.read_bytes()
    places = header_length(content) if each.is_safetensors else len(content)
    tried("files", f"runs of the command line on damaged {each.name}", 2 * trials)
    for number in range(trials):
        for damaged in (
            content[: int(draw.integers(len(content)))],
            flipped(content, number if number < 8 else int(draw.integers(places)), 1 << int(draw.integers(8))),
        ):
            path.write_bytes(damaged)
            found = opnp(*each.arguments(own))
            assert found.code in ((2,) if each.is_sealed or len(damaged) < len(content) else (0, 2)), found
            assert "Traceback" not in found.err
            assert found.code == 0 or (found.err.startswith("opnp: ") and path.read_bytes() == damaged), found.err
            path.write_bytes(content)


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


@pytest.mark.filterwarnings("ignore:A ratio cuts among:opnp.errors.RatioWarning")  # of sensitivities that are all zero
@pytest.mark.parametrize("share", [0.02, pytest.param(1.0, marks=pytest.mark.long)])
@pytest.mark.parametrize("is_of_tensors", [False, True], ids=["metadata", "tensors"])
@of(*ARTIFACTS)
def test_anything_under_the_right_digest(
    own: Path, each: Kind, *, is_of_tensors: bool, share: float, tried: Tried, opnp: Opnp
) -> None:
    path, draw = own / each.file, chance(each.name)
    tensors, body = parts(path)
    cases: list[tuple[dict[str, Tensor], object]]
    if is_of_tensors:
        cases = [({**tensors, name: other}, body) for name in tensors for other in other_tensors(tensors[name])]
        cases += [({other: tensors[other] for other in tensors if other != name}, body) for name in tensors]
        share = min(1.0, 4 * share)
    else:
        cases = [(tensors, changed(body, at, value)) for at in places(body) for value in VALUES]
        cases += [(tensors, changed(body, at)) for at in places(body)]
    chosen = [case for case in cases if draw.random() < share]
    what = "a wrong tensor" if is_of_tensors else "wrong metadata"
    tried("files", f"{each.name} with {what} under the right digest", len(chosen))
    assert each.arguments is not None
    for number, case in enumerate(chosen):
        forge(path, *case)
        read_or_refused(each, path)
        if is_of_tensors or number % 4 == 0:
            assert opnp(*each.arguments(own)).code in (0, 2)


@pytest.mark.parametrize("most", [8, pytest.param(400, marks=pytest.mark.long)])
@of(*JSON)
def test_json_with_a_wrong_value_anywhere(own: Path, each: Kind, most: int, tried: Tried) -> None:
    path, draw = own / each.file, chance(each.name)
    body = json.loads(path.read_text(encoding="utf-8"))
    spots = list(places(body))
    few = [spot for spot in spots if draw.random() < most / len(spots)]
    cases = [changed(body, at, VALUES[int(draw.integers(len(VALUES)))]) for at in few]
    cases += [changed(body, at) for at in few]
    tried("files", f"{each.name} with a wrong value, or without one", len(cases))
    for case in cases:
        path.write_text(json.dumps(case), encoding="utf-8")
        read_or_refused(each, path)


BOMBS = [
    *("[" * 100_000, '{"record_version": 1, "x": NaN}', '{"format": 1, "format": 1}', '{"a": 1' + "0" * 5000 + "}"),
    *("\0", "null", "[]", '"x"', "1"),
]


@pytest.mark.reliability
@of(*JSON)
def test_bombs_in_the_place_of_json(own: Path, each: Kind, tried: Tried) -> None:
    contents = [*(text.encode() for text in BOMBS), b"\xff\xfe\x00", b"\x80" * 100]
    tried("files", f"{each.name} that are bombs, or no UTF-8", len(contents))
    for content in contents:
        (own / each.file).write_bytes(content)
        assert each.outcome(own / each.file, "") == "refused", content[:20]


@pytest.mark.reliability
def test_bombs_in_the_metadata_of_artifacts(own: Path, tried: Tried) -> None:
    path, odin = own / "detector.safetensors", own / "odin.safetensors"
    tensors, _ = parts(path)
    tried("files", "bombs in the metadata of safetensors files", 3 * len(BOMBS))
    for text in BOMBS:
        for header in (text, json.dumps({"body": text, "sha256": tensors_digest(tensors, text=text)})):
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
@of(*TENSORS)
def test_claims_that_the_file_does_not_hold(own: Path, each: Kind, tried: Tried) -> None:
    tried("files", f"{each.name} of 200 bytes with huge or senseless claims", len(CLAIMS))
    for content in CLAIMS:
        (own / each.file).write_bytes(content)
        assert each.outcome(own / each.file, "") == "refused", content


@pytest.mark.reliability
@of(*ARTIFACTS, *JSON)
def test_another_version(own: Path, each: Kind, tried: Tried) -> None:
    path, versions = own / each.file, (0, 9, 99, 10**30, "1", None)
    tried("files", "files of another version", len(versions))
    tensors, body = parts(path) if each.is_safetensors else ({}, json.loads(path.read_text(encoding="utf-8")))
    for version in versions:
        if each.is_safetensors:
            forge(path, tensors, body | {"format_version": version})
        else:
            name = next(name for name in ("record_version", "version", "format") if isinstance(body.get(name), int))
            path.write_text(json.dumps(body | {name: version}), encoding="utf-8")
        assert each.outcome(path, "") == "refused"


@pytest.mark.reliability
@of(*KINDS)
def test_nothing_in_a_file_is_run(own: Path, each: Kind, tried: Tried, opnp: Opnp) -> None:
    forms = ("pickle", "torch", "old torch")
    tried("files", "pickles with the name of another file", len(forms))
    path, sprung = own / each.file, own / "sprung"
    for form in forms:
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


NUMBERS = [0, 1, -1, 0.5, 1e6, 1e-300, 1e149, -1e149, 2**62]
TEXTS = ["", "x", "test", "ood_x", "\0", "<script>alert(1)</script>", "a" * 3000, "\n", "%s", "$x_$", "\\frac{", "../x"]


def mutated(values: Any, seed: str) -> Any:
    """Return a copy with one value that is another of the same kind, or one list or mapping that is gone or doubled."""
    draw = chance(seed)
    spots = [at for at in places(values) if at]
    at = spots[int(draw.integers(len(spots)))]
    value = values
    for step in at:
        value = value[step]
    if isinstance(value, bool):
        return changed(values, at, not value)
    if isinstance(value, int | float):
        return changed(values, at, NUMBERS[int(draw.integers(len(NUMBERS)))])
    if isinstance(value, str):
        return changed(values, at, TEXTS[int(draw.integers(len(TEXTS)))])
    return changed(values, at, 2 * value) if isinstance(value, list) and draw.random() < 0.5 else changed(values, at)


@pytest.mark.parametrize("trials", [1, pytest.param(12, marks=pytest.mark.long)])
@of(*RECORDS)
def test_a_report_of_a_changed_record_is_drawn_or_refused(own: Path, each: Kind, trials: int, tried: Tried) -> None:
    tried("files", f"pages of {each.name} with a value changed, removed or doubled", trials)
    path = own / each.file
    values = json.loads(path.read_text(encoding="utf-8"))
    for number in range(trials):
        path.write_text(json.dumps(mutated(values, f"{each.name} {number}")), encoding="utf-8")
        try:
            page = write_report(path.parent, own / "page.html").read_text(encoding="utf-8")
            if trials > 1 and number % 3 == 0:
                write_figures(path.parent, own / "figures", formats=["svg"])
        except OpnpError:
            continue
        assert "<script>alert(1)</script>" not in page


@pytest.mark.reliability
def test_records_that_do_not_fit_together_are_named(own: Path, tried: Tried, opnp: Opnp) -> None:
    """The page of a picture whose bins have more edges than counts cannot be drawn."""
    tried("files", "records whose parts do not fit together", 2)
    path = own / "demo" / "pictures.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["models"][0]["weight_sensitivity"]["kept"].pop()
    values["models"][0]["neurons"]["ranks"] = []
    path.write_text(json.dumps(values), encoding="utf-8")
    found = opnp("report", own / "demo", "--out", own / "page.html")
    assert found.code == 2
    assert "demo holds records that do not fit together" in found.err
    assert not (own / "page.html").exists()


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("demo/results.json", ("methods", 0, "accuracy"), 1.5),
        ("bench/results.json", ("seed",), 2**63),
        ("fit/fit.json", ("calibration_scores", 0), "1.0"),
        ("swept/sweep.json", ("base", "scope"), "row"),
        ("demo/pictures.json", ("models", 0, "gallery", 0, "items", 0, "is_ood"), 1),
    ],
)
def test_a_wrong_value_is_named_by_its_place(own: Path, name: str, place: Place, value: object, tried: Tried) -> None:
    tried("files", "records with a value out of range or of another type")
    path = own / name
    values = changed(json.loads(path.read_text(encoding="utf-8")), place, value)
    path.write_text(json.dumps(values), encoding="utf-8")
    written = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    with pytest.raises(DataFileError) as caught:
        write_report(path.parent, own / "page.html")
    assert "whole number of more than 64 bits" in str(caught.value) or f"at `${written}`" in str(caught.value)
    assert path.name in str(caught.value)
