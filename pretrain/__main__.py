"""`python -m pretrain benchmark`."""

from data_prep.common.cli import Command, run_program
from pretrain.config import BenchmarkOptions

COMMANDS = {
    "benchmark": Command(
        "Speed of encoder and objectives, as ratios from one run.",
        "pretrain.benchmark:benchmark",
        (BenchmarkOptions,),
    ),
}

if __name__ == "__main__":
    run_program("python -m pretrain", COMMANDS)
