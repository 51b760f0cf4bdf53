"""The simulation of a run on many GPUs, against what can be worked out by hand; and its measured parts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.scale.parts import Parts, parts
from experiments.scale.simulate import Plan, simulate

ALONE = Parts(
    start=10, start_bytes=20, swap=1, adapter_bytes=4, draw=5, encode=0.5, image_bytes=2, merge=4, keep=1, score=0.1,
    deal=0.01, record=0.02, ask=0.001, drawn=0.002, scored=0.003,
)  # fmt: skip
FREE = replace(
    ALONE, start=0, start_bytes=0, adapter_bytes=0, image_bytes=0, deal=0, record=0, ask=0, drawn=0, scored=0
)
PLAN = Plan(workers=1, merges=8, images=40, group=16, bandwidth=10)


def test_one_worker_takes_the_sum_of_all_parts() -> None:
    """Two tasks of four merges, eight variants of three groups each, forty tasks of scoring eight images."""
    merging = 2 * (0.03 + 4 * 0.001 + 4 + 4 * 1 + 4 * 4 / 10)
    drawing = 8 * (1 + 4 / 10) + 8 * 3 * 0.03 + 320 * (0.001 + 0.002 + 5 + 0.5 + 2 / 10)
    scoring = 40 * 0.03 + 320 * (0.001 + 0.003 + 0.1 + 2 / 10)
    found = simulate(ALONE, PLAN)
    assert found.seconds == pytest.approx(12 + merging + drawing + scoring)
    assert found.phases == pytest.approx({"merge": 12 + merging, "draw": drawing, "score": scoring})
    assert found.share("useful") == pytest.approx(320 * 5 / found.seconds)
    assert found.failed == 0 and found.swaps == 8


@pytest.mark.parametrize("workers", [2, 3, 8, 40])
def test_many_workers_are_no_faster_than_the_busiest_part(workers: int) -> None:
    """And no slower than one; where nothing is shared and all divides evenly, so many times as fast."""
    one, found = simulate(ALONE, PLAN), simulate(ALONE, replace(PLAN, workers=workers))
    assert found.spent["storage"] == pytest.approx(one.spent["storage"] + (workers - 1) * 2 + 0.4 * (found.swaps - 8))
    assert found.spent["writer"] == pytest.approx(one.spent["writer"])
    least = max(found.spent["storage"], found.spent["writer"], 320 * 5.5 / workers)
    assert least <= found.seconds <= one.seconds


def test_work_that_divides_evenly_is_divided() -> None:
    """Two workers, nothing shared."""
    even = replace(PLAN, images=32, kept=True)
    assert simulate(FREE, replace(even, workers=2)).seconds == pytest.approx(simulate(FREE, even).seconds / 2)


def test_a_slow_writer_is_the_bound() -> None:
    """All it does, with what comes before the first answer and after the last."""
    slow = replace(FREE, drawn=10)
    found = simulate(slow, replace(PLAN, workers=64))
    assert 320 * 10 < found.seconds < 320 * 10 + 150
    assert found.share("writer") > 0.95


def test_what_a_failed_worker_had_is_done_again() -> None:
    """All is drawn in the end; time is lost, and the same seed fails the same way."""
    plan = replace(PLAN, workers=4, failures=300.0, seed=1)
    whole, found = simulate(ALONE, replace(PLAN, workers=4)), simulate(ALONE, plan)
    assert found.failed > 0 and found.seconds > whole.seconds
    assert found.spent["draw"] > found.spent["useful"] == 320 * 5
    assert simulate(ALONE, plan).seconds == found.seconds != simulate(ALONE, replace(plan, seed=2)).seconds


def test_a_variant_that_is_kept_is_fused_once() -> None:
    """By each worker that takes it whole; else whoever is free takes the next group."""
    plan = replace(PLAN, workers=4)
    assert simulate(ALONE, replace(plan, kept=True)).swaps == 8 < simulate(ALONE, plan).swaps <= 24


def test_parts_are_those_that_were_measured() -> None:
    """All above zero; what was mended takes less."""
    now, before = (parts("flux", 28, 1, mended=mended) for mended in (True, False))
    assert min(vars(now).values()) > 0
    assert now.swap < before.swap / 10 and now.encode < before.encode / 2 and now.draw == before.draw
