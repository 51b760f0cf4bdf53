"""The import rule: which modules of a package import which, by full names, and what points up or runs in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

Graph = Mapping[str, set[str]]
_PLACE = re.compile(r"\w+(\.\w+)*:\w+")


@cache
def import_graph(root: Path) -> Graph:
    """Module -> the modules of the same package that it imports, anywhere: in functions and for types only as well.

    Args:
        root: folder of the package. Its modules are named from the package on; `x/__init__.py` is the module `x`.
    """
    paths = {_name(path, root): path for path in sorted(root.rglob("*.py"))}
    return {name: {_module(found, paths) for found in _imported(path, name)} - {""} for name, path in paths.items()}


def _name(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, name: str) -> Iterator[str]:
    """What a file imports, by full names, of which the last part may be a name within a module."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _PLACE.fullmatch(node.value):
            yield node.value.replace(":", ".")  # of a table whose lines are resolved when it is read


def _module(found: str, modules: Mapping[str, Path]) -> str:
    """The module of a name, or nothing where it is no module of this package."""
    return found if found in modules else found.rpartition(".")[0] if found.rpartition(".")[0] in modules else ""


def upward_imports(graph: Graph, package: str, layers: Sequence[str]) -> list[str]:
    """What imports from above, or from a unit beside its own; and what stands in no layer.

    Args:
        graph: of `import_graph`.
        package: the full name of the package whose modules and packages, its units, stand in layers.
        layers: from the top down; units of one layer are separated by ` | ` and may not import each other. `*` is where
            whatever is not named stands: the plain members, of which there may be one more any day.
    """
    named = {unit.strip(): i for i, layer in enumerate(layers) for unit in layer.split("|")}
    units = {unit for module in graph if (unit := _unit(module, package)) is not None}
    height = {unit: named.get(unit, named.get("*", -1)) for unit in units} | named
    height = {unit: place for unit, place in height.items() if place >= 0}
    errors = []
    for module, unit in ((module, _unit(module, package)) for module in graph):
        if unit is None:
            continue
        if unit not in height:
            errors.append(f"{module} stands in no layer of {package}")
            continue
        for imported in sorted(graph[module]):
            other = _unit(imported, package)
            if other is not None and other != unit and height.get(other, -1) <= height[unit]:
                beside = height.get(other) == height[unit]
                errors.append(f"{module} imports {imported}, which lies {'beside' if beside else 'above'} it")
    return errors


def _unit(module: str, package: str) -> str | None:
    """The part of a package that a module belongs to; a package's own `__init__` is part of none."""
    return module.removeprefix(f"{package}.").partition(".")[0] if module.startswith(f"{package}.") else None


def circle(graph: Graph) -> str:
    """A circle of imports, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " < ".join(error.args[1])
    return ""
