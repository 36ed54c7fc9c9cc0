"""`python -m finetune evaluate | predict | compare | quickstart`."""

from data_prep.common.cli import Command, run_program
from finetune.config import CompareConfig, EvaluateConfig, QuickstartConfig
from finetune.inference.options import PredictConfig

COMMANDS = {
    "evaluate": Command(
        "Measure an adapted model, or plain SAM, on held-out cases: tables and pictures.",
        "finetune.evaluation.evaluate:evaluate_run",
        (EvaluateConfig,),
    ),
    "predict": Command(
        "Segment objects in new images by clicks, boxes or rough masks.",
        "finetune.inference.predict:predict",
        (PredictConfig,),
    ),
    "compare": Command(
        "Compare evaluated runs case by case.",
        "finetune.evaluation.compare:compare_runs",
        (CompareConfig,),
    ),
    "quickstart": Command(
        "Run the whole pipeline on a small data set and write a report.",
        "finetune.quickstart.quickstart:quickstart",
        (QuickstartConfig,),
    ),
}

if __name__ == "__main__":
    run_program("python -m finetune", COMMANDS)
