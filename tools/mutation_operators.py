"""The mutants of a source file: every small change that mutmut's operators make, less those that are no behaviour.

mutmut makes the changes; what is left out here, and counted as excluded:

- texts of messages: whatever stands in the call after `raise`, in the call of an error that is returned, and in the
  first argument of `warnings.warn`;
- module-level statements other than plain constants: `__all__`, type aliases, texts (of messages as well).

mutmut itself leaves out docstrings, annotations, imports, decorators, and calls of `len` and `isinstance`. It skips
decorated functions; here `@property` and `@cache` are hidden from it, so that they are mutated too.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import libcst as cst
import libcst.matchers as m
from mutmut.mutation.file_mutation import Mutation, create_mutations

HIDDEN_DECORATORS = re.compile(r"^( *)@(property|cache)$", re.MULTILINE)
ERROR_NAME = re.compile(r"(Error|Warning)$")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One small change of a file.

    Attributes:
        file: Path below the root.
        function: Qualified name of the function or method that it is in; the name assigned to, at the module's level.
        line: Line of the change in the original.
        original: The line before, without indentation; several are joined by a line break.
        mutated: The line after.
        number: Which of the changes that read the same in this function, from 0.
        code: The whole file with the change.

    """

    file: str
    function: str
    line: int
    original: str
    mutated: str
    number: int
    code: str

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What identifies the change while lines move."""
        return self.file, self.function, self.original, self.mutated, self.number


def mutants_of(root: Path, file: str) -> tuple[list[Mutant], int]:
    """Return the mutants of a file and the number of changes excluded."""
    source = HIDDEN_DECORATORS.sub(r"\1", (root / file).read_text(encoding="utf-8"))
    module, mutations, _, _ = create_mutations(file, source)
    excluded = set(_excluded_nodes(module))
    places = _places(module, source)
    names = _names_by_line(source)
    found: dict[str, Mutant] = {}
    seen: Counter[tuple[str, str, str]] = Counter()
    left_out = 0
    for mutation in mutations:
        if id(mutation.original_node) in excluded or _is_message_of_warning(mutation):
            left_out += 1
            continue
        block, start, text = places[id(mutation.original_node)]
        changed = module.code_for_node(block.deep_replace(mutation.original_node, mutation.mutated_node))
        code = source[:start] + changed + source[start + len(text) :]
        if changed != text and code not in found:
            line, original, mutated = _changed_lines(source, code)
            function = names.get(line, "")
            number = seen[function, original, mutated]
            found[code] = Mutant(file, function, line, original, mutated, number, code)
            seen[function, original, mutated] += 1
    return list(found.values()), left_out


def _places(module: cst.Module, source: str) -> dict[int, tuple[Any, int, str]]:
    """Return, for each node, the top-level statement that it stands in, where that begins, and its text."""
    places = {}
    start = 0
    for block in module.body:
        text = module.code_for_node(block)
        start = source.index(text, start)
        for node in _walk(block):
            places[id(node)] = block, start, text
        start += len(text)
    return places


def _is_message_of_warning(mutation: Mutation) -> bool:
    before, after = mutation.original_node, mutation.mutated_node
    return _is_warning(before) and isinstance(after, cst.Call) and before.args[0] is not after.args[0]


def _is_warning(node: cst.CSTNode) -> TypeGuard[cst.Call]:
    return m.matches(node, m.Call(func=m.Attribute(attr=m.Name("warn"))))


def _changed_lines(source: str, code: str) -> tuple[int, str, str]:
    """Return the number of the first line that differs, and the lines before and after."""
    before, after = source.splitlines(), code.splitlines()
    shorter = min(len(before), len(after))
    start = next((line for line in range(shorter) if before[line] != after[line]), shorter)
    tail = next((line for line in range(shorter - start) if before[-1 - line] != after[-1 - line]), shorter - start)
    old, new = before[start : len(before) - tail], after[start : len(after) - tail]
    return start + 1, "\n".join(map(str.strip, old)), "\n".join(map(str.strip, new))


def _names_by_line(source: str) -> dict[int, str]:
    """Return, for each line, the outermost function or method that it is in, or the name it assigns to."""
    names = {}
    for node, name in _definitions(ast.parse(source), ""):
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
            names[line] = name
    return names


def _definitions(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[ast.stmt, str]]:
    for node in parent.body:
        match node:
            case ast.FunctionDef(name=name):
                yield node, prefix + name
            case ast.ClassDef(name=name):
                yield from _definitions(node, f"{prefix}{name}.")
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield node, prefix + name
            case _:
                pass


def _excluded_nodes(module: cst.Module) -> Iterator[int]:
    """Yield the identities of the nodes that are no behaviour."""
    for statement in module.body:
        if isinstance(statement, cst.SimpleStatementLine) and not _is_constant(statement):
            yield from _identities(statement)
    for node in _walk(module):
        match node:
            case cst.Raise(exc=cst.Call() as call):
                yield from _identities(call)
            case cst.Call(func=cst.Name(value=name)) if ERROR_NAME.search(name):
                yield from _identities(node)
            case cst.Call() if _is_warning(node):
                yield from _identities(node.args[0])
            case _:
                pass


def _is_constant(statement: cst.SimpleStatementLine) -> bool:
    """Return whether a statement at the level of the module assigns a constant."""
    match statement.body[0]:
        case cst.Assign(targets=[cst.AssignTarget(target=cst.Name(value=name))], value=value):
            return name.lstrip("_").isupper() and not isinstance(value, cst.Subscript | cst.BaseString)
        case cst.AnnAssign(target=cst.Name(value=name)):
            return name.lstrip("_").isupper()
        case _:
            return False


def _identities(node: cst.CSTNode) -> Iterator[int]:
    return map(id, _walk(node))


def _walk(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    yield node
    for child in node.children:
        yield from _walk(child)
