"""The check that keeps code in data from running finds what it says it finds."""

import pytest

from tools.check_safe_source import findings_in
from tools.minimum_versions import minimum_versions

UNSAFE = {
    "torch.load(path)": "weights_only",
    "torch.load(path, weights_only=False)": "weights_only",
    "torch.load(path, weights_only=flag)": "weights_only",
    "np.load(path)": "allow_pickle",
    "np.load(path, allow_pickle=True)": "allow_pickle",
    "torch.jit.load(path)": "torch.jit.load",
    "from torch import load; load(path)": "weights_only",
    "from numpy import load as read; read(path, allow_pickle=True)": "allow_pickle",
    "import numpy as array; array.load(path)": "allow_pickle",
    "from torch import jit as compiled; compiled.load(path)": "torch.jit.load",
    "from os import system; system('ls')": "os.system",
    "asyncio.create_subprocess_exec('ls')": "create_subprocess_exec",
    "from asyncio import open_connection as dial; dial('a', 1)": "open_connection",
    "import multiprocessing": "multiprocessing",
    "from multiprocessing.pool import Pool": "multiprocessing",
    "eval('1')": "eval",
    "import subprocess": "subprocess",
    "def late():\n    from urllib.request import urlopen": "urllib.request",
    "from urllib import request": "urllib.request",
    "import socket": "socket",
    "AutoModel.from_pretrained(folder, trust_remote_code=True)": "trust_remote_code",
    "options = {'trust_remote_code': given}": "trust_remote_code",
    "import pickle  # noqa: S403": "silenced",
    "run(code)  # noqa: S102, E501  # a reason": "silenced",
}
SAFE = (
    "torch.load(path, map_location='cpu', weights_only=True)",
    "np.load(file, allow_pickle=False)",
    "model.eval()",
    "re.compile('a')",
    "torch.compile(model)",
    "from re import compile; compile('a')",
    "from torch import load; load(path, weights_only=True)",
    "import asyncio; asyncio.create_task(work())",
    "options = {'trust_remote_code': False}",
    "value._version  # noqa: SLF001  # torch has no other name for it",
    "from urllib.parse import quote",
)


@pytest.mark.parametrize("source", UNSAFE)
def test_what_is_unsafe_is_found(source: str) -> None:
    messages = [message for _, message in findings_in(source)]
    assert any(UNSAFE[source] in message for message in messages), messages


@pytest.mark.parametrize("source", SAFE)
def test_what_is_safe_is_left_alone(source: str) -> None:
    assert findings_in(source) == []


def test_only_the_service_listens() -> None:
    assert findings_in("import socket", may_listen=True) == []


PROJECT = {
    "project": {
        "dependencies": ["numpy>=1.26", "torch>=2.6"],
        "optional-dependencies": {"bench": ["Pillow>=10.3"], "all": ["opnp[bench]"], "test": ["pytest"]},
    },
}


def test_minimum_versions_are_the_lower_bounds_of_requirements_and_extras() -> None:
    assert minimum_versions(PROJECT) == {"numpy": "1.26", "torch": "2.6", "pillow": "10.3"}


@pytest.mark.parametrize(("entry", "message"), [("rich", "has no lower bound"), ("torch>=2.7", "two lower bounds")])
def test_a_missing_or_second_bound_is_an_error(entry: str, message: str) -> None:
    extras = {"optional-dependencies": {"more": [entry]}}
    with pytest.raises(ValueError, match=message):
        minimum_versions({"project": {**PROJECT["project"], **extras}})
