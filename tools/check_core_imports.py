"""Fail if the core of opnp reaches for modules, files, logging or global random state.

import-linter knows other packages by their first name only, so it cannot tell ``torch.nn`` from ``torch``, and it
does not look at calls. This check reads the syntax trees of ``src/opnp/core`` and lists, as ``file:line``:

- imports or uses of the modules in `FORBIDDEN_MODULES`;
- calls that set the global random state, such as ``torch.manual_seed``;
- calls that draw from it: random functions of torch and random in-place methods without ``generator=``,
  or with a literal None there;
- calls of ``open``.

"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "src" / "opnp" / "core"

FORBIDDEN_MODULES = (
    "io",
    "json",
    "logging",
    "numpy.random",
    "os",
    "pathlib",
    "random",
    "safetensors",
    "torch.nn",
    "torch.random",
)
FORBIDDEN_CALLS = {
    "open": "the core reads and writes no files",
    "torch.manual_seed": "the core leaves the global random state alone",
    "torch.seed": "the core leaves the global random state alone",
    "torch.set_rng_state": "the core leaves the global random state alone",
}
RANDOM_FUNCTIONS = {
    f"torch.{name}"
    for name in (
        "bernoulli",
        "multinomial",
        "normal",
        "poisson",
        "rand",
        "rand_like",
        "randint",
        "randint_like",
        "randn",
        "randn_like",
        "randperm",
    )
}
RANDOM_METHODS = {
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "geometric_",
    "log_normal_",
    "normal_",
    "random_",
    "uniform_",
}


class CoreVisitor(ast.NodeVisitor):
    """Collects ``(line, message)`` for everything in one module that does not belong in the core."""

    def __init__(self) -> None:
        self.findings: list[tuple[int, str]] = []
        self._full_names: dict[str, str] = {}

    def visit_Import(self, node: ast.Import) -> None:
        """Check ``import a.b`` and remember what its name stands for."""
        for alias in node.names:
            self._check_module(node.lineno, alias.name)
            first = alias.name.partition(".")[0]
            self._full_names[alias.asname or first] = alias.name if alias.asname else first

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Check ``from a import b`` and remember what its names stand for; relative imports stay inside opnp."""
        if node.level or node.module is None:
            return
        for alias in node.names:
            full_name = f"{node.module}.{alias.name}"
            self._check_module(node.lineno, full_name)
            self._full_names[alias.asname or alias.name] = full_name

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Check the longest dotted name, so that each use is listed once."""
        name = self._full_name(node)
        if name is None:
            self.generic_visit(node)
        else:
            self._check_module(node.lineno, name)

    def visit_Call(self, node: ast.Call) -> None:
        """Check calls that touch files or global random state."""
        name = self._full_name(node.func)
        is_seeded = any(
            keyword.arg == "generator" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is None)
            for keyword in node.keywords
        )
        if name in FORBIDDEN_CALLS:
            self.findings.append((node.lineno, f"call of `{name}`: {FORBIDDEN_CALLS[name]}"))
        elif name in RANDOM_FUNCTIONS and not is_seeded:
            self.findings.append((node.lineno, f"call of `{name}` without `generator=`"))
        elif isinstance(node.func, ast.Attribute) and node.func.attr in RANDOM_METHODS and not is_seeded:
            self.findings.append((node.lineno, f"call of `.{node.func.attr}` without `generator=`"))
        self.generic_visit(node)

    def _check_module(self, line: int, name: str) -> None:
        for module in FORBIDDEN_MODULES:
            if name == module or name.startswith(f"{module}."):
                self.findings.append((line, f"`{name}`: `{module}` has no place in the core"))
                return

    def _full_name(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return self._full_names.get(node.id, node.id if node.id == "open" else None)
        if isinstance(node, ast.Attribute):
            owner = self._full_name(node.value)
            return None if owner is None else f"{owner}.{node.attr}"
        return None


def findings_in(source: str) -> list[tuple[int, str]]:
    """Return ``(line, message)`` for everything in `source` that does not belong in the core, by line."""
    visitor = CoreVisitor()
    visitor.visit(ast.parse(source))
    return sorted(visitor.findings)


def main() -> int:
    """Return 0 if the core is clean, else list what is not and return 1."""
    files = sorted(CORE.rglob("*.py"))
    if not files:
        sys.stderr.write(f"No Python file in {CORE.relative_to(ROOT)}: nothing was checked.\n")
        return 1
    count = 0
    for path in files:
        for line, message in findings_in(path.read_text(encoding="utf-8")):
            sys.stderr.write(f"{path.relative_to(ROOT)}:{line}: {message}\n")
            count += 1
    if count == 0:
        sys.stdout.write(f"Core: {len(files)} files, no forbidden import or call.\n")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
