"""Speed and memory of stage two: one file per table of `python -m finetune benchmark`."""
