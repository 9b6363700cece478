"""The page of commands, from the commands themselves: every option with what it takes, its default and its help."""

import re
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

from opnp.cli.app import COMMANDS
from opnp.cli.lazy_group import imported_command

__all__ = ["command_names", "commands_page"]

_HEAD = """\
# Command line

`opnp COMMAND --help` prints the same. Exit code 0: done; 2: something was wrong with what was asked, and the message
says what. `opnp --install-completion` sets up completion of commands and options; `opnp --version` prints the version.

Larger score = more OOD, everywhere. Ratios are fractions in [0, 1).

"""
_KINDS = {Path: "PATH", int: "INTEGER", float: "NUMBER", str: "TEXT"}


def command_names() -> list[str]:
    """Return the commands in the order of the help, then those whose module is there and not listed yet."""
    folder = Path(str(import_module("opnp.cli").__file__)).parent
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))}
    present = [name for name, text in texts.items() if text.startswith(f'"""``opnp {name}``:')]
    return [*COMMANDS, *(name for name in present if name not in COMMANDS)]


def commands_page() -> str:
    """Return the page in Markdown."""
    names = command_names()
    rows = [f"- [`opnp {name}`](#opnp-{name}): {_lines(imported_command(name))[0]}" for name in names]
    return _HEAD + "\n".join(rows) + "\n\n" + "\n".join(_section(name) for name in names)


def _section(name: str) -> str:
    command = imported_command(name)
    kinds = get_type_hints(getattr(import_module(f"opnp.cli.{name}"), name))
    entries = [_entry(item, kinds[item.name], name) for item in _options(command)]
    return "\n".join([f"## opnp {name} {{#opnp-{name}}}\n", " ".join(_lines(command)) + "\n", *entries])


def _lines(command: Any) -> list[str]:  # noqa: ANN401  # a command of click, or of the click in typer
    """Return the help of a command as lines, options in it marked as code."""
    return [_marked(line) for line in str(command.help).splitlines() if line.strip()]


def _options(command: Any) -> list[Any]:  # noqa: ANN401  # as in `_lines`
    """Return what a command takes: what must be given first, the rest in the order of its help."""
    return sorted((item for item in command.params if "--help" not in item.opts), key=lambda item: not item.required)


def _entry(item: Any, kind: object, command: str) -> str:  # noqa: ANN401  # a parameter of click
    """Return one option as an entry of a definition list."""
    names = " / ".join((*item.opts, *item.secondary_opts))
    written = item.name.upper() if item.param_type_name == "argument" else f"{names}{_value(item, kind)}"
    anchor = f"opnp-{command}-{item.opts[0].lstrip('-').replace('_', '-')}"
    default = "Required." if item.required else _default(item)
    text = " ".join(part for part in (_marked(str(item.help or "")), default) if part)
    return f'<span id="{anchor}">`{written}`</span>\n:   {text}\n'


def _value(item: Any, kind: object) -> str:  # noqa: ANN401  # as in `_entry`
    """Return what stands for the value of an option; nothing for a flag."""
    if item.metavar:
        return f" {item.metavar}"
    kinds = {part for part in (get_args(kind) or (kind,)) if part is not type(None)}
    if bool in kinds:
        return ""
    for part in kinds:
        if isinstance(part, type) and issubclass(part, Enum):
            return " " + "|".join(str(choice.value) for choice in part)
    return next((f" {name}" for each, name in _KINDS.items() if each in kinds), " TEXT")


def _default(item: Any) -> str:  # noqa: ANN401  # as in `_entry`
    value = getattr(item.default, "value", item.default)
    if value is None or value == "" or "Default:" in str(item.help):
        return ""
    if isinstance(value, bool):
        return f"Default: `{(item.opts if value else item.secondary_opts)[0]}`." if item.secondary_opts else ""
    return f"Default: `{value}`."


def _marked(text: str) -> str:
    """Return a help text with its options as code, and nothing in it that Markdown would take for its own."""
    parts = re.split(r"(`+[^`]+`+)", text)
    return "".join(f"`{part.strip('`')}`" if part.startswith("`") else _plain(part) for part in parts)


def _plain(text: str) -> str:
    parts = re.split(r"((?<![\w-])--[a-z][a-z-]*)", text)
    return "".join(
        f"`{part}`" if part.startswith("--") else re.sub(r"([*_|])", r"\\\1", part.replace("<", "&lt;"))
        for part in parts
    )
