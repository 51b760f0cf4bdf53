"""The verdict claims no more than its tests, and says what is not there, from scores that were made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mergelab.evaluation.analysis.contrasts import Contrast
from mergelab.evaluation.report.lookup import names_of, told_apart
from mergelab.evaluation.report.matrix import matrices
from mergelab.evaluation.report.tables import plain_table
from mergelab.evaluation.report.verdict import sentences
from mergelab.evaluation.result import Result
from mergelab.evaluation.selection import Choice
from mergelab.evaluation.sets import AdapterSet
from mergelab.evaluation.statistics import Interval
from tests.evaluation.frames import JUDGE, LIKENESS, a_set
from tests.evaluation.reported import VARIANTS, result_of, worth


def alone(prompts: int) -> AdapterSet:
    """One adapter, and prompts that call it."""
    whole = a_set("ghost+day", 0, prompts)
    return replace(whole, adapters={"subject": whole.adapters["subject"]}, prompts=whole.prompts[:prompts])


def test_nothing_to_compare(tmp_path: Path) -> None:
    """One adapter without merges: said first, and the table has what there is."""
    result = result_of(tmp_path, [alone(4)], worth(), variants=["base", "single:subject"], merges=[])
    assert result.verdict[0] == "Nothing to compare: one adapter makes no stack, and there are no merges."
    assert not any("merges do" in line for line in result.verdict)
    assert [row.split()[0] for row in result.table.splitlines()] == ["subject", "base", "subject"]
    failed = result_of(tmp_path, [a_set("ghost+day", 4)], worth(), variants=VARIANTS[:3])
    assert failed.verdict[0] == "Nothing to compare: neither a stack nor a merge has a score."


def test_where_nothing_can_be_significant(tmp_path: Path) -> None:
    """Five prompts cannot reach .05: no merge is over another, and no difference could have been seen."""
    result = result_of(tmp_path, [a_set("ghost+day", 5)], worth(stack=0.4, cat=0.6, low=0.5, high=0.45))
    first, second, *_ = result.verdict
    assert first.startswith("cat is above the stack by 0.20") and "which is no proof: p = 0.188 (joint" in first
    assert second == "ties density=0.3 and ties density=0.5 cannot be told from cat (exploratory)."
    text = " ".join(result.verdict)
    assert " over " not in text.replace("Holm over", "") and "could have been" not in text
    cells = [cell for matrix in matrices(result, names_of(result)) for row in matrix["rows"] for cell in row["cells"]]
    assert not any(cell["kind"] in ("better", "worse") for cell in cells)


@pytest.mark.parametrize(
    ("interval", "p", "corrected", "told"),
    [
        (Interval(0.2, 0.1, 0.3), 0.04, None, True),
        (Interval(0.2, 0.1, 0.3), 0.06, None, False),
        (Interval(0.2, 0.1, 0.3), 0.01, 0.06, False),
        (Interval(0.2, 0.0004, 0.3), 0.01, 0.02, False),
        (Interval(-0.2, -0.3, -0.1), 0.01, 0.02, True),
        (Interval(0.2, -0.1, 0.5), 0.01, 0.02, False),
    ],
)
def test_told_apart(interval: Interval, p: float, corrected: float | None, told: bool) -> None:
    """By the interval as it is written, and by the p value that is shown."""
    one = Contrast("joint", "judge", "joint", "together", "a", "b", interval, p, corrected, 0.7, 0.1, 9, 0.1)
    assert told_apart(one) is told


def test_one_prompt_and_one_merge(tmp_path: Path) -> None:
    """The singular, and no difference of 0.000."""
    one = [{"method": "cat"}]
    result = result_of(tmp_path, [a_set("ghost+day", 1)], worth(stack=0.5), variants=VARIANTS[:5], merges=one)
    assert "1 prompt gives no interval: below five, what a difference is worth cannot be said." in result.verdict
    even = result_of(
        tmp_path, [a_set("ghost+day", 1)], lambda *cell: 0.9 if cell[1] == f"single:{cell[4]}" else 0.1,
        variants=VARIANTS[:5], merges=one,
    )  # fmt: skip
    assert even.verdict[0].startswith("cat and the stack are even (joint score by judge")
    assert "0.000" not in " ".join(result.verdict + even.verdict)


def test_merges_that_are_equal(tmp_path: Path) -> None:
    """Without a stack nothing stands before them; of two that differ by nothing no interval is written."""
    variants = [name for name in VARIANTS if name not in ("stack", "single:style")]
    three = result_of(tmp_path, [alone(8)], worth(), variants=variants)
    assert three.verdict[0].startswith("Which of 3 merges is best cannot be told, exploratory (subject by judge")
    merges = [{"method": "cat"}, {"method": "ties", "density": 0.3, "rank": 8}]
    two = result_of(tmp_path, [alone(8)], worth(), variants=variants[:-1], merges=merges)
    assert "differ by less than 0.001, p = 1, exploratory (subject by judge" in two.verdict[0]


def test_the_best_may_be_lost(tmp_path: Path) -> None:
    """That is said by itself."""
    lines = result_of(tmp_path, [a_set("ghost+day", 10)], worth(stack=0.8, cat=0.2, low=0.3, high=0.25)).verdict
    assert "ties density=0.3 is the best merge, and has lost subject and style all the same." in lines


def failure(metric: str | None, prompt: str | None, error: str, variant: str = "merge:cat") -> dict[str, Any]:
    """A cell that failed, or a whole variant."""
    seed = None if prompt is None else 0
    return {"set": "ghost+day", "variant": variant, "metric": metric, "prompt": prompt, "seed": seed, "error": error}


def test_failures_are_told_once_and_briefly(tmp_path: Path) -> None:
    """No name as files have it; a metric without any score by itself alone; what holes do to means is said."""
    result = result_of(tmp_path, [a_set("ghost+day", 8)], worth(stack=0.4, high=0.7))
    whole = [failure(None, None, "OSError: no")]
    assert not any("cells failed" in line for line in sentences(replace(result, failures=whole)))
    rows = [*whole, failure("judge", "prompt 1", f"KeyError: {'x' * 400}"), failure("mine", "prompt 1", "TypeError: y")]
    silent: Result = replace(result, failures=rows, metrics=[*result.metrics, replace(JUDGE, name="mine")])
    lines = sentences(silent)
    assert max(map(len, lines[4:])) <= 160 and sum("metric mine" in line.lower() for line in lines) == 1
    assert "1 variant failed, the first (cat) with OSError: no." in lines and "merge:" not in " ".join(lines)
    assert any(line.startswith("Where cells failed, means are over different images") for line in lines)
    many = [failure(None, "prompt 1", f"{name}: z") for name in "ABCDE"]
    assert "2 more kinds of failure: see the report." in sentences(replace(result, failures=many))


def test_a_choice_by_chance(tmp_path: Path) -> None:
    """At a score of nothing; and what was chosen keeps its option in its name, though no other is left."""
    variants = [name for name in VARIANTS if "0.3" not in name]
    result = result_of(tmp_path, [a_set("ghost+day", 8)], worth(stack=0.4, high=0.7), variants=variants)
    choice = Choice("ties density=0.5 rank=8", 2, 0.001)
    lines = sentences(replace(result, choices=[choice]))
    said = "Options were chosen on other images: ties density=0.5 among 2 (0.00 there, which is chance)."
    assert said in lines and "\nties density=0.5 " in result.table
    each = [replace(choice, set="a"), replace(choice, set="b", score=0.5)]
    assert any(
        line.endswith("; in 1 set at a score of 0.00, which is chance.")
        for line in sentences(replace(result, choices=each))
    )


def test_the_primary_score_is_named_and_in_the_table(tmp_path: Path) -> None:
    """By which metric, where it is not the first that was asked for; however long the names of merges are."""
    asked = [a_set("ghost+day", 3)]
    usual = result_of(tmp_path, asked, worth(stack=0.4, high=0.7), metrics=[JUDGE])
    assert any(line.endswith("(by judge).") for line in usual.verdict) and "all at once" in usual.table
    long = f"merge:{'mine' * 40}"
    result = result_of(
        tmp_path, asked, lambda n, v, *cell: worth(stack=0.4)(n, "merge:cat" if v == long else v, *cell),
        [JUDGE, LIKENESS], [*VARIANTS, long],
    )  # fmt: skip
    assert "all at once" in plain_table(result).splitlines()[0]


def test_the_primary_score_of_one_adapter(tmp_path: Path) -> None:
    """Seen over all prompts and not on those that call both: its means are shown, their difference is the verdict's."""
    usual = worth(stack=0.4, cat=0.6)

    def value(name: str, variant: str, prompt: str, seed: int, role: str) -> float:
        if role == "style" or (variant == "single:subject" and prompt in ("prompt 0", "prompt 1")):
            return 0.1 + 0.02 * (prompt == "prompt 0" and variant == "base")
        return usual(name, variant, prompt, seed, role)

    result = result_of(tmp_path, [a_set("ghost+day", 2, 12)], value)
    assert result.primary is not None and (result.primary.quantity, result.primary.prompts) == ("concept", "together")
    head, *rows = result.table.splitlines()
    assert "subject by judge" in head and "recovery of subject" not in head
    place = head.index("subject by judge")
    means = {row[:place].split("  ")[0]: float(row[place:].split()[0]) for row in rows if not row.startswith("(")}
    one = result.contrast("merge:cat", "stack")
    assert one is not None and means["cat"] - means["stack"] == pytest.approx(one.interval.estimate, abs=0.002)


def test_merged_adapters_are_named_where_there_are_any(tmp_path: Path) -> None:
    """An empty folder is none."""
    result = result_of(tmp_path, [a_set("ghost+day", 3)], worth())
    (tmp_path / "adapters").mkdir(exist_ok=True)
    assert "merged adapters" not in repr(result) and "report.html" in repr(result)
    (tmp_path / "adapters" / "cat.safetensors").write_bytes(b"")
    assert f"merged adapters: {tmp_path / 'adapters'}" in repr(result)
