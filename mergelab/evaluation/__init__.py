"""Does the merge still do what each adapter did? Generate, score, compare, report.

`evaluate` takes a configuration (see `config.Config`) and a run folder; `register_metric` adds a metric of your own.

From the bottom up:

    names, config, reading, store   what variants are called, what is asked, the run folder
    metrics/                        what an image is scored by: one file a metric, one table
    photographs                     what an adapter shows, as its owner photographed it
    variants, grid, drawing         what is drawn and scored
    progress                        how far it is
    triggers, scores, statistics, quantities, analysis   from scores to findings
    result, report/, exhibits       what was found, how people see it, and what a model card shows of it
    run, demo                       all of it
"""

from mergelab.evaluation.config import Config
from mergelab.evaluation.metrics.registry import register_metric
from mergelab.evaluation.reading import read_config as read
from mergelab.evaluation.result import Result
from mergelab.evaluation.run import evaluate

__all__ = ["Config", "Result", "evaluate", "read", "register_metric"]
