"""Commands that show something: inspect, doctor, compare, methods."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mergelab.cli.arguments import Base, BaseModel, Device, File, Files, Import, Json, Pickle, import_plugins

if TYPE_CHECKING:
    from mergelab.adapter import Adapter


def inspect(
    file: File,
    as_json: Json = False,
    allow_pickle: Pickle = False,
    architecture: BaseModel = None,
    base: Base = None,
) -> str:
    """Show what a file holds: architecture, layers, ranks, alphas, header."""
    from mergelab.adapter import load

    adapter = load(file, allow_pickle=allow_pickle, architecture=architecture, base=base)
    if as_json:
        return json.dumps(_described(adapter), indent=2)
    extras = [f"  kept as it is: {key} {tuple(tensor.shape)}" for key, tensor in list(adapter.extras.items())[:10]]
    header = [
        f"  {key}: {value if len(value) <= 100 else value[:97] + '...'}"
        for key, value in sorted(adapter.metadata.items())
    ]
    return "\n".join([str(adapter), f"norm {adapter.norm():.4g}", *extras, *adapter.report.lines(), *header])


def doctor(
    file: File,
    as_json: Json = False,
    allow_pickle: Pickle = False,
    architecture: BaseModel = None,
    base: Base = None,
) -> str:
    """Say who wrote a file, for which model, what is wrong with it, and which tools read it; of a broken one, too."""
    from mergelab.diagnosing import doctor as diagnose

    diagnosis = diagnose(file, allow_pickle=allow_pickle, architecture=architecture, base=base)
    return json.dumps(diagnosis.to_dict(), indent=2) if as_json else str(diagnosis)


def compare(
    adapters: Files,
    as_json: Json = False,
    device: Device = None,
    allow_pickle: Pickle = False,
    architecture: BaseModel = None,
    base: Base = None,
) -> str:
    """Show where adapters agree and where they are in each other's way, before any merge."""
    from mergelab.adapter import load
    from mergelab.comparing import compare as compare_adapters
    from mergelab.report import carried

    loaded = [load(source, allow_pickle=allow_pickle, architecture=architecture, base=base) for source in adapters]
    comparison = compare_adapters(loaded, device=device)
    if as_json:
        return json.dumps(comparison.to_dict(), indent=2)
    return "\n".join([str(comparison), *(f"  note: {a.name}: {note}" for a in loaded for note in carried(a.notes))])


def methods(as_json: Json = False, plugins: Import = None) -> str:
    """List the methods with their options and defaults."""
    from mergelab.methods.registry import choices_of, method_names, options_of, summary_of

    import_plugins(plugins)
    table = {name: options_of(name) for name in method_names()}
    if as_json:
        return json.dumps(table, indent=2, default=str)
    lines = []
    for name, options in table.items():
        lines.append(f"{name}: {summary_of(name)}")
        choices = choices_of(name)
        for key, value in options.items():
            others = [choice for choice in choices.get(key, ()) if choice != value]
            lines.append(f"    --{key.replace('_', '-')} {value}" + (f" (or {', '.join(others)})" if others else ""))
    return "\n".join(lines)


def _described(adapter: Adapter) -> dict[str, Any]:
    layers = [
        {
            "name": name,
            "shape": list(layer.shape),
            "rank": layer.rank,
            "alpha": layer.scaling * layer.rank,
            "kind": layer.kind,
            "dtype": str(layer.dtypes[0]).removeprefix("torch."),
        }
        for name, layer in adapter.layers.items()
    ]
    return {
        "source": adapter.source,
        "architecture": adapter.architecture,
        "norm": adapter.norm(),
        "layers": layers,
        "extras": {key: list(tensor.shape) for key, tensor in adapter.extras.items()},
        "notes": list(adapter.report.notes),
        "metadata": dict(adapter.metadata),
    }
