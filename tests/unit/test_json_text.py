"""JSON from files: a name that comes twice is told, however many there are."""

import json
import time

import pytest

from opnp.files.json_text import json_values


def test_the_first_name_that_comes_again_is_told_in_time_that_grows_with_the_text_alone() -> None:
    names = [str(number) for number in range(100_000)]
    began = time.perf_counter()
    with pytest.raises(ValueError, match="it holds '99998' twice"):
        json_values("{" + ", ".join(f"{json.dumps(name)}: 0" for name in [*names, "99998", "3"]) + "}")
    assert time.perf_counter() - began < 10  # a search through all names for each takes minutes
    assert json_values('{"a": {"b": 0}, "b": 1}') == {"a": {"b": 0}, "b": 1}
