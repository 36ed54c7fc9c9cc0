"""A CLIP text tower with its tokenizer: texts to states, as open_clip computes them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_prep.common.errors import UserError
from data_prep.common.messages import one_line
from finetune.model.text import WEIGHTS
from finetune.prompts.clip_files import LANGUAGE_MODEL, OPTION, TOKENIZER, TowerSource
from pretrain.encoder.weights import load_strictly, read_weights

PREFIX = "text."
"""Begins the names of the tower's weights in checkpoints of open_clip's newer form."""
TOWER = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
"""Begin the names of the tower's weights in checkpoints of the original form."""


class States(NamedTuple):
    """What a tower makes of a text."""

    pooled: Tensor
    """(1, E) the text's embedding, as CLIP compares it with those of images, not normalised."""
    tokens: Tensor
    """(n, C) the last states of its tokens, padding left out."""


class ClipTower(nn.Module):
    """The text half of a CLIP model.

    Args:
        source: Architecture and files.
        changes: Entries of the architecture's `text_cfg` to be replaced.

    Raises:
        UserError: The architecture is not one of open_clip's, or weights that do not fit it.
    """

    def __init__(self, source: TowerSource, changes: Mapping[str, int]) -> None:
        super().__init__()
        from open_clip.model import _build_text_tower

        config = {**source.config["text_cfg"], **changes, "output_tokens": True}
        if LANGUAGE_MODEL in source.files:
            path = str(source.files[LANGUAGE_MODEL])
            config |= {"hf_model_name": path, "hf_model_pretrained": False}
        quick_gelu = bool(source.config.get("quick_gelu", False))
        try:
            self.text: nn.Module = _build_text_tower(source.config["embed_dim"], config, quick_gelu)
            self.tokenizer = _tokenizer(config, source.files)
        except (TypeError, ValueError, KeyError, AssertionError, OSError, ImportError) as error:
            reason = one_line(error)
            raise UserError(f"{OPTION}: open_clip cannot make this tower: {reason}") from None
        if WEIGHTS in source.files:
            load_tower(self.text, source.files[WEIGHTS])

    def forward(self, texts: Sequence[str]) -> list[States]:
        """The states of each text, computed in one batch."""
        device = next(self.parameters()).device
        ids, lengths = zip(*(self.tokenizer(text) for text in texts), strict=True)
        words = torch.cat(ids).to(device)
        pooled, tokens = self.text(words)
        # Some towers of transformers give no state for the token that they pool.
        without = words.shape[1] - tokens.shape[1]
        return [
            States(pooled[place : place + 1], tokens[place, : length - without])
            for place, length in enumerate(lengths)
        ]

    def digest(self) -> str:
        """SHA-256 of all its weights."""
        summed = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            summed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            summed.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return summed.hexdigest()


def load_tower(tower: nn.Module, path: Path) -> None:
    """Load a tower's weights from a checkpoint of a whole CLIP model or of its text tower.

    It may be a state dict in either form of open_clip, or a checkpoint of its training.

    Raises:
        UserError: Not such a file, or one that does not fit the tower.
    """
    tensors = {name.removeprefix("module."): t for name, t in read_weights(path).items()}
    own = {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}
    own = own or {name: t for name, t in tensors.items() if name.startswith(TOWER)}
    expected = tower.state_dict()
    # Some versions of transformers saved this, which is 0, 1, 2, ...
    own = {n: t for n, t in own.items() if n in expected or not n.endswith("position_ids")}
    load_strictly(tower, own, path)


class ClipWords:
    """CLIP's own tokenizer, which comes with open_clip.

    Args:
        context: Tokens that a text is filled up or cut to.
        options: Of open_clip's SimpleTokenizer.
    """

    def __init__(self, context: int, options: Mapping[str, Any]) -> None:
        import open_clip

        self.context = context
        self.tokenize = open_clip.SimpleTokenizer(**options) if options else open_clip.tokenize

    def __call__(self, text: str) -> tuple[Tensor, int]:
        """(1, context) token ids, and how many are not padding."""
        ids: Tensor = self.tokenize([text], context_length=self.context)
        return ids, int(ids.argmax()) + 1  # the end of the text has the largest number


class FileWords:
    """The tokenizer of a language model, from its `tokenizer.json`.

    Args:
        context: Tokens that a text is filled up or cut to.
    """

    PADDING = ("[PAD]", "<pad>")

    def __init__(self, path: Path, context: int, options: Mapping[str, Any]) -> None:
        from open_clip.tokenizer import get_clean_fn
        from tokenizers import Tokenizer

        self.clean = get_clean_fn(options.get("clean", "whitespace"))
        self.tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        found = (self.tokenizer.token_to_id(word) for word in self.PADDING)
        padding = next((number for number in found if number is not None), None)
        if padding is None or set(options) - {"clean"}:
            raise ValueError(f"{path}: a tokenizer of this kind cannot be used")
        self.tokenizer.enable_truncation(context)
        self.tokenizer.enable_padding(length=context, pad_id=padding)

    def __call__(self, text: str) -> tuple[Tensor, int]:
        """(1, context) token ids, and how many are not padding."""
        encoded = self.tokenizer.encode(self.clean(text))
        return torch.tensor([encoded.ids]), sum(encoded.attention_mask)


def _tokenizer(config: Mapping[str, Any], files: Mapping[str, Path]) -> ClipWords | FileWords:
    context, options = config.get("context_length", 77), config.get("tokenizer_kwargs") or {}
    if TOKENIZER not in files:
        return ClipWords(context, options)
    if config.get("tokenizer_mode"):
        raise ValueError(f"tokenizer_mode {config['tokenizer_mode']} is not supported")
    return FileWords(files[TOKENIZER], context, options)
