"""The loop, the averages of the weights, checkpoints and the report of a run."""
