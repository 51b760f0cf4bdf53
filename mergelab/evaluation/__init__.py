"""Does the merge still do what each adapter did? Generate, score, compare, report.

`evaluate` takes a configuration (see `config.Config`) and a run folder; `register_metric` adds a metric of your own.
"""

from mergelab.evaluation.config import Config, read
from mergelab.evaluation.metrics import register_metric
from mergelab.evaluation.run import Result, evaluate

__all__ = ["Config", "Result", "evaluate", "read", "register_metric"]
