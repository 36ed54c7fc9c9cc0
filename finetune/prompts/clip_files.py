"""Where a CLIP text tower comes from: its architecture, and the files that it is made from.

The architectures are open_clip's. Its package has their configurations and the tokenizer of the
original CLIP; weights, and what towers from elsewhere need, are files that somebody has to fetch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.common.errors import UserError
from data_prep.common.faults import find_fault
from data_prep.common.messages import nearest, one_line
from finetune.model.text import WEIGHTS
from pretrain.encoder.weights import HUB

OPTION = "model.text"
CONFIG = "config"
"""Role of the file that describes the architecture, in open_clip's form."""
TOKENIZER = "tokenizer"
"""Role of the `tokenizer.json` of a tower that does not have CLIP's own tokenizer."""
LANGUAGE_MODEL = "language_model"
"""Role of the `config.json` of a language model of transformers that is the tower."""

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class TowerSource:
    """An architecture, and the files that a tower of it is made from."""

    config: Mapping[str, Any]
    """As in open_clip's model configurations: `embed_dim`, `text_cfg` and maybe `quick_gelu`."""
    files: Mapping[str, Path]
    """By role; without `weights`, the tower is new."""


def find_tower(model: str, pretrained: str | None, kept: Mapping[str, Path]) -> TowerSource:
    """The tower that the options name.

    Args:
        model: Name of an architecture of open_clip; a folder with `open_clip_config.json` and
            weights; a file such as that; or `hf:org/name` on the Hugging Face Hub.
        pretrained: Weights for a named architecture or a file: a file, or what open_clip calls
            them.
        kept: The files that a run has kept, instead of looking for any.

    Raises:
        UserError: There is no such architecture, or a file that is not there: what to fetch, and
            where to put it.
    """
    if kept:
        return TowerSource(_config_of(model, pretrained, kept), kept)
    place = Path(model)
    if model.startswith(HUB) or place.is_dir():
        if pretrained is not None:
            raise UserError(f"{OPTION}.pretrained: {model} has its own weights; leave this out")
        files = _from_hub(model.removeprefix(HUB)) if not place.is_dir() else _from_folder(place)
        config = _config_of(model, None, files)
        return TowerSource(config, files | _language_files(config, place))
    files = {CONFIG: place} if place.is_file() else {}
    config = _config_of(model, pretrained, files)
    files |= _language_files(config, place.parent if place.is_file() else None)
    if pretrained is not None:
        files[WEIGHTS] = _weights_of(model, pretrained)
    return TowerSource(config, files)


def _config_of(model: str, pretrained: str | None, files: Mapping[str, Path]) -> dict[str, Any]:
    """The configuration of a file, or of a named architecture."""
    if CONFIG in files:
        return _read_config(files[CONFIG])
    import open_clip

    name = model.replace("/", "-")
    if name not in open_clip.list_models():
        hint = nearest(name, open_clip.list_models()) or "; or give a folder, a file or hf:org/name"
        raise UserError(f"{OPTION}.model: open_clip has no architecture {model!r}{hint}")
    config = dict(open_clip.get_model_config(name))
    if pretrained is not None:  # what these weights were trained with, whatever the name says
        known = _known(name, pretrained)
        config["quick_gelu"] = known.get("quick_gelu", config.get("quick_gelu", False))
    return config


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config = config.get("model_cfg", config)
        if isinstance(config["text_cfg"], dict) and isinstance(config["embed_dim"], int):
            return dict(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # one line for all of them
    raise UserError(
        f"{OPTION}.model: {path} is not a model configuration of open_clip (JSON with embed_dim and"
        " text_cfg)"
    )


def _weights_of(model: str, pretrained: str) -> Path:
    """A file, or weights that open_clip knows, fetched unless they are here."""
    if (path := Path(pretrained)).is_file():
        return path
    import open_clip

    known = _known(model.replace("/", "-"), pretrained)
    if not known:
        tags = open_clip.list_pretrained_tags_by_model(model.replace("/", "-"))
        raise UserError(
            f"{OPTION}.pretrained: {pretrained} is neither a file nor weights that open_clip has"
            f" for {model} ({', '.join(tags) or 'it has none'})"
        )
    try:
        return Path(open_clip.download_pretrained(known))
    except Exception as error:  # whatever the network and the Hub answer
        repository, _, name = known.get("hf_hub", "").rpartition("/")
        wanted = f"{name or WEIGHTS_NAMES[0]} of {repository} on the Hugging Face Hub"
        # a file does not say that its weights want another activation than the architecture has
        other = f"{model.replace('/', '-')}-quickgelu"
        named = known.get("quick_gelu") and other in open_clip.list_models()
        raise UserError(
            f"{OPTION}.pretrained: the weights {pretrained} of {model} are not on this machine and"
            f" cannot be fetched ({_reason(repository, error)}); fetch"
            f" {wanted if repository else known.get('url')} elsewhere, and give the file:"
            f"{f' --{OPTION}.model {other}' if named else ''} --{OPTION}.pretrained FILE"
        ) from None


def _known(name: str, pretrained: str) -> dict[str, Any]:
    """What open_clip knows of weights; empty if it does not know them.

    It lists those of OpenAI under the names of architectures with another activation.
    """
    import open_clip

    names = (name, name.removesuffix("-quickgelu"))
    found = (open_clip.get_pretrained_cfg(each, pretrained) for each in names)
    return next((dict(known) for known in found if known), {})


def _from_folder(folder: Path) -> dict[str, Path]:
    config = folder / CONFIG_NAME
    weights = next((folder / name for name in WEIGHTS_NAMES if (folder / name).is_file()), None)
    for path, name in ((config, CONFIG_NAME), (weights, " or ".join(WEIGHTS_NAMES))):
        if path is None or not path.is_file():
            raise UserError(f"{OPTION}.model: {folder} has no {name}; fetch it into that folder")
    assert weights is not None
    return {CONFIG: config, WEIGHTS: weights}


def _from_hub(name: str) -> dict[str, Path]:
    repository, _, revision = name.partition("@")
    return {
        CONFIG: _fetched(repository, (CONFIG_NAME,), revision),
        WEIGHTS: _fetched(repository, WEIGHTS_NAMES, revision),
    }


def _language_files(config: Mapping[str, Any], folder: Path | None) -> dict[str, Path]:
    """What a tower needs that is a language model, or has the tokenizer of one: from the folder
    where the tower is, else from the Hub."""
    names = {"hf_tokenizer_name": (TOKENIZER, "tokenizer.json")}
    names["hf_model_name"] = (LANGUAGE_MODEL, "config.json")
    files = {}
    for key, (role, name) in names.items():
        if repository := config["text_cfg"].get(key):
            path = None if folder is None else folder / name
            if path is None or not path.is_file():
                path = _fetched(str(repository), (name,))
            files[role] = path
    return files


def _fetched(repository: str, names: tuple[str, ...], revision: str = "") -> Path:
    """The first of these files that a repository on the Hub has; from the cache if it is there."""
    from huggingface_hub import hf_hub_download

    error: Exception | None = None
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, revision=revision or None))
        except Exception as failed:  # whatever the Hub and the network answer
            error = failed
    assert error is not None
    raise UserError(
        f"{OPTION}.model: {' or '.join(names)} of {repository} on the Hugging Face Hub is not on"
        f" this machine and cannot be fetched ({_reason(repository, error)}); fetch it elsewhere"
        f" into a folder with {CONFIG_NAME}, the weights and what else it has, and give that:"
        f" --{OPTION}.model FOLDER"
    )


def _reason(repository: str, error: Exception) -> str:
    return find_fault(f"hf://{repository}", error).reason if repository else one_line(error)
