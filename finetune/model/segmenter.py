"""The segmenter: SAM's image encoder, prompt encoder and mask decoder, composed by a config.

Only weights that came from somewhere are frozen: `build_model` freezes what it loaded unless the
recipe names it, and trains the rest.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.common.errors import UserError
from data_prep.common.files import sha256
from finetune.model.mask_decoder import (
    DECODER_WIDTH,
    DecoderBlock,
    DecoderBlockAdapter,
    build_mask_decoder,
    decode_masks,
)
from finetune.model.prompt_encoder import Prompts, build_prompt_encoder, encode_prompts
from pretrain.encoder import weights as checkpoint
from pretrain.encoder.sam import (
    PATCH,
    BlockAdapter,
    EncoderBlock,
    EncoderSize,
    SamEncoder,
    build_encoder,
)
from pretrain.encoder.weights import SAM_DECODER_PREFIXES, SAM_ENCODER_PREFIX

NECK_PREFIX = "image_encoder.neck."
NEW = "new"
ROWS = (
    "image_encoder.neck",
    "image_encoder",
    "prompt_encoder",
    "mask_decoder.transformer.layers.0",
    "mask_decoder.transformer.layers.1",
    "mask_decoder",
)
"""Parts told apart by `Segmenter.describe`; a parameter belongs to the first that it starts with,
and adapters to rows of their own."""


@dataclass
class ModelConfig:
    """What a segmenter is made of."""

    encoder: str = "vit_b"
    """Size of the image encoder: vit_t, vit_s, vit_b, vit_l or vit_h."""
    image_size: int = 224
    """Side of the square input in pixels, a multiple of 16."""
    encoder_adapter: Callable[[EncoderSize], BlockAdapter] | None = None
    """Adapter set in each encoder block, as class_path and init_args."""
    decoder_adapter: Callable[[int], DecoderBlockAdapter] | None = None
    """Adapter set in the first decoder block, as class_path and init_args."""
    trained: list[str] = field(default_factory=list)
    """Parameters trained although they were loaded, as patterns of names: `mask_decoder.*`.
    Adapters, and all that was not loaded, are trained without being named."""
    recompute_blocks: bool = False
    """Recompute encoder blocks in the backward pass instead of storing them: less memory, about
    a third more time."""


class Decoded(NamedTuple):
    """Masks predicted for M prompts."""

    low_res: Tensor
    """(M, K, S / 4, S / 4) logits."""
    iou: Tensor
    """(M, K) IoU that the model expects of each mask."""


class Part(NamedTuple):
    """One row of `Segmenter.describe`."""

    name: str
    parameters: int
    state: str
    """trained, frozen or mixed."""
    source: str
    """Files that the weights came from; "new" where they were drawn at random."""


class Segmenter(nn.Module):
    """SAM at any image size, with adapters.

    The parts have the names that they have in segment_anything's `Sam`, so without adapters the
    state dict is that of a SAM checkpoint.

    Args:
        encoder: image encoder.
        image_size: S, side of the square input in pixels.

    Attributes:
        frozen: keys of the state dict that training leaves as they were loaded.
        sources: where the weights of each loaded key came from.
        digests: SHA-256 of each of these files, when it was loaded.
    """

    def __init__(self, encoder: SamEncoder, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.image_encoder = encoder
        self.prompt_encoder = build_prompt_encoder(image_size)
        self.mask_decoder = build_mask_decoder()
        self.frozen: frozenset[str] = frozenset()
        self.sources: dict[str, str] = {}
        self.digests: dict[str, str] = {}

    def encode(self, images: Tensor) -> Tensor:
        """Image embeddings.

        Args:
            images: (B, 3, S, S), SAM-normalised.

        Returns:
            (B, 256, S / 16, S / 16).
        """
        return self.image_encoder(images)

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool = False) -> Decoded:
        """Masks for prompts, equal to SAM's run image by image.

        Args:
            embeddings: (B, 256, S / 16, S / 16), from `encode`.
            prompts: M prompts for these images.
            multimask: K = 3 masks for an ambiguous prompt instead of K = 1.
        """
        sparse, dense, position = encode_prompts(self.prompt_encoder, prompts)
        own = embeddings.index_select(0, prompts.image)  # (M, 256, h, w)
        low_res, iou = decode_masks(self.mask_decoder, own, sparse, dense, position, multimask)
        return Decoded(low_res.float(), iou.float())

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
        blocks = [m for m in self.modules() if isinstance(m, EncoderBlock | DecoderBlock)]
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

    def load_trained(self, weights: Mapping[str, Tensor], source: str | Path) -> None:
        """Load what `trained_state_dict` gave for a model built in the same way.

        Args:
            source: where the weights are from, for error messages.

        Raises:
            UserError: names keys that are frozen here, missing, unexpected or mis-shaped.
        """
        frozen = sorted(self.frozen.intersection(weights))
        if frozen:
            raise UserError(
                f"{source} holds {len(frozen)} weights that are frozen in this model: "
                f"{', '.join(frozen[:3])}{', ...' if len(frozen) > 3 else ''}; "
                "build the model with the config and weights that it was trained with"
            )
        own = self.state_dict()
        checkpoint.load_strictly(
            self, {**{key: own[key] for key in self.frozen}, **weights}, source
        )

    def frozen_sources(self) -> list[dict[str, str]]:
        """`part` and `sha256`, without paths, of each file that frozen weights came from."""
        files = {(key.split(".")[0], self.digests[self.sources[key]]) for key in self.frozen}
        return [{"part": part, "sha256": digest} for part, digest in sorted(files)]

    def describe(self) -> list[Part]:
        """Parameters of each part, whether they are trained, and where they came from."""
        members: dict[str, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in self.named_parameters():
            members.setdefault(_row(name), []).append((name, parameter))
        parts = []
        for row, parameters in members.items():
            states = {parameter.requires_grad for _, parameter in parameters}
            state = "mixed" if len(states) == 2 else "trained" if states == {True} else "frozen"
            sources = dict.fromkeys(self.sources.get(name, NEW) for name, _ in parameters)
            parts.append(
                Part(row, sum(p.numel() for _, p in parameters), state, ", ".join(sources))
            )
        return parts


def _row(name: str) -> str:
    part = next(row for row in ROWS if name.startswith(row + "."))
    return f"{part.split('.')[0]} adapters" if ".adapter." in name else part


def build_model(
    config: ModelConfig,
    encoder_weights: str | Path | None = None,
    sam_checkpoint: str | Path | None = None,
) -> Segmenter:
    """Build a segmenter, load what there is, set the adapters and freeze what was loaded.

    An encoder-only file is one of stage one, which never trains the neck: the neck's values are
    taken over but count as not loaded. A whole SAM checkpoint has a trained neck.

    Args:
        config: composition.
        encoder_weights: image encoder: a run folder of stage one, an encoder file, `org/name` on
            the Hub, or a SAM checkpoint. None: that of `sam_checkpoint`, or a new one.
        sam_checkpoint: a SAM checkpoint with prompt encoder and mask decoder. None: new ones, drawn
            from the global torch random state.

    Raises:
        UserError: unknown size, image size no multiple of 16, a pattern that matches nothing, or a
            file with a missing, unexpected or mis-shaped key.
    """
    if config.image_size <= 0 or config.image_size % PATCH:
        raise UserError(f"image_size is {config.image_size}; it must be a multiple of {PATCH}")
    segmenter = Segmenter(build_encoder(config.encoder), config.image_size)
    loaded: set[str] = set()
    if encoder_weights is not None:
        loaded |= _load_encoder(segmenter, encoder_weights)
    if sam_checkpoint is not None:
        loaded |= _load_sam(segmenter, sam_checkpoint, with_encoder=encoder_weights is None)

    segmenter.image_encoder.recompute_blocks = config.recompute_blocks
    if config.encoder_adapter is not None:
        for block in segmenter.image_encoder.blocks:
            block.adapter = config.encoder_adapter(segmenter.image_encoder.size)
    if config.decoder_adapter is not None:
        segmenter.mask_decoder.transformer.layers[0].adapter = config.decoder_adapter(DECODER_WIDTH)
    segmenter.freeze(frozenset(loaded - _matching(segmenter, config.trained)))
    return segmenter


def _load_encoder(segmenter: Segmenter, source: str | Path) -> set[str]:
    """Load the image encoder; returns the keys that count as loaded."""
    path = checkpoint.find_weights(source)
    weights = checkpoint.read_weights(path)
    checkpoint.load_strictly(segmenter.image_encoder, checkpoint.encoder_weights(weights), path)
    keys = {key for key in segmenter.state_dict() if key.startswith(SAM_ENCODER_PREFIX)}
    segmenter.sources.update(dict.fromkeys(keys, str(path)))
    segmenter.digests[str(path)] = sha256(path)
    if any(key.startswith(SAM_DECODER_PREFIXES) for key in weights):
        return keys
    return {key for key in keys if not key.startswith(NECK_PREFIX)}


def _load_sam(segmenter: Segmenter, source: str | Path, with_encoder: bool) -> set[str]:
    """Load a SAM checkpoint, with or without its image encoder; returns the loaded keys."""
    path = checkpoint.find_weights(source)
    weights = checkpoint.read_weights(path)
    own = segmenter.state_dict()
    if not with_encoder:
        keep = {key: value for key, value in own.items() if key.startswith(SAM_ENCODER_PREFIX)}
        rest = {k: v for k, v in weights.items() if not k.startswith(SAM_ENCODER_PREFIX)}
        weights = {**keep, **rest}
    checkpoint.load_strictly(segmenter, weights, path)
    keys = {key for key in own if with_encoder or not key.startswith(SAM_ENCODER_PREFIX)}
    segmenter.sources.update(dict.fromkeys(keys, str(path)))
    segmenter.digests[str(path)] = sha256(path)
    return keys


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
