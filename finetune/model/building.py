"""A segmenter as a recipe composes it, with the weights that there are.

Only weights that were loaded are frozen: `build_model` freezes what it loaded unless the recipe
names it, and trains the rest.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from data_prep.common.errors import UserError
from data_prep.common.files import sha256
from finetune.config import ModelConfig
from finetune.model.decoder import Decoder
from finetune.model.mask_decoder import DecoderBlockAdapter
from finetune.model.network import Network
from finetune.model.segmenter import NECK_PREFIX, TEXT_PREFIX, Segmenter
from finetune.model.text import TEXT_ROLE, WEIGHTS, TextEncoder
from pretrain.encoder import weights
from pretrain.encoder.block import BlockAdapter
from pretrain.encoder.sam import SamEncoder
from pretrain.encoder.weights import SAM_DECODER_PREFIXES, SAM_ENCODER_PREFIX
from pretrain.sizes import DEFAULT_SIZE, SIZES


def build_model(
    config: ModelConfig,
    targets: Sequence[str] = (),
    encoder_weights: str | Path | None = None,
    sam_checkpoint: str | Path | None = None,
    whole: bool = True,
    text_files: Mapping[str, Path] | None = None,
) -> Segmenter:
    """Build a segmenter, load what there is, set the adapters and freeze what was loaded.

    An encoder-only file is one of stage one, which never trains the neck: the neck's values are
    taken over but count as not loaded. A whole SAM checkpoint has a trained neck.

    Args:
        config: Composition.
        targets: Names of what is to be segmented; a head has one output for each.
        encoder_weights: Image encoder: a run folder of stage one, an encoder file,
            `hf:org/name` on the Hub, or a SAM checkpoint. None: that of `sam_checkpoint`, or a new
            one.
        sam_checkpoint: A SAM checkpoint with prompt encoder and mask decoder. None: those of
            `encoder_weights` if that is one, otherwise new ones, drawn from the global torch random
            state.
        whole: Without `sam_checkpoint`, take the prompt encoder and the decoder of
            `encoder_weights`, too. False: new ones.
        text_files: `TextEncoder.files` as a run keeps them, instead of those that `config` names.

    Raises:
        UserError: An unknown size, a pattern that matches nothing, or a file of another size or
            with a missing, unexpected or mis-shaped key.
    """
    if config.network is not None:
        return _whole_network(config, targets, encoder_weights, sam_checkpoint)
    encoder_file = _read(encoder_weights)
    sam_file = _read(sam_checkpoint)
    size = _choose_size(config.encoder_size, encoder_file or sam_file)
    encoder = SamEncoder(SIZES[size])
    decoder = config.decoder.build(Decoder, config.image_size, tuple(targets))
    if sam_file is None and encoder_file is not None and whole and _holds_decoder(encoder_file):
        sam_file = None if decoder.sam_weights({}) is None else encoder_file
    segmenter = Segmenter(encoder, decoder, config.image_size, targets)
    loaded: set[str] = set()
    if encoder_file is not None:
        loaded |= _load_encoder(segmenter, encoder_file)
    if sam_file is not None:
        loaded |= _load_sam(segmenter, sam_file, with_encoder=encoder_file is None)
    named = {"encoder": encoder_file, "sam": sam_file}
    segmenter.files = {role: file.path for role, file in named.items() if file is not None}

    encoder.recompute_blocks = config.recompute_blocks
    if config.encoder_adapter is not None:
        for block in encoder.blocks:
            block.adapter = config.encoder_adapter.build(BlockAdapter, encoder.size)
    if config.decoder_adapter is not None:
        adapter = config.decoder_adapter
        decoder.set_adapter(lambda width: adapter.build(DecoderBlockAdapter, width))
    if config.text is not None:
        loaded |= _add_text(segmenter, config.text.build(TextEncoder, text_files or {}))
    segmenter.freeze(frozenset(loaded - _matching(segmenter, config.trained)))
    return segmenter


def _whole_network(
    config: ModelConfig,
    targets: Sequence[str],
    encoder_weights: str | Path | None,
    sam_checkpoint: str | Path | None,
) -> Segmenter:
    """A network in the place of encoder and decoder, all of it trained.

    Raises:
        UserError: Weights that it does not take are given, or parts of SAM are asked for.
    """
    assert config.network is not None
    plain = ModelConfig()
    parts = ("encoder_size", "encoder_adapter", "decoder", "decoder_adapter", "trained", "text")
    chosen = [f"model.{name}" for name in parts if getattr(config, name) != getattr(plain, name)]
    chosen += ["model.recompute_blocks"] * config.recompute_blocks
    if unused := ["sam"] * (sam_checkpoint is not None) + chosen:
        name = config.network.class_path.rpartition(".")[2]
        raise UserError(f"{unused[0]}: {name} is a whole network without SAM; leave it out")
    network = config.network.build(Network, config.image_size, tuple(targets))
    decoder = network.make_decoder(config.image_size, tuple(targets))
    segmenter = Segmenter(network, decoder, config.image_size, targets)
    if encoder_weights is not None:
        encoder = network.encoder()
        path = weights.find_weights(encoder_weights)
        weights.load_strictly(encoder, weights.read_weights(path), path)
        loaded = {id(tensor) for tensor in encoder.state_dict(keep_vars=True).values()}
        state = segmenter.state_dict(keep_vars=True)
        _remember(segmenter, {key for key in state if id(state[key]) in loaded}, path)
        segmenter.files = {"encoder": path}
    return segmenter


class _File(NamedTuple):
    """Weights that were read, and where from."""

    path: Path
    tensors: dict[str, Tensor]


def _read(source: str | Path | None) -> _File | None:
    if source is None:
        return None
    path = weights.find_weights(source)
    return _File(path, weights.read_weights(path))


def _holds_decoder(file: _File) -> bool:
    """Whether it is a whole SAM checkpoint, and not an encoder alone."""
    return any(key.startswith(SAM_DECODER_PREFIXES) for key in file.tensors)


def _choose_size(name: str | None, file: _File | None) -> str:
    if file is None:
        return name or DEFAULT_SIZE
    return weights.choose_size(name, weights.encoder_weights(file.tensors), file.path)


def _load_encoder(segmenter: Segmenter, file: _File) -> set[str]:
    """Load the image encoder; returns the keys that count as loaded."""
    tensors = weights.encoder_weights(file.tensors)
    weights.load_strictly(segmenter.image_encoder, tensors, file.path)
    keys = {key for key in segmenter.state_dict() if key.startswith(SAM_ENCODER_PREFIX)}
    _remember(segmenter, keys, file.path)
    if _holds_decoder(file):
        return keys
    return {key for key in keys if not key.startswith(NECK_PREFIX)}


def _load_sam(segmenter: Segmenter, file: _File, with_encoder: bool) -> set[str]:
    """Load a SAM checkpoint, with or without its image encoder; returns the loaded keys."""
    decoder, tensors = segmenter.decoder, file.tensors
    encoder = {k: v for k, v in tensors.items() if k.startswith(SAM_ENCODER_PREFIX)}
    started = decoder.sam_weights({k: v for k, v in tensors.items() if k not in encoder})
    if started is None and not with_encoder:
        raise UserError(f"sam: {type(decoder).__name__} has no part of SAM's; leave it out")
    taken = {**(encoder if with_encoder else {}), **(started or {})}
    loads = {True: with_encoder, False: started is not None}  # by whether it is the encoder's
    state = segmenter.state_dict().items()
    kept = {k: v for k, v in state if not loads[k.startswith(SAM_ENCODER_PREFIX)]}
    new = {k: v for k, v in state if k.startswith(decoder.new)}
    weights.load_strictly(segmenter, {**kept, **new, **taken}, file.path)
    _remember(segmenter, set(taken), file.path)
    return set(taken)


def _add_text(segmenter: Segmenter, encoder: TextEncoder) -> set[str]:
    """Add a text encoder; returns the keys that it has loaded."""
    segmenter.text_encoder = encoder
    keys = {f"{TEXT_PREFIX}{key}" for key in encoder.loaded}
    segmenter.sources.update(dict.fromkeys(keys, str(encoder.files.get(WEIGHTS))))
    for role, path in encoder.files.items():
        segmenter.files[f"{TEXT_ROLE}{role}"] = path
        segmenter.digests[str(path)] = sha256(path)
    return keys


def _remember(segmenter: Segmenter, keys: set[str], path: Path) -> None:
    """Note which file some weights came from."""
    segmenter.sources.update(dict.fromkeys(keys, str(path)))
    segmenter.digests[str(path)] = sha256(path)


def _matching(segmenter: Segmenter, patterns: list[str]) -> set[str]:
    """Parameter names that match any of the patterns; each pattern must match one."""
    names = [name for name, _ in segmenter.named_parameters()]
    matching: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise UserError(f"model.trained: no parameter is named {pattern!r}")
        matching |= found
    return matching
