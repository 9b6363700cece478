"""Fail if the package could run code that comes with data, or open a connection.

Ruff's security rules (`S`) know `eval`, `exec`, `pickle`, shells and unsafe YAML; this check adds what they leave out.
It reads the syntax trees of ``src/opnp`` and lists, as ``file:line``:

- readers that unpickle unless they are told not to: ``torch.load``, ``numpy.load``, ``torch.jit.load``, ``joblib``;
- ``trust_remote_code`` with any other value than False;
- calls that evaluate code, start processes or open connections, under whatever name they were imported;
- imports of modules that unpickle, start processes or reach the network, and of ``socket`` outside ``opnp.serve``;
- ``noqa`` comments that silence a security rule.

"""

import ast
import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "opnp"

# Calls by their full name, that of numpy also as it is usually imported; the argument that makes them safe; its value.
SAFE_WITH = {
    "torch.load": ("weights_only", True),
    "torch.serialization.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "torch.jit.load", "jit.load", "os.system", "os.popen"),
    *("asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"),
    *("asyncio.open_connection", "asyncio.open_unix_connection"),
}
FORBIDDEN_MODULES = {
    *("cloudpickle", "dill", "joblib", "marshal", "shelve"),
    *("ftplib", "http.client", "httpx", "requests", "smtplib", "telnetlib", "urllib.request", "urllib3"),
    *("asyncio.subprocess", "multiprocessing", "pty", "subprocess", "torch.multiprocessing"),
}
SILENCED = re.compile(r"#\s*noqa:[^#]*\bS\d{3}\b")


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` for names and attributes, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def imported(node: ast.AST) -> list[str]:
    """Return the full names that an import statement takes in, modules first."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def full_names(tree: ast.AST) -> dict[str, str]:
    """Return what the names that import statements bring stand for."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def call_findings(node: ast.Call, names: Mapping[str, str]) -> list[str]:
    """Return what is unsafe about one call, given what imported names stand for."""
    first, dot, rest = dotted(node.func).partition(".")
    name = f"{names.get(first, first)}{dot}{rest}".removeprefix("builtins.")
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    found = [f"call of `{name}`"] if name in FORBIDDEN_CALLS else []
    if name in SAFE_WITH:
        argument, wanted = SAFE_WITH[name]
        value = given.get(argument)
        if not (isinstance(value, ast.Constant) and value.value is wanted):
            found.append(f"`{name}` must be told `{argument}={wanted}`, or it unpickles")
    return found


def import_findings(node: ast.AST, *, may_listen: bool) -> list[str]:
    """Return the forbidden modules that a statement imports."""
    names = imported(node)
    forbidden = {module for module in FORBIDDEN_MODULES for name in names if f"{name}.".startswith(f"{module}.")}
    found = [f"import of `{module}`" for module in sorted(forbidden)]
    if not may_listen and "socket" in names:
        found.append("import of `socket`: only `opnp.serve` listens")
    return found


def trust_findings(node: ast.AST) -> list[str]:
    """Return a finding where ``trust_remote_code`` is given as an argument or a key, and is not False."""
    pairs: list[tuple[object, ast.expr]] = []
    if isinstance(node, ast.keyword):
        pairs = [(node.arg, node.value)]
    elif isinstance(node, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        pairs = list(zip(keys, node.values, strict=True))
    is_trusted = any(
        name == "trust_remote_code" and not (isinstance(value, ast.Constant) and value.value is False)
        for name, value in pairs
    )
    return ["`trust_remote_code` must be False"] if is_trusted else []


def findings_in(source: str, *, may_listen: bool = False) -> list[tuple[int, str]]:
    """Return ``(line, message)`` for everything unsafe in `source`, by line."""
    found = [
        (number, "a security rule is silenced")
        for number, line in enumerate(source.splitlines(), start=1)
        if SILENCED.search(line)
    ]
    tree = ast.parse(source)
    names = full_names(tree)
    for node in ast.walk(tree):
        messages = [*import_findings(node, may_listen=may_listen), *trust_findings(node)]
        if isinstance(node, ast.Call):
            messages += call_findings(node, names)
        found += [(getattr(node, "lineno", 1), message) for message in messages]
    return sorted(found)


def main() -> int:
    """Return 0 if the package is clean, else list what is not and return 1."""
    files = sorted(PACKAGE.rglob("*.py"))
    count = 0
    for path in files:
        may_listen = path.is_relative_to(PACKAGE / "serve")
        for line, message in findings_in(path.read_text(encoding="utf-8"), may_listen=may_listen):
            sys.stderr.write(f"{path.relative_to(ROOT)}:{line}: {message}\n")
            count += 1
    if not files:
        sys.stderr.write("No Python file was found: nothing was checked.\n")
    elif count == 0:
        sys.stdout.write(f"Safety: {len(files)} files run no code of data and open no connection.\n")
    return 1 if count or not files else 0


if __name__ == "__main__":
    sys.exit(main())
