"""Measure a segmenter on held-out cases under simulated prompts.

Each image is encoded once. How a volume is prompted is told by its protocol (`protocols.py`); it is
scored as a volume, empty where nothing was predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.common.cli import write_resolved_config
from data_prep.common.errors import UserError
from finetune.config import EvaluateConfig
from finetune.data.cases import LabelledCases, LabelledImage
from finetune.evaluation.drawing import draw_results
from finetune.evaluation.labelled import generator_of
from finetune.evaluation.protocols import Protocol
from finetune.evaluation.scored import Scoring
from finetune.evaluation.tables import ABSENT, PER_SLICE, Row
from finetune.inference.loading import find_device, load_model
from finetune.inference.volume import PromptedVolume
from finetune.model.decoder import require_prompts
from finetune.model.segmenter import Segmenter
from pretrain.engine.cpu import use_cores


def evaluate(
    segmenter: Segmenter,
    cases: LabelledCases,
    protocols: Sequence[Protocol],
    tolerance: float = 1.0,
    seed: int = 0,
    hd95: str = "surface",
) -> list[Row]:
    """Score every case, target and protocol; shows progress with the time left.

    Args:
        segmenter: The model, in evaluation mode.
        tolerance: Distance for the NSD, see `EvaluateConfig`.
        seed: Decides, with the key of an image, all randomness in the prompts for it.
        hd95: Definition of the HD95, see `EvaluateConfig`.
    """
    rows = []
    images = _asked_for(cases, protocols)
    work = len(images) * len(protocols)
    with tqdm(total=work, desc="evaluate", unit="image", mininterval=1) as progress:
        for _, found in groupby(images, key=lambda image: image.record):
            case = _Case(segmenter, cases, list(found))
            for protocol in protocols:
                case.prompt(protocol, seed)
                progress.update(len(case.images))
            rows += case.score(Scoring(tolerance, hd95))
    return rows


def _asked_for(cases: LabelledCases, protocols: Sequence[Protocol]) -> list[LabelledImage]:
    """The images with targets, and cases without any where a protocol asks for what is absent."""
    images = cases.images
    if any(protocol.asks_for_absent for protocol in protocols):
        held = {image.record for image in images}
        images = images + [image for image in cases.empty if image.record not in held]
    return sorted(images, key=lambda image: image.record)


class _Case:
    """A 2D record or a volume: prompted by each protocol, and scored as a whole."""

    def __init__(
        self, segmenter: Segmenter, cases: LabelledCases, images: Sequence[LabelledImage]
    ) -> None:
        self.cases, self.images = cases, images
        stored = cases.shards.record(images[0].record)
        assert stored.mask is not None
        self.record, self.key, self.labels = stored, stored.key, stored.mask
        self.is_volume = images[0].depth is not None
        pixels = stored.image if self.is_volume else stored.image[None]
        self.slices = PromptedVolume(segmenter, len(pixels), pixels.__getitem__)
        self.answered: dict[tuple[int, str], _Answered] = {}

    def prompt(self, protocol: Protocol, seed: int) -> None:
        """Keep what the model makes of a simulated user.

        Raises:
            UserError: Another one has given a row of the same name.
        """
        found: dict[tuple[int, str], _Answered] = {}
        one_for_all = protocol.every_slice or not protocol.gives_prompts
        images = self._whole(self._wanted()) if one_for_all else self.images
        ending = PER_SLICE if self.is_volume and not one_for_all else ""
        for image in images if self._wanted() else ():
            one_key = one_for_all or image.depth is None  # one text for all slices
            key = self.key if one_key else f"{self.key}/{image.depth}"
            truths = np.stack([self._truth(target, image.depth) for target in image.targets])
            answers = protocol.answers(
                self.slices[image.depth or 0],
                truths,
                self.cases.names(image),
                generator_of(seed, key),
            )
            for row, members in answers.items():
                for target, answer in zip(image.targets, members, strict=True):
                    kept = found.setdefault((target, row + ending), _Answered())
                    kept.masks[image.depth] = np.packbits(answer.mask)
                    kept.prompts = answer.prompts + (0 if one_for_all else kept.prompts)
        for target in self._wanted() if self.is_volume else ():
            name = list(self.cases.targets)[target]
            random = generator_of(seed, f"{self.key}/{name}")
            truth = self._truth(target)[None]
            for row, (whole,) in protocol.volume_answers(
                self.slices, truth, [name], random
            ).items():
                kept = found[target, row] = _Answered(prompts=whole.prompts)
                kept.masks.update({n: np.packbits(mask) for n, mask in enumerate(whole.mask)})
        found |= self._absent(protocol, seed)
        if twice := found.keys() & self.answered.keys():
            raise UserError(f"protocols: two of them give the row {min(twice)[1]!r}")
        self.answered |= found

    def score(self, scoring: Scoring) -> list[Row]:
        """One row for each target and protocol."""
        names = list(self.cases.targets)
        rows = []
        for target in sorted({target for target, _ in self.answered}):
            truth = self._truth(target)
            for (answered, protocol), answer in self.answered.items():
                if answered != target:
                    continue
                mask, name = answer.whole(self.labels.shape), names[target]
                rows.append(scoring.row(self.record, name, protocol, answer.prompts, mask, truth))
        return rows

    def _absent(self, protocol: Protocol, seed: int) -> dict[tuple[int, str], "_Answered"]:
        """Answers to prompts for the targets that the case does not hold."""
        names, found = list(self.cases.targets), dict[tuple[int, str], _Answered]()
        absent = tuple(n for n in range(len(names)) if n not in self._wanted())
        if not absent or not protocol.asks_for_absent:
            return found
        for image in self._whole(absent):
            random = generator_of(seed, self.key)
            prompted, asked = self.slices[image.depth or 0], self.cases.names(image)
            for row, answers in protocol.absent_answers(prompted, asked, random).items():
                for target, answer in zip(absent, answers, strict=True):
                    kept = found.setdefault((target, row), _Answered(prompts=answer.prompts))
                    kept.masks[image.depth] = np.packbits(answer.mask)
        return found

    def _whole(self, targets: tuple[int, ...]) -> list[LabelledImage]:
        """All slices of a volume, or the image, with these targets to be asked for."""
        record = self.images[0].record
        depths = range(len(self.slices)) if self.is_volume else (None,)
        return [LabelledImage(record, depth, targets) for depth in depths]

    def _wanted(self) -> tuple[int, ...]:
        """The targets that the record holds."""
        return tuple(sorted({target for image in self.images for target in image.targets}))

    def _truth(self, target: int, depth: int | None = None) -> NDArray[np.bool_]:
        """Mask of a target: of a slice, or as a whole."""
        labels = self.labels if depth is None else self.labels[depth]
        return np.isin(labels, list(self.cases.targets.values())[target])


@dataclass
class _Answered:
    """Masks of one target under one protocol, one bit per pixel; slices not given are empty."""

    masks: dict[int | None, NDArray[np.uint8]] = field(default_factory=dict)
    prompts: int = 0

    def whole(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """(H, W) or (D, H, W)."""
        if None in self.masks:
            return _unpack(self.masks[None], shape)
        whole = np.zeros(shape, dtype=bool)
        for depth, packed in self.masks.items():
            whole[depth] = _unpack(packed, shape[1:])
        return whole


def _unpack(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.unpackbits(packed, count=int(np.prod(shape))).astype(bool).reshape(shape)


def evaluate_run(config: EvaluateConfig, resolved: str) -> None:
    """Measure an adapted model, or plain SAM, on held-out cases: tables and pictures."""
    output = config.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output: {output} is there already; give a new or empty folder")
    device = find_device(config.device)
    if device.type == "cpu":
        use_cores(1, config.threads)
    segmenter = load_model(config, device)
    protocols = [chosen.build(Protocol) for chosen in config.protocols]
    for protocol in protocols:
        require_prompts(segmenter.decoder, "protocols", protocol)
    cases = LabelledCases(config.data, config.seed)
    for protocol in protocols:
        protocol.begin(segmenter, list(cases.targets))
    rows = evaluate(segmenter, cases, protocols, config.tolerance, config.seed, config.hd95)
    if not rows:
        raise UserError(
            "protocols: there was nothing to ask about these cases; Propagated is for volumes, and"
            " a target that no case holds can only be asked for by text"
        )

    (output / "figures").mkdir(parents=True, exist_ok=True)
    write_resolved_config(output, resolved)
    scoring = Scoring(config.tolerance, config.hd95)
    table = scoring.write(output, rows, list(cases.targets))
    held = [row for row in rows if not row.protocol.endswith(ABSENT)]
    draw_results(segmenter, cases, held, protocols, config.seed, output / "figures")
    print(table, end="")
