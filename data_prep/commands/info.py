"""The fingerprint of a shard set: a table and a contact sheet."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from scipy.ndimage import minimum_filter

from data_prep.commands.measured import measure
from data_prep.common.errors import UserError
from data_prep.common.files import atomic_path
from data_prep.options import InfoOptions

if TYPE_CHECKING:
    from data_prep.loader.dataset import Record

COLOURS = np.array(
    [[60, 220, 80], [230, 60, 60], [67, 110, 230], [245, 190, 30], [170, 70, 200], [70, 200, 210]]
)
"""Outline colours of mask values 1, 2, ... (repeating)."""

SHEET_WIDTH = 1024
"""Pixels of a contact sheet."""
COLUMNS = 8
"""Records beside each other, at most."""


def info(config: InfoOptions, resolved: str) -> None:
    """The fingerprint of a shard set, as a table and a contact sheet."""
    if config.images < 1 or config.measured < 1:
        raise UserError("images and measured must be at least 1")
    # The loader imports torch, which the workers of `shard` would wait for.
    from data_prep.loader.dataset import ShardDataset
    from data_prep.loader.remote import is_remote

    dataset = ShardDataset(config.shards, config.split)
    order = dataset.order(0)
    some = (dataset.record(int(index)) for index in order[: config.measured])
    lines = fingerprint(dataset.info) + measure(some, dataset.info.get("labels", {})).lines()
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name:<{width}}  {text}" for name, text in lines))
    folder = Path() if is_remote(config.shards) else Path(config.shards)
    path = config.sheet or folder / "contact_sheet.png"
    sheet = contact_sheet([dataset.record(int(index)) for index in order[: config.images]])
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, "PNG")
    print(f"contact sheet: {path}")


def fingerprint(document: dict[str, Any]) -> list[tuple[str, str]]:
    """`dataset.json` as name and text of each figure, for people."""
    lines = [
        ("kind", f"{document['kind']} ({document['source']['layout']})"),
        ("records", str(document["records"])),
    ]
    for name, split in document["splits"].items():
        text = (
            f"{split['records']} records, {split['groups']} groups, {len(split['shards'])} shards"
        )
        lines.append((f"  {name}", text))
    if "burned_in" in document:
        lines.append(("burned in", f"{document['burned_in']} records, as their headers say"))
    for name in ("classes", "modalities", "present"):
        for key, count in document.get(name, {}).items():
            lines.append((f"{name} {key}", str(count)))
    for name, size in document["sizes"].items():
        lines.append((f"{name} size", " x ".join(map(str, size))))
    lines.append(("mean", ", ".join(f"{value:.4f}" for value in document["mean"])))
    lines.append(("std", ", ".join(f"{value:.4f}" for value in document["std"])))
    lines.append(("skipped", f"{document['skipped']} files"))
    lines.append(("unreadable", f"{document['unreadable']} files"))
    return lines


def contact_sheet(records: "list[Record]") -> np.ndarray:
    """(H, 1024, 3) uint8 sheet of records, masks outlined; a volume shows its fullest slice.

    The fewer the records, the larger they are shown; there are at most eight beside each other.
    """
    columns = min(math.ceil(math.sqrt(len(records))), COLUMNS)
    tile = SHEET_WIDTH // columns
    rows = -(-len(records) // columns)
    sheet = np.zeros((rows * tile, SHEET_WIDTH, 3), np.uint8)
    for index, record in enumerate(records):
        top, left = index // columns * tile, index % columns * tile
        picture = _picture(record, tile)
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def _picture(record: "Record", tile: int) -> np.ndarray:
    """(H, W, 3) uint8 of a record or of one slice of it, fitted to a tile, with mask outlines."""
    image, mask = record.image, record.mask
    if "axes" in record.meta:  # a volume
        content = image if mask is None else mask > 0
        depth = int(np.argmax(content.reshape(len(image), -1).sum(axis=1)))
        image, mask = image[depth], None if mask is None else mask[depth]
    eight_bit = image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
    scale = tile / max(image.shape[:2])
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    picture = np.array(Image.fromarray(eight_bit).convert("RGB").resize(size))
    if mask is not None:
        # The mask is scaled before its edges are found, so that outlines stay one pixel wide; they
        # lie inside, so that thin vessels are not drawn thicker than they are.
        small = Image.fromarray(mask.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
        value = np.asarray(small)
        edge = value > minimum_filter(value, 3)
        picture[edge] = COLOURS[(value[edge] - 1) % len(COLOURS)]
    return picture
