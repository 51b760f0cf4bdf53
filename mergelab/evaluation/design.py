"""What a configuration can tell, before and after its images are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergelab.evaluation.config import Config
from mergelab.evaluation.recipes import recipes
from mergelab.evaluation.sets import AdapterSet, counts, roles_of
from mergelab.evaluation.statistics import Units, least_p
from mergelab.tables import counted


@dataclass(frozen=True)
class Design:
    """How much the primary contrast rests on.

    Attributes:
        unit: what varies between clusters: "prompts", "sets", or "prompts of these sets".
        clusters: how many there are.
        images: of each variant.
        family: tests against the stack, which are corrected together.
        least_p: the least p value that the design can reach, corrected for the family.
    """

    unit: str
    clusters: int
    images: int
    family: int
    least_p: float

    def sentence(self) -> str:
        """In words: the units, and what the tests can reach."""
        said = f"{counted(self.clusters, 'cluster')} ({self.unit}), {counted(self.images, 'image')} of each variant"
        if not self.family:
            return f"{said}."
        return f"{said}; {counted(self.family, 'test')} against the stack can reach p = {self.least_p:.2g} at best."

    def warning(self) -> str | None:
        """What is wrong with it, before anything is drawn; None where nothing is."""
        if self.family and self.least_p > 0.05:
            more = "sets" if self.unit == "sets" else "prompts that call several adapters"
            return (
                f"no difference from the stack can be significant: {counted(self.clusters, 'cluster')} ({self.unit}) "
                f"and {counted(self.family, 'test')} reach p = {self.least_p:.2g} at best; more {more}, or fewer "
                "merges, would"
            )
        return None


def design_of(config: Config, sets: Sequence[AdapterSet]) -> Design:
    """Of the primary contrast: on the prompts that call several adapters, or else on those of the first that is called.

    Args:
        config: of the run.
        sets: with the prompts that are reported.
    """
    tests = [counts("together", None), *(counts("alone", role) for role in roles_of(sets))]
    drawn = ([(one.name, p.text) for one in sets for p in one.prompts if test(p.calls)] for test in tests)
    keys = next((found for found in drawn if found), [])
    rows = [key for key in keys for _ in config.seeds]
    units = Units([prompt for _, prompt in rows], [name for name, _ in rows])
    several = any(len(one.adapters) > 1 for one in sets)
    families = {(r.family if config.select else r.label) for one in sets for r in recipes(config, one)}
    family = len(families) if several else 0
    return design_from(units, len(rows), family)


def design_from(units: Units, images: int, family: int) -> Design:
    """With the least p value that so many clusters reach in a family of tests."""
    least = min(1.0, least_p(units.count) * max(family, 1))
    return Design(units.kind, units.count, images, family, least)
