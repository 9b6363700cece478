"""Mutation testing of the core: change it in every small way, run its tests against each change, write the record.

    python -m tools.mutation [FILE ...] [--resume] [--survivors] [--record docs/records/mutation.json]

Run in the root of the repository. Nothing is written to the source (see tools/mutation_workers.py); what counts as a
change is told in tools/mutation_operators.py. Outcomes are kept in build/mutation.jsonl as they come: with ``--resume``
those of files that have not changed since are taken from there; with ``--survivors`` too, but what survived without a
reason is tried again, which is what to do after tests were added.

Why a survivor cannot be killed stands in tools/mutation_survivors.toml, written by hand; one that is not there is
"unexplained" in the record, and the exit code is 1. It is 1 as well below a score of 90 %.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tools.mutation_operators import Mutant, mutants_of
from tools.mutation_workers import MutationRun, Outcome, Reach, quick_settings

ROOT = Path(__file__).parents[1]
CORE = "src/opnp/core"
NUMERICS = [f"tests/reliability/test_numerics_{part}.py" for part in ("metrics", "scores", "sensitivities", "shaping")]
TESTS = ("tests/unit/core", "tests/reference", "tests/property", *NUMERICS, CORE)
OWN_TEST = "tests/unit/core/test_core_mutation.py"
REASONS = ROOT / "tools" / "mutation_survivors.toml"
LOG = ROOT / "build" / "mutation.jsonl"
REACH = ROOT / "build" / "mutation_reach.json"
LEAST_SCORE = 0.9
UNEXPLAINED = "unexplained"

Key = tuple[str, str, str, str, int]
Entry = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Run what is to be run, write the record, and say what it holds."""
    options = _parser().parse_args(arguments)
    files = options.files or [_name(path) for path in sorted((ROOT / CORE).glob("*.py")) if path.name != "__init__.py"]
    mutants, excluded = [], {}
    for file in files:
        found, excluded[file] = mutants_of(ROOT, file)
        mutants += found[:: options.every]
    digests = {file: _digest([ROOT / file]) for file in files}
    is_kept = options.resume or options.survivors
    outcomes = {key: entry for key, entry in _logged() if digests.get(key[0]) == entry["digest"]} if is_kept else {}
    reason_of = _reasons()
    waiting = [
        mutant
        for mutant in mutants
        if mutant.key not in outcomes
        or (options.survivors and outcomes[mutant.key]["status"] == "survived" and reason_of(mutant) == UNEXPLAINED)
    ]
    sys.stdout.write(f"{len(mutants)} mutants in {len(files)} files, {len(waiting)} of them to run\n")
    if waiting:
        LOG.parent.mkdir(exist_ok=True)
        with LOG.open("a" if is_kept else "w", encoding="utf-8") as log:

            def note(outcome: Outcome) -> None:
                entry = {"status": outcome.status, "test": outcome.test, "digest": digests[outcome.mutant.file]}
                outcomes[outcome.mutant.key] = entry
                log.write(json.dumps({"key": outcome.mutant.key, **entry, "seconds": round(outcome.seconds, 2)}) + "\n")
                log.flush()

            _run(waiting, workers=options.workers, seconds=options.seconds, report=note)
    record = _record(mutants, {key: entry["status"] for key, entry in outcomes.items()}, excluded)
    if options.record:
        options.record.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return _told(record)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Mutation testing of the core.")
    parser.add_argument("files", nargs="*", help="files to mutate, below the root; all of the core if none")
    parser.add_argument("--resume", action="store_true", help="go on after an interruption: keep what is in the log")
    parser.add_argument(
        "--survivors", action="store_true", help="as --resume, but try survivors again: tests were added"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes at once")
    parser.add_argument("--seconds", type=float, default=30, help="processor time of the tests for one mutant, at most")
    parser.add_argument("--every", type=int, default=1, help="take every n-th mutant alone, for a look")
    parser.add_argument("--record", type=Path, help="where to write the record")
    return parser


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _digest(paths: Iterable[Path]) -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def _logged() -> Iterable[tuple[Key, Entry]]:
    for line in LOG.read_text(encoding="utf-8").splitlines() if LOG.exists() else []:
        entry = json.loads(line)
        file, function, original, mutated, number = entry["key"]
        yield (file, function, original, mutated, number), entry


def _run(mutants: Sequence[Mutant], *, workers: int, seconds: float, report: Callable[[Outcome], None]) -> None:
    """Run the tests of the core against mutants."""
    state = _digest(path for folder in ("tests", "src") for path in sorted((ROOT / folder).rglob("*.py")))
    known = json.loads(REACH.read_text(encoding="utf-8")) if REACH.exists() else {}
    reached = {}
    if known.get("state") == state:
        reached = {test: Reach(seconds, set(functions)) for test, (seconds, functions) in known["tests"].items()}

    def keep() -> None:
        tests = {test: (reach.seconds, sorted(reach.functions)) for test, reach in reached.items()}
        REACH.write_text(json.dumps({"state": state, "tests": tests}), encoding="utf-8")

    run = MutationRun(ROOT, mutants, workers=workers, seconds=seconds, reached=reached, keep=keep, report=report)
    quick_settings()
    plain = ["-q", "--tb=native", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={ROOT}"]
    code = pytest.main([*plain, f"--ignore={OWN_TEST}", *TESTS], plugins=[run])
    if code not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        raise SystemExit(int(code))


def _record(mutants: Sequence[Mutant], status: dict[Key, str], excluded: dict[str, int]) -> Entry:
    """Return totals by file, and every survivor with its reason."""
    reason_of = _reasons()
    files = {}
    for file, left_out in excluded.items():
        counts = Counter(status[mutant.key] for mutant in mutants if mutant.file == file)
        files[file] = _totals(counts, left_out)
    return {
        "tool": f"mutmut {version('mutmut')}: its operators, run by tools/mutation.py",
        "tests": list(TESTS),
        "total": _totals(Counter(status[mutant.key] for mutant in mutants), sum(excluded.values())),
        "files": files,
        "survivors": [
            {
                "file": mutant.file,
                "function": mutant.function,
                "line": mutant.line,
                "original": mutant.original,
                "mutated": mutant.mutated,
                "reason": reason_of(mutant),
            }
            for mutant in mutants
            if status[mutant.key] == "survived"
        ],
    }


def _totals(counts: Counter[str], excluded: int) -> Entry:
    """Return counts and score; a mutant that runs into the bound on its processor time counts as found."""
    total = counts.total()
    return {
        "mutants": total,
        "killed": counts["killed"],
        "timeout": counts["timeout"],
        "survived": counts["survived"],
        "excluded": excluded,
        "score": round(1 - counts["survived"] / total, 4) if total else 1.0,
    }


def _reasons() -> Callable[[Mutant], str]:
    """Return a function that gives the reason of the first group or rule that holds the change."""
    if not REASONS.exists():
        return lambda _: UNEXPLAINED
    listed = tomllib.loads(REASONS.read_text(encoding="utf-8"))
    known = {
        (f"{CORE}/{group['file']}", group["function"], before, after): group["reason"]
        for group in listed["equivalent"]
        for before, after in group["changes"]
    }
    rules = [(re.compile(rule["before"]), rule["after"], rule["reason"]) for rule in listed["rule"]]

    def reason(mutant: Mutant) -> str:
        told = known.get(mutant.key[:4])
        fitting = (text for before, after, text in rules if mutant.mutated in _replaced(before, after, mutant.original))
        return told or next(fitting, UNEXPLAINED)

    return reason


def _replaced(before: re.Pattern[str], after: str, line: str) -> Iterator[str]:
    """Yield the line with one match of the pattern replaced, for each match."""
    for match in before.finditer(line):
        yield line[: match.start()] + match.expand(after) + line[match.end() :]


def _told(record: Entry) -> int:
    for survivor in record["survivors"]:
        if survivor["reason"] == UNEXPLAINED:
            sys.stdout.write(f"{survivor['file']}:{survivor['line']} {survivor['function']}\n")
            sys.stdout.write(f"    - {survivor['original']}\n    + {survivor['mutated']}\n")
    total = record["total"]
    unexplained = sum(survivor["reason"] == UNEXPLAINED for survivor in record["survivors"])
    sys.stdout.write(
        f"{total['mutants']} mutants: {total['killed']} killed, {total['timeout']} out of time, {total['survived']} "
        f"survived ({unexplained} unexplained), {total['excluded']} excluded; score {total['score']:.1%}\n"
    )
    return int(unexplained > 0 or total["score"] < LEAST_SCORE)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main(sys.argv[1:]))
