"""`python -m finetune evaluate | predict | quickstart`."""

from data_prep.common.cli import run_commands
from finetune.evaluation.evaluate import EvaluateConfig, evaluate_run
from finetune.inference.predict import PredictConfig, predict
from finetune.quickstart.quickstart import QuickstartConfig, quickstart

if __name__ == "__main__":
    run_commands(
        "python -m finetune",
        {
            "evaluate": (EvaluateConfig, evaluate_run),
            "predict": (PredictConfig, predict),
            "quickstart": (QuickstartConfig, quickstart),
        },
    )
