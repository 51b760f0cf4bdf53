"""How a merge is done: layers and their parts, blocks, thresholds, ranks, and the report of it."""
