"""Sizes of SAM's image encoder, and the numbers that all of them share."""

from dataclasses import dataclass

from data_prep.common.errors import UserError
from data_prep.common.messages import nearest

PATCH = 16
"""Side of a token in pixels."""
ATTENTION_WINDOW = 14
"""Side, in tokens, of the windows that all but the global blocks attend in."""
NATIVE_GRID = 64
"""Side, in tokens, of the images that SAM was trained on; its tables have this shape."""


@dataclass(frozen=True)
class EncoderSize:
    """Width, depth and heads of an encoder, and which blocks attend over the whole image."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


SIZES = {
    "vit_t": EncoderSize(192, 12, 3, (2, 5, 8, 11)),
    "vit_s": EncoderSize(384, 12, 6, (2, 5, 8, 11)),
    "vit_b": EncoderSize(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": EncoderSize(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": EncoderSize(1280, 32, 16, (7, 15, 23, 31)),
}
DEFAULT_SIZE = "vit_b"
"""Size of a new encoder where none is named."""


def size_name(size: EncoderSize) -> str:
    """Name of a size; "custom" for one that has none."""
    return next((name for name, other in SIZES.items() if other == size), "custom")


def check_size(name: str | None, option: str) -> None:
    """Refuse a name that is not a size.

    Raises:
        UserError: Names the sizes.
    """
    if name is not None and name not in SIZES:
        hint = nearest(name, SIZES) or f"; there are {', '.join(SIZES)}"
        raise UserError(f"{option}: there is no size {name!r}{hint}")
