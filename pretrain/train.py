"""Stage one: pretrain SAM's image encoder on unlabelled images.

    accelerate launch pretrain/train.py --config configs/pretrain/X.yaml \\
        --data.shards DIR --output RUN

What is trained is in `stage.py`, and the loop in `engine/loop.py`.
"""

from data_prep.common.cli import Command, run_command
from pretrain.config import PretrainConfig
from pretrain.engine.stop import hold_signals

COMMAND = Command(PretrainConfig.__doc__ or "", "pretrain.stage:pretrain", (PretrainConfig,))

if __name__ == "__main__":
    hold_signals()  # until training answers them
    run_command("pretrain/train.py", COMMAND)
