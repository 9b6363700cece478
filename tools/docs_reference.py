"""The reference of the site, made from the package when the site is built: a hook of mkdocs and an extension of griffe.

Every name of the modules in `MODULES` stands on the page of its area; which area that is, the module that defines it
says. A name whose module is in no area is an error, so that no public name is without a page. The page of commands is
made from the commands themselves.
"""

import re
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from opnp.cli.app import COMMANDS, named_command

__all__ = ["AREAS", "MODULES", "Area", "DocstringSections", "on_files", "pages", "readable"]


class Area(NamedTuple):
    """A page of the reference: its file, heading, text, and the modules whose public names it shows."""

    name: str
    title: str
    text: str
    modules: tuple[str, ...]


AREAS = (
    Area(
        "detector",
        "Detector",
        "The detector and what it is made with. Where to begin: [`OPNP`](#opnp.OPNP).",
        ("opnp.detector", "opnp.fitted"),
    ),
    Area(
        "sensitivity",
        "Sensitivity",
        "How much the energy depends on each weight and neuron, of the last layer and of others.",
        (
            "opnp.core.sensitivity",
            "opnp.core.histogram",
            "opnp.model.layers",
        ),
    ),
    Area(
        "pruning",
        "Pruning",
        "From sensitivities to masks, and masks on a model.",
        ("opnp.core.masks", "opnp.model.borrow"),
    ),
    Area("scores", "Scores", "What is read off the logits. Larger = more OOD, everywhere.", ("opnp.core.scores",)),
    Area("shaping", "Shaping", "What is done to the features before the pruned head.", ("opnp.core.shaping",)),
    Area(
        "verdicts",
        "Verdicts",
        "From scores to p-values and thresholds.",
        ("opnp.core.conformal",),
    ),
    Area(
        "fusion",
        "Fusion",
        "The scores that are fused, what they need of the training data, and how they become one.",
        ("opnp.core.members", "opnp.core.moments", "opnp.core.fusion"),
    ),
    Area(
        "metrics",
        "Metrics",
        "How well OOD is told from ID, and how well confidence fits. Each says which class is positive.",
        ("opnp.core.metrics", "opnp.core.reliability"),
    ),
    Area(
        "data",
        "Data",
        "Files in and out, in `opnp.data`: images and texts, cached features, heads, weights, score tables.",
        ("opnp.data",),
    ),
    Area(
        "export",
        "Export",
        "A detector and its model as a module, a program of `torch.export`, an ONNX file, and a model card.",
        ("opnp.export",),
    ),
    Area(
        "adapters",
        "Adapters",
        "Other libraries, one a module of `opnp.adapters`. An error names the extra that one needs.",
        ("opnp.adapters",),
    ),
    Area(
        "services",
        "Reports and services",
        "Pages of results, the HTTP service, the monitor.",
        ("opnp.report", "opnp.serve", "opnp.monitor", "opnp.values"),
    ),
    Area("errors", "Errors and warnings", "", ("opnp.errors",)),
)
MODULES = (
    "opnp",
    "opnp.core.members",
    "opnp.core.moments",
    "opnp.core.fusion",
    "opnp.core",
    "opnp.errors",
    "opnp.data",
    "opnp.adapters",
    "opnp.export",
    "opnp.adapters.hub",
    "opnp.adapters.mlflow",
    "opnp.adapters.openood",
    "opnp.adapters.pytorch_ood",
    "opnp.adapters.ray",
    "opnp.adapters.scikit_learn",
    "opnp.report",
    "opnp.monitor",
    "opnp.serve",
    "opnp.serve.app",
)
"""Modules whose `__all__` is documented; those that are not there are passed over."""

_ERRORS = """\
Every error derives from [`OpnpError`](#opnp.OpnpError) and from the built-in that a caller would expect; every warning
from [`OpnpWarning`](#opnp.OpnpWarning). A message says which argument, what it must be, what it got and how to mend it.
The command line prints the message alone and leaves with exit code 2.

| Name | Caught as | Meaning |
|---|---|---|
"""


_COMMANDS = """\
# Command line

`opnp COMMAND --help` prints the same. Exit code 0: done; 2: something was wrong with what was asked, and the message
says what. `opnp --install-completion` sets up completion of commands and options; `opnp --version` prints the version.

Larger score = more OOD, everywhere. Ratios are fractions in [0, 1).

"""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of the reference to those of the folder."""
    for name, content in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    areas = _by_area()
    return {
        "index": _index(areas),
        "commands": _COMMANDS + "\n".join(map(_command, COMMANDS)),
        **{area.name: _page(area, names) for area, names in areas.items()},
    }


def _by_area() -> dict[Area, dict[str, Any]]:
    """Return each area with its names, ``opnp.auroc``, and what griffe knows of them."""
    package: Any = griffe.load("opnp", search_paths=[str(Path(__file__).parents[1] / "src")], resolve_aliases=True)
    found: dict[Area, dict[str, Any]] = {area: {} for area in AREAS}
    seen: set[str] = set()
    for module in MODULES:
        holder = package
        for part in module.split(".")[1:]:
            holder = None if holder is None else holder.members.get(part)
        for name in () if holder is None else import_module(module).__all__:
            item = holder[name]
            if item.is_module and name not in item.members:
                continue  # a room; else a function of the name of its module, which griffe takes for the module
            item = item[name] if item.is_module else item
            if item.canonical_path not in seen:
                seen.add(item.canonical_path)
                found[_area_of(item.canonical_path)][f"{module}.{name}"] = item
    return found


def _area_of(path: str) -> Area:
    """Return the area of a definition: that which names its module, or the package that its module is in."""
    module = path.rpartition(".")[0]
    while module:
        for area in AREAS:
            if module in area.modules:
                return area
        module = module.rpartition(".")[0]
    raise PluginError(f"{path} is public and has no page: add its module to an area in tools/docs_reference.py.")


def _page(area: Area, names: dict[str, Any]) -> str:
    text = _ERRORS + "\n".join(map(_error_row, names, names.values())) if area.name == "errors" else area.text
    ordered = sorted(names, key=lambda name: name != "opnp.OPNP")  # the detector before what it is made with
    return f"# {area.title}\n\n{text}\n\n" + "\n".join(_entry(name, names[name].canonical_path) for name in ordered)


def _entry(name: str, path: str) -> str:
    """Return what mkdocstrings makes the entry of a name from."""
    module, _, last = path.rpartition(".")
    if module.endswith(f".{last}"):
        return f'<a id="{name}"></a>\n\n::: {path}\n'
    return f"::: {name}\n" + ("    options:\n      show_bases: true\n" if module == "opnp.errors" else "")


def _error_row(name: str, item: Any) -> str:  # noqa: ANN401  # an object of griffe
    kind: type = getattr(import_module("opnp.errors"), item.name)
    builtin = next(base.__name__ for base in kind.__mro__ if base.__module__ == "builtins")
    return f"| [`{item.name}`](#{name}) | `{builtin}` | {_first_line(item)} |"


def _first_line(item: Any) -> str:  # noqa: ANN401  # an object of griffe
    """Return the first line of a docstring, fit for a cell of a table."""
    text = item.docstring.value.partition("\n")[0] if item.docstring is not None else ""
    return re.sub(r"``", "`", text).replace("|", "\\|")


def _index(areas: dict[Area, dict[str, Any]]) -> str:
    """Return the page that lists every name with its line."""
    parts = [
        "# Reference\n",
        "Everything public, made from the docstrings. [The commands](commands.md) stand on a page of their own.\n",
    ]
    for area, names in areas.items():
        rows = [f"| [`{name}`]({area.name}.md#{name}) | {_first_line(item)} |" for name, item in names.items()]
        parts += [f"## {area.title}\n", "| Name | |", "|---|---|", *rows, ""]
    return "\n".join(parts)


def _command(name: str) -> str:
    """Return the section of a command: its help, and each option as its own help prints it."""
    command = named_command(name)
    context = command.make_context(name, [], resilient_parsing=True)
    parts = [f"## opnp {name} {{#opnp-{name}}}\n", _marked(" ".join(str(command.help).split())) + "\n"]
    shown = [item for item in command.params if not getattr(item, "hidden", False)]
    for item in sorted(shown, key=lambda item: not item.required):  # what must be given first
        written, text = item.get_help_record(context)
        anchor = f"opnp-{name}-{item.opts[0].lstrip('-').replace('_', '-')}"
        parts.append(f'<span id="{anchor}">`{written}`</span>\n:   {_marked(text)}\n')
    return "\n".join(parts)


def _marked(text: str) -> str:
    """Return a help text with its options as code, and nothing in it that Markdown would take for its own."""
    found = re.split(r"`+([^`]+)`+|((?<![\w-])--[a-z][a-z-]*)", text)
    plain = [re.sub(r"([*_|\[])", r"\\\1", part.replace("<", "&lt;")) for part in found[::3]]
    code = [f"`{one or other}`" for one, other in zip(found[1::3], found[2::3], strict=True)]
    return "".join(part for pair in zip(plain, [*code, ""], strict=True) for part in pair)


_EXAMPLE = re.compile(r"^Example:$", flags=re.MULTILINE)
_MATH = re.compile(r"^( *)\.\. math:: *(.*\n(?:\1 +.*\n)*)", flags=re.MULTILINE)


class DocstringSections(griffe.Extension):
    """Rewrites each docstring, written for reading in the source, before it is parsed; the source stays."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:  # noqa: ANN401  # what griffe passes beside it
        """Rewrite the docstring of one object; the class documents the arguments of its constructor."""
        if obj.name == "__init__":
            obj.docstring = None
        elif obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)


def readable(docstring: str) -> str:
    """Return a docstring with ``Example:`` as a section that griffe knows, and formulas as blocks of text."""
    return _MATH.sub(_block, _EXAMPLE.sub("Examples:", docstring))


def _block(found: re.Match[str]) -> str:
    indent = found[1]
    lines = textwrap.dedent(" " * 4 + found[2].lstrip()).splitlines()
    return "\n".join([f"{indent}```text", *(f"{indent}{line.strip()}" for line in lines), f"{indent}```", ""])
