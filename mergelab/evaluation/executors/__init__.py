"""Who merges, draws and scores: this process, or workers of a Ray cluster; both do the same tasks in the same way.

`task` says what is to be done, `worker` does it, an `Executor` deals tasks to workers and gives back what they found,
and one process alone writes into the run folder what counts: `registry` has the table of executors.
"""
