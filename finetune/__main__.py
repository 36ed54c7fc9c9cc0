"""`python -m finetune COMMAND`: evaluate, predict, compare, export, publish, simclr and others."""

from data_prep.common.cli import Command, run_program
from finetune.benchmark.config import BenchmarkOptions
from finetune.config import CompareConfig, EvaluateConfig, QuickstartConfig
from finetune.external.config import NnunetConfig, ScoreConfig
from finetune.few_shot.config import FewShotConfig
from finetune.inference.options import PredictConfig
from finetune.publish.config import ExportOptions, PublishOptions
from finetune.simclr.config import SimclrConfig

COMMANDS = {
    "evaluate": Command(
        "Measure an adapted model, or plain SAM, on held-out cases: tables and pictures.",
        "finetune.evaluation.evaluate:evaluate_run",
        (EvaluateConfig,),
    ),
    "score": Command(
        "Measure masks that another program made of the cases of a shard set.",
        "finetune.external.score:score",
        (ScoreConfig,),
    ),
    "predict": Command(
        "Segment objects in new images by clicks, boxes, rough masks, texts or targets.",
        "finetune.inference.predict:predict",
        (PredictConfig,),
    ),
    "compare": Command(
        "Compare evaluated runs case by case: tables, tests, curves and pictures.",
        "finetune.evaluation.compare:compare_runs",
        (CompareConfig,),
        words="results",
    ),
    "few_shot": Command(
        "Train with few labelled cases, evaluate, and draw Dice against their number.",
        "finetune.few_shot.command:few_shot",
        (FewShotConfig,),
    ),
    "export": Command(
        "An adapted model as a checkpoint for segment_anything, its adapters merged.",
        "finetune.publish.export:export",
        (ExportOptions,),
    ),
    "publish": Command(
        "Upload the trained weights of a run to the Hugging Face Hub, with a model card.",
        "finetune.publish.hub:publish",
        (PublishOptions,),
    ),
    "simclr": Command(
        "Pretrain the encoder of a network without SAM on unlabelled images, by SimCLR.",
        "finetune.simclr.stage:pretrain",
        (SimclrConfig,),
    ),
    "nnunet": Command(
        "Train nnU-Net on labelled cases by its own planning, and measure it on held-out ones.",
        "finetune.external.nnunet:run_nnunet",
        (NnunetConfig,),
    ),
    "benchmark": Command(
        "Speed and memory of stage two, as ratios from one run.",
        "finetune.benchmark.command:benchmark",
        (BenchmarkOptions,),
    ),
    "quickstart": Command(
        "Run the whole pipeline on a small data set and write a report.",
        "finetune.quickstart.quickstart:quickstart",
        (QuickstartConfig,),
    ),
}

if __name__ == "__main__":
    run_program("python -m finetune", COMMANDS)
