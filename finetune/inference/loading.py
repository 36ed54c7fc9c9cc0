"""A model ready for use: an adapted one, back from its run folder, or SAM as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_prep.common.errors import UserError
from data_prep.common.parsing import parse_file
from data_prep.options import Plane, Window
from finetune.config import ModelConfig, ModelSource, TrainConfig
from finetune.inference.published import SEGMENTER, find_run, require_sources
from finetune.model.building import build_model
from finetune.model.kept import kept_weights
from finetune.model.segmenter import TEXT_PREFIX, Segmenter
from finetune.model.text import TEXT_ROLE
from pretrain.encoder.weights import find_weights, image_size_of
from pretrain.engine.checkpoint import (
    Checkpoint,
    best_checkpoint,
    checkpoints_of,
    latest_checkpoint,
)

SOURCES = "sources"
"""Name of the document on the files that the frozen weights came from."""
DATA = "data"
"""Name of the document on how the model was trained: `targets`, `window`, `multimask`,
`text_multimask`, `mask_prompts`, `rough_masks`, `stack`, the `plane` of slices of volumes, and the
`fingerprint` of the shard set."""


def load_model(source: ModelSource, device: torch.device, texts: bool = True) -> Segmenter:
    """The model that a command's options name, in evaluation mode.

    Args:
        texts: As of `load_segmenter`.

    Raises:
        UserError: See `load_segmenter` and `load_sam`.
    """
    if source.run is not None:
        last = source.checkpoint == "last"
        return load_segmenter(source.run, device, source.encoder, source.sam, last, texts)
    assert source.sam is not None
    return load_sam(source.sam, device, source.encoder, source.image_size)


def has_adapters(segmenter: Segmenter) -> bool:
    """Whether `Segmenter.without_adapters` would leave anything out."""
    return any(getattr(module, "adapter", None) is not None for module in segmenter.modules())


def load_segmenter(
    run: str | Path,
    device: torch.device,
    encoder: str | None = None,
    sam: str | None = None,
    last: bool = False,
    texts: bool = True,
) -> Segmenter:
    """The model of a run folder, or of a published one, in evaluation mode.

    Of a run that was validated it is the best checkpoint, of others the newest.

    A checkpoint holds what was trained; what was frozen is read from the files that the run keeps.

    Args:
        run: Run folder, published folder, or `hf:org/name` on the Hub.
        encoder: Where the encoder that it was trained on lies now, if not in the run folder.
        sam: The same of the SAM checkpoint.
        last: Take the newest checkpoint in any case.
        texts: False leaves its text encoder out, whose package takes seconds to import.

    Raises:
        UserError: Not a run, no checkpoint, or the encoder or SAM weights it was trained on are
            gone or are others now.
    """
    folder = find_run(run)
    checkpoint = find_checkpoint(folder, last)
    config, _ = parse_file(TrainConfig, folder / "config.yaml")
    if not texts:
        patterns = [each for each in config.model.trained if not each.startswith(TEXT_PREFIX)]
        config = replace(config, model=replace(config.model, text=None, trained=patterns))
    trained = checkpoint.document(DATA) or {}
    targets = list(trained.get("targets", {}))
    require_sources(folder, run, encoder, sam)
    try:
        segmenter = rebuild(config, targets, folder, encoder, sam)
    except UserError as error:
        raise UserError(
            f"run: the weights that {run} was trained on: {error}; of encoder and SAM say where"
            " they are with --encoder and --sam"
        ) from None
    restore(segmenter, checkpoint)
    segmenter.previous_mask = trained_with_masks(config, trained)
    segmenter.multimask = trained.get("multimask", False)  # earlier versions trained one mask
    segmenter.stack = trained.get("stack", 1)
    segmenter.text_multimask = trained.get("text_multimask", False)
    return segmenter.to(device).eval()


def trained_with_masks(config: TrainConfig, trained: Mapping[str, Any]) -> bool:
    """Whether prompts included masks: rough ones, or the last prediction.

    Args:
        trained: The document `DATA`. In earlier versions it did not say, or said `previous_mask`,
            which could be true even where no object was prompted twice.
    """
    if "mask_prompts" in trained:
        return bool(trained["mask_prompts"])
    if not trained.get("previous_mask", True):
        return False
    # imports all that training needs, which takes a second: for runs of earlier versions alone
    from finetune.prompts.prompting import Prompting

    try:
        return bool(config.prompts.build(Prompting).gives_masks)
    except UserError:  # a class of somebody else's, which is not here
        if "previous_mask" in trained:
            return True
        raise


def load_sam(
    sam: str, device: torch.device, encoder: str | None = None, image_size: int | None = None
) -> Segmenter:
    """SAM as it is, without adapters, in evaluation mode.

    Args:
        sam: SAM checkpoint.
        encoder: Image encoder to put in the place of its own: a run of stage one, a file, or
            `hf:org/name`. Its neck is taken as it is, though stage one does not train it.
        image_size: Side of the square input in pixels. None: the one that the encoder was trained
            on, which is 1024 for SAM's.

    Raises:
        UserError: A file that is not there, or that does not fit.
    """
    pixels = image_size or image_size_of(find_weights(encoder or sam))
    config = ModelConfig(image_size=pixels, encoder_adapter=None, decoder_adapter=None)
    segmenter = build_model(config, (), encoder, sam)
    segmenter.multimask = True  # as it was trained
    return segmenter.to(device).eval()


def rebuild(
    config: TrainConfig,
    targets: Sequence[str],
    run: Path,
    encoder: str | None = None,
    sam: str | None = None,
) -> Segmenter:
    """The model of a run as it was when training started, with the files that the run keeps.

    Args:
        encoder: Where to read the encoder instead.
        sam: Where to read SAM's prompt encoder and decoder instead.

    Raises:
        UserError: See `build_model`.
    """
    given: dict[str, Path | str | None] = {"encoder": config.encoder, "sam": config.sam}
    kept = kept_weights(run)
    # a published model may have the files of its text encoder alone
    named = {role: path for role, path in kept.items() if role in given} or given
    text = {
        role.removeprefix(TEXT_ROLE): path
        for role, path in kept.items()
        if role.startswith(TEXT_ROLE)
    }
    decoder_was_loaded = not _recorded_parts(run).isdisjoint(("prompt_encoder", "mask_decoder"))
    return build_model(
        config.model,
        targets,
        encoder or named.get("encoder"),
        sam or named.get("sam"),
        whole=decoder_was_loaded,  # an earlier version did not take it from the encoder's file
        text_files=text,
    )


def _recorded_parts(run: Path) -> set[str]:
    """Parts of a run's model that hold weights that were loaded and frozen."""
    for checkpoint in (*reversed(checkpoints_of(run)), Checkpoint(run)):  # or it is published
        try:
            sources = checkpoint.document(SOURCES)
        except UserError:  # damaged: the one before says the same
            continue
        if sources is not None:
            return {source["part"] for source in sources}
    return set()


class TrainedOn(NamedTuple):
    """What a model has seen, as far as its checkpoint says; those of earlier versions say less."""

    window: Window = "auto"
    """Intensity window of the images."""
    plane: Plane | None = None
    """Plane of the slices of volumes; None where there were none."""
    rough_masks: bool = True
    """Whether a rough mask was the first prompt in a share of the steps."""


def trained_on(run: str | Path) -> TrainedOn:
    """What the images and the prompts were that a model was trained on.

    Args:
        run: As of `load_segmenter`.

    Raises:
        UserError: Not a run, or no checkpoint.
    """
    said = find_checkpoint(find_run(run)).document(DATA) or {}
    known = {name: said[name] for name in TrainedOn._fields if name in said}
    if isinstance(known.get("window"), list):
        known["window"] = tuple(known["window"])
    return TrainedOn(**known)


def find_checkpoint(run: Path, last: bool = False) -> Checkpoint:
    """The checkpoint of a run, or of a published folder, that is used.

    Args:
        last: The newest one, also where another was judged best.

    Raises:
        UserError: Not a run, or no checkpoint.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"run: {run} has no config.yaml; give a run folder of finetune/train.py")
    checkpoint = (None if last else best_checkpoint(run)) or latest_checkpoint(run)
    checkpoint = checkpoint or Checkpoint(run)  # a published folder is one
    if not checkpoint.weights_file(SEGMENTER).is_file():
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
                    f"{checkpoint.folder} was trained on other {part} weights than {file} holds; "
                    "name the very file that it was trained on, not a run folder that has trained "
                    "on since"
                )
    weights = checkpoint.weights(SEGMENTER)
    if segmenter.text_encoder is None:
        weights = {key: value for key, value in weights.items() if not key.startswith(TEXT_PREFIX)}
    segmenter.load_trained(weights, checkpoint.weights_file(SEGMENTER))


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
