"""Measure a segmenter on held-out cases under simulated prompts.

Each image that holds a target is encoded once. Volumes are prompted slice by slice, in the slices
that hold the target, and scored as volumes; elsewhere their prediction is empty.
"""

import zlib
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.common.cli import write_resolved_config
from data_prep.common.errors import UserError
from data_prep.common.files import write_text
from finetune.config import EvaluateConfig
from finetune.data.cases import LabelledCases, LabelledImage
from finetune.evaluation import metrics
from finetune.evaluation.drawing import draw_results
from finetune.evaluation.protocols import Protocol
from finetune.evaluation.tables import Row, results_csv, summarise, summary_csv, summary_markdown
from finetune.inference.loading import find_device, load_segmenter
from finetune.inference.prompted import Answer, PromptedImage
from finetune.model.decoder import require_prompts
from finetune.model.segmenter import Segmenter
from pretrain.engine.cpu import use_cores


def evaluate(
    segmenter: Segmenter,
    cases: LabelledCases,
    protocols: Sequence[Protocol],
    tolerance: float = 1.0,
    seed: int = 0,
) -> list[Row]:
    """Score every case, target and protocol; shows progress with the time left.

    Args:
        segmenter: The model, in evaluation mode.
        tolerance: Distance for the NSD, see `EvaluateConfig`.
        seed: Decides, with the key of an image, all randomness in the prompts for it.
    """
    rows = []
    with tqdm(total=len(cases.images), desc="evaluate", unit="image", mininterval=1) as progress:
        for record, images in groupby(cases.images, key=lambda image: image.record):
            case = _Case(cases.shards.meta(record)["size"])
            for image in images:
                key, pixels, truths = cases.read(image)
                prompted = PromptedImage(segmenter, pixels)
                answers = _answers(prompted, truths, cases.names(image), protocols, seed, key)
                case.add(image, truths, answers)
                progress.update()
            rows += case.score(key.split("/")[0], cases, record, tolerance)
    return rows


def _answers(
    prompted: PromptedImage,
    truths: NDArray[np.bool_],
    targets: Sequence[str],
    protocols: Sequence[Protocol],
    seed: int,
    key: str,
) -> dict[str, list[Answer]]:
    """Answers for all objects of an image, by the name of their row."""
    answers: dict[str, list[Answer]] = {}
    for protocol in protocols:
        rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
        found = protocol.answers(prompted, truths, targets, rng)
        if twice := answers.keys() & found.keys():
            raise UserError(f"protocols: two of them give the row {min(twice)!r}")
        answers |= found
    return answers


class _Case:
    """Masks of a 2D record or a volume, collected image by image, one bit per pixel."""

    def __init__(self, shape: list[int]) -> None:
        self.shape = shape
        self.truth: dict[int, dict[int | None, NDArray[np.uint8]]] = {}  # target -> depth
        self.predicted: dict[tuple[int, str], dict[int | None, NDArray[np.uint8]]] = {}

    def add(
        self,
        image: LabelledImage,
        truths: NDArray[np.bool_],
        answers: Mapping[str, Sequence[Answer]],
    ) -> None:
        """The masks (M, H, W) of one image, in the order of its targets."""
        for index, target in enumerate(image.targets):
            self.truth.setdefault(target, {})[image.depth] = np.packbits(truths[index])
            for protocol, found in answers.items():
                slices = self.predicted.setdefault((target, protocol), {})
                slices[image.depth] = np.packbits(found[index].mask)

    def score(self, key: str, cases: LabelledCases, record: int, tolerance: float) -> list[Row]:
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
                    nsd=metrics.nsd(prediction, truth, distance, tolerance),
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
    output = config.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output: {output} is there already; give a new or empty folder")
    device = find_device(config.device)
    if device.type == "cpu":
        use_cores(1, config.threads)
    segmenter = load_segmenter(config.run, device)
    protocols = [chosen.build(Protocol) for chosen in config.protocols]
    for protocol in protocols:
        require_prompts(segmenter.decoder, "protocols", protocol)
    cases = LabelledCases(config.data, config.seed)
    (output / "figures").mkdir(parents=True, exist_ok=True)
    rows = evaluate(segmenter, cases, protocols, config.tolerance, config.seed)
    summaries = summarise(rows, config.seed)

    write_resolved_config(output, resolved)
    write_text(output / "results.csv", results_csv(rows))
    write_text(output / "summary.csv", summary_csv(summaries))
    table = summary_markdown(summaries, config.tolerance)
    write_text(output / "summary.md", table)
    draw_results(segmenter, cases, rows, protocols, config.seed, output / "figures")
    print(table, end="")
