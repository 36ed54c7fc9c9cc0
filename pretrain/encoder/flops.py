"""Floating-point operations of the encoder."""

from pretrain.sizes import ATTENTION_WINDOW, PATCH, EncoderSize


def encoder_flops(size: EncoderSize, grid: int, neck: bool = True) -> float:
    """Floating-point operations of one image's forward pass, padding not counted.

    Args:
        grid: Tokens along a side.
    """
    tokens, width = grid**2, size.width
    window = min(grid, ATTENTION_WINDOW) ** 2
    attended = sum(tokens if i in size.global_blocks else window for i in range(size.depth))
    linear = size.depth * 24 * width**2 + 2 * 3 * PATCH**2 * width
    attention = 4 * width * attended
    neck_flops = 2 * (256 * width + 9 * 256**2) if neck else 0
    return float(tokens * (linear + attention + neck_flops))
