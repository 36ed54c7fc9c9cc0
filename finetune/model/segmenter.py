"""The segmenter: SAM's image encoder and a decoder, composed by a config.

Only weights that were loaded are frozen: `build_model` freezes what it loaded unless the recipe
names it, and trains the rest.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.common.errors import UserError
from data_prep.common.files import sha256
from finetune.config import ModelConfig
from finetune.model.decoder import Decoded, Decoder, Multimask
from finetune.model.mask_decoder import DecoderBlockAdapter
from finetune.model.parts import Part, describe_parts
from finetune.model.prompt_encoder import Prompts
from finetune.model.text import TEXT_ROLE, WEIGHTS, TextEncoder
from pretrain.encoder import weights
from pretrain.encoder.block import BlockAdapter
from pretrain.encoder.sam import SamEncoder
from pretrain.encoder.weights import SAM_DECODER_PREFIXES, SAM_ENCODER_PREFIX
from pretrain.sizes import DEFAULT_SIZE, SIZES

NECK_PREFIX = "image_encoder.neck."
TEXT_PREFIX = "text_encoder."
NO_TEXTS = (
    "this model takes no texts; train one with a text encoder (--model.text ClipText) and with"
    " texts among its prompts"
)


class Segmenter(nn.Module):
    """SAM at any image size, with adapters.

    The parts have the names that they have in segment_anything's `Sam`, so without adapters the
    state dict is that of a SAM checkpoint.

    Args:
        encoder: Image encoder.
        decoder: Makes masks of its embeddings.
        image_size: S, side of the square input in pixels.
        targets: Names of what the model is trained to segment.

    Attributes:
        frozen: Keys of the state dict that training leaves as they were loaded.
        sources: Where the weights of each loaded key came from.
        digests: SHA-256 of each of these files, when it was loaded.
        text_encoder: Embeds texts; None for a model that takes none.
        files: The file of the weights that were given as `encoder`, and as `sam`, and those of the
            text encoder, as `text_weights` and the like.
        previous_mask: Whether each prompt after the first includes the logits of the last
            prediction, as it did in training.
        multimask: Whether an ambiguous first prompt, or `ALWAYS` any prompt, is answered by the
            best of several masks, as it was in training.
        text_multimask: The same for a text without clicks.
        stack: Number of neighbouring slices of a volume that it encodes together, as it did in
            training.
    """

    def __init__(
        self,
        encoder: SamEncoder,
        decoder: Decoder,
        image_size: int,
        targets: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.image_size, self.targets = image_size, tuple(targets)
        self.image_encoder = encoder
        self.decoder = decoder
        for name, part in decoder.parts.items():
            self.add_module(name, part)
        self.text_encoder: TextEncoder | None = None
        self.frozen: frozenset[str] = frozenset()
        self.sources: dict[str, str] = {}
        self.digests: dict[str, str] = {}
        self.files: dict[str, Path] = {}
        self.previous_mask = True
        self.multimask: Multimask = False
        self.text_multimask = False
        self.stack = 1

    def encode(self, images: Tensor, stacks: Sequence[int] = ()) -> Tensor:
        """Image embeddings.

        Args:
            images: (B, 3, S, S), SAM-normalised.
            stacks: Lengths of runs of neighbouring slices among them, see `SamEncoder.forward`.

        Returns:
            (B, 256, S / 16, S / 16).
        """
        embeddings: Tensor = self.image_encoder(images, stacks)
        return embeddings

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool = False) -> Decoded:
        """Masks for prompts.

        Args:
            embeddings: (B, 256, S / 16, S / 16), from `encode`.
            prompts: M prompts for these images.
            multimask: K = 3 masks for an ambiguous prompt, where the decoder can, instead of K = 1.

        Raises:
            UserError: There are texts, and the model takes none.
        """
        if prompts.texts is not None:
            prompts = replace(prompts, text_tokens=self.embed(prompts.texts))
        return self.decoder.decode(embeddings, prompts, multimask)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Prompt tokens (M, t, 256) of M texts.

        Raises:
            UserError: The model takes no texts.
        """
        if self.text_encoder is None:
            raise UserError(NO_TEXTS)
        tokens: Tensor = self.text_encoder(texts)
        return tokens

    def forward(self, images: Tensor, prompts: Prompts, multimask: bool = False) -> Decoded:
        """`encode`, then `decode`."""
        return self.decode(self.encode(images), prompts, multimask)

    def upsample(self, low_res: Tensor) -> Tensor:
        """Logits (M, K, S / 4, S / 4) -> (M, K, S, S), bilinear as in SAM."""
        size = (self.image_size, self.image_size)
        return F.interpolate(low_res, size, mode="bilinear", align_corners=False)

    def freeze(self, keys: frozenset[str]) -> None:
        """Freeze these keys of the state dict and train all others."""
        self.frozen = keys
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in keys)

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Switch the adapters off; weights that were trained in place stay as they are."""
        blocks: list[Any] = [module for module in self.modules() if hasattr(module, "adapter")]
        adapters = [block.adapter for block in blocks]
        try:
            for block in blocks:
                block.adapter = None
            yield
        finally:
            for block, adapter in zip(blocks, adapters, strict=True):
                block.adapter = adapter

    def trained_state_dict(self) -> dict[str, Tensor]:
        """All that is not frozen: adapters, trained weights, and buffers that were not loaded."""
        return {key: value for key, value in self.state_dict().items() if key not in self.frozen}

    def load_trained(self, trained: Mapping[str, Tensor], source: str | Path) -> None:
        """Load the trained weights of a model built in the same way.

        Args:
            trained: What `trained_state_dict` gave.
            source: Where it is from, for error messages.

        Raises:
            UserError: Names keys that are frozen here, missing, unexpected or mis-shaped.
        """
        frozen = sorted(self.frozen.intersection(trained))
        if frozen:
            raise UserError(
                f"{source} holds {len(frozen)} weights that are frozen in this model: "
                f"{', '.join(frozen[:3])}{', ...' if len(frozen) > 3 else ''}; "
                "build the model with the config and weights that it was trained with"
            )
        current = self.state_dict()
        kept = {key: current[key] for key in self.frozen}
        weights.load_strictly(self, {**kept, **trained}, source)

    def frozen_sources(self) -> list[dict[str, str]]:
        """`part` and `sha256`, without paths, of each file that frozen weights came from."""
        files = {(key.split(".")[0], self.digests[self.sources[key]]) for key in self.frozen}
        return [{"part": part, "sha256": digest} for part, digest in sorted(files)]

    def describe(self) -> list[Part]:
        """Parameters of each part, whether they are trained, and where they came from."""
        return describe_parts(self, self.sources)


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
