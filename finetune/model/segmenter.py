"""The segmenter: SAM's image encoder and a decoder."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.common.errors import UserError
from finetune.model.decoder import Decoded, Decoder, Multimask
from finetune.model.network import Network
from finetune.model.parts import Part, describe_parts
from finetune.model.prompt_encoder import Prompts
from finetune.model.text import TextEncoder
from pretrain.encoder import weights
from pretrain.encoder.sam import SamEncoder

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
        encoder: Image encoder; or a network, whose maps the decoder picks.
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
        encoder: SamEncoder | Network,
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
