"""The shape of the package: what imports what, and what the public names are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mergelab as ml

PACKAGE = Path(ml.__file__).parent

# From the bottom up: a module imports only from those above its own line.
ORDER = (
    "errors",
    "hints",
    "checks",
    "lowrank",
    "parallel",
    "dense",
    "layer",
    "base_models",
    "report",
    "sparsify",
    "selection",
    "rules",
    "ranks",
    "formats",
    "adapter",
    "strategies",
    "spaces",
    "combining",
    "weights",
    "provenance",
    "aligning",
    "job",
    "layerwise",
    "extras",
    "merging",
    "comparing",
    "miniature",
    "pipelines",
    "evaluation",
    "cli",
    "__main__",
)


def _imports(path: Path) -> set[str]:
    """First parts, below mergelab, of all modules imported anywhere in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mergelab":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("mergelab.")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    """Also those inside functions and for types only."""
    unit = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if unit == "__init__":
        return
    below = set(ORDER[: ORDER.index(unit)])
    assert _imports(path) - {unit} <= below


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_loads_no_heavy_package() -> None:
    """`import mergelab` and all its public names load neither diffusers, lpips nor open_clip; few load pandas."""
    code = (
        "import sys, mergelab as ml; late = ('evaluate', 'register_metric');"
        "[getattr(ml, n) for n in ml.__all__ if n not in late]; print('pandas' in sys.modules, end=' ');"
        "[getattr(ml, n) for n in late];"
        "print([n for n in ('diffusers', 'lpips', 'open_clip', 'transformers', 'peft') if n in sys.modules])"
    )
    assert _python(code) == "False []"


def test_the_command_line_starts_without_torch() -> None:
    """`mergelab --help` answers without importing torch."""
    code = "import sys; from mergelab.cli import run; run(['--help']); print('torch' in sys.modules)"
    assert _python(code).endswith("False")


def test_public_names() -> None:
    """Every public name is there, documented, and shown by dir()."""
    assert set(ml.__all__) <= set(dir(ml))
    for name in ml.__all__:
        assert getattr(ml, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ml.nonsense  # noqa: B018
    assert ml.__version__


def test_the_functions_are_no_modules() -> None:
    """`ml.merge` stays the function, whatever is imported first."""
    code = "import mergelab.cli, mergelab.merging, mergelab as ml; print(callable(ml.merge), callable(ml.compare))"
    assert _python(code) == "True True"
