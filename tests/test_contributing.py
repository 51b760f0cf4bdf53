"""The worked examples of CONTRIBUTING.md, done as they stand there: a method, an architecture and a metric.

Each is one file and one line (a method one row of the contract more), added to a copy of the package and of the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mergelab as ml
from tests.conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
PACKAGE = Path(ml.__file__).parent
TABLES = {
    "mergelab/methods/registry.py": "_TABLE = {",
    "mergelab/formats/architectures/registry.py": "_TABLE = (",
    "mergelab/evaluation/metrics/registry.py": "_TABLE = (",
    "tests/test_contract.py": "CONTRACT = (",
}
ADDED = {
    "a method": ("mergelab/methods/median.py", "mergelab/methods/registry.py", "tests/test_contract.py"),
    "an architecture": ("mergelab/formats/architectures/pixart.py", "mergelab/formats/architectures/registry.py"),
    "a metric": ("mergelab/evaluation/metrics/ssim.py", "mergelab/evaluation/metrics/registry.py"),
}
METRIC = """
import sys
import mergelab as ml
from tests.evaluation.small import SMALL
result = ml.evaluate(SMALL | {"metrics": ["judge", "ssim"], "seeds": 1, "generation": {"steps": 2}}, sys.argv[1])
assert not result.failures
quantities = {f.quantity for f in result.findings if f.metric == "ssim"}
assert quantities == {"similarity", "preservation"}
assert {a.ceiling for a in result.anchors if a.metric == "ssim"} == {1.0}
page = (result.folder / "report.html").read_text()
assert "ssim to fish: likeness to the image of fish alone" in page and "ssim to fish" in str(result)
"""


def block_after(name: str) -> str:
    """The Python that stands below the mention of a file."""
    match = re.search(rf"`{re.escape(name)}`[^`]*```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert match, f"CONTRIBUTING.md shows nothing for {name}"
    return match[1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of package and tests with all three examples in it; weights and data are linked."""
    folder = tmp_path_factory.mktemp("copy")
    nothing = shutil.ignore_patterns("weights", "data", "__pycache__")
    shutil.copytree(PACKAGE, folder / "mergelab", ignore=nothing)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=nothing)
    (folder / "mergelab/miniature/weights").symlink_to(PACKAGE / "miniature/weights")
    (folder / "tests/data").symlink_to(ROOT / "tests/data")
    for name in ("pyproject.toml", "CONTRIBUTING.md", "README.md"):
        shutil.copy(ROOT / name, folder)
    for module, *tables in ADDED.values():
        (folder / module).write_text(block_after(module))
        for table in tables:
            line, path = block_after(table), folder / table
            assert line.count("\n") == 1, "one line"
            before = path.read_text()
            assert before.count(f"\n{TABLES[table].partition(' = ')[0]}") == 1
            path.write_text(before.replace(f"{TABLES[table]}\n", f"{TABLES[table]}\n{line}", 1))
            assert path.read_text() != before
    return folder


def python(folder: Path, *arguments: str) -> str:
    """Run Python in the copy, which it then imports."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


# What the suite says of the copy, and how many tests at least: the laws for the new method, whatever is asserted of
# every module, architecture and method, and the examples in the packages that got a file.
SUITE = {
    "tests/test_contract.py": 40,
    "tests/test_package.py": 20,
    "tests/test_architecture.py": 80,
    "tests/test_own_mistakes.py": 1,
    "mergelab/methods": 10,
    "mergelab/formats/architectures": 2,
    "mergelab/evaluation/metrics": 2,
}
# The other methods and models are what they were, and so is how the package starts in a process of its own.
CHOSEN = (
    "(test_contract and (median or every)) or (not test_contract and "
    "(pixart or not (original_names or norms or real_model or starts_without or no_modules)))"
)


def test_the_suite_on_the_copy(copy: Path) -> None:
    """Nothing of it is red, and the new names are met by themselves: nobody has to list them a second time."""
    said = python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", *SUITE, "-k", CHOSEN)
    assert "failed" not in said and "skipped" not in said
    passed = re.findall("^PASSED (.*)", said, flags=re.MULTILINE)
    assert all(sum(name.startswith(part) for name in passed) >= least for part, least in SUITE.items())
    for word in ("test_contract.py.*median", "test_architecture.py.*pixart", r"ssim\.py"):
        assert any(re.search(word, name) for name in passed), word


def test_what_the_method_and_the_architecture_do(copy: Path) -> None:
    """By name in Python and on the command line; a file of the original names is read, and its q, k, v are split."""
    code = """
import torch, mergelab as ml
from mergelab.cli import run
assert ml.Median().space == "delta" and run(["methods"]) == 0
stem = "blocks.3.attn.qkv"
x = ml.load({f"{stem}.lora_A.weight": torch.randn(4, 1152), f"{stem}.lora_B.weight": torch.randn(3456, 4)})
assert x.architecture == "pixart-sigma" and len(x.layers) == 3, x
assert ml.merge([x, x], [0.5, 0.5], "median").architecture == "pixart-sigma"
"""
    assert "median: `n * median_i(w_i delta_i)`" in python(copy, "-c", code)


def test_metrics(copy: Path, tmp_path: Path) -> None:
    """A run scores with it; floor, ceiling, tables and report know what it is."""
    python(copy, "-c", METRIC, str(tmp_path / "run"))
