"""`python -m data_prep shard | shard-seg | layouts | info | verify | publish | benchmark`."""

from collections.abc import Sequence

from data_prep.common.cli import Command, run_program
from data_prep.options import BenchmarkOptions, InfoOptions, PublishOptions, VerifyOptions

COMMANDS = {
    "shard": Command(
        "Images to shards for stage one.",
        "data_prep.commands.shard:shard",
        "data_prep.commands.shard:configs_of_shard",
        "data_prep.commands.shard:layouts_of_shard",
    ),
    "shard-seg": Command(
        "Images and masks to shards for stage two.",
        "data_prep.commands.shard:shard_seg",
        "data_prep.commands.shard:configs_of_shard_seg",
        "data_prep.commands.shard:layouts_of_shard_seg",
    ),
    "layouts": Command(
        "The collections that can be sharded, and the folder tree that each expects.",
        "data_prep.commands.layouts:layouts",
    ),
    "info": Command(
        "The fingerprint of a shard set, as a table and a contact sheet.",
        "data_prep.commands.info:info",
        (InfoOptions,),
    ),
    "verify": Command(
        "Check a shard set: what is missing, truncated or altered.",
        "data_prep.commands.verify:verify",
        (VerifyOptions,),
    ),
    "publish": Command(
        "Upload a shard set to the Hugging Face Hub, with a card made of its figures.",
        "data_prep.commands.publish:publish",
        (PublishOptions,),
    ),
    "benchmark": Command(
        "Speed of sharding and loading, as ratios measured in one run.",
        "data_prep.commands.benchmark:benchmark",
        (BenchmarkOptions,),
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line `arguments` (default `sys.argv`)."""
    run_program("python -m data_prep", COMMANDS, arguments)


if __name__ == "__main__":
    main()
