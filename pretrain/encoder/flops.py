"""Floating-point operations of the encoder."""

from pretrain.sizes import ATTENTION_WINDOW, PATCH, EncoderSize

TRAINING = 3
"""Cost of training on an image in forward passes: the backward pass takes two."""


def encoder_flops(size: EncoderSize, grid: int, neck: bool = True) -> float:
    """Floating-point operations of one image's forward pass, padding not counted.

    Args:
        grid: Tokens along a side.
    """
    neck_flops = grid**2 * 2 * (256 * size.width + 9 * 256**2) if neck else 0
    return embedding_flops(size, grid) + blocks_flops(size, grid) + float(neck_flops)


def embedding_flops(size: EncoderSize, grid: int) -> float:
    """Of the patch embedding of one image, which is made once for all of its views."""
    return float(grid**2 * 2 * 3 * PATCH**2 * size.width)


def blocks_flops(size: EncoderSize, grid: int, share: float = 1.0) -> float:
    """Of the blocks, for one view of an image.

    Args:
        grid: Tokens along a side.
        share: Share of the tokens that the view keeps, the same in each window.
    """
    tokens, width = share * grid**2, size.width
    window = min(grid, ATTENTION_WINDOW) ** 2
    attended = sum(grid**2 if i in size.global_blocks else window for i in range(size.depth))
    return tokens * (size.depth * 24 * width**2 + 4 * width * share * attended)
