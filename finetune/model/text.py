"""What embeds texts as prompts."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

WEIGHTS = "weights"
"""Role of the file that holds a tower's weights."""
TEXT_ROLE = "text_"
"""Begins the names of these roles among the files of a segmenter and of a run."""


class TextEncoder(nn.Module, ABC):
    """Embeds texts as tokens that are appended to those of SAM's clicks and boxes.

    It becomes the segmenter's part `text_encoder`. Adding another takes a subclass of this one.
    Its first argument is `files` as a run keeps them, to be used in the place of those that its
    options name; empty for a new model. What it does not load it draws from the global torch random
    state.

    Attributes:
        files: The files that it was made from, by role, such as `weights`; a run keeps them.
        loaded: Keys of its state dict whose values were loaded; the others are trained.
    """

    files: Mapping[str, Path]
    loaded: frozenset[str]

    @abstractmethod
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Prompt tokens (M, t, 256) of M texts; t and the tokens of a text do not depend on the
        other texts."""
