"""The rows of a table of prompts: which images it names, and which objects are wanted in them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.common.errors import UserError
from data_prep.common.messages import nearest
from data_prep.layouts._tables import read_numbered
from finetune.inference.files.base import NIFTI_SUFFIXES
from finetune.inference.files.opening import PICTURE_SUFFIXES
from finetune.inference.objects import Prompt, Wanted, check_value, parse_object
from finetune.inference.options import SERIES

COLUMNS = ("file", "object", "clicks", "x", "y", "label", "box", "mask", "target", "text", "slice")

Row = dict[str, str]


@dataclass
class Listed:
    """An image of the table, and its rows by their line."""

    name: str
    """As the table has it, relative to the input folder."""
    rows: dict[int, Row] = field(default_factory=dict)

    @property
    def line(self) -> int:
        """Of its first row."""
        return next(iter(self.rows))

    @property
    def digest(self) -> str:
        """Of what its rows say, wherever in the table they are; also of an empty column `object`,
        with which masks hold numbers."""
        said = [
            {name: cell for name, cell in row.items() if cell or name == "object"}
            for row in self.rows.values()
        ]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class BadRowError(Exception):
    """What is wrong with a row."""

    def __init__(self, line: int, reason: object) -> None:
        super().__init__(f"line {line}: {reason}")
        self.reason = reason


def read_images(table: Path) -> list[Listed]:
    """The images of a table, in the order of their first row.

    Raises:
        UserError: It cannot be read, has no rows, or a column of a name that is not known.
    """
    rows = read_numbered(table, ("file",), strict=True)
    if not rows:
        raise UserError(f"{table}: has no rows below its header")
    for name in rows[0][1]:
        if name not in COLUMNS:
            hint = nearest(name, COLUMNS) or f"; there are {', '.join(COLUMNS)}"
            raise UserError(f"{table}: there is no column {name!r}{hint}")
    images: dict[str, Listed] = {}
    for line, row in rows:
        if not any(row.values()):  # spreadsheets leave some behind
            continue
        images.setdefault(row["file"], Listed(row["file"])).rows[line] = row
    return list(images.values())


def list_images(folder: Path, output: Path) -> list[Listed]:
    """The pictures, NIfTI files and folders of DICOM series in a folder, each as a row that names
    nothing but its file.

    Args:
        output: Where their masks go; it may lie in the folder, and is none of them.

    Raises:
        UserError: There are none.
    """
    suffixes = (*PICTURE_SUFFIXES, *NIFTI_SUFFIXES)
    names = sorted(
        path.name
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and (path.is_dir() or path.name.lower().endswith(suffixes))
        and path.resolve() != output.resolve()
    )
    if not names:
        raise UserError(
            f"input: {folder} holds no pictures, NIfTI files or folders of DICOM series; for a"
            f" single DICOM series --output must end in {', '.join(SERIES)}"
        )
    return [Listed(name, {1: {"file": name}}) for name in names]


def objects_of(rows: dict[int, Row], folder: Path) -> tuple[list[Wanted], int | None]:
    """The objects of an image, by the lines of its rows; and its only slice, if all of them name it
    in the column `slice`, so that the prompts need not.

    Args:
        folder: Of the images, which rough masks are looked for in.

    Returns:
        No object where its only row names none: then all targets of a model without prompts are
        wanted.

    Raises:
        BadRowError: A row is wrong.
    """
    if len(rows) == 1:
        ((line, only),) = rows.items()
        if not any(cell for name, cell in only.items() if name not in ("file", "slice")):
            try:
                return [], whole_number(only, "slice")
            except UserError as error:
                raise BadRowError(line, error) from None
    objects: dict[int, list[tuple[int, dict[int | None, Prompt]]]] = {}
    for line, row in rows.items():
        try:
            if len(rows) > 1 and not row.get("object"):
                raise UserError("object: must say which one, as its file has several rows")
            number = whole_number(row, "object")
            value = 1 if number is None else number
            check_value(value)
            objects.setdefault(value, []).append((line, prompts_of(row)))
        except UserError as error:
            raise BadRowError(line, error) from None
    slices = {whole_number(row, "slice") for row in rows.values()}
    chosen = next(iter(slices)) if len(slices) == 1 else None
    wanted = []
    for value, given in sorted(objects.items()):
        lines = [line for line, _ in given]
        said = any(rows[line].get("slice") for line in lines)
        prompts = _joined(given)
        rough = _mask_of({line: rows[line] for line in lines}, said and chosen is None)
        if chosen is not None and prompts:
            prompts = {None: prompts[chosen]}
        carry = not said and None not in prompts
        wanted.append(Wanted(value, prompts, carry, None if rough is None else folder / rough))
    return wanted, chosen


def _joined(given: Sequence[tuple[int, dict[int | None, Prompt]]]) -> dict[int | None, Prompt]:
    """The prompts for an object, each with its line, by slice.

    Raises:
        BadRowError: They contradict each other.
    """
    prompts: dict[int | None, Prompt] = {}
    for line, found in given:
        for depth, prompt in found.items():
            try:
                prompts[depth] = together(prompts.get(depth), prompt)
            except UserError as error:
                raise BadRowError(line, error) from None
    if None in prompts and len(prompts) > 1:
        raise BadRowError(given[0][0], "slice: some rows of its object have one, others have none")
    return prompts


def _mask_of(rows: Mapping[int, Row], slices_differ: bool) -> str | None:
    """The file of an object's rough mask, as a row of it has it.

    Raises:
        BadRowError: There are two, or its rows name slices that are not the same for all.
    """
    masks = [(line, row["mask"]) for line, row in rows.items() if row.get("mask")]
    if len(masks) > 1:
        raise BadRowError(masks[1][0], "mask: its object has one already")
    if masks and slices_differ:
        raise BadRowError(masks[0][0], "slice: a mask marks its slices itself; leave it out")
    return masks[0][1] if masks else None


def prompts_of(row: Row) -> dict[int | None, Prompt]:
    """The prompts of a row, by slice.

    Raises:
        UserError: Names the column.
    """
    clicks = row.get("clicks", "")
    by_column = row.get("x") or row.get("y")
    if row.get("label") and (clicks or not by_column):
        raise UserError("label: is that of x and y; each of `clicks` has its own")
    if by_column:
        if clicks:
            raise UserError("clicks: is there beside x and y; give one of them")
        for name in ("x", "y"):
            if "," in row.get(name, ""):
                raise UserError(f"{name}: {row[name]!r} has a decimal comma; write a point")
        clicks = ",".join((row.get("x", ""), row.get("y", ""), row.get("label") or "1"))
    if ";" in row.get("text", ""):
        raise UserError("text: names several objects; give each a row of its own")
    others = (row.get("box"), row.get("text"), row.get("mask"))
    if row.get("target") and (clicks or any(others)):
        raise UserError(
            "target: is for models without prompts; leave clicks, box, mask and text out"
        )
    if row.get("mask") and not (clicks or row.get("box") or row.get("text")):
        return {}
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
