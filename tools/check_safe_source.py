"""Fail if the package could run code that comes with data, or open a connection.

Ruff's security rules (`S`) know `eval`, `exec`, `pickle`, shells and unsafe YAML; this check adds what they leave out.
It reads the syntax trees of ``src/opnp`` and lists, as ``file:line``:

- readers that unpickle unless they are told not to: ``torch.load``, ``numpy.load``, ``torch.jit.load``, ``joblib``;
- ``trust_remote_code`` with any other value than False;
- imports of modules that unpickle, start processes or reach the network, and of ``socket`` outside ``opnp.serve``;
- ``noqa`` comments that silence a security rule.

"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "opnp"

# Calls by the end of their dotted name, the argument that makes them safe, and its value.
SAFE_WITH = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "torch.jit.load", "jit.load", "os.system", "os.popen"}
FORBIDDEN_MODULES = {
    *("cloudpickle", "dill", "joblib", "marshal", "shelve"),
    *("ftplib", "http.client", "httpx", "requests", "smtplib", "telnetlib", "urllib.request", "urllib3"),
    *("pty", "subprocess"),
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


def call_findings(node: ast.Call) -> list[str]:
    """Return what is unsafe about one call."""
    name = dotted(node.func)
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
    found = [f"import of `{name}`" for name in names if name in FORBIDDEN_MODULES]
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
    for node in ast.walk(ast.parse(source)):
        messages = [*import_findings(node, may_listen=may_listen), *trust_findings(node)]
        if isinstance(node, ast.Call):
            messages += call_findings(node)
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
