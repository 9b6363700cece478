"""Fail if a Python file of the project is longer than it should be: one idea a file."""

import subprocess
import sys
from pathlib import Path

LIMIT = 400
ROOT = Path(__file__).resolve().parents[1]


def python_files(root: Path) -> list[Path]:
    """Return the Python files below `root` that git tracks or would track, sorted.

    Without git, as in an unpacked source archive, these are all Python files outside hidden folders.

    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.py"]
    try:
        listing = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True)  # noqa: S603 -- fixed command
    except (OSError, subprocess.CalledProcessError):
        found = [path.relative_to(root) for path in root.rglob("*.py")]
        return sorted(root / path for path in found if not any(part.startswith(".") for part in path.parts))
    names = {name for name in listing.stdout.split("\0") if name}
    return sorted(root / name for name in names if (root / name).is_file())


def line_count(path: Path) -> int:
    """Return the number of lines of a file."""
    return len(path.read_bytes().splitlines())


def main() -> int:
    """Return 0 if every file is within the limit, else name the long ones and return 1."""
    files = python_files(ROOT)
    lengths = {path: line_count(path) for path in files}
    too_long = {path: lines for path, lines in lengths.items() if lines > LIMIT}
    for path, lines in too_long.items():
        sys.stderr.write(f"{path.relative_to(ROOT)}: {lines} lines, at most {LIMIT} are allowed. Split it by idea.\n")
    if not too_long:
        sys.stdout.write(f"File lengths: {len(files)} Python files, none over {LIMIT} lines.\n")
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main())
