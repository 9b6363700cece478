"""Print the oldest versions that pyproject.toml allows, as constraints for pip: ``name==version``, one a line.

    python tools/minimum_versions.py > minimum.txt

Packages of the extras count like requirements; tools that only develop the project are left as they are.
"""

import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

# Not required by the project itself, but the oldest versions do not work with the newest of these.
PARTNERS = {"protobuf": "5.29.5"}  # torch 2.6 writes a bool into ONNX where later ones take integers alone

_OWN = {"all", "dev", "test"}
"""Extras that are made of extras, or are for developers."""

REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?\s*>=\s*(?P<version>[0-9.]+)")


def minimum_versions(project: Mapping[str, object]) -> dict[str, str]:
    """Return the lower bound of every requirement and every extra that is for users and names packages."""
    table = project["project"]
    if not isinstance(table, dict):
        raise TypeError("`project` of pyproject.toml must be a table.")
    extras = {name: entries for name, entries in table["optional-dependencies"].items() if name not in _OWN}
    found: dict[str, str] = {}
    for entry in [*table["dependencies"], *(entry for entries in extras.values() for entry in entries)]:
        match = REQUIREMENT.match(entry)
        if match is None:
            raise ValueError(f"{entry!r} has no lower bound: write `name>=version`.")
        name, version = match["name"].lower(), match["version"]
        if found.setdefault(name, version) != version:
            raise ValueError(f"{name} has two lower bounds, {found[name]} and {version}: they must agree.")
    return found


def main() -> int:
    """Print the constraints of the project that this file lies in."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    for name, version in sorted((minimum_versions(tomllib.loads(text)) | PARTNERS).items()):
        sys.stdout.write(f"{name}=={version}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
