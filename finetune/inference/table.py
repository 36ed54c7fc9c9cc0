"""Many images, prompted by a table: the model is loaded once, and a bad row stops no other."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import yaml
from tqdm import tqdm

from data_prep.common.cli import write_resolved_config
from data_prep.common.errors import UserError
from data_prep.common.messages import nearest
from data_prep.layouts._tables import read_numbered
from finetune.inference.files.base import Reading
from finetune.inference.files.opening import kind_of
from finetune.inference.job import Task, finish, prepare, stem
from finetune.inference.objects import Prompt, Wanted, check_value, parse_object
from finetune.inference.options import PredictConfig
from finetune.inference.predict import load, reading

COLUMNS = ("file", "object", "clicks", "x", "y", "label", "box", "target", "text", "slice")
SUFFIXES = {"picture": ".png", "nifti": ".nii.gz", "dicom": ".png"}
"""Of masks, by the kind of image; a folder of a DICOM series gives NIfTI."""
MAY_DIFFER = ("device", "threads", "prompts")
"""Options that another start in the same folder may change."""

Row = dict[str, str]


@dataclass
class Listed:
    """An image of the table, and its rows by their line."""

    name: str
    """As the table has it, relative to the input folder."""
    rows: dict[int, Row] = field(default_factory=dict)


class BadRowError(Exception):
    """What is wrong with a row."""

    def __init__(self, line: int, reason: object) -> None:
        super().__init__(f"line {line}: {reason}")


def predict_table(config: PredictConfig, table: Path, resolved: str) -> None:
    """Segment all images of a table; what is there already is kept.

    Raises:
        UserError: The table or the model cannot be used; or, when all else is done, rows that could
            not.
    """
    images = read_images(table)
    if not config.input.is_dir():
        raise UserError(
            f"input: {config.input} is no folder; with --prompts it is that of the files"
        )
    take_folder(config.output, resolved)
    faults = skipped = 0
    how = reading(config, has_window=True)
    segmenter = None
    outputs: dict[Path, str] = {}
    with tqdm(total=len(images), desc="predict", unit="image", mininterval=1) as progress:
        for listed in images:
            try:
                task = task_of(listed, config, how)
                first = next(iter(listed.rows))
                if (other := outputs.setdefault(task.output, listed.name)) != listed.name:
                    raise BadRowError(first, f"its mask has the name of that of {other}")
                if task.is_done():
                    skipped += 1
                else:
                    if segmenter is None:
                        segmenter = load(config)
                    try:
                        job = prepare(task)
                    except (UserError, OSError) as error:
                        raise BadRowError(first, error) from None
                    try:
                        finish(job, segmenter, config.adapters)
                    except UserError as error:
                        raise BadRowError(first, error) from None
            except BadRowError as error:
                faults += 1
                progress.write(f"error: {table}, {error}", file=sys.stderr)
            progress.update()
    done = len(images) - faults - skipped
    print(f"{config.output}: {done} masks written, {skipped} were there already")
    if faults:
        raise UserError(
            f"prompts: {faults} of {len(images)} images of {table} were not segmented, as said"
            " above; correct their rows and start again: the others are kept"
        )


def read_images(table: Path) -> list[Listed]:
    """The images of a table, in the order of their first row.

    Raises:
        UserError: It cannot be read, has no rows, or a column of a name that is not known.
    """
    rows = read_numbered(table, ("file",))
    if not rows:
        raise UserError(f"{table}: has no rows below its header")
    for name in rows[0][1]:
        if name not in COLUMNS:
            hint = nearest(name, COLUMNS) or f"; there are {', '.join(COLUMNS)}"
            raise UserError(f"{table}: there is no column {name!r}{hint}")
    images: dict[str, Listed] = {}
    for line, row in rows:
        images.setdefault(row["file"], Listed(row["file"])).rows[line] = row
    return list(images.values())


def take_folder(output: Path, resolved: str) -> None:
    """Make the output folder, or go on in one that was begun with the same options.

    Raises:
        UserError: It holds other files, or was begun with other options.
    """
    kept = output / "config.yaml"
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not kept.is_file():
            raise UserError(f"output: {output} holds other files; give a new or empty folder")
        before = yaml.safe_load(kept.read_text(encoding="utf-8"))
        now = yaml.safe_load(resolved)
        changed = [name for name in now if name not in MAY_DIFFER and now[name] != before.get(name)]
        if changed:
            raise UserError(
                f"output: {output} was begun with another {changed[0]}; give a new folder"
            )
    output.mkdir(parents=True, exist_ok=True)
    write_resolved_config(output, resolved)


def task_of(listed: Listed, config: PredictConfig, how: Reading) -> Task:
    """What to do with an image.

    Raises:
        BadRowError: A row is wrong.
    """
    first = next(iter(listed.rows))
    path = Path(listed.name)
    if not listed.name or path.is_absolute() or ".." in path.parts:
        raise BadRowError(first, f"file: {listed.name!r} is not a path below the input folder")
    source = config.input / path
    try:
        kind = kind_of(source)
    except UserError as error:
        raise BadRowError(first, str(error).replace("input: ", "file: ", 1)) from None
    suffix = config.suffix or (".nii.gz" if source.is_dir() else SUFFIXES[kind])
    return Task(
        input=source,
        output=config.output / path.with_name(stem(path.name) + suffix),
        wanted=objects_of(listed.rows),
        # pictures have no series
        reading=how if kind == "dicom" else replace(how, series=None),
        overlay=config.overlay,
    )


def objects_of(rows: dict[int, Row]) -> list[Wanted]:
    """The objects of an image, by the lines of its rows.

    Raises:
        BadRowError: A row is wrong.
    """
    objects: dict[int, list[tuple[int, dict[int | None, Prompt]]]] = {}
    for line, row in rows.items():
        try:
            if len(rows) > 1 and not row.get("object"):
                raise UserError("object: must say which one, as its file has several rows")
            value = whole_number(row, "object") or 1
            check_value(value)
            objects.setdefault(value, []).append((line, prompts_of(row)))
        except UserError as error:
            raise BadRowError(line, error) from None
    wanted = []
    for value, given in sorted(objects.items()):
        prompts: dict[int | None, Prompt] = {}
        for line, found in given:
            for depth, prompt in found.items():
                try:
                    prompts[depth] = together(prompts.get(depth), prompt)
                except UserError as error:
                    raise BadRowError(line, error) from None
        if None in prompts and len(prompts) > 1:
            raise BadRowError(
                given[0][0], "slice: some rows of its object have one, others have none"
            )
        chosen = any(rows[line].get("slice") for line, _ in given)
        wanted.append(Wanted(value, prompts, carry=not chosen and None not in prompts))
    return wanted


def prompts_of(row: Row) -> dict[int | None, Prompt]:
    """The prompts of a row, by slice.

    Raises:
        UserError: Names the column.
    """
    clicks = row.get("clicks", "")
    if row.get("x") or row.get("y"):
        if clicks:
            raise UserError("clicks: is there beside x and y; give one of them")
        clicks = ",".join((row.get("x", ""), row.get("y", ""), row.get("label") or "1"))
    if row.get("target") and (clicks or row.get("box") or row.get("text")):
        raise UserError("target: is for models without prompts; leave clicks, box and text out")
    prompts = parse_object(clicks, row.get("box", ""), row.get("target", ""), row.get("text", ""))
    depth = whole_number(row, "slice")
    if depth is None:
        return prompts
    if None not in prompts:
        raise UserError("slice: clicks or box name their slice themselves; leave one out")
    return {depth: prompts[None]}


def together(before: Prompt | None, prompt: Prompt) -> Prompt:
    """Two prompts for the same object in the same slice, as one.

    Raises:
        UserError: Both have a box or a text, or one a target.
    """
    if before is None:
        return prompt
    if before.target is not None or prompt.target is not None:
        raise UserError("object: has a target in one of its rows, and another row")
    if before.box is not None and prompt.box is not None:
        raise UserError("box: its object has one already in the same slice")
    if before.text and prompt.text:
        raise UserError("text: its object has one already in the same slice")
    return Prompt(
        np.concatenate([before.points, prompt.points]),
        np.concatenate([before.labels, prompt.labels]),
        prompt.box if before.box is None else before.box,
        text=before.text or prompt.text,
    )


def whole_number(row: Row, column: str) -> int | None:
    """A whole number of a row, None if it is empty.

    Raises:
        UserError: It is no number, or negative.
    """
    text = row.get(column, "")
    if not text:
        return None
    if not text.isdecimal():
        raise UserError(f"{column}: {text!r} is not a whole number")
    return int(text)
