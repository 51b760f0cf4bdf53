"""How are these adapters best merged? Search it by what the merges draw, and report the winner on what was held out.

From the bottom up:

    candidate, config, reading, scenes        what is tried, what it is tried on, what is asked
    bench, measuring                          where candidates are drawn and scored
    scoring, trial, anchors                   what a candidate keeps, and what it is held against
    groups, settings, halving                 `search: blocks`
    ledger, holding_out, result, run          all of it, and what is written
"""

from mergelab.tuning.config import TuneConfig
from mergelab.tuning.reading import read_tuning
from mergelab.tuning.result import Tuned
from mergelab.tuning.run import tune

__all__ = ["TuneConfig", "Tuned", "read_tuning", "tune"]
