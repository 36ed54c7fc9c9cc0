"""`shard` and `shard-seg`: a collection of one layout to a shard set."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from data_prep.common.errors import UserError
from data_prep.common.given import Configs, pairs
from data_prep.common.yaml_text import read_yaml
from data_prep.format.index import index_path, read_json
from data_prep.layouts import FolderLayout, Layout, Stage, find_layout, list_layouts
from data_prep.layouts.base import MaskedImages
from data_prep.options import ShardOptions, ShardSegOptions, WriteOptions
from data_prep.readers.shrink import Shrunk
from data_prep.records import Reference, Source, group_hash, keyed_hash
from data_prep.shards import write_shards
from data_prep.shards.groups import (
    EXAMPLES,
    HELD_OUT,
    AsGrouped,
    WithoutHeldOut,
    alike_across_splits,
    regroup,
)
from data_prep.shards.labels import relabel
from data_prep.shards.manifest import DEFAULT_SPLIT, assign_splits
from data_prep.shards.named import is_table
from data_prep.shards.plan import known_splits
from data_prep.shards.private import EARLIER_SALT, FOLDER, read_salt


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
    references = regroup(_labelled(layout, options), options.group)
    groups_in_files = layout.groups_in_files and not options.group
    if options.split is not None and not (options.group or layout.groups_known):
        raise UserError(
            f"split: layout {options.layout} learns to whom an image belongs only when it reads it;"
            " name patients with --group"
        )
    if options.held_out is None:
        source = _with_split(layout, options, references, options.split)
        _write(source, options, resolved)
        return
    groups, salt = _held_out(options.held_out, options.salt)
    if not groups:
        raise UserError(f"held_out: {options.held_out} has no split besides train")
    held_out = "given"
    if not groups_in_files:
        references = _without_held_out(references, options.held_out, groups, salt)
    source = _with_split(layout, options, references, options.split)
    if groups_in_files:  # shards say nothing of who was left out of them
        digest = keyed_hash(",".join(sorted(groups)), salt, 4)
        held_out = f"{len(groups)} patients ({digest})"
        source = replace(source, read=WithoutHeldOut(source.read, groups, salt))
    source = replace(
        source,
        options={**source.options, "held_out": held_out},
        defaults={**source.defaults, "held_out": held_out},  # earlier versions did not keep it
    )
    if _write(source, options, resolved) and groups_in_files:
        _require_one_left_out(options.output, options.held_out)


def shard_seg(options: ShardSegOptions, layout: Layout, resolved: str) -> None:
    """Images and masks to shards for stage two."""
    references = regroup(layout.references(), options.group)
    source = _with_split(layout, options, references, options.split or DEFAULT_SPLIT)
    # earlier versions did not keep the split, and had no max_size
    defaults = source.defaults | {"split": source.options.get("split"), "max_size": None}
    if options.max_size is not None:
        source = _shrunk(source, layout, options.max_size)
    _write(replace(source, defaults=defaults), options, resolved)


def _shrunk(source: Source, layout: Layout, max_size: int) -> Source:
    stored_bytes = source.stored_bytes
    if isinstance(layout, MaskedImages):  # of a volume nobody knows yet how wide it is
        stored_bytes = partial(_at_most, source.stored_bytes, max_size**2)
    named = source.options | {"max_size": max_size}
    read = Shrunk(source.read, max_size)
    return replace(source, read=read, options=named, stored_bytes=stored_bytes)


def _at_most(stored_bytes: Callable[[Reference], int], most: int, reference: Reference) -> int:
    return min(stored_bytes(reference), most)


def _labelled(layout: Layout, options: ShardOptions) -> list[Reference]:
    """The references of a layout with the labels that the options give."""
    if options.label and not isinstance(layout, FolderLayout):
        raise UserError(f"label: layout {options.layout} has no files of yours that it could name")
    return relabel(layout.references(), options.label)


def _with_split(
    layout: Layout,
    options: ShardOptions | ShardSegOptions,
    references: list[Reference],
    fractions: dict[str, float] | None,
) -> Source:
    """What the writer takes, with groups divided by `fractions` if the layout has no split.

    Args:
        fractions: None leaves the splits of the layout.

    Raises:
        UserError: The option `split` is given, and the layout has a split of its own.
    """
    has_split = {reference.split for reference in references} - {"train"}
    if has_split and options.split is not None:
        raise UserError(f"split: layout {options.layout} has a split of its own")
    if has_split or not references or fractions is None:
        source = _source(layout, options, references)
        return replace(source, defaults=source.defaults | {"split": None})
    known = known_splits(references, options)
    references = assign_splits(references, fractions, options.seed, known)
    if not options.group and not layout.groups_in_files:
        _warn_of_cut_patients(references)
    source = _source(layout, options, references)
    return replace(
        source,
        options=source.options | {"split": fractions},
        defaults=source.defaults | {"split": None},
    )


def _source(
    layout: Layout, options: ShardOptions | ShardSegOptions, references: list[Reference]
) -> Source:
    """What the writer takes, with the groups that the options give."""
    if isinstance(layout, FolderLayout) and options.output.resolve() == layout.input.resolve():
        raise UserError(f"output: {options.output} is the input folder; name another")
    source = layout.source(options.layout, references)
    named = {"group": options.group, "label": getattr(options, "label", "")}
    source = replace(
        source,
        # of a table the set keeps what it says, in its records, and not where it lay
        options=source.options
        | {name: "CSV" if is_table(value) else value for name, value in named.items() if value},
        defaults=source.defaults | dict.fromkeys(named, ""),
    )
    return replace(source, read=AsGrouped(source.read)) if options.group else source


def _warn_of_cut_patients(references: Sequence[Reference]) -> None:
    alike = alike_across_splits(references)
    if alike:
        print(
            f"warning: {len(alike)} names are in several splits, as {'; '.join(alike[:EXAMPLES])}:"
            " if these are one patient each, say so with --group",
            file=sys.stderr,
        )


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
        if option == "config" and text is not None:
            name = read_yaml(Path(text)).get("layout", name)
        elif option == "layout":
            name = text
    return None if name is None else str(name)


def _named_options(arguments: Sequence[str]) -> set[str]:
    """Names of the options on a command line and in the files that it names."""
    names: set[str] = set()
    for option, text in pairs(arguments):
        is_file = option == "config" and text is not None
        names |= set(read_yaml(Path(text or ""))) if is_file else {option.partition(".")[0]}
    return names


def _held_out(root: Path, salt: str) -> tuple[frozenset[str], str]:
    """Hashes of the patients in the splits of a set other than train, and their salt.

    Args:
        salt: The option `salt`, for a set whose private folder is elsewhere.
    """
    groups: set[str] = set()
    for name, split in read_json(root / "dataset.json")["splits"].items():
        for part in split["shards"] if name != "train" else []:
            groups.update(read_json(index_path(root / part["name"]))["summary"]["groups"])
    return frozenset(groups), read_salt(root) or salt or EARLIER_SALT


def _without_held_out(
    references: list[Reference], root: Path, groups: frozenset[str], salt: str
) -> list[Reference]:
    """References whose group is not among `groups`.

    Raises:
        UserError: That leaves out nothing.
    """
    kept = [
        reference for reference in references if group_hash(reference.group, salt) not in groups
    ]
    if len(kept) == len(references):
        raise UserError(_nobody_found(root))
    found = {group_hash(reference.group, salt) for reference in references} & groups
    print(
        f"held_out: {len(found)} of {len(groups)} patients of {root} found,"
        f" {len(references) - len(kept)} of {len(references)} files left out"
    )
    if len(found) < len(groups):
        print(
            "warning: of the others nothing is in the input, or both sets name them differently"
            " (see --group)",
            file=sys.stderr,
        )
    return kept


def _require_one_left_out(output: Path, root: Path) -> None:
    """Refuse a finished set from which no held-out patient was left out.

    Raises:
        UserError: None was; dataset.json is removed, so that nothing trains on it unawares.
    """
    text = (output / "quarantine.jsonl").read_text(encoding="utf-8")
    count = sum(json.loads(line)["reason"] == HELD_OUT for line in text.splitlines())
    print(f"held_out: {count} images or files of patients of {root} left out")
    if not count:
        (output / "dataset.json").unlink()
        raise UserError(_nobody_found(root))


def _nobody_found(root: Path) -> str:
    reason = (
        "name patients in both sets alike, with --group"
        if (root / FOLDER).is_dir()
        else "give --salt, the one that it was made with: its private folder is missing"
    )
    return f"held_out: no patient of {root} was found in the input; {reason}"


def _write(source: Source, options: WriteOptions, resolved: str) -> bool:
    """Write a set; whether this task of a job array was the last one."""
    values = yaml.safe_load(resolved)
    # as if made by one process: which task of an array comes last is chance
    values |= {"task": 0, "tasks": 1, "workers": 1, "extend": False, "check_contents": False}
    document = write_shards(source, options, yaml.safe_dump(values, sort_keys=False))
    if document is None:
        print(
            f"{options.output}: task {options.task} of {options.tasks} has written its shards;"
            " the last task to finish writes dataset.json"
        )
        return False
    print(
        f"{options.output}: {document['records']} records,"
        f" {document['skipped']} files skipped, {document['unreadable']} unreadable"
    )
    return True
