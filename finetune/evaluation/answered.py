"""What a model made of one target of a case."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class Answered:
    """Masks of one target under one protocol, one bit per pixel; slices not given are empty."""

    masks: dict[int | None, NDArray[np.uint8]] = field(default_factory=dict)
    prompts: int = 0
    seconds: float = 0.0

    def at(self, depth: int | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """(H, W) of a slice, or of an image (None)."""
        packed = self.masks.get(depth)
        return np.zeros(shape, dtype=bool) if packed is None else _unpack(packed, shape)

    def whole(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """(H, W) or (D, H, W)."""
        if None in self.masks:
            return self.at(None, shape)
        whole = np.zeros(shape, dtype=bool)
        for depth, packed in self.masks.items():
            whole[depth] = _unpack(packed, shape[1:])
        return whole


def _unpack(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.unpackbits(packed, count=int(np.prod(shape))).astype(bool).reshape(shape)
