"""Texts as prompts: the states of a CLIP text tower, projected to tokens of SAM's decoder."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from data_prep.common.errors import UserError
from finetune.model.prompt_encoder import PROMPT_WIDTH
from finetune.model.text import WEIGHTS, TextEncoder
from finetune.prompts.clip_files import OPTION, find_tower
from finetune.prompts.clip_tower import ClipTower, States

KEPT_TEXTS = 4096
"""Texts of which a frozen tower's states are kept in memory, about 20 kB each."""


class ClipText(TextEncoder):
    """A CLIP text tower whose states become prompt tokens through a trained projection.

    A tower whose weights were loaded is frozen and runs once per text; its states are kept. One
    without weights is trained, and then belongs to the checkpoint.

    Args:
        model: Architecture of the tower: a name of open_clip, such as ViT-B-16; a folder with
            open_clip_config.json and weights, such as BiomedCLIP's; a file like that config; or
            hf:org/name on the Hugging Face Hub.
        pretrained: Weights of a named architecture: a file, or what open_clip calls them, such as
            openai. null: a new tower, which is trained. A file does not say which activation its
            weights want: OpenAI's are of ViT-B-16-quickgelu and the like.
        pooled: Give the decoder one token for the whole text, instead of one for each of its
            tokens.
        max_tokens: Tokens given for a text, whatever its length: of longer ones the first and the
            last, of shorter ones all, filled up with a learned "no word".
        hidden: Width of a hidden layer in the projection; null: it is linear.
        width: Width of a new tower; null: that of the architecture. So are the next three.
        layers: Blocks of a new tower.
        heads: Attention heads of a new tower.
        context_length: Longest text of a new tower, in tokens.
    """

    def __init__(
        self,
        kept: Mapping[str, Path],
        model: str = "ViT-B-16",
        pretrained: str | None = None,
        pooled: bool = False,
        max_tokens: int = 16,
        hidden: int | None = None,
        width: int | None = None,
        layers: int | None = None,
        heads: int | None = None,
        context_length: int | None = None,
    ) -> None:
        super().__init__()
        if max_tokens < 2 or (hidden is not None and hidden < 1):
            raise UserError(f"{OPTION}: max_tokens must be at least 2, hidden at least 1 or null")
        source = find_tower(model, pretrained, kept)
        changes = {"width": width, "layers": layers, "heads": heads}
        changes["context_length"] = context_length
        given = {name: value for name, value in changes.items() if value is not None}
        self.pooled, self.max_tokens = pooled, max_tokens
        self.tower = ClipTower(source, given)
        self.files = source.files
        is_loaded = WEIGHTS in source.files
        keys = [f"tower.{key}" for key in self.tower.state_dict()] if is_loaded else ()
        self.loaded = frozenset(keys)
        self.tower.requires_grad_(not is_loaded)
        with torch.no_grad():
            channels = self._chosen(self.tower.eval()(["width"])[0]).shape[-1]
        self.projection: nn.Module = nn.Linear(channels, PROMPT_WIDTH)
        if hidden is not None:
            last = nn.Linear(hidden, PROMPT_WIDTH)
            self.projection = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), last)
        self.norm = nn.LayerNorm(PROMPT_WIDTH)
        if not pooled:
            self.no_word = nn.Parameter(torch.randn(PROMPT_WIDTH))
        self._kept: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._digest: str | None = None
        self.tower.register_load_state_dict_post_hook(self._forget)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Prompt tokens (M, t, 256) of M texts, in fp32; t is `max_tokens`, or 1 if pooled."""
        device = self.norm.weight.device
        with torch.autocast(device.type, enabled=False):
            unlike = list(dict.fromkeys(texts))
            found = dict(zip(unlike, self._states(unlike), strict=True))
            rows = [found[text].to(device) for text in texts]  # (n, C), each with its own n
            filled = nn.utils.rnn.pad_sequence(rows, batch_first=True)
            tokens: Tensor = self.norm(self.projection(filled))  # (M, n, 256)
            if self.pooled:
                return tokens
            lengths = torch.tensor([len(row) for row in rows], device=device)
            places = torch.arange(self.max_tokens, device=device)
            tokens = nn.functional.pad(tokens, (0, 0, 0, self.max_tokens - tokens.shape[1]))
            is_word = places < lengths[:, None]  # (M, max_tokens)
            return torch.where(is_word[..., None], tokens, self.no_word)

    def train(self, mode: bool = True) -> "ClipText":
        """As any module, but a frozen tower stays in evaluation mode."""
        super().train(mode)
        if self.is_frozen:
            self.tower.eval()
        return self

    @property
    def is_frozen(self) -> bool:
        """Whether the tower's weights stay as they are."""
        return not any(parameter.requires_grad for parameter in self.tower.parameters())

    def _states(self, texts: Sequence[str]) -> list[Tensor]:
        """(n, C) of each text; those of a frozen tower are computed once, and one by one, so that
        they do not depend on what else is in the batch."""
        if not self.is_frozen:
            return [self._chosen(states) for states in self.tower(texts)]
        if self._digest is None:
            self._digest = self.tower.digest()
        found = []
        for text in texts:
            key = (self._digest, text)
            if key not in self._kept:
                # not an inference tensor, which training could not use later
                with torch.inference_mode(False), torch.no_grad():
                    self._kept[key] = self._chosen(self.tower.eval()([text])[0]).clone()
                while len(self._kept) > KEPT_TEXTS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            found.append(self._kept[key])
        return found

    def _chosen(self, states: States) -> Tensor:
        if self.pooled:
            return states.pooled
        tokens = states.tokens
        if len(tokens) <= self.max_tokens:
            return tokens
        return torch.cat([tokens[: self.max_tokens - 1], tokens[-1:]])

    def _forget(self, module: nn.Module, keys: object) -> None:
        """Called when weights are loaded into the tower."""
        self._digest = None
