"""`python -m data_prep shard | shard-seg | info | verify | benchmark`."""

from collections.abc import Sequence
from dataclasses import replace

import yaml

from data_prep.commands.benchmark import BenchmarkConfig, benchmark
from data_prep.commands.info import InfoConfig, info
from data_prep.commands.verify import VerifyConfig, verify
from data_prep.common.cli import run_commands
from data_prep.common.errors import UserError
from data_prep.format.index import index_path, read_json
from data_prep.layouts import find_layout
from data_prep.options import ShardConfig, ShardSegConfig, WriteOptions
from data_prep.records import Reference, Source, group_hash
from data_prep.shards.manifest import DEFAULT_SPLIT, assign_splits
from data_prep.shards.write import write_shards


def shard(config: ShardConfig, resolved: str) -> None:
    """Images to shards for stage one."""
    source = find_layout(config.layout, "pretraining")(config)
    if config.held_out is not None:
        source = replace(source, references=_without_held_out(source, config))
    _write(source, config, resolved)


def _without_held_out(source: Source, config: ShardConfig) -> list[Reference]:
    """References whose group is in no held-out split of the set `config.held_out`.

    Raises:
        UserError: if that leaves out nothing, as when groups are known only from DICOM headers or
            the other set has another salt.
    """
    root = config.held_out
    assert root is not None
    groups: set[str] = set()
    for name, split in read_json(root / "dataset.json")["splits"].items():
        for shard in split["shards"] if name != "train" else []:
            groups.update(read_json(index_path(root / shard["name"]))["summary"]["groups"])
    kept = [
        reference
        for reference in source.references
        if group_hash(reference.group, config.salt) not in groups
    ]
    if len(kept) == len(source.references):
        raise UserError(f"held_out: no patient of {root} was found in the input")
    return kept


def shard_seg(config: ShardSegConfig, resolved: str) -> None:
    """Images and masks to shards for stage two."""
    source = find_layout(config.layout, "segmentation")(config)
    has_split = {reference.split for reference in source.references} != {"train"}
    if has_split and config.split is not None:
        raise UserError(f"split: layout {config.layout} has a split of its own")
    if source.references and not has_split:
        fractions = config.split or DEFAULT_SPLIT
        references = assign_splits(source.references, fractions, config.seed)
        source = replace(source, references=references)
    _write(source, config, resolved)


def _write(source: Source, options: WriteOptions, resolved: str) -> None:
    values = yaml.safe_load(resolved)
    # as if made by one process: which task of an array comes last is chance
    values |= {"salt": "(not stored)", "task": 0, "tasks": 1}
    document = write_shards(source, options, yaml.safe_dump(values, sort_keys=False))
    if document is None:
        print(
            f"{options.output}: task {options.task} of {options.tasks} has written its shards;"
            " the last task to finish writes dataset.json"
        )
        return
    print(
        f"{options.output}: {document['records']} records,"
        f" {document['skipped']} files passed over, {document['unreadable']} unreadable"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line `arguments` (default `sys.argv`)."""
    commands = {
        "shard": (ShardConfig, shard),
        "shard-seg": (ShardSegConfig, shard_seg),
        "info": (InfoConfig, info),
        "verify": (VerifyConfig, verify),
        "benchmark": (BenchmarkConfig, benchmark),
    }
    run_commands("python -m data_prep", commands, arguments)


if __name__ == "__main__":
    main()
