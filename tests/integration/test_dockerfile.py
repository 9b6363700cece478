"""The Dockerfile, which no test can build, says nothing that the package, its extras or its service contradict."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from opnp.cli.app import named_command
from opnp.serve import routes

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
KNOWN = {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def instructions(text: str) -> list[tuple[str, str]]:
    """Return name and arguments of each instruction."""
    whole = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    pairs = (line.strip().partition(" ") for line in whole.splitlines() if line.strip())
    return [(name, " ".join(arguments.split())) for name, _, arguments in pairs]


def by_name(text: str) -> dict[str, list[str]]:
    """Return the arguments of the instructions by name."""
    found = instructions(text)
    return {name: [each for kind, each in found if kind == name] for name in {*KNOWN, *(kind for kind, _ in found)}}


def image_problems(text: str) -> list[str]:
    """Return what is wrong with what the image is made of."""
    given = by_name(text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wrong = [f"unknown instruction {name}" for name in given if name not in KNOWN]
    base = re.fullmatch(r"python:(3\.\d+)-slim", given["FROM"][0])
    if len(given["FROM"]) != 1 or base is None or base[1] not in SpecifierSet(project["requires-python"]):
        wrong.append(f"not a slim image of one version of Python that the package allows: {given['FROM']}")
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    copied = {source for line in given["COPY"] for source in shlex.split(line)[:-1]}
    there = {source for source in copied if (ROOT / source).exists() and source in sent}
    wrong += [f"{source} is not there, or not sent to Docker" for source in copied - there]
    needed = {"pyproject.toml", "src", project["readme"], *project["license-files"]}
    wrong += [f"{source} is not copied" for source in needed - copied]
    torch, package = ([line for line in given["RUN"] if "pip install" in line] + ["", ""])[:2]
    if "/whl/cpu" not in torch or ".[${EXTRAS}]" not in package:
        wrong.append("torch must come first, from the index of CPU wheels, and the package after it")
    declared = [*project["dependencies"], *project["optional-dependencies"]["vision"]]
    bounds = re.findall(r'"([^"]+)"', torch)
    wrong += [f"{bound} is not what pyproject.toml asks for" for bound in bounds if bound not in declared]
    extras = dict(line.split("=") for line in given["ARG"]).get("EXTRAS", "").split(",")
    wrong += [f"no extra {extra!r}" for extra in extras if extra not in project["optional-dependencies"]]
    return wrong if "serve" in extras else [*wrong, "the extra `serve` is missing"]


def service_problems(text: str) -> list[str]:
    """Return what is wrong with what the container runs."""
    given, order = by_name(text), [kind for kind, _ in instructions(text)]
    wrong = []
    if "USER" not in order or given["USER"][-1] == "root" or order.index("USER") > order.index("ENTRYPOINT"):
        wrong.append("the service must not run as root")
    arguments = json.loads(given["ENTRYPOINT"][0]) + json.loads(given["CMD"][0])
    if arguments[:2] != ["opnp", "serve"]:
        return [*wrong, "it must start `opnp serve`"]
    try:
        options = named_command("serve").make_context("serve", arguments[2:]).params
    except Exception as error:  # noqa: BLE001  # of click, or of the click in typer
        return [*wrong, f"the command is refused: {error}"]
    if [str(options["port"])] != given["EXPOSE"] or options["host"] != "0.0.0.0":  # noqa: S104  # inside the container
        wrong.append("the port that it listens at is not the one that is exposed")
    check = json.loads(given["HEALTHCHECK"][0].partition("CMD ")[2])
    compile(check[-1], "HEALTHCHECK", "exec")
    return wrong if f":{options['port']}/healthz" in check[-1] else [*wrong, "the check asks another address"]


def problems(text: str) -> list[str]:
    """Return what is wrong with a Dockerfile of this package."""
    return image_problems(text) + service_problems(text)


def test_nothing_is_wrong_with_it() -> None:
    assert problems(TEXT) == []
    assert '"/healthz"' in Path(routes.__file__).read_text(encoding="utf-8"), "what HEALTHCHECK asks"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("FROM python:3.12-slim", "FROM python:latest", "slim image of one version"),
        ("python:3.12", "python:3.10", "slim image of one version"),
        ("COPY src ./src", "COPY source ./src", "source is not there"),
        ("pyproject.toml README.md LICENSE ./", "pyproject.toml ./", "LICENSE is not copied"),
        ("torch>=2.6", "torch>=2.0", "torch>=2.0 is not what"),
        ("/whl/cpu", "/whl/cu128", "index of CPU wheels"),
        ("EXTRAS=serve,vision", "EXTRAS=serve,pictures", "no extra 'pictures'"),
        ("EXTRAS=serve,vision", "EXTRAS=vision", "`serve` is missing"),
        ("USER opnp\n", "", "not run as root"),
        ('"--port", "8000"', '"--port", "9000"', "not the one that is exposed"),
        ('"--port", "8000"', '"--gate", "8000"', "the command is refused"),
        ("8000/healthz", "8000/health", "another address"),
        ("EXPOSE 8000", "OPEN 8000", "unknown instruction OPEN"),
        ('["opnp", "serve"]', '["opnp", "score"]', "must start `opnp serve`"),
    ],
)
def test_what_would_be_wrong_is_seen(old: str, new: str, message: str) -> None:
    assert old in TEXT
    assert any(message in each for each in problems(TEXT.replace(old, new))), problems(TEXT.replace(old, new))
