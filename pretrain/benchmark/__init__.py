"""Speed and memory of stage one: one file per table of `python -m pretrain benchmark`."""
