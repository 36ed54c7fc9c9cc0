"""Measure a segmenter on held-out cases under simulated prompts.

Each image that holds a target is encoded once. Volumes are prompted slice by slice, in the slices
that hold the target, and scored as volumes; elsewhere their prediction is empty.
"""

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.common.cli import write_resolved_config
from data_prep.common.errors import UserError
from data_prep.common.files import write_text
from finetune.data.cases import CaseSelection, LabelledCases, LabelledImage
from finetune.evaluation import metrics
from finetune.evaluation.protocols import BOX, Protocols, click_protocol, predict_protocols
from finetune.evaluation.tables import Row, results_csv, summarise, summary_csv, summary_markdown
from finetune.inference.loading import find_device, load_segmenter
from finetune.inference.pictures import draw_case, draw_dice_by_clicks
from finetune.inference.prompted import PromptedImage
from finetune.model.segmenter import Segmenter
from finetune.prompts.boxes import box_of


@dataclass(frozen=True, kw_only=True)
class HeldOut(CaseSelection):
    """Which labelled cases are evaluated."""

    split: str = "test"
    """Split of the shard set."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure an adapted model on held-out cases: tables and pictures."""

    run: Path
    """Run folder of finetune/train.py."""
    data: HeldOut
    """The cases."""
    output: Path
    """Folder for the tables and figures; must be new or empty."""
    protocols: Protocols = field(default_factory=Protocols)
    """Prompts and metrics."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto`: a GPU if there is one."""


def evaluate(
    segmenter: Segmenter, cases: LabelledCases, protocols: Protocols, previous_mask: bool = True
) -> list[Row]:
    """Score every case, target and protocol; shows progress with the time left.

    Args:
        segmenter: in evaluation mode.
        previous_mask: after the first click, the last prediction's logits are part of the prompt,
            as they were in training (`prompts.previous_mask`).
    """
    rows = []
    with tqdm(total=len(cases.images), desc="evaluate", unit="image", mininterval=1) as progress:
        for record, images in groupby(cases.images, key=lambda image: image.record):
            case = _Case(cases.shards.meta(record)["size"])
            for image in images:
                key, pixels, truths = cases.read(image)
                prompted = PromptedImage(segmenter, pixels)
                predictions = predict_protocols(prompted, truths, protocols, key, previous_mask)
                case.add(image, truths, predictions)
                progress.update()
            rows += case.score(key.split("/")[0], cases, record, protocols)
    return rows


class _Case:
    """Masks of a 2D record or a volume, collected image by image, one bit a pixel."""

    def __init__(self, shape: list[int]) -> None:
        self.shape = shape
        self.truth: dict[int, dict[int | None, NDArray[np.uint8]]] = {}  # target -> depth
        self.predicted: dict[tuple[int, str], dict[int | None, NDArray[np.uint8]]] = {}

    def add(
        self,
        image: LabelledImage,
        truths: NDArray[np.bool_],
        predictions: dict[str, NDArray[np.bool_]],
    ) -> None:
        """The masks (M, H, W) of one image, in the order of its targets."""
        for place, target in enumerate(image.targets):
            self.truth.setdefault(target, {})[image.depth] = np.packbits(truths[place])
            for protocol, masks in predictions.items():
                slices = self.predicted.setdefault((target, protocol), {})
                slices[image.depth] = np.packbits(masks[place])

    def score(self, key: str, cases: LabelledCases, record: int, protocols: Protocols) -> list[Row]:
        """One row for each target and protocol."""
        spacing = cases.shards.meta(record)["spacing"]
        unit = "px" if spacing is None else "mm"
        names = list(cases.targets)
        rows = []
        for (target, protocol), slices in self.predicted.items():
            truth, prediction = self._whole(self.truth[target]), self._whole(slices)
            distance = spacing or [1.0] * truth.ndim
            rows.append(
                Row(
                    case=key,
                    target=names[target],
                    protocol=protocol,
                    dice=metrics.dice(prediction, truth),
                    iou=metrics.iou(prediction, truth),
                    hd95=metrics.hd95(prediction, truth, distance),
                    nsd=metrics.nsd(prediction, truth, distance, protocols.tolerance),
                    unit=unit,
                )
            )
        return rows

    def _whole(self, slices: dict[int | None, NDArray[np.uint8]]) -> NDArray[np.bool_]:
        """(H, W), or (D, H, W) that is empty in the slices not given."""
        if None in slices:
            height, width = self.shape[:2]
            return _unpack(slices[None], (height, width))
        whole = np.zeros(self.shape, dtype=bool)
        for depth, packed in slices.items():
            whole[depth] = _unpack(packed, whole.shape[1:])
        return whole


def _unpack(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.unpackbits(packed, count=int(np.prod(shape))).astype(bool).reshape(shape)


def evaluate_run(config: EvaluateConfig, resolved: str) -> None:
    """Measure an adapted model on held-out cases: tables and pictures."""
    output, protocols = config.output, config.protocols
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output: {output} is there already; give a new or empty folder")
    segmenter, trained = load_segmenter(config.run, find_device(config.device))
    cases = LabelledCases(config.data, protocols.seed)
    rows = evaluate(segmenter, cases, protocols, trained.prompts.previous_mask)
    summaries = summarise(rows, protocols.seed)

    (output / "figures").mkdir(parents=True, exist_ok=True)
    write_resolved_config(output, resolved)
    write_text(output / "results.csv", results_csv(rows))
    write_text(output / "summary.csv", summary_csv(summaries))
    table = summary_markdown(summaries, protocols.tolerance)
    write_text(output / "summary.md", table)
    draw_results(
        segmenter, cases, rows, protocols, trained.prompts.previous_mask, output / "figures"
    )
    print(table, end="")


def draw_results(
    segmenter: Segmenter,
    cases: LabelledCases,
    rows: list[Row],
    protocols: Protocols,
    previous_mask: bool,
    folder: Path,
) -> None:
    """Write dice_by_clicks.png, best.png, median.png and worst.png into `folder`.

    Cases are ranked by Dice under the protocol with the most clicks (without clicks, by box).

    Args:
        rows: all rows that `evaluate` gave for these cases.
    """
    numbers = {click_protocol(number): number for number in sorted(protocols.clicks)}
    if numbers:
        summaries = {"": summarise(rows, protocols.seed)}
        draw_dice_by_clicks(summaries, numbers, folder / "dice_by_clicks.png")
    keys = dict.fromkeys(row.case for row in rows)
    records = dict.fromkeys(image.record for image in cases.images)
    record_of = dict(zip(keys, records, strict=True))  # both in stored order
    protocol = list(numbers)[-1] if numbers else rows[0].protocol
    ranked = sorted((row for row in rows if row.protocol == protocol), key=lambda row: row.dice)
    for name, place in {"worst": 0, "median": len(ranked) // 2, "best": -1}.items():
        row = ranked[place]
        pixels, truth = _largest(cases, record_of[row.case], row.target)
        title = f"{name}: {row.target}, Dice {row.dice:.3f} ({protocol})"
        path = folder / f"{name}.png"
        draw_interaction(segmenter, pixels, truth, protocols, previous_mask, title, path)


def draw_interaction(
    segmenter: Segmenter,
    image: NDArray[Any],
    truth: NDArray[np.bool_],
    protocols: Protocols,
    previous_mask: bool,
    title: str,
    path: Path,
) -> None:
    """A picture of an object (H, W) of an image, segmented click by click and by box."""
    prompted = PromptedImage(segmenter, image)
    clicks = max(protocols.clicks, default=0)
    taken = prompted.click_by_click(truth[None], clicks, previous_mask)[0]
    steps = {
        click_protocol(number): taken[min(number, len(taken)) - 1]
        for number in sorted(protocols.clicks)
    }
    box = box_of(truth)
    assert box is not None
    boxes = {BOX: (box, prompted.predict(boxes=box[None])[0][0])} if protocols.box else {}
    draw_case(image, truth, steps, boxes, title, path)


def _largest(
    cases: LabelledCases, record: int, target: str
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Pixels and truth (H, W) of the 2D record, or of the slice in which the target is largest."""
    number = list(cases.targets).index(target)
    found = []
    for image in cases.images:
        if image.record == record and number in image.targets:
            _, pixels, truths = cases.read(image)
            found.append((pixels, truths[image.targets.index(number)]))
    return max(found, key=lambda pair: int(pair[1].sum()))
