"""What heads of convolutions share: maps of logits for all targets, and how they start."""

from torch import Tensor, nn

from finetune.model.decoder import Decoded, Decoder
from finetune.model.network import pick_maps
from finetune.model.prompt_encoder import Prompts

WIDTH = 256
"""Channels of SAM's image embedding."""


class MapHead(Decoder):
    """One map of logits for each of T targets, of which every prompt picks one.

    Attributes:
        head: (B, 256, h, w) -> (B, T, 4 h, 4 w) logits.
    """

    takes_prompts = False

    head: nn.Module

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool) -> Decoded:
        """The map of each prompt's target in its image; no IoU is expected of it."""
        return pick_maps(self.head(embeddings), prompts)


def with_relu(convolution: nn.Conv2d) -> nn.Sequential:
    """A convolution and its ReLU, started so that the variance is kept (He et al. 2015).

    These heads have no normalisation. From PyTorch's default, which divides the variance by six in
    each such pair, little of an image would be left in the logits at first.
    """
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution, nn.ReLU())
