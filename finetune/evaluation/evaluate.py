"""Measure a segmenter on held-out cases under simulated prompts."""

import sys
from collections.abc import Sequence
from itertools import groupby

from tqdm import tqdm

from data_prep.common.cli import write_resolved_config
from data_prep.common.errors import UserError
from data_prep.common.files import write_text
from finetune.config import EvaluateConfig
from finetune.data.cases import LabelledCases, LabelledImage
from finetune.evaluation.calibration import Reliability, draw_reliability
from finetune.evaluation.case import Case
from finetune.evaluation.details import Details
from finetune.evaluation.drawing import draw_results
from finetune.evaluation.model_size import write_model
from finetune.evaluation.protocols import Protocol
from finetune.evaluation.scored import Scoring
from finetune.evaluation.tables import ABSENT, ALL_TARGETS, Row
from finetune.inference.loading import find_device, load_model, trained_on
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
    details: Details | None = None,
    reliability: Reliability | None = None,
) -> list[Row]:
    """Score every case, target and protocol; shows progress with the time left.

    Args:
        segmenter: The model, in evaluation mode.
        tolerance: Distance for the NSD, see `EvaluateConfig`.
        seed: Decides, with the key of an image, all randomness in the prompts for it.
        hd95: Definition of the HD95, see `EvaluateConfig`.
        details: Takes what `compare` needs beside the rows.
        reliability: Where pixels are counted by their probability, in all answers to one image or
            slice for which the model gave logits.
    """
    rows: list[Row] = []
    images = _asked_for(cases, protocols)
    work = len(images) * len(protocols)
    with tqdm(total=work, desc="evaluate", unit="image", mininterval=1) as progress:
        for _, found in groupby(images, key=lambda image: image.record):
            case = Case(segmenter, cases, list(found), reliability)
            for protocol in protocols:
                case.prompt(protocol, seed, every_click=details is not None)
                progress.update(len(case.images))
            scored = case.score(Scoring(tolerance, hd95))
            if details is not None:
                case.keep(details, scored)
            rows += scored
    return rows


def _asked_for(cases: LabelledCases, protocols: Sequence[Protocol]) -> list[LabelledImage]:
    """The images with targets, and cases without any where a protocol asks for what is absent."""
    images = cases.images
    if any(protocol.asks_for_absent for protocol in protocols):
        held = {image.record for image in images}
        images = images + [image for image in cases.empty if image.record not in held]
    return sorted(images, key=lambda image: image.record)


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
    if config.calibration and not segmenter.decoder.gives_log_odds:
        name = type(segmenter.decoder).__name__
        raise UserError(
            f"calibration: {name} gives no probabilities of several targets; leave it out"
        )
    cases = LabelledCases(config.data, config.seed)
    for protocol in protocols:
        protocol.begin(segmenter, list(cases.targets))
    if config.run is not None and (trained := trained_on(config.run).window) != cases.window:
        made, seen = (
            each if isinstance(each, str) else list(each) for each in (cases.window, trained)
        )
        print(
            f"warning: {config.data.shards} was made with --window {made}, and the run was trained"
            f" on images of --window {seen}; shards of that window show how it does in use",
            file=sys.stderr,
        )
    details = Details(config.thumbnails)
    reliability = Reliability() if config.calibration else None
    rows = evaluate(
        segmenter,
        cases,
        protocols,
        config.tolerance,
        config.seed,
        config.hd95,
        details,
        reliability,
    )
    if not rows:
        raise UserError(
            "protocols: there was nothing to ask about these cases; Propagated is for volumes, and"
            " a target that no case holds can only be asked for by text"
        )

    (output / "figures").mkdir(parents=True, exist_ok=True)
    write_resolved_config(output, resolved)
    scoring = Scoring(config.tolerance, config.hd95)
    table = scoring.write(output, rows, list(cases.targets))
    details.write(output)
    write_model(output, segmenter, trained=config.run is not None)
    held = [row for row in rows if row.target != ALL_TARGETS and not row.protocol.endswith(ABSENT)]
    draw_results(segmenter, cases, held, protocols, config.seed, output / "figures")
    if reliability is not None and reliability.bins:
        write_text(output / "calibration.csv", reliability.csv())
        write_text(output / "calibration.md", reliability.markdown())
        draw_reliability(reliability.pooled(), output / "figures" / "reliability.png")
        table += f"\n{reliability.markdown()}"
    print(table, end="")
