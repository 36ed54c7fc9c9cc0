"""`python -m pretrain benchmark`."""

from data_prep.common.cli import run_commands
from pretrain.benchmark import BenchmarkConfig, benchmark

if __name__ == "__main__":
    run_commands("python -m pretrain", {"benchmark": (BenchmarkConfig, benchmark)})
