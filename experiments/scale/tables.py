"""The tables of the README, as Markdown: `python -m experiments.scale.tables`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from experiments.scale.parts import Parts, parts
from experiments.scale.simulate import Plan, simulate
from mergelab.evaluation.scoring import AT_A_TIME

DAY, HOUR, NEVER = 86400.0, 3600.0, float("inf")
WORDS = {DAY: "one a day", HOUR: "one an hour", NEVER: "none"}
HEAD = ("hours", "images/s", "GPU useful", "waits for storage", "storage busy", "writer busy", "GPU hours", "cost, $")


def row(parts: Parts, plan: Plan, price: float) -> list[str]:
    """One simulation: as in `HEAD`."""
    found = simulate(parts, plan)
    return [
        f"{found.seconds / HOUR:,.1f}", f"{plan.merges * plan.images / found.seconds:.2f}",
        *(f"{found.share(part):.1%}" for part in ("useful", "storage waited for", "storage", "writer")),
        f"{found.gpu_hours:,.0f}", f"{found.gpu_hours * price:,.0f}",
    ]  # fmt: skip


def show(title: str, first: Sequence[str], rows: Sequence[tuple[Sequence[str], Parts, Plan]], price: float) -> None:
    """One table, line by line as it is found."""
    heads = [*first, *HEAD]
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    for names, known, plan in rows:
        print(f"| {' | '.join([*names, *row(known, plan, price)])} |", flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Prints them."""
    parser = argparse.ArgumentParser("python -m experiments.scale.tables", description=__doc__)
    parser.add_argument("--price", type=float, default=2.5, help="of a GPU hour: an assumption")
    parser.add_argument("--bandwidth", type=float, default=2.0, help="of the storage, GB/s: an assumption")
    parser.add_argument("--merges", type=int, default=10_000)
    args = parser.parse_args(words)
    plan = Plan(1, merges=args.merges, bandwidth=args.bandwidth * 1e9, kept=True, scored=AT_A_TIME)
    flux, found = parts("flux", 28, 1), parts("flux", 28, 1, mended=False)
    many = [replace(plan, workers=workers) for workers in (1, 8, 64, 256)]

    def on(*workers: int) -> list[Plan]:
        return [one for one in many if one.workers in workers]

    def before(one: Plan) -> Plan:
        return replace(one, kept=False, scored=None)

    price = args.price
    show("GPUs", ["GPUs", "code"], [
        *(([str(one.workers), "as it is"], flux, one) for one in many),
        *(([str(one.workers), "as it was"], found, before(one)) for one in many),
    ], price)  # fmt: skip
    show("Groups", ["GPUs", "group"], [
        ([str(one.workers), f"{group}{'' if kept else ', to whoever is free'}"], flux,
         replace(one, group=group, kept=kept))
        for one in on(64, 256) for group in (4, 16, 64) for kept in (True, False)
    ], price)  # fmt: skip
    show("Failures", ["GPUs", "failures of a worker"], [
        ([str(one.workers), WORDS[life]], flux, replace(one, failures=life))
        for one in on(8, 64, 256) for life in (NEVER, DAY, HOUR)
    ], price)  # fmt: skip
    local = replace(flux, start_bytes=0.0)
    show("Models on the workers' own disks", ["GPUs", "failures of a worker"], [
        ([str(one.workers), WORDS[life]], local, replace(one, failures=life))
        for one in on(64, 256) for life in (NEVER, HOUR)
    ], price)  # fmt: skip
    models = {"FLUX.1, 28 steps": flux, "FLUX.1, 4 steps": parts("flux", 4, 1),
              "FLUX.1, 4 steps, as it was": parts("flux", 4, 1, mended=False),
              "SDXL, 30 steps, batch 4": parts("sdxl", 30, 4)}  # fmt: skip
    show("Models", ["GPUs", "model"], [
        ([str(one.workers), name], known, before(one) if "was" in name else one)
        for one in on(8, 64) for name, known in models.items()
    ], price)  # fmt: skip
    returned = parts("flux", 28, 1, returned=True)
    show("Without shared storage for images: they come back to the writer", ["GPUs"], [
        ([str(one.workers)], replace(returned, image_bytes=0.0), one) for one in on(8, 64, 256)
    ], price)  # fmt: skip


if __name__ == "__main__":
    main()
