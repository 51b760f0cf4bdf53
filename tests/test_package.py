"""The shape of the package: what imports what, how large files are, what the public names are, what is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import mergelab as ml
from mergelab.cli.app import COMMANDS
from tests.import_rule import circle, import_graph, upward_imports

PACKAGE = Path(ml.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# What is in a package, from the top down: a module imports only from below its own line. `*` is the place of those that
# are not named, so that a method, an architecture, a kind or a metric needs no line here.
LAYERS = {
    "mergelab": (
        "__main__",
        "cli",
        "tuning",
        "evaluation",
        "pipelines | comparing | diagnosing",
        "engine",
        "adapter",
        "algebra | publishing",
        "formats | methods",
        "describing",
        "layer | spaces | ranks",
        "linalg | miniature",
        "devices",
        "checks",
        "errors | report",
        "tables",
    ),
    "mergelab.diagnosing": ("doctor", "checks | facts", "diagnosis | specimen"),
    "mergelab.publishing": (
        "publishable",
        "pushing | staging",
        "hub",
        "card",
        "exhibits | front_matter | usage",
        "base_models | recipe",
    ),
    "mergelab.engine": (
        "composing | extracting",
        "checkpoint | differences | merge",
        "changes | outcome",
        "asking | layers",
        "extras | storing",
        "batches | remains | results",
        "blocks",
        "aligning | job | provenance | returned | thresholds | weights",
        "block_weights",
    ),
    "mergelab.formats": (
        "aitoolkit | saving",
        "glancing | readings | writing",
        "headers | planning | sources | yaml_files",
        "same | tools",
        "base_models | fetching | reading",
        "options | weights_beside",
        "base_weights",
        "base_sources | recognising",
        "checkpoints",
        "differences | open_clip",
        "cast_errors | comfy | dialects | keys | kohya | nunchaku | peft | scalings",
        "casting | peft_config",
        "peft_kinds",
        "balancing | kinds | names | original | padding | streaming",
        "tensor_files",
        "strangers | variants | writers",
        "block_layouts | layout | prefixes",
        "block_presets | mapped",
        "architectures | authors | files | header_alphas | messages | saved_modules | targets | words",
    ),
    "mergelab.formats.tools": ("fitting | others", "table", "pipelines", "families | lacks", "tool"),
    "mergelab.formats.fetching": ("hub | stores | web", "cache | folders"),
    "mergelab.formats.architectures": (
        "registry",
        "sd2",
        "*",
        "architecture | double_stream | unet",
        "naming | text_encoders",
        "evidence | fused",
    ),
    "mergelab.formats.kinds": ("*", "oft | starts", "kind | refused"),
    "mergelab.formats.nunchaku": ("packed", "modules", "fusing | quantized", "packing"),
    "mergelab.miniature": ("judge", "world", "objects | styles"),
    "mergelab.methods": ("registry", "dare | magnitude_prune", "ties", "*", "method", "sparsify"),
    "mergelab.ranks": ("cutting", "reading", "dynamic", "budget"),
    "mergelab.linalg": (
        "adding | dense | directions | radix | selection | stacks | streams | values",
        "span | subspace",
        "draws | lowrank",
        "host",
        "gram | workspace",
        "precision",
    ),
    "mergelab.pipelines": (
        "staging",
        "combinations | fusing",
        "applying | originals",
        "keeping | places",
        "adapters",
        "encoding | images | live",
        "opening",
        "fingerprints | schedulers",
    ),
    "mergelab.pipelines.combinations": ("registry", "*", "combination"),
    "mergelab.tuning": (
        "run",
        "report",
        "halving | holding_out | measuring | optuna_search",
        "optuna_study | result",
        "anchors | ledger | objectives | settings | suggesting",
        "space | trial",
        "groups | parameters",
        "scoring",
        "bench | reading",
        "scenes | waves",
        "candidate | config",
    ),
    "mergelab.tuning.report": ("page", "gallery | words", "tables", "figures"),
    "mergelab.evaluation": (
        "demo",
        "planning | run",
        "exhibits | tracking",
        "report | results | summary",
        "concluding",
        "result",
        "analysis | dataset | design",
        "drawing | scoring",
        "grid",
        "variants",
        "executors",
        "opening | photographs",
        "metrics",
        "acting | merging",
        "contact_sheets",
        "reading",
        "recipes | selection | store",
        "sets",
        "aitoolkit | config | failures | progress | statistics | triggers",
        "names",
    ),
    "mergelab.evaluation.analysis": ("contrasts | findings | joining", "ranges", "quantities", "scores"),
    "mergelab.evaluation.statistics": ("design", "intervals", "bounded | moments", "tests", "units"),
    "mergelab.evaluation.executors": (
        "registry",
        "local | on_ray",
        "actor | clusters | executor | queue",
        "worker",
        "sending",
        "desk | task",
    ),
    "mergelab.evaluation.metrics": ("registry", "*", "encoders", "metric"),
    "mergelab.evaluation.dataset": ("pushing", "staging", "card"),
    "mergelab.evaluation.tracking": ("registry | telling", "record | *", "tracker"),
    "mergelab.evaluation.report": (
        "page",
        "cells | figures | matrix | strengths | verdict",
        "choices | forest | limits | pictures | tables",
        "columns | plots",
        "lookup",
        "labels | numbers | raw",
    ),
    "mergelab.cli": (
        "app",
        "tuning",
        "evaluating | extracting | fusing | publishing | showing | writing",
        "inputs",
        "outputs | strengths",
        "arguments | several | streams",
    ),
}


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_down(package: str) -> None:
    """Also those inside functions and for types only."""
    assert upward_imports(import_graph(PACKAGE), package, LAYERS[package]) == []


def test_no_imports_in_a_circle() -> None:
    """Of any two modules, inside packages too."""
    assert circle(import_graph(PACKAGE)) == ""


def test_the_rule_finds_what_it_forbids(tmp_path: Path) -> None:
    """In a small package: up, beside, in no layer, in a circle; relative, in a function, for types only."""
    files = {
        "toy/__init__.py": "",
        "toy/top.py": "from toy.middle import deep\nfrom .bottom import *\nimport os, toy.other",
        "toy/other.py": "def f():\n    from toy import top",
        "toy/middle/__init__.py": "from toy.middle.deep import name",
        "toy/middle/deep.py": "if TYPE_CHECKING:\n    from .. import top",
        "toy/middle/twin.py": "TABLE = ['toy.middle.deep:name']\nfrom toymaker import middle",
        "toy/bottom.py": "from .middle import name",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = import_graph(tmp_path / "toy")
    assert graph == {
        "toy": set(),
        "toy.top": {"toy.middle.deep", "toy.bottom", "toy.other"},
        "toy.other": {"toy.top"},
        "toy.middle": {"toy.middle.deep"},
        "toy.middle.deep": {"toy.top"},
        "toy.middle.twin": {"toy.middle.deep"},
        "toy.bottom": {"toy.middle"},
    }
    assert upward_imports(graph, "toy", ("top | other", "middle")) == [
        "toy.bottom stands in no layer of toy",
        "toy.middle.deep imports toy.top, which lies above it",
        "toy.other imports toy.top, which lies beside it",
        "toy.top imports toy.bottom, which lies above it",
        "toy.top imports toy.other, which lies beside it",
    ]
    assert upward_imports(graph, "toy.middle", ("twin", "deep")) == []
    assert (
        upward_imports(graph, "toy.middle", ("twin", "*")) == upward_imports(graph, "toy.middle", ("*", "deep")) == []
    )
    assert upward_imports(graph, "toy.middle", ("deep", "*")) == [
        "toy.middle.twin imports toy.middle.deep, which lies above it"
    ]
    assert set(circle(graph).split(" < ")) >= {"toy.top"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == ""


def test_files_are_small() -> None:
    """A file is read in one sitting, and the package's folder in one look."""
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 300} == {}
    assert len(list(PACKAGE.glob("*.py"))) <= 14


@pytest.mark.parametrize(
    "pattern",
    [
        "py.typed",
        "__init__.pyi",
        "evaluation/**/*.html.j2",
        "evaluation/**/*.md.j2",
        "publishing/*.md.j2",
        "miniature/MODEL_CARD.md",
        "miniature/weights/lpips_trunk.safetensors",
        "miniature/weights/clip/tokenizer.json",
        "miniature/weights/flux/model_index.json",
        "miniature/weights/sdxl/unet/diffusion_pytorch_model.safetensors",
        "miniature/weights/adapters/sdxl/house/adapter_config.json",
    ],
)
def test_what_is_no_python_is_installed(pattern: str) -> None:
    """Beside the modules, wherever the package that is tested lies."""
    assert list(PACKAGE.glob(pattern))


def test_shapes_are_checked_under_pytest() -> None:
    """In every function whose arrays are annotated; a user's plain types are the function's own matter."""
    from mergelab.methods.linear import weighted_sum

    weighted_sum(torch.ones(3, 2, 4), torch.ones(3))
    with pytest.raises(TypeCheckError):
        weighted_sum(torch.ones(3, 2, 4), torch.ones(2))
    with pytest.raises(ml.MergelabError):
        ml.merge(["x"], seed=1.5)  # type: ignore[arg-type]


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_loads_no_heavy_package() -> None:
    """`import mergelab` and all its public names load neither diffusers, lpips nor open_clip; few load pandas."""
    code = (
        "import sys, mergelab as ml; late = ('evaluate', 'register_metric', 'tune', 'Tuned');"
        "[getattr(ml, n) for n in ml.__all__ if n not in late]; print('pandas' in sys.modules, end=' ');"
        "[getattr(ml, n) for n in late];"
        "print([n for n in ('diffusers', 'lpips', 'open_clip', 'transformers', 'peft') if n in sys.modules])"
    )
    assert _python(code) == "False []"


@pytest.mark.parametrize(
    "arguments", [["--help"], *([command.__name__, "--help"] for command in COMMANDS), ["nonsense"]]
)
def test_the_command_line_starts_without_torch(arguments: list[str]) -> None:
    """`mergelab --help` answers without importing torch, and so does the help of each command."""
    code = f"import sys; from mergelab.cli import run; run({arguments}); print('torch' in sys.modules)"
    assert _python(code).endswith("False")


def test_public_names() -> None:
    """Every public name is there, documented, and shown by dir()."""
    assert set(ml.__all__) <= set(dir(ml))
    for name in ml.__all__:
        assert getattr(ml, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ml.nonsense  # noqa: B018
    assert ml.__version__
    assert ml.register_method is ml.register


def test_the_class_of_every_method_is_public() -> None:
    """A class in the table of methods needs no line elsewhere; what looks like one is none."""
    from mergelab.methods.registry import METHODS

    for strategy in METHODS.values():
        assert getattr(ml, strategy.__name__) is strategy
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        ml.Nonsense  # noqa: B018


def test_the_functions_are_no_modules() -> None:
    """`ml.merge` stays the function, whatever is imported first."""
    code = "import mergelab.cli, mergelab.engine.merge, mergelab as ml; print(callable(ml.merge), callable(ml.compare))"
    assert _python(code) == "True True"
