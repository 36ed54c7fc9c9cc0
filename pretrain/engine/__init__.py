"""What trains both stages: the loop, runs, checkpoints, metrics and the optimiser."""
