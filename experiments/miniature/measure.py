"""Measures everything the model card claims: `python -m experiments.miniature.measure [sdxl] [flux] [metrics]`.

Prints it and writes it into the model card, with the figure of the dose curves. What is measured is kept in
`RUNS/measured`, so that a run that was cut off goes on; delete that folder to measure anew.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from experiments.miniature import card, instrument, yardsticks
from experiments.miniature.instrument import Numbers, kept
from mergelab import miniature

CARD = miniature.WEIGHTS.parent / "MODEL_CARD.md"


def measured(name: str) -> Numbers:
    """Everything about one pipeline."""
    known = [adapter for adapter in miniature.adapters(name) if adapter.kind != "turbo"]
    return {
        "base": kept(name, "base", lambda: instrument.base(name)),
        "cosines": kept(name, "cosines", lambda: instrument.cosines(name)),
        "doses": {
            adapter.name: kept(name, adapter.name, lambda adapter=adapter: instrument.doses(name, adapter))
            for adapter in known
        },
        "stacks": {
            f"{a.name} + {b.name}": kept(name, f"{a.name}-{b.name}", lambda a=a, b=b: instrument.stacks(name, a, b))
            for a, b in miniature.pairs(name)
        },
    }


def replaced(text: str, section: str) -> str:
    """The model card with one section between its marks in place of the one of the same heading."""
    before, rest = text.split("<!-- measured -->\n")
    found, after = rest.split("<!-- end -->")
    sections = {part.split("\n", 1)[0]: part.strip() for part in re.split(r"(?m)^(?=### )", found) if part.strip()}
    sections[section.split("\n", 1)[0]] = section
    return "\n".join([f"{before}<!-- measured -->", "\n\n".join(sections.values()), f"<!-- end -->{after}"])


def main(parts: Sequence[str]) -> None:
    """Measures the named parts, prints them, and puts them into the model card; its other parts stay."""
    for part in parts or (*miniature.PIPELINES, "metrics"):
        if part == "metrics":
            section = card.metrics(yardsticks.measure_metrics())
        else:
            numbers = measured(part)
            section = card.pipeline(part, numbers)
            card.curves(part, numbers["doses"])
        print(section)
        CARD.write_text(replaced(CARD.read_text(), section))


if __name__ == "__main__":
    main(sys.argv[1:])
