"""`python -m pretrain probe | export | publish | estimate | benchmark`."""

from data_prep.common.cli import Command, run_program
from pretrain.config import BenchmarkOptions, EstimateOptions
from pretrain.probes.config import ProbeOptions
from pretrain.publish.config import ExportOptions, PublishOptions

COMMANDS = {
    "probe": Command(
        "Judge an encoder by the labels of shard sets.",
        "pretrain.probes.probe:probe",
        (ProbeOptions,),
    ),
    "export": Command(
        "An encoder for segment_anything, transformers or timm.",
        "pretrain.publish.export:export",
        (ExportOptions,),
    ),
    "publish": Command(
        "Upload the encoder of a run to the Hugging Face Hub, with a model card.",
        "pretrain.publish.hub:publish",
        (PublishOptions,),
    ),
    "estimate": Command(
        "Memory and time of a recipe, computed without running it.",
        "pretrain.estimate:estimate",
        (EstimateOptions,),
    ),
    "benchmark": Command(
        "Speed and memory of stage one, as ratios from one run.",
        "pretrain.benchmark.command:benchmark",
        (BenchmarkOptions,),
    ),
}

if __name__ == "__main__":
    run_program("python -m pretrain", COMMANDS)
