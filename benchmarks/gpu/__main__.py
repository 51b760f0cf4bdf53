"""Everything that is measured on a GPU, in one run within a budget of seconds: `python -m benchmarks.gpu -o gpu.json`.

The units run in order of worth. Each is printed as it ends and kept in one JSON file; one that fails is reported, one
that the budget has no room for is named. `--device cpu --small` tries all of them on small layers and pipelines.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu import beside, equality, merging
from benchmarks.gpu.evaluating import real
from benchmarks.gpu.session import Session, machine

STEPS = ("merge", "equal", "evaluate", "cpu", "peers")
_SHM = Path("/dev/shm")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="a JSON file")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="few small layers, small pipelines")
    parser.add_argument("--budget", type=float, default=240, help="seconds, of which 240 are all")
    parser.add_argument("--only", default=",".join(STEPS), help="of these, with commas: " + ", ".join(STEPS))
    parser.add_argument("--arch", default="flux,sdxl", help="of these, with commas: flux, sdxl")
    parser.add_argument("--folder", type=Path, help="where files are kept meanwhile; default: in memory")
    return parser


def main(words: Sequence[str] | None = None) -> Session:
    """Runs what the command line asks for."""
    args = arguments().parse_args(words)
    steps, archs = args.only.split(","), args.arch.split(",")
    if unknown := (set(steps) - set(STEPS)) | (set(archs) - {"flux", "sdxl"}):
        arguments().error(f"unknown: {', '.join(sorted(unknown))}")
    # Not in memory where this is only tried: there it may be the machine's all.
    inside = _SHM if args.folder is None and not args.small and _SHM.is_dir() else args.folder
    with tempfile.TemporaryDirectory(dir=inside) as folder:
        session = Session(args.device, args.small, Path(folder), args.budget, args.output)
        print(" ".join(f"{key} {value}" for key, value in machine().items()), flush=True)
        session.unit("start of the device", 5, lambda: _start(args.device))
        run(session, steps, archs)
    done = [unit for unit in session.units if "found" in unit]
    for state in ("failed", "skipped"):
        if names := [unit["unit"] for unit in session.units if state in unit]:
            print(f"{state}: {'; '.join(names)}", flush=True)
    for unit in done:
        if missed := unit["found"].get("missed"):
            print(f"goal missed: {unit['unit']}: {'; '.join(missed)}", flush=True)
    print(f"{len(done)} of {len(session.units)} units in {args.budget - session.left:.0f} s", flush=True)
    return session


def run(session: Session, steps: Sequence[str], archs: Sequence[str]) -> None:
    """All units, in order of worth."""
    for arch in archs:
        session.unit(f"{arch}: four synthetic adapters", 6, partial(merging.write_files, session, arch))
        lines(session, steps, {"flux": merging.FLUX, "sdxl": merging.SDXL}[arch])
        if "merge" in steps:
            session.unit(f"{arch}: floors", 4, partial(merging.floors, session, arch))
    if "flux" in archs:
        lines(session, steps, merging.LIMITED)
    if "equal" in steps:
        session.unit("draws equal the CPU's", 3, partial(equality.masks, session))
        session.unit("whole merges against the CPU's", 4, partial(equality.whole_merges, session))
        for arch in archs:
            some = {"flux": 12, "sdxl": 24}[arch]
            session.unit(f"{arch}: merges against the CPU's", 15, partial(equality.merges, session, arch, some))
            session.unit(f"{arch}: others against the CPU's", 3, partial(equality.others, session, arch))
    for arch in archs:
        if "evaluate" in steps:
            evaluate(session, arch)
        beside_it(session, steps, arch)
    if "flux" in archs:
        lines(session, steps, merging.LATER)


def beside_it(session: Session, steps: Sequence[str], arch: str) -> None:
    """The processor's cores, PEFT, and how often the host waits."""
    svd, ties = merging.Line(arch, "svd", 6), merging.Line(arch, "ties", 8)
    if "cpu" in steps:
        session.unit(f"{arch} svd on the processor's cores", 6, partial(beside.on_cores, session, svd))
        session.unit(f"{arch} ties, a sample on the cores", 8, partial(beside.sample_on_cores, session, ties))
    for method in ("svd", "ties") if "peers" in steps else ():
        session.unit(f"{arch} {method} by PEFT", 6, partial(beside.peft, session, arch, method))
    for line in (svd, ties) if "merge" in steps else ():
        session.unit(f"{line.title}, waits of the host", line.goal, partial(merging.waits, session, line))


def lines(session: Session, steps: Sequence[str], some: Sequence[merging.Line]) -> None:
    """Some lines of the table."""
    for line in some if "merge" in steps else ():
        runs = 1 if line.memory else 2.5
        session.unit(line.title, runs * line.goal, partial(merging.measure, session, line))


def evaluate(session: Session, arch: str) -> None:
    """A pipeline of real size: made, evaluated, and adapters swapped in."""
    name = f"{arch} pipeline"
    with real(session, arch) as pipeline:
        if session.unit(f"{name}: made", 8, pipeline.build) is None:
            return
        session.unit(f"{name}: evaluated", 40 if arch == "flux" else 25, pipeline.evaluate)
        session.unit(f"{name}: adapters swapped", 15 if arch == "flux" else 12, pipeline.swap)


def _start(device: str) -> dict[str, str]:
    """What the first use of a device costs once."""
    square = torch.rand(256, 256, device=device)
    torch.linalg.eigvalsh((square @ square.T).double())
    return {"device": device}


if __name__ == "__main__":
    main()
