"""Run tests against mutants: tests are collected once, and each mutant lives in a child process that is forked off.

Nothing is written to the source. The child executes the mutated file as a module beside the real one and puts the code
and the default values of its functions, and its plain constants, in the place of the real ones: every reference to a
function, however it was imported, then leads to the mutant.

A child runs the tests that reach the mutated function, the quickest first, and ends at the first that fails. Its time
is bounded by processor seconds, not by the clock, so that other work on the machine makes no mutant fail.
"""

import gc
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType

import pytest
from hypothesis import HealthCheck, Phase, settings

from tools.mutation_operators import Mutant

PLAIN = (int, float, str, tuple, Fraction, dict)
SURVIVED, KILLED = 0, 1
CPU_FACTOR, CPU_SECONDS, CLOCK_SECONDS = 10, 4, 1800
MEMORY = 8 * 2**30


@dataclass(slots=True)
class Reach:
    """What one test took when nothing was changed, and which functions it reached, as "file:name"."""

    seconds: float
    functions: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant: "killed", "survived" or "timeout", and the test that saw it."""

    mutant: Mutant
    status: str
    test: str
    seconds: float


class MutationRun:
    """A pytest plugin that runs the collected tests against mutants, in place of running them once."""

    def __init__(
        self,
        root: Path,
        mutants: Sequence[Mutant],
        *,
        workers: int,
        seconds: float,
        reached: dict[str, Reach],
        keep: Callable[[], None],
        report: Callable[[Outcome], None],
    ) -> None:
        """Take what to run; `reached` is filled if it is not known, and then `keep` called; `report` gets outcomes."""
        self._root, self._mutants, self._workers, self._report = root, mutants, workers, report
        self._known, self._seconds, self._keep = reached, seconds, keep

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests as they are, then against each mutant."""
        items = {item.nodeid: item for item in session.items}
        if self._known.keys() != items.keys():
            self._known.clear()
            self._known.update(self._reached(session, items))
            self._keep()
        reached = self._known
        gc.collect()
        gc.freeze()  # else a child's collector would copy the whole memory
        running: dict[int, tuple[Mutant, int, float]] = {}
        for mutant in self._mutants:
            chosen = [items[name] for name in _chosen(mutant, reached, seconds=self._seconds)]
            if len(running) >= self._workers:
                self._finish(running)
            pid, pipe = _forked(partial(_judge, session, self._root, mutant, chosen, reached))
            running[pid] = mutant, pipe, time.monotonic()
        while running:
            self._finish(running)
        return True

    def _finish(self, running: dict[int, tuple[Mutant, int, float]]) -> None:
        pid, status = os.wait()
        mutant, pipe, started = running.pop(pid)
        with os.fdopen(pipe, "rb") as stream:
            test = stream.read().decode()
        code = os.waitstatus_to_exitcode(status)
        kind = "survived" if code == SURVIVED else "timeout" if code in (-signal.SIGXCPU, -signal.SIGALRM) else "killed"
        self._report(Outcome(mutant, kind, test, time.monotonic() - started))

    def _reached(self, session: pytest.Session, items: dict[str, pytest.Item]) -> dict[str, Reach]:
        """Return what each test reaches when nothing is changed; end here if one fails."""
        _, pipe = _forked(partial(_trace, session, self._root, items))
        with os.fdopen(pipe, "rb") as stream:
            answer = json.loads(stream.read() or b'{"failed": "a child that died"}')
        os.wait()
        if "failed" in answer:
            raise pytest.UsageError(f"The tests fail without any mutation: {answer['failed']}")
        return {name: Reach(seconds, set(functions)) for name, (seconds, functions) in answer["tests"].items()}


def quick_settings() -> None:
    """Make hypothesis the same in every child, and end at the first counterexample."""
    settings.register_profile(
        "mutation",
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=60,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("mutation")


def _chosen(mutant: Mutant, reached: dict[str, Reach], *, seconds: float) -> list[str]:
    """Return the tests that reach the function, for a constant its file: the quickest, as many as fit into the time."""
    key = f"{mutant.file}:{mutant.function}"
    is_function = any(key in reach.functions for reach in reached.values())
    found = [
        name
        for name, reach in reached.items()
        if (
            key in reach.functions
            if is_function
            else any(entry.startswith(f"{mutant.file}:") for entry in reach.functions)
        )
    ]
    spent, chosen = 0.0, []
    for name in sorted(found, key=lambda name: reached[name].seconds):
        spent += reached[name].seconds
        if spent > seconds:
            break
        chosen.append(name)
    return chosen


def _forked(work: Callable[[], tuple[int, bytes]]) -> tuple[int, int]:
    """Start a child that does the work and sends its answer; return its number and the pipe."""
    receiver, sender = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(sender)
        return pid, receiver
    code = KILLED
    gc.disable()
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        code, answer = work()
        with os.fdopen(sender, "wb") as stream:
            stream.write(answer)
    finally:
        os._exit(code)


def _judge(
    session: pytest.Session, root: Path, mutant: Mutant, items: list[pytest.Item], reached: dict[str, Reach]
) -> tuple[int, bytes]:
    """Run the tests until one fails."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.alarm(CLOCK_SECONDS)
    try:
        _put_in_place(root, mutant)
    except Exception as error:  # noqa: BLE001 -- whatever a mutated module raises at its import
        return KILLED, f"import: {type(error).__name__}".encode()
    for item, following in zip(items, [*items[1:], None], strict=True):
        _bound_time(reached[item.nodeid].seconds)
        if not _passes(session, item, following):
            return KILLED, item.nodeid.encode()
    return SURVIVED, b""


def _bound_time(usual: float) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = usage.ru_utime + usage.ru_stime
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent + CPU_SECONDS + CPU_FACTOR * usual), hard))


def _passes(session: pytest.Session, item: pytest.Item, following: pytest.Item | None) -> bool:
    session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    return not session.testsfailed


def _put_in_place(root: Path, mutant: Mutant) -> None:
    """Make the functions and constants of the real module those of the mutant."""
    name = ".".join(Path(mutant.file).relative_to("src").with_suffix("").parts)
    real = sys.modules[name]
    fresh = ModuleType(f"{name}_mutant")
    sys.modules[fresh.__name__] = fresh
    exec(compile(mutant.code, str(root / mutant.file), "exec"), fresh.__dict__)  # noqa: S102 -- the project's own code
    after = dict(_functions(fresh))
    for function_name, function in _functions(real):
        changed = after[function_name]
        if (
            function.__code__.co_freevars == changed.__code__.co_freevars
            and "<string>" not in function.__code__.co_filename
        ):
            function.__code__ = changed.__code__
        function.__defaults__, function.__kwdefaults__ = changed.__defaults__, changed.__kwdefaults__
    for constant, value in vars(fresh).items():
        before = vars(real).get(constant)
        if isinstance(before, PLAIN) and value is not before and not constant.startswith("__"):
            _set_everywhere(constant, before, value)
    _clear_caches()


def _set_everywhere(name: str, before: object, value: object) -> None:
    """Give a constant its value wherever it was imported to."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "opnp" and vars(module).get(name) is before:
            setattr(module, name, value)


def _functions(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    """Yield the functions and methods that a module defines, without their decorators."""
    for name, value in list(vars(module).items()):
        if isinstance(value, type) and value.__module__ == module.__name__:
            for method_name, method in list(vars(value).items()):
                function = _bare(method)
                if function is not None:
                    yield f"{name}.{method_name}", function
        else:
            function = _bare(value)
            if function is not None and function.__module__ == module.__name__:
                yield name, function


def _bare(value: object) -> FunctionType | None:
    inner = getattr(value, "fget", None) or getattr(value, "__func__", None) or getattr(value, "__wrapped__", value)
    return inner if isinstance(inner, FunctionType) else None


def _clear_caches() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("opnp.core"):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def _trace(session: pytest.Session, root: Path, items: dict[str, pytest.Item]) -> tuple[int, bytes]:
    """Run each test as it is, and note the processor time and the functions of the core that it reaches."""
    tests = {}
    folder = str(root / "src" / "opnp" / "core")
    known: dict[CodeType, str] = {}
    seen: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            code = frame.f_code
            if code not in known:
                inside = code.co_filename.startswith(folder)
                top = code.co_qualname.partition(".<locals>")[0]
                known[code] = f"{Path(code.co_filename).relative_to(root)}:{top}" if inside else ""
            seen.add(known[code])

    order = list(items.values())
    for item, following in zip(order, [*order[1:], None], strict=True):
        _clear_caches()
        seen.clear()
        threading.setprofile(note)
        sys.setprofile(note)
        started = time.process_time()
        passed = _passes(session, item, following)
        sys.setprofile(None)
        if not passed:
            return KILLED, json.dumps({"failed": item.nodeid}).encode()
        tests[item.nodeid] = time.process_time() - started, sorted(seen - {""})
    return SURVIVED, json.dumps({"tests": tests}).encode()
