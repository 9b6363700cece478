"""Print the oldest versions that pyproject.toml allows, as constraints for pip: ``name==version``, one a line.

    python tools/minimum_versions.py > minimum.txt

Packages of the extras count like requirements; tools that only develop the project are left as they are.
"""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

# Not required by the project itself, but the oldest versions do not work with the newest of these.
PARTNERS = {"protobuf": "5.29.5"}  # torch 2.6 writes a bool into ONNX where later ones take integers alone
OWN = {"all", "dev", "test"}  # extras that are made of extras, or are for developers
REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?\s*>=\s*(?P<version>[0-9.]+)")


def minimum_versions(project: dict[str, Any]) -> dict[str, str]:
    """Return the lower bound of every requirement and every extra that is for users and names packages."""
    extras = [entries for name, entries in project["optional-dependencies"].items() if name not in OWN]
    found: dict[str, str] = {}
    for entry in sum(extras, project["dependencies"]):
        match = REQUIREMENT.match(entry)
        if match is None:
            raise ValueError(f"{entry!r} has no lower bound: write `name>=version`.")
        name, version = match["name"].lower(), match["version"]
        if found.setdefault(name, version) != version:
            raise ValueError(f"{name} has two lower bounds, {found[name]} and {version}: they must agree.")
    return found


if __name__ == "__main__":
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    for name, version in sorted((minimum_versions(tomllib.loads(text)["project"]) | PARTNERS).items()):
        sys.stdout.write(f"{name}=={version}\n")
