"""Stage two: adapt a pretrained encoder to clicks and boxes with few labels.

    accelerate launch finetune/train.py --config configs/finetune/X.yaml \\
        --data.shards DIR --encoder RUN_OR_FILE_OR_HUB --output RUN

What is trained is in `stage.py`, and the loop in `pretrain/engine/loop.py`.
"""

from data_prep.common.cli import Command, run_command
from finetune.config import TrainConfig
from pretrain.engine.stop import hold_signals

COMMAND = Command(TrainConfig.__doc__ or "", "finetune.stage:train", (TrainConfig,))

if __name__ == "__main__":
    hold_signals()  # until training answers them
    run_command("finetune/train.py", COMMAND)
