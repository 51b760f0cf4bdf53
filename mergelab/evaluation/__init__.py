"""Does the merge still do what each adapter did? Generate, score, compare, report.

`evaluate` takes a configuration (see `config.Config`) and a run folder; `plan` says what that takes and what it can
tell; `register_metric` adds a metric of your own.

From the bottom up:

    names, config, sets, recipes, reading, store   what variants are called, what is asked, the run folder
    metrics/, photographs             what an image is scored by: one file a metric, one table
    acting, merging, opening          what acts while an image is drawn; the pipeline
    executors/                        who merges, draws and scores: this process, or workers of a Ray cluster
    variants, grid, drawing, scoring  what is asked of them, and what is kept
    statistics                        intervals, tests, designs: pure functions of arrays
    selection, design, analysis/, concluding   what is chosen, what can be told, and from scores to a result
    result, report/, exhibits         what was found, how people see it, and what a model card shows of it
    contact_sheets, dataset/, results, tracking/   the same for other tools: sheets, a dataset on the Hub, trackers
    planning, run, demo               all of it, before and after
"""

from mergelab.evaluation.config import Config
from mergelab.evaluation.dataset.pushing import push_run
from mergelab.evaluation.metrics.registry import register_metric
from mergelab.evaluation.planning import Plan, plan
from mergelab.evaluation.reading import read_config as read
from mergelab.evaluation.result import Result
from mergelab.evaluation.run import evaluate

__all__ = ["Config", "Plan", "Result", "evaluate", "plan", "push_run", "read", "register_metric"]
