"""Weights from somewhere: files, run folders and the Hub, read without running anyone's code."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from data_prep.common.errors import UserError

ENCODER_FILE = "encoder.safetensors"
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
SAM_ENCODER_PREFIX = "image_encoder."
SAM_DECODER_PREFIXES = ("prompt_encoder.", "mask_decoder.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file, or of a PyTorch file of plain tensors.

    Raises:
        UserError: the file cannot be read, or holds anything but named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(f"cannot read weights from {path}: {_reason(error)}") from None
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise UserError(f"{path} is no file of named tensors (a state dict is expected)")
    return weights


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint folder of a run folder, or None."""
    found = sorted((run / "checkpoints").glob("step-*"))
    return found[-1] if found else None


def find_weights(source: str | Path) -> Path:
    """The weights file that `source` means: a file, a run folder, or `org/name` on the Hub.

    Raises:
        UserError: there is none.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        checkpoint = latest_checkpoint(path)
        for folder in (path, checkpoint):
            if folder is not None and (folder / ENCODER_FILE).is_file():
                return folder / ENCODER_FILE
        raise UserError(f"{path} has no {ENCODER_FILE} and no checkpoint; has its run saved one?")
    if str(source).count("/") != 1 or path.suffix in WEIGHT_SUFFIXES:
        raise UserError(f"{source}: no such file or folder")
    try:
        folder = Path(snapshot_download(str(source), allow_patterns=["*.safetensors", "*.json"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{source} is no file here and not to be had from the Hub: {_reason(error)}"
        ) from None
    return find_weights(folder)


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
        UserError: names the first missing, unexpected or mis-shaped keys.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own]
    misshaped = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    told = [
        f"{len(keys)} {kind}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for kind, keys in problems.items()
        if keys
    ]
    if told:
        raise UserError(f"{source} does not fit: {'; '.join(told)}. Is it the same model size?")
    module.load_state_dict(dict(weights))


def load_encoder(encoder: nn.Module, source: str | Path) -> Path:
    """Load an image encoder's weights; returns the file that they came from.

    Raises:
        UserError: nothing readable at `source`, or a key that is missing, unexpected or mis-shaped.
    """
    path = find_weights(source)
    load_strictly(encoder, encoder_weights(read_weights(path)), path)
    return path
