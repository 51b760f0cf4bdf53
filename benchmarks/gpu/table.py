"""What `benchmarks.gpu` measured, as the table of README.md: `python -m benchmarks.gpu.table gpu.json`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- table: python -m benchmarks.gpu -o gpu.json -->", "<!-- end of the table -->"
_LINE = ("line", "warm, s", "load, merge, save", "first, s", "goal, s", "peak, GB", "reserved, GB")
_HIDDEN = ("where", "missed")


def tables(kept: Mapping[str, Any]) -> str:
    """Lines of merges; everything else in words; what failed or was skipped."""
    of = kept["machine"]
    rows, rest = [], []
    for unit in kept["units"]:
        found = unit.get("found")
        if found is None:
            what = "skipped: " + unit["skipped"] if "skipped" in unit else unit["failed"].strip().splitlines()[-1]
            rest.append((unit["unit"], what))
        elif "warm" in found:
            rows.append(_row(unit["unit"], found))
        else:
            rest.append((unit["unit"], _told({k: v for k, v in found.items() if k not in _HIDDEN})))
    heading = (
        f"{of['gpu'] or 'No GPU'}, {of['cores']} processor cores, Python {of['python']}, torch {of['torch']}, "
        f"PEFT {of['peft']}, diffusers {of['diffusers']}."
    )
    return "\n".join([heading, "", *_markdown(_LINE, rows), "", *_markdown(("what", "measured"), rest)])


def _row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    warm, first = found["warm"], found["first"]
    parts = ", ".join(f"{warm[part]:.2f}" for part in ("load", "merge", "save"))
    peak, reserved = (f"{found[key]:.1f}" if key in found else "" for key in ("peak_gb", "reserved_gb"))
    missed = " ".join(found.get("missed", []))
    best = _bold(f"{warm['all']:.2f}", " s," in missed)
    return name, best, parts, f"{first['all']:.2f}", f"{found['goal']:g}", _bold(peak, " GB," in missed), reserved


def _bold(text: str, loud: bool) -> str:
    return f"**{text}**" if loud else text


def _told(value: Any) -> str:
    if isinstance(value, Mapping) and "largest" in value:  # of which layer is in the JSON
        return _told(value["largest"])
    if isinstance(value, Mapping):
        return "; ".join(f"{key.replace('_', ' ')} {_told(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_told, value)) or "none"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def _markdown(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (heads, ("---",) * len(heads), *rows)] if rows else []


def main() -> None:
    """Writes it between the markers."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.table", description=__doc__)
    parser.add_argument("file", type=Path, help="what `python -m benchmarks.gpu -o` wrote")
    parser.add_argument("--print", action="store_true", help="print it, and leave README.md alone")
    args = parser.parse_args()
    body = tables(json.loads(args.file.read_text(encoding="utf-8")))
    if args.print:
        print(body)
        return
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{body}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
