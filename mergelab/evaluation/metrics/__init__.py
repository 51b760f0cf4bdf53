"""What an image is scored by. One file a metric, or a family that shares a model; `registry.METRICS` lists them.

metric     the contract: a description and `score`
registry   the table, and `register_metric`
user       functions of the user's own
"""
