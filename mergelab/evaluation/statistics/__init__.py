"""Intervals, tests and designs over prompts and sets of LoRAs: pure functions of arrays.

    units       what is drawn at random: sets of LoRAs, or prompts; means over each, and their weights
    intervals   of a mean, of a paired difference, of a recovery
    moments     the standard error and the skewness that intervals follow from
    bounded     what has not been seen yet of scores that sit at an end of their range
    tests       sign flips, Holm's correction, win rates
    design      what a design can tell before and after it was drawn: least p, resolvable differences, blind metrics

`experiments/evaluation/STATISTICS.md` has the coverage of every interval in simulation.
"""

from mergelab.evaluation.statistics.design import is_blind, least_p, resolvable, resolvable_with
from mergelab.evaluation.statistics.intervals import (
    Interval,
    Range,
    difference_interval,
    mean_interval,
    recovery_interval,
)
from mergelab.evaluation.statistics.moments import student
from mergelab.evaluation.statistics.tests import holm, sign_flip, win_rate
from mergelab.evaluation.statistics.units import ENOUGH, Array, Units

__all__ = [
    "ENOUGH",
    "Array",
    "Interval",
    "Range",
    "Units",
    "difference_interval",
    "holm",
    "is_blind",
    "least_p",
    "mean_interval",
    "recovery_interval",
    "resolvable",
    "resolvable_with",
    "sign_flip",
    "student",
    "win_rate",
]
