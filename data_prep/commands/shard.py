"""`shard` and `shard-seg`: a collection of one layout to a shard set."""

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from data_prep.common.errors import UserError
from data_prep.common.given import Configs, pairs
from data_prep.common.yaml_text import read_yaml
from data_prep.format.index import index_path, read_json
from data_prep.layouts import FolderLayout, Layout, Stage, find_layout, list_layouts
from data_prep.options import ShardOptions, ShardSegOptions, WriteOptions
from data_prep.records import Reference, Source, group_hash
from data_prep.shards import write_shards
from data_prep.shards.groups import EXAMPLES, alike_across_splits, is_table, regroup
from data_prep.shards.manifest import DEFAULT_SPLIT, assign_splits


def configs_of_shard(arguments: Sequence[str]) -> Configs:
    """The options of `shard` and those of the layout that the arguments name."""
    return _with_layout(ShardOptions, "pretraining", arguments)


def configs_of_shard_seg(arguments: Sequence[str]) -> Configs:
    """The options of `shard-seg` and those of the layout that the arguments name."""
    return _with_layout(ShardSegOptions, "segmentation", arguments)


def layouts_of_shard(arguments: Sequence[str]) -> str:
    """The layouts of `shard`, for a command line that names none."""
    return _list_layouts("pretraining", arguments)


def layouts_of_shard_seg(arguments: Sequence[str]) -> str:
    """The layouts of `shard-seg`, for a command line that names none."""
    return _list_layouts("segmentation", arguments)


def shard(options: ShardOptions, layout: Layout, resolved: str) -> None:
    """Images to shards for stage one."""
    references = _outside(options.output, layout)
    if options.held_out is not None:
        references = _without_held_out(references, options.held_out, options.salt)
    _write(layout.source(options.layout, references), options, resolved)


def shard_seg(options: ShardSegOptions, layout: Layout, resolved: str) -> None:
    """Images and masks to shards for stage two."""
    references = regroup(_outside(options.output, layout), options.group)
    has_split = {reference.split for reference in references} != {"train"}
    if has_split and options.split is not None:
        raise UserError(f"split: layout {options.layout} has a split of its own")
    if references and not has_split:
        references = assign_splits(references, options.split or DEFAULT_SPLIT, options.seed)
    if not options.group:
        _warn_of_cut_patients(references)
    source = layout.source(options.layout, references)
    # of a table the set keeps what it says, in the groups, and not where it lay
    named = "CSV" if is_table(options.group) else options.group
    source = replace(
        source,
        options={**source.options, "group": named},
        defaults={**source.defaults, "group": ""},
    )
    _write(source, options, resolved)


def _warn_of_cut_patients(references: Sequence[Reference]) -> None:
    alike = alike_across_splits(references)
    if alike:
        print(
            f"warning: {len(alike)} names are in several splits, as {'; '.join(alike[:EXAMPLES])}:"
            " if these are one patient each, say so with --group",
            file=sys.stderr,
        )


def _outside(output: Path, layout: Layout) -> list[Reference]:
    """The references of a layout, without what an output folder inside its input holds."""
    references = layout.references()
    if not isinstance(layout, FolderLayout):
        return references
    root, inside = layout.input.resolve(), output.resolve()
    if inside == root or not inside.is_relative_to(root):
        return references
    prefix = f"{inside.relative_to(root).as_posix()}/"
    return [reference for reference in references if not reference.path.startswith(prefix)]


def _with_layout(options: type[Any], stage: Stage, arguments: Sequence[str]) -> Configs:
    name = _named_layout(arguments)
    if name is None:
        return (options,)
    layout = find_layout(name, stage)
    known = {field.name for config in (options, layout) for field in fields(config)}
    for option in _named_options(arguments) - known:
        owners = [
            other
            for other, classes in list_layouts().items()
            if any(option == field.name for cls in classes for field in fields(cls))
        ]
        if owners:
            raise UserError(
                f"--{option}: is an option of {', '.join(owners)}, not of layout {name}"
            )
    return options, layout


def _list_layouts(stage: Stage, arguments: Sequence[str]) -> str:
    if _named_layout(arguments) is not None:
        return ""
    layouts = list_layouts(stage)
    width = max(map(len, layouts))
    lines = [f"  {name:<{width}}  {classes[0].summary}" for name, classes in layouts.items()]
    head = "Layouts (each has options of its own: add --layout NAME to this --help):"
    return "\n".join(["", head, *lines])


def _named_layout(arguments: Sequence[str]) -> str | None:
    name = None
    for option, text in pairs(arguments):
        if option == "config":
            name = read_yaml(Path(text)).get("layout", name)
        elif option == "layout":
            name = text
    return None if name is None else str(name)


def _named_options(arguments: Sequence[str]) -> set[str]:
    """Names of the options on a command line and in the files that it names."""
    names: set[str] = set()
    for option, text in pairs(arguments):
        names |= set(read_yaml(Path(text))) if option == "config" else {option.partition(".")[0]}
    return names


def _without_held_out(references: list[Reference], root: Path, salt: str) -> list[Reference]:
    """References whose group is in no held-out split of the set at `root`.

    Raises:
        UserError: That leaves out nothing, as when groups are known only from DICOM headers or the
            other set has another salt.
    """
    groups: set[str] = set()
    for name, split in read_json(root / "dataset.json")["splits"].items():
        for part in split["shards"] if name != "train" else []:
            groups.update(read_json(index_path(root / part["name"]))["summary"]["groups"])
    kept = [
        reference for reference in references if group_hash(reference.group, salt) not in groups
    ]
    if len(kept) == len(references):
        raise UserError(f"held_out: no patient of {root} was found in the input")
    return kept


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
        f" {document['skipped']} files skipped, {document['unreadable']} unreadable"
    )
