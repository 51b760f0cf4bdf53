"""One small file for one published rule: pure functions of stacked changes.

A rule is `(changes: (n, out, in), weights: (n,), generator) -> (out, in)`.
"""

from mergelab.rules.linear import weighted_sum
from mergelab.rules.ties import elect_and_average

__all__ = ["elect_and_average", "weighted_sum"]
