"""Seconds of every part of a run, with `--gpu` also of what wants one: `python -m experiments.scale.measure -o a.json`.

Each part is printed as it ends and kept in the JSON file at once; one that fails is told, one that there is no time
for is named. `--small` tries all of them on small layers, pictures and pipelines.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.session import Session, machine
from experiments.scale import analysis, files, gpu, pages

PARTS = ("files", "analysis", "pages", "gpu")


def main(words: Sequence[str] | None = None) -> Session:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser("python -m experiments.scale.measure", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="a JSON file")
    parser.add_argument("--gpu", action="store_true", help="also pipelines of the true size")
    parser.add_argument("--only", help="of these, with commas: " + ", ".join(PARTS))
    parser.add_argument("--arch", default="flux,sdxl", help="of these, with commas: flux, sdxl")
    parser.add_argument("--merges", default="8,16,32,64,128", help="how many are concluded from")
    parser.add_argument("--device", help="default: cuda with --gpu, else cpu")
    parser.add_argument("--small", action="store_true", help="small layers, pictures and pipelines")
    parser.add_argument("--budget", type=float, default=900, help="seconds")
    parser.add_argument("--folder", type=Path, help="where files are kept meanwhile")
    args = parser.parse_args(words)
    parts = (args.only or ",".join(PARTS if args.gpu else PARTS[:3])).split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        device = args.device or ("cuda" if args.gpu else "cpu")
        session = Session(device, args.small, Path(folder), args.budget, args.output)
        print(" ".join(f"{key} {value}" for key, value in machine().items()), flush=True)
        if "files" in parts:
            files.units(session)
        if "gpu" in parts:
            gpu.units(session, tuple(args.arch.split(",")))
        sizes = [int(count) for count in args.merges.split(",")]
        if "analysis" in parts:
            analysis.units(session, sizes)
        if "pages" in parts:
            pages.units(session, sizes)
    return session


if __name__ == "__main__":
    main()
