"""Write what mutmut found into the record of mutation testing; see `[tool.mutmut]` in pyproject.toml.

    python tools/mutation.py docs/records/mutation.json

A file of which not all was run, or that has changed since, is not in it. The exit code is 1 below a score of 90 %.
"""

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

LEAST_SCORE = 0.9
RESULT = re.compile(r"^ *(?P<mutant>(?P<module>[\w.]+)\.[^.]+__mutmut_\d+): (?P<status>.+)$", re.MULTILINE)


def totals(mutants: int, survived: int, timeout: int) -> dict[str, Any]:
    """Return counts and score; a mutant that runs out of time counts as noticed."""
    killed = mutants - survived - timeout
    score = round(1 - survived / mutants, 4) if mutants else 1.0
    return {"mutants": mutants, "killed": killed, "timeout": timeout, "survived": survived, "score": score}


def record_of(results: str, change_of: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Return the record of the files in what ``mutmut results --all true`` prints, if all of a file was run.

    Args:
        results: The lines of mutmut.
        change_of: The line before and after, by the mutant.

    """
    found = defaultdict(list)
    for result in RESULT.finditer(results):
        found[f"src/{result['module'].replace('.', '/')}.py"].append(result)
    files, survivors = {}, []
    for file, each in sorted(found.items()):
        count = Counter(one["status"] for one in each)
        if count["not checked"]:
            continue
        alive = [one["mutant"] for one in each if one["status"] in {"survived", "no tests"}]
        files[file] = totals(len(each), len(alive), count["timeout"])
        for mutant in alive:
            original, mutated = change_of.get(mutant, ("", ""))
            name = mutant.rpartition(".")[2]
            survivors.append({"file": file, "mutant": name, "original": original, "mutated": mutated})
    total = totals(*(sum(each[name] for each in files.values()) for name in ("mutants", "survived", "timeout")))
    return {"tool": "mutmut", "total": total, "files": files, "survivors": survivors}


def change(mutant: str) -> tuple[str, str]:
    """Return the line before and after, as ``mutmut show`` prints them."""
    diff = mutmut("show", mutant).splitlines()
    before, after = (
        "\n".join(line[1:].strip() for line in diff if line.startswith(sign) and not line.startswith(sign * 3))
        for sign in "-+"
    )
    return before, after


def mutmut(*arguments: str) -> str:
    """Return what a command of mutmut prints."""
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603  # from above


def main(path: Path) -> int:
    """Write the record and say what it holds."""
    results = mutmut("results", "--all", "true")
    alive = [each["mutant"] for each in RESULT.finditer(results) if each["status"] in {"survived", "no tests"}]
    record = record_of(results, {mutant: change(mutant) for mutant in alive})
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.writelines(f"survived: {mutant}\n" for mutant in alive)
    sys.stdout.write(f"{record['total']}\n")
    return int(record["total"]["score"] < LEAST_SCORE)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
