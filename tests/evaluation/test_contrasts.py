"""Pairs of variants, joint scores, the primary family, and choices by score, from scores made by hand."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mergelab as ml
from mergelab.evaluation.analysis.contrasts import EACH_TWO, Primary, contrasts
from mergelab.evaluation.analysis.findings import findings
from mergelab.evaluation.analysis.joining import join_concepts
from mergelab.evaluation.analysis.quantities import JOINT_SCORE, described
from mergelab.evaluation.analysis.ranges import metric_ranges
from mergelab.evaluation.analysis.scores import Scores
from mergelab.evaluation.concluding import primary_of
from mergelab.evaluation.config import Config, Part, Select
from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.names import VariantName
from mergelab.evaluation.report.lookup import ranked
from mergelab.evaluation.report.matrix import matrices
from mergelab.evaluation.selection import check_selection, chosen, parts_of
from mergelab.evaluation.sets import AdapterSet
from mergelab.evaluation.statistics import holm, sign_flip
from tests.evaluation.frames import COSINE, JUDGE, NEARNESS, a_set, frame
from tests.evaluation.reported import result_of

VARIANTS = ["base", "single:subject", "single:style", "stack", "merge:a", "merge:b"]
ROLES = ["subject", "style"]
NAMES = [name for text in VARIANTS if (name := VariantName.parse(text))]


def value(name: str, variant: str, prompt: str, seed: int, role: str) -> float:
    """Adapters alone .9, the base .1; a merge has its own, which rises and falls with the prompt."""
    number = int(prompt.split()[1])
    bump = 0.01 * (number % 3) + 0.002 * (sum(map(ord, name)) % 7)
    known = {"stack": 0.5, "merge:a": 0.6, "merge:b": 0.5 - 0.01 * number}
    if variant == "base" or variant.startswith("single:"):
        return 0.9 if role and variant.endswith(role) else 0.1
    return known[variant] + bump + (0.1 if role == "style" else 0.0)


def analysed(sets: list[AdapterSet], metric: Description = JUDGE) -> tuple[Scores, Primary]:
    """Scores with the joint ones, and the primary score."""
    scores = Scores(frame(sets, VARIANTS, metric, value), sets)
    ranges = metric_ranges(scores, [metric], ROLES)
    join_concepts(scores, [metric], VARIANTS, ROLES, ranges)
    primary = primary_of(scores, [metric], ranges, ROLES)
    assert primary is not None
    return scores, primary


def test_the_joint_score_is_the_least_of_each_image() -> None:
    """On prompts that call both, and no others; by hand."""
    scores, primary = analysed([a_set("ghost+day")])
    assert primary == Primary("joint", "judge", "joint", "together")
    joint = scores.column(("merge:a", "judge", "joint"))
    parts = [scores.column(("merge:a", "judge", f"single:{role}")) for role in ROLES]
    both = pd.concat(parts, axis=1).loc[joint.index]
    assert len(joint) == 6 and joint.tolist() == both.min(axis=1).tolist() == both.iloc[:, 0].tolist()
    harmonic = scores.column(("merge:a", "judge", "harmonic mean"))
    assert harmonic.to_numpy() == pytest.approx(2 / (1 / both).sum(axis=1).to_numpy())


def test_means_hide_that_each_is_in_another_image() -> None:
    """Half the images show one, half the other: each mean is .5, and no image shows both."""

    def half(name: str, variant: str, prompt: str, seed: int, role: str) -> float:
        shown = (int(prompt.split()[1]) % 2 == 0) == (role == "subject")
        return value(name, variant, prompt, seed, role) if "merge" not in variant else float(shown)

    sets = [a_set("ghost+day")]
    scores = Scores(frame(sets, VARIANTS, JUDGE, half), sets)
    join_concepts(scores, [JUDGE], VARIANTS, ROLES, metric_ranges(scores, [JUDGE], ROLES))
    assert scores.column(("merge:a", "judge", "joint")).tolist() == [0.0] * 6
    assert scores.column(("merge:a", "judge", "single:subject")).iloc[:6].mean() == 0.5


def test_cosines_are_joined_on_the_scale_of_each_adapter() -> None:
    """0 as the base model, 1 as the adapter alone: a concept whose cosines are lower is not always the least."""
    scores, _ = analysed([a_set("ghost+day")], COSINE)
    joint = scores.column(("merge:a", "clip_text", "joint"))
    by_hand = [
        min((value("ghost+day", "merge:a", p, 0, role) - 0.1) / 0.8 for role in ROLES) for _, p, _ in joint.index
    ]
    assert joint.to_numpy() == pytest.approx(np.array(by_hand))


def test_nearness_is_joined_on_the_scale_of_each_adapter() -> None:
    """0 as the base model, 1 as the adapter alone, though it lies in [0, 1]; probabilities stay as they are.

    The subject's goes from .1 to .9 and the style's from .3 to .5: .45 of the one is less than .42 of the other.
    """

    def near(name: str, variant: str, prompt: str, seed: int, role: str) -> float:
        low, high = (0.1, 0.9) if role == "subject" else (0.3, 0.5)
        noise = 0.01 * (-1) ** int(prompt.split()[1])
        shown = {"base": low, f"single:{role}": high, "merge:a": 0.45 if role == "subject" else 0.42}
        return shown.get(variant, low) + noise

    sets = [a_set("ghost+day")]
    for metric, by_hand in ((NEARNESS, (0.45 - 0.1) / 0.8), (JUDGE, 0.42)):
        scores = Scores(frame(sets, VARIANTS, metric, near), sets)
        join_concepts(scores, [metric], VARIANTS, ROLES, metric_ranges(scores, [metric], ROLES))
        joint = scores.column(("merge:a", metric.name, "joint"))
        assert len(joint) == 6 and joint.mean() == pytest.approx(by_hand)
    assert described(JOINT_SCORE, NEARNESS).range == (-math.inf, math.inf)
    assert described(JOINT_SCORE, JUDGE).range == (0.0, 1.0)


def test_a_contrast_by_hand() -> None:
    """The mean of the paired differences, wins, sign flips; and the same turned round."""
    scores, primary = analysed([a_set("ghost+day")])
    found = contrasts(scores, [JUDGE], NAMES, ROLES, primary)
    one = next(c for c in found if primary.asks(c) and (c.first, c.second) == ("merge:b", "merge:a"))
    differences = np.array([-0.1 - 0.01 * i for i in range(6)])
    assert one.interval.estimate == pytest.approx(differences.mean()) and one.wins == 0 and one.clusters == 6
    assert one.interval.high < 0 and one.told_apart and one.p == sign_flip(differences) == 2 / 2**6
    assert one.corrected is None and one.by_set == {}
    turned = one.turned()
    assert (turned.first, turned.wins) == ("merge:a", 1) and turned.interval.low == -one.interval.high
    same = {(c.first, c.second) for c in found if primary.asks(c)}
    assert same == {("merge:a", "stack"), ("merge:b", "stack"), ("merge:b", "merge:a")}


def test_the_primary_family_alone_is_corrected() -> None:
    """Each merge against the stack by the joint score, and nothing else."""
    scores, primary = analysed([a_set("ghost+day")])
    found = contrasts(scores, [JUDGE], NAMES, ROLES, primary)
    family = [c for c in found if c.corrected is not None]
    assert {(c.first, c.second, c.quantity) for c in family} == {(f"merge:{x}", "stack", "joint") for x in "ab"}
    assert [c.corrected for c in family] == holm([c.p for c in family])


def test_lower_is_better_turns_the_difference() -> None:
    """Above zero the first is better, whatever the metric."""
    faults = Description("faults", "words", higher_is_better=False, range=(0.0, 1.0))
    scores, _ = analysed([a_set("ghost+day")])
    sets = [a_set("ghost+day")]
    scores = Scores(frame(sets, VARIANTS, faults, lambda *key: 1 - value(*key)), sets)
    ranges = metric_ranges(scores, [faults], ROLES)
    join_concepts(scores, [faults], VARIANTS, ROLES, ranges)
    primary = primary_of(scores, [faults], ranges, ROLES)
    one = next(
        c for c in contrasts(scores, [faults], NAMES, ROLES, primary) if c.quantity == "joint" and c.first == "merge:a"
    )
    assert one.interval.estimate == pytest.approx(0.1) and one.wins == 1


def test_several_sets_are_pooled_under_their_roles() -> None:
    """Five sets are the clusters, each with its own difference beside the pooled one."""
    sets = [a_set(f"{subject}+day{i}") for i, subject in enumerate("abcde")]
    scores, primary = analysed(sets)
    found = contrasts(scores, [JUDGE], NAMES, ROLES, primary)
    one = next(c for c in found if primary.asks(c) and c.first == "merge:a")
    assert one.clusters == 5 and list(one.by_set) == [each.name for each in sets]
    assert one.interval.estimate == pytest.approx(np.mean([each.estimate for each in one.by_set.values()]))
    rows = findings(scores, [JUDGE], NAMES, dict.fromkeys(ROLES, True))
    assert {f.reference for f in rows if f.quantity == "recovery"} == {"single:subject", "single:style"}


def test_what_is_blind_has_no_recovery_and_no_say_in_the_joint_score() -> None:
    """The style alone scores as the base model does: a dash, and the subject decides."""

    def flat(name: str, variant: str, prompt: str, seed: int, role: str) -> float:
        noise = 0.02 * (-1) ** int(prompt.split()[1])
        return (
            0.2 + noise * (variant == "single:style") if role == "style" else value(name, variant, prompt, seed, role)
        )

    sets = [a_set("ghost+day")]
    scores = Scores(frame(sets, VARIANTS, JUDGE, flat), sets)
    ranges = metric_ranges(scores, [JUDGE], ROLES)
    assert {one.reference: one.blind for one in ranges} == {"single:subject": False, "single:style": True}
    join_concepts(scores, [JUDGE], VARIANTS, ROLES, ranges)
    assert primary_of(scores, [JUDGE], ranges, ROLES) == Primary("concept", "judge", "single:subject", "together")
    rows = findings(scores, [JUDGE], NAMES, dict.fromkeys(ROLES, True))
    assert {f.reference for f in rows if f.quantity == "recovery"} == {"single:subject"}


def test_a_weight_below_zero_is_suppression() -> None:
    """How far below the base model, and no recovery."""
    sets = [a_set("ghost+day", style=-1.0)]
    scores = Scores(frame(sets, VARIANTS, JUDGE, value), sets)
    rows = findings(scores, [JUDGE], NAMES, {"subject": True, "style": False})
    style = {f.quantity for f in rows if f.reference == "single:style" and f.variant == "merge:a"}
    assert style == {"suppression", "leakage"}
    own = next(f for f in rows if (f.quantity, f.variant, f.prompts) == ("suppression", "merge:a", "together"))
    by_hand = [0.1 - value("ghost+day", "merge:a", f"prompt {i}", 0, "style") for i in range(6)]
    assert own.interval.estimate == pytest.approx(np.mean(by_hand))


CONFIG = Config(loras=[{"path": "a"}], prompts=[f"prompt {i}" for i in range(12)])  # type: ignore[list-item]


def test_choices_are_made_on_other_images() -> None:
    """By prompts, by sets, by both; what is neither chosen on nor asked to be reported is left out."""
    sets = [a_set("a+b"), a_set("c+d")]
    everything = {(one.name, prompt.text) for one in sets for prompt in one.prompts}
    on, report = parts_of(Select(on=Part(prompts=["prompt 0"])), sets, CONFIG)
    assert on == {("a+b", "prompt 0"), ("c+d", "prompt 0")} and report == everything - on
    on, report = parts_of(Select(on=Part(sets=["a+b"])), sets, CONFIG)
    assert {name for name, _ in on} == {"a+b"} and report == everything - on
    on, report = parts_of(Select(on=Part(sets=["a+b"], prompts=["prompt 0"])), sets, CONFIG)
    assert on == {("a+b", "prompt 0")} and len(report) == 11 and {name for name, _ in report} == {"c+d"}
    for select, message in (
        (Select(on=Part(prompts=["x"])), "there is no 'x'"),
        (Select(on=Part(sets=["a+b"]), report=Part(prompts=["prompt 1"])), "is chosen on and reported"),
        (Select(on=Part(sets=["a+b", "c+d"])), "others to report"),
        (Select(on=Part(sets=["a+b"]), each_set=True), r"c\+d has none"),
    ):
        with pytest.raises(ml.OptionError, match=message):
            check_selection(select, CONFIG, sets)
    check_selection(Select(on=Part(prompts=["prompt 0"])), CONFIG, sets)


def test_the_best_of_each_entry_is_chosen() -> None:
    """Pooled over the sets, or for each set, which then shares a name; an entry without axes stays as it is."""
    families = {"merge:t density=.3": 0, "merge:t density=.5": 0, "merge:cat": 1}
    means = {"x": dict(zip(families, (0.5, 0.4, 0.1))), "y": dict(zip(families, (0.1, 0.4, 0.3)))}
    kept, choices = chosen(families, means, each_set=False)
    assert kept == {"x": {"merge:t density=.5": "merge:t density=.5", "merge:cat": "merge:cat"}, "y": kept["x"]}
    assert [(c.label, c.among, c.score, c.set) for c in choices] == [("merge:t density=.5", 2, 0.4, "")]
    kept, choices = chosen(families, means, each_set=True)
    assert kept["x"] == {"merge:t density=.3": "merge:t, chosen", "merge:cat": "merge:cat"}
    assert kept["y"]["merge:t density=.5"] == "merge:t, chosen" and [c.set for c in choices] == ["x", "y"]


def test_of_very_many_variants_some_pairs_are_asked_for() -> None:
    """All against the stack, which are corrected, and against the best; each two of the best. Those are the same."""
    names = [f"merge:{number}" for number in range(EACH_TWO + 6)]

    def many(name: str, variant: str, prompt: str, seed: int, role: str) -> float:
        if variant.startswith("merge:"):
            return value(name, "merge:a", prompt, seed, role) - 0.003 * int(variant.partition(":")[2])
        return value(name, variant, prompt, seed, role)

    one, variants = a_set("ghost+day", together=8), [*VARIANTS[:4], *names]
    scores = Scores(frame([one], variants, JUDGE, many), [one])
    primary = Primary("concept", "judge", "single:subject", "together")
    known = [parsed for text in variants if (parsed := VariantName.parse(text))]
    found = [one for one in contrasts(scores, [JUDGE], known, ROLES, primary) if primary.asks(one)]
    pairs = {frozenset((one.first, one.second)) for one in found}
    best = [*names[:34], "stack", *names[34 : EACH_TWO - 1]]
    asked = {frozenset(two) for two in combinations(best, 2)}
    asked |= {frozenset(("stack", name)) for name in names} | {frozenset((names[0], name)) for name in names[1:]}
    assert pairs == asked and len(found) == len(pairs)
    assert sum(one.corrected is not None for one in found) == len(names)
    assert [name for name in ranked(found) if name != "stack"] == names
    few = [name for name in known if str(name) in ("stack", *names[:3])]
    alone = {(o.first, o.second): o.interval for o in contrasts(scores, [JUDGE], few, ROLES, None) if primary.asks(o)}
    assert len(alone) == 6 and alone.items() <= {(o.first, o.second): o.interval for o in found}.items()


def test_the_table_of_very_many_variants_shows_the_best(tmp_path: Path) -> None:
    """And the stack, wherever it is; the others are held against these two alone."""
    names = [f"merge:ties density={number / 1000:g}" for number in range(1, EACH_TWO + 7)]

    def many(name: str, variant: str, prompt: str, seed: int, role: str) -> float:
        if variant.startswith("merge:"):
            return value(name, "merge:a", prompt, seed, role) - 0.0005 * names.index(variant)
        return value(name, variant, prompt, seed, role)

    result = result_of(tmp_path, [a_set("ghost+day", together=8)], many, variants=[*VARIANTS[:4], *names])
    table = matrices(result, {})[0]
    assert table["heads"] == [*names[:EACH_TWO], "stack"] and table["every"] == len(names) + 1
    kinds = [[cell["kind"] for cell in row["cells"]] for row in table["rows"]]
    assert all(kinds[row][row] == "same" for row in range(len(kinds))) and kinds[0].count("same") == 1
    assert any("the stack" in line and f"Holm over {len(names)} tests" in line for line in result.verdict)
    last = result.contrast(names[-1], names[0], result.primary)
    assert last is not None and last.first == names[-1] and last.interval.estimate < 0
    assert result.contrast(names[-1], names[-2], result.primary) is None
