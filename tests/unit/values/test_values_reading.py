"""JSON from files is read strictly: nothing in it is taken twice, rounded to infinity or of another type."""

import json
from collections.abc import Mapping
from typing import ClassVar

import pytest

from opnp.errors import DataFileError
from opnp.values.reading import Record, Share, json_values


class Sample(Record, frozen=True):
    record_version: ClassVar[int] = 2
    subject: ClassVar[str] = "a sample"
    remedy: ClassVar[str] = ": take another"

    count: int
    share: Share | None = None
    settings: Mapping[str, object] = {}


@pytest.mark.parametrize(
    "text", ['{"a": {"b": 0}, "b": 1}', "[0.5, -1e150, 9223372036854775807]", '["\\ud83d\\ude00"]']
)
def test_what_is_json_is_read(text: str) -> None:
    assert json_values(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "it holds 'c' twice"),
        ('{"a": NaN}', "it holds NaN, and every number must be finite"),
        ("[-Infinity]", "it holds -Infinity"),
        ("[1e999]", "it holds 1e999"),
        ("[1e151]", "at most 1e.150"),
        ("[9223372036854775808]", "more than 64 bits"),
        ('["\\ud800"]', "surrogates not allowed"),
        ("[" * 300 + "]" * 300, "it is nested too deeply"),
        ("[" * 100_000, "it is nested too deeply"),
        ("{" + ", ".join(f'"{name}": 0' for name in (*range(100_000), 99_998)) + "}", "it holds '99998' twice"),
    ],
    ids=str,
)
def test_what_must_not_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        json_values(text)


def test_a_record_comes_back_and_equal_records_give_equal_text() -> None:
    record = Sample(3, share=0.30000000000000004, settings={"b": [1, None], "a": {"x": "y"}})
    assert Sample.from_json(record.to_json()) == record
    assert record.to_json() == Sample(3, 0.30000000000000004, {"a": {"x": "y"}, "b": [1, None]}).to_json()
    with pytest.raises(AttributeError, match="immutable"):
        record.count = 4  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_holds_no_number_that_is_none(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Sample(3, settings={"x": value}).to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"no record of a sample \(TypeError"),
        ("{}", r"no record of a sample \(KeyError: 'record_version'\)"),
        ('{"record_version": 1, "count": 3}', "has version 1, and this opnp reads version 2: take another"),
        ('{"record_version": 2}', "missing required field `count`"),
        ('{"record_version": 2, "count": 3, "more": 1}', "unknown field `more`"),
        ('{"record_version": 2, "count": true}', r"Expected `int`, got `bool` - at `\$\.count`"),
        ('{"record_version": 2, "count": 3, "share": 1.5}', r"Expected `float` <= 1\.0 - at `\$\.share`"),
        ('{"record_version": 2, "count": 3, "settings": {"a": 1, "a": 2}}', "it holds 'a' twice"),
    ],
)
def test_what_is_no_record_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        Sample.from_json(text)
