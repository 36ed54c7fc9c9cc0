"""Weights from somewhere: files, run folders and the Hub, read without running anyone's code."""

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from data_prep.common.errors import UserError
from data_prep.common.faults import find_fault
from pretrain.engine.checkpoint import Checkpoint, latest_checkpoint
from pretrain.sizes import NATIVE_GRID, PATCH, SIZES

ENCODER = "encoder"
"""Name of the encoder's weights in a checkpoint and in a published folder."""
HUB = "hf:"
"""Begins the name of an encoder on the Hugging Face Hub."""
SAM_ENCODER_PREFIX = "image_encoder."
SAM_DECODER_PREFIXES = ("prompt_encoder.", "mask_decoder.")


def snapshot_download(name: str, **options: Any) -> str:
    """That of huggingface_hub, whose import only a download waits for."""
    from huggingface_hub import snapshot_download

    return snapshot_download(name, **options)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file, or of a PyTorch file of plain tensors.

    Raises:
        UserError: The file cannot be read, or holds anything but named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):
            weights = weights["state_dict"]  # of a checkpoint of its training
    except pickle.UnpicklingError:
        raise UserError(f"{path} is not a weights file, or holds more than named tensors") from None
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise UserError(f"cannot read weights from {path}: {_reason(error)}") from None
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise UserError(f"{path} is not a file of named tensors (a state dict is expected)")
    return weights


def find_weights(source: str | Path) -> Path:
    """The weights file that `source` means.

    Args:
        source: A file, a run folder, a published folder, or `hf:org/name` on the Hugging Face Hub,
            also `hf:org/name@revision`. Nothing else is looked for on the Hub.

    Raises:
        UserError: There is none.
    """
    if str(source).startswith(HUB):
        file = f"{ENCODER}.safetensors"
        makers = "encoders published by `python -m pretrain publish`"
        return download(str(source), [file, f"{ENCODER}.json"], file, makers) / file
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(
            f"{source}: no such file or folder (an encoder on the Hub is named as in hf:org/name)"
        )
    for checkpoint in (Checkpoint(path), latest_checkpoint(path)):
        if checkpoint is not None and checkpoint.weights_file(ENCODER).is_file():
            return checkpoint.weights_file(ENCODER)
    raise UserError(
        f"{path} has no {ENCODER}.safetensors and no checkpoint with one; has its run saved?"
    )


def download(source: str, files: Sequence[str], needed: str, makers: str) -> Path:
    """Folder with some files of a repository on the Hub, in the cache of huggingface_hub.

    Args:
        source: `hf:org/name` or `hf:org/name@revision`.
        files: Patterns of the names of files that are fetched if they are there.
        needed: The one that must be there.
        makers: Whose repositories have it, for the message.

    Raises:
        UserError: Not such a name, it cannot be fetched, or it lacks what is needed.
    """
    match = re.fullmatch(rf"{HUB}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", source)
    if match is None:
        raise UserError(
            f"{source}: on the Hub, names are as in hf:org/name or hf:org/name@revision"
        )
    try:
        found = snapshot_download(match[1], revision=match[2], allow_patterns=list(files))
    except Exception as error:  # whatever the Hub and the network answer
        raise UserError(f"{source}: {find_fault('hf://' + match[1], error).reason}") from None
    if not (Path(found) / needed).is_file():
        raise UserError(f"{source}: has no {needed}, as {makers} have")
    return Path(found)


def image_size_of(weights: Path) -> int:
    """Side in pixels of the images that an encoder was trained on, as `encoder.json` beside says.

    Without that file, SAM's own 1024.

    Raises:
        UserError: The file is damaged.
    """
    path = weights.with_name(f"{ENCODER}.json")
    if weights.name != f"{ENCODER}.safetensors" or not path.is_file():
        return NATIVE_GRID * PATCH
    try:
        size = json.loads(path.read_text(encoding="utf-8"))["image_size"]
    except (OSError, ValueError, KeyError, TypeError):
        size = None
    if not isinstance(size, int) or size < PATCH or size % PATCH:
        raise UserError(f"{path}: image_size is not a positive multiple of {PATCH}")
    return size


def _reason(error: Exception) -> str:
    """First line of what an error says, or its name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder's part of a SAM state dict, or all of an encoder-only one."""
    if not any(key.startswith(SAM_ENCODER_PREFIX) for key in weights):
        return dict(weights)
    return {
        key.removeprefix(SAM_ENCODER_PREFIX): tensor
        for key, tensor in weights.items()
        if not key.startswith(SAM_DECODER_PREFIXES)
    }


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load `weights` into `module`; every key must be there with its shape.

    Raises:
        UserError: Names the first missing, unexpected or mis-shaped keys.
    """
    expected = module.state_dict()
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    misshaped = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    lines = [
        f"{len(keys)} {kind}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for kind, keys in problems.items()
        if keys
    ]
    if lines:
        raise UserError(f"{source} does not fit: {'; '.join(lines)}. Is it the same model size?")
    module.load_state_dict(dict(weights))


def choose_size(name: str | None, weights: Mapping[str, Tensor], source: str | Path) -> str:
    """The encoder size of some weights, which must be `name` unless that is None.

    Raises:
        UserError: They are of another size, or of none.
    """
    tables = ("pos_embed", "patch_embed.proj.bias", "blocks.0.norm1.weight")
    width = next((weights[key].shape[-1] for key in tables if key in weights), None)
    depth = len({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    sizes = [n for n, size in SIZES.items() if (size.width, size.depth) == (width, depth)]
    if not sizes:
        raise UserError(
            f"{source} does not hold an image encoder of SAM (width {width}, {depth} blocks); there"
            f" are {', '.join(SIZES)}"
        )
    if name is not None and name not in sizes:
        raise UserError(f"{source} holds {sizes[0]} weights, and {name} is asked for")
    return name or sizes[0]
