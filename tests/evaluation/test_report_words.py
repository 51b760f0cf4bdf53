"""The verdict and the plain table, from scores that were made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mergelab.evaluation.names import VariantName
from mergelab.evaluation.report.labels import parts_of, short_names
from mergelab.evaluation.report.matrix import matrices
from mergelab.evaluation.report.tables import WIDTH, plain_table
from mergelab.evaluation.report.verdict import sentences
from mergelab.evaluation.selection import Choice
from tests.evaluation.frames import JUDGE, LIKENESS, Value, a_set
from tests.evaluation.reported import VARIANTS, result_of, worth


def noisy(value: Value, by: float) -> Value:
    """With the prompts of a merge at odds with each other."""
    return lambda name, variant, prompt, seed, role: (
        value(name, variant, prompt, seed, role)
        + (by * (-1) ** int(prompt.split()[1]) if variant.startswith("merge:") else 0.0)
    )


def test_the_best_over_the_stack(tmp_path: Path) -> None:
    """By how much, with interval, corrected p and family; then the next best, and what is kept."""
    result = result_of(tmp_path, [a_set("ghost+day", 8)], worth(stack=0.4, cat=0.5, low=0.6, high=0.7))
    one = result.contrast("merge:ties density=0.5 rank=8", "stack")
    assert one is not None and one.corrected == pytest.approx(3 * 2 / 2**8)
    first, second, third, kept, *_ = result.verdict
    assert first.startswith("ties density=0.5 over the stack by 0.3")
    assert first.endswith("p = 0.023 (joint score by judge, Holm over 3 tests, 8 prompts).")
    assert second.startswith("ties density=0.5 over every other merge; the next, ties density=0.3, by 0.1")
    assert second.endswith("p = 0.008, exploratory.")
    assert third.startswith("ties density=0.5 is the best of 2 of its entry, chosen on the images it is judged by:")
    assert kept.startswith("ties density=0.5 keeps 7") and "; the unmerged stack keeps 39%" in kept
    assert len(result.verdict) <= 8


def test_what_cannot_be_told_apart(tmp_path: Path) -> None:
    """Says so, and which difference could have been."""
    value = noisy(worth(stack=0.5, cat=0.5, low=0.52, high=0.51), 0.2)
    first, *_ = result_of(tmp_path, [a_set("ghost+day", 8)], value).verdict
    assert first.startswith("ties density=0.3 and the stack cannot be told apart with 8 prompts: 0.02 [-0.1")
    assert "(joint score by judge, Holm over 3 tests; a difference of 0.2" in first and first.endswith(
        " could have been)."
    )
    assert "cannot be told from ties density=0.3" not in first
    even = result_of(tmp_path, [a_set("ghost+day", 8)], lambda *cell: 0.9 if cell[1] == f"single:{cell[4]}" else 0.1)
    assert even.verdict[0].startswith("cat and the stack are even in every image (joint score by judge")


def test_worse_than_the_stack(tmp_path: Path) -> None:
    """The stack is over the best of the merges; what is lost is named."""
    lines = result_of(tmp_path, [a_set("ghost+day", 10)], worth(stack=0.8, cat=0.2, low=0.3, high=0.25)).verdict
    assert lines[0].startswith("The stack over ties density=0.3, the best merge, by 0.5")
    assert "Lost, with the whole interval below half: subject in all merges; style in all merges." in lines


def test_few_prompts_have_no_intervals(tmp_path: Path) -> None:
    """Raw values, and why."""
    result = result_of(tmp_path, [a_set("ghost+day", 3)], worth(stack=0.5, low=0.6, high=0.7))
    assert result.verdict[0].startswith("ties density=0.5 is 0.2")
    assert "above the stack (joint score by judge, Holm over 3 tests, 3 prompts)." in result.verdict[0]
    assert "3 prompts give no intervals: below five, what a difference is worth cannot be said." in result.verdict
    assert "[" not in "".join(result.verdict) + result.table


def test_over_sets(tmp_path: Path) -> None:
    """What varies are the sets; what interval and corrected p say differently is said."""
    many = [a_set(f"s{number}+t{number}", 4) for number in range(9)]
    first = result_of(tmp_path, many, worth(stack=0.4, cat=0.4, low=0.5, high=0.6)).verdict[0]
    assert first.startswith("ties density=0.5 over the stack by 0.20") and first.endswith("Holm over 3 tests, 9 sets).")
    fewer = result_of(tmp_path, many[:6], worth(stack=0.5, cat=0.4, low=0.3, high=0.6)).verdict[0]
    assert fewer.startswith("ties density=0.5 is above the stack by 0.1")
    assert "not significant after correction: p = 0.094 (joint" in fewer


def test_chosen_on_other_images(tmp_path: Path) -> None:
    """The choices are named, and nobody is said to be flattered."""
    result = result_of(tmp_path, [a_set("ghost+day", 8)], worth(stack=0.4, high=0.7))
    assert any("judged by" in line for line in result.verdict)
    one = Choice("ties density=0.5 rank=8", 2, 0.71)
    lines = sentences(replace(result, choices=[one]))
    assert "Options were chosen on other images: ties density=0.5 among 2 (0.71 there)." in lines
    assert not any("judged by" in line for line in lines)
    each = [replace(one, set=name) for name in "abc"] + [Choice("ties density=0.3 rank=8", 2, 0.6, "d")]
    (said,) = [line for line in sentences(replace(result, choices=each)) if "chosen" in line]
    assert said.endswith("by each of 4 sets for itself: ties density=0.5 in 3 and ties density=0.3 in 1.")


def test_one_adapter_without_a_stack(tmp_path: Path) -> None:
    """The merges are held against each other."""
    one = a_set("ghost+day", 0, 8)
    alone = replace(one, adapters={"subject": one.adapters["subject"]}, prompts=one.prompts[:8])
    variants = [name for name in VARIANTS if name not in ("stack", "single:style")]
    lines = result_of(tmp_path, [alone], worth(cat=0.5, low=0.6, high=0.7), variants=variants).verdict
    assert lines[0].startswith("ties density=0.5 over every other merge; the next, ties density=0.3, by 0.1")
    assert lines[0].endswith("exploratory (subject by judge, where it alone is called, 8 prompts).")
    assert any(line.startswith("ties density=0.5 keeps 7") for line in lines) and "stack" not in " ".join(lines)


def test_the_blind_are_in_no_ranking(tmp_path: Path) -> None:
    """An adapter whose own image is no different has no column, and the verdict is about the other."""
    value = worth(stack=0.4, high=0.7)
    blind: Value = lambda *cell: 0.1 if cell[4] == "style" else value(*cell)  # noqa: E731
    result = result_of(tmp_path, [a_set("ghost+day", 8)], blind)
    assert (
        "Blind, in no ranking (base model and adapter alone cannot be told apart): judge for style." in result.verdict
    )
    assert "recovery of subject" in result.table and " style" not in result.table
    assert not any("style" in matrix["title"] for matrix in matrices(result, {}))
    assert not any("% of style" in line or " of style" in line.partition("Blind")[0] for line in result.verdict)


def test_the_plain_table_is_narrow(tmp_path: Path) -> None:
    """What is nowhere is no column; what does not fit is named, and columns of two adapters stay or go together."""
    result = result_of(tmp_path, [a_set("ghost+day", 8)], worth(stack=0.4, high=0.7), [JUDGE, LIKENESS])
    head, *rows = plain_table(result).splitlines()
    assert max(map(len, [head, *rows[:-1]])) <= WIDTH and "suppression" not in result.table
    for shown in ("all at once", "recovery of subject", "recovery of style", "without a trigger"):
        assert shown in head
    assert rows[-1].startswith("(in the report: ") and "dino to style" in rows[-1]
    assert ("subject by itself" in head) == ("style by itself" in head)


def test_short_names_tell_merges_apart() -> None:
    """What all merges of a method share is left out, and roles may have spaces."""
    labels = ["ties rank=8 k=1", "ties rank=8 k=2", "svd rank=8", "cat", "cat distractor 1=0.5 target=1"]
    names = short_names([VariantName("merge", label) for label in labels], ["target", "distractor 1"])
    assert list(names.values()) == ["ties k=1", "ties k=2", "svd", "cat", "cat distractor 1=0.5 target=1"]
    assert parts_of(labels[-1], ["target", "distractor 1"])[1] == {"distractor 1": "0.5", "target": "1"}
    assert parts_of("ties rank=8, chosen") == ("ties", {"rank": "8", "chosen": "by set"})


@pytest.mark.parametrize("change", [0.1, -0.1])
def test_what_leaks_cost_has_the_direction_of_the_metric(change: float, tmp_path: Path) -> None:
    """A change for the better costs nothing; of those for the worse the largest is named."""
    usual = worth(stack=0.4, high=0.7)

    def value(name: str, variant: str, prompt: str, seed: int, role: str) -> float:
        if role or not variant.startswith("merge:"):
            return usual(name, variant, prompt, seed, role) if role else 0.5
        return 0.5 + change * (2 if "0.3" in variant else 1) + 0.001 * int(prompt.split()[1])

    for metric, costs in ((JUDGE, change < 0), (replace(JUDGE, higher_is_better=False), change > 0)):
        told: Value = value if metric is JUDGE else lambda *cell: 1 - value(*cell) if cell[4] else value(*cell)
        lines = result_of(tmp_path, [a_set("ghost+day", 8, 2, 6)], told, [metric]).verdict
        said = [line for line in lines if "costs most on prompts that call no adapter" in line]
        assert [line.partition(" costs")[0] for line in said] == ["ties density=0.3"] * costs
