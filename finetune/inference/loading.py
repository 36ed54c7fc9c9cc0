"""An adapted model back from its run folder."""

from pathlib import Path

import torch

from data_prep.common.errors import UserError
from data_prep.common.parsing import parse_file
from data_prep.options import Window
from finetune.config import TrainConfig
from finetune.model.segmenter import Segmenter, build_model
from finetune.prompts.prompting import Prompting
from pretrain.engine.checkpoint import Checkpoint, latest_checkpoint

SEGMENTER = "segmenter"
"""Name of the trained weights in a checkpoint (`Segmenter.trained_state_dict`)."""
SOURCES = "sources"
"""Name of the document on the files that the frozen weights came from."""
DATA = "data"
"""Name of the document on how the model was trained: `targets`, `window` and `multimask`."""


def load_segmenter(run: Path, device: torch.device) -> Segmenter:
    """The model of a run folder with its newest checkpoint, in evaluation mode.

    A checkpoint holds what was trained; what was frozen is read again from where it came from.

    Raises:
        UserError: Not a run, no checkpoint, or the encoder or SAM weights it was trained on are
            gone or are others now.
    """
    checkpoint = _newest(run)
    config, _ = parse_file(TrainConfig, run / "config.yaml")
    trained = checkpoint.document(DATA) or {}
    targets = list(trained.get("targets", {}))
    try:
        segmenter = build_model(config.model, targets, config.encoder, config.sam)
    except UserError as error:
        raise UserError(f"run: the weights that {run} was trained on: {error}") from None
    restore(segmenter, checkpoint)
    segmenter.previous_mask = config.prompts.build(Prompting).previous_mask
    segmenter.multimask = trained.get("multimask", False)  # earlier versions trained one mask
    return segmenter.to(device).eval()


def trained_window(run: Path) -> Window:
    """Intensity window of the images that the model of a run folder was trained on.

    Raises:
        UserError: Not a run, or no checkpoint.
    """
    # checkpoints of earlier versions do not say
    window = (_newest(run).document(DATA) or {}).get("window", "auto")
    return (window[0], window[1]) if isinstance(window, list) else window


def _newest(run: Path) -> Checkpoint:
    if not (run / "config.yaml").is_file():
        raise UserError(f"run: {run} has no config.yaml; give a run folder of finetune/train.py")
    checkpoint = latest_checkpoint(run)
    if checkpoint is None or not checkpoint.weights_file(SEGMENTER).is_file():
        raise UserError(f"run: {run} has no checkpoint with {SEGMENTER} weights; has it saved one?")
    return checkpoint


def restore(segmenter: Segmenter, checkpoint: Checkpoint) -> None:
    """Load the trained weights of a checkpoint.

    Raises:
        UserError: They do not fit, or a file that frozen weights came from has other contents now:
            a run folder, say, that has trained on since.
    """
    sources = checkpoint.document(SOURCES)
    if sources is not None:  # checkpoints of earlier versions have none
        expected = {(source["part"], source["sha256"]) for source in sources}
        recorded = {part for part, _ in expected}
        for source in segmenter.frozen_sources():
            part, digest = source["part"], source["sha256"]
            if part in recorded and (part, digest) not in expected:
                file = next(path for path, sha in segmenter.digests.items() if sha == digest)
                raise UserError(
                    f"{checkpoint.folder} was trained on other {part} weights than {file} holds "
                    "now; name the very file that it was trained on, not a run folder that has "
                    "moved on"
                )
    segmenter.load_trained(checkpoint.weights(SEGMENTER), checkpoint.weights_file(SEGMENTER))


def find_device(name: str) -> torch.device:
    """The device called `name`; `auto` is a GPU if there is one, else the CPU.

    Raises:
        UserError: There is no such device.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device: {name!r} is not available here: {reason}") from None
    return device
