"""An adapted model back from its run folder."""

import json
from pathlib import Path

import torch

from data_prep.common.cli import parse
from data_prep.common.errors import UserError
from finetune.config import TrainConfig
from finetune.model.segmenter import Segmenter, build_model
from pretrain.encoder.weights import latest_checkpoint, read_weights

SEGMENTER_FILE = "segmenter.safetensors"
"""Trained weights in a checkpoint folder (`Segmenter.trained_state_dict`)."""
SOURCES_FILE = "sources.json"
"""Beside it, the files that the frozen weights came from (`Segmenter.frozen_sources`)."""


def load_segmenter(run: Path, device: torch.device) -> tuple[Segmenter, TrainConfig]:
    """The model of a run folder with its newest checkpoint, in evaluation mode.

    A checkpoint holds what was trained; what was frozen is read again from where it came from.

    Raises:
        UserError: no run, no checkpoint, or the encoder or SAM weights it was trained on are gone
            or are others now.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"run: {run} has no config.yaml; give a run folder of finetune/train.py")
    checkpoint = latest_checkpoint(run)
    if checkpoint is None or not (checkpoint / SEGMENTER_FILE).is_file():
        raise UserError(f"run: {run} has no checkpoint with {SEGMENTER_FILE}; has it saved one?")
    config, _ = parse(TrainConfig, "config.yaml", ["--config", str(path)])
    try:
        segmenter = build_model(config.model, config.encoder, config.sam)
    except UserError as error:
        raise UserError(f"run: the weights that {run} was trained on: {error}") from None
    check_sources(segmenter, checkpoint)
    weights = checkpoint / SEGMENTER_FILE
    segmenter.load_trained(read_weights(weights), weights)
    return segmenter.to(device).eval(), config


def check_sources(segmenter: Segmenter, checkpoint: Path) -> None:
    """Compare the files that frozen weights came from with those that a checkpoint was trained on.

    A checkpoint without a record of them passes.

    Raises:
        UserError: a file has other contents now: a run folder, say, that has trained on since.
    """
    path = checkpoint / SOURCES_FILE
    if not path.is_file():
        return
    expected = {(source["part"], source["sha256"]) for source in json.loads(path.read_text())}
    recorded = {part for part, _ in expected}
    for source in segmenter.frozen_sources():
        part, digest = source["part"], source["sha256"]
        if part in recorded and (part, digest) not in expected:
            file = next(path for path, own in segmenter.digests.items() if own == digest)
            raise UserError(
                f"{checkpoint} was trained on other {part} weights than {file} holds now; name "
                "the very file that it was trained on, not a run folder that has moved on"
            )


def find_device(name: str) -> torch.device:
    """The device called `name`; `auto` is a GPU if there is one, else the CPU.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device: {name!r} is not to be had here: {reason}") from None
    return device
