"""`python -m finetune evaluate | predict | quickstart`."""

from data_prep.cli import run_commands
from finetune.evaluate import EvaluateConfig, evaluate_run
from finetune.predict import PredictConfig, predict
from finetune.quickstart import QuickstartConfig, quickstart

if __name__ == "__main__":
    run_commands(
        "python -m finetune",
        {
            "evaluate": (EvaluateConfig, evaluate_run),
            "predict": (PredictConfig, predict),
            "quickstart": (QuickstartConfig, quickstart),
        },
    )
