"""Stage one: pretrain Segment Anything's image encoder on unlabelled images."""
