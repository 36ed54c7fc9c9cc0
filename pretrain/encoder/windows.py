"""How the tokens of an image fall into SAM's attention windows, whole or with tokens dropped.

Tokens travel through the encoder as a flat (B, n, C) sequence. A window block needs them grouped by
window, a global block needs their position in the grid; `TokenGroups` holds both.

- Whole grid: row-major order. Each window is gathered from the sequence. Where the grid is not a
  multiple of the window, SAM pads the windows with zeros after the norm, and the padded slots take
  part as keys; they are gathered from one extra entry at the end of the sequence.
- Dropped tokens: the kept ones are sorted by window once, so that windows are plain views. This is
  exact (equal to masking the dropped tokens out of attention) where each window keeps the same
  number of tokens and none is padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pretrain.encoder.attention import Positions, dense_positions


@dataclass(frozen=True)
class TokenGroups:
    """Order of the tokens and their grouping into windows.

    Attributes:
        grid: (height, width) of the whole image in tokens.
        order: (B, n) row-major indices of the tokens in the sequence, or None for all in order.
        windows: Number of windows.
        positions: Positions of the sequence in the grid, for global blocks.
        window_positions: Positions of the tokens inside their windows, (B * windows or 1, slots).
        to_windows: (windows * slots,) index in the sequence of each window slot; n is the padded
            slot. None: the sequence is already grouped.
        from_windows: (n,) window slot of each token; None as above.
        stacks: Lengths of the runs of images that are neighbouring slices of one volume, B in sum;
            empty where no image has a neighbour.
    """

    grid: tuple[int, int]
    order: Tensor | None
    windows: int
    positions: Positions
    window_positions: Positions
    to_windows: Tensor | None = None
    from_windows: Tensor | None = None
    stacks: tuple[int, ...] = ()

    def to(self, device: torch.device) -> "TokenGroups":
        """The same groups of kept tokens on another device."""
        return replace(
            self,
            order=None if self.order is None else self.order.to(device, non_blocking=True),
            positions=self.positions.to(device),
            window_positions=self.window_positions.to(device),
        )


def checked_stacks(lengths: Sequence[int], images: int) -> tuple[int, ...]:
    """`TokenGroups.stacks` of a batch of so many images; empty if every stack has one slice.

    Raises:
        ValueError: The lengths are not those of stacks that make up the batch.
    """
    if lengths and (min(lengths) < 1 or sum(lengths) != images):
        slices = ", ".join(map(str, lengths))
        raise ValueError(f"stacks of {slices} slices do not make up a batch of {images} images")
    return tuple(lengths) if max(lengths, default=1) > 1 else ()


def dense_groups(height: int, width: int, window: int, device: torch.device) -> TokenGroups:
    """Groups of all tokens of a (height, width) grid, in row-major order."""
    positions = dense_positions(height, width, device)
    across, down = -(-width // window), -(-height // window)
    window_positions = dense_positions(window, window, device)
    if (height, width) == (window, window):
        return TokenGroups((height, width), None, 1, positions, window_positions)

    rows, columns = positions.rows[0], positions.columns[0]
    window_of = rows // window * across + columns // window
    slot_of = window_of * window**2 + rows % window * window + columns % window
    to_windows = torch.full((across * down * window**2,), height * width, device=device)
    to_windows[slot_of] = torch.arange(height * width, device=device)
    return TokenGroups(
        (height, width), None, across * down, positions, window_positions, to_windows, slot_of
    )


def sparse_groups(height: int, width: int, window: int, keep: Tensor) -> TokenGroups:
    """Groups of the kept tokens `keep`, (B, n) row-major indices, sorted by window.

    Raises:
        ValueError: The grid is not a multiple of the window, or the windows of an image keep
            different numbers of tokens: dropping tokens would then not be exact.
    """
    if height % window or width % window:
        raise ValueError(
            "tokens can be dropped only where no window is padded: "
            f"{16 * height} x {16 * width} pixels is not a multiple of {16 * window}"
        )
    across = width // window
    windows = across * (height // window)
    window_of = keep // width // window * across + keep % width // window
    by_window = torch.argsort(window_of, dim=1, stable=True)
    order = keep.gather(1, by_window)
    slots = keep.shape[1] // windows
    expected = torch.arange(windows, device=keep.device).repeat_interleave(slots)
    sorted_windows = window_of.gather(1, by_window)
    if keep.shape[1] != windows * slots or not torch.equal(
        sorted_windows, expected.expand_as(sorted_windows)
    ):
        raise ValueError(
            "each attention window must keep the same number of tokens "
            f"({keep.shape[1]} kept in {windows} windows)"
        )
    rows, columns = order // width, order % width
    return TokenGroups(
        (height, width),
        order,
        windows,
        Positions(rows, columns, (height, width), dense=False),
        Positions(
            (rows % window).view(-1, slots),
            (columns % window).view(-1, slots),
            (window, window),
            False,
        ),
    )


def kept_of_window(keep_ratio: float, window: int) -> int:
    """Number of tokens that each attention window keeps.

    Raises:
        ValueError: None would be kept, or all of them by another ratio than 1.
    """
    slots = round(keep_ratio * window**2)
    if keep_ratio != 1 and not 0 < slots < window**2:
        raise ValueError(
            f"keep_ratio {keep_ratio} keeps {slots} of the {window**2} tokens of a window; "
            "write 1 to keep all of them"
        )
    return slots


def balanced_keep(
    batch: int, grid: tuple[int, int], window: int, keep_ratio: float, generator: torch.Generator
) -> Tensor:
    """Random tokens to keep, the same number in each attention window.

    Args:
        keep_ratio: Share of tokens kept, in (0, 1].
        generator: Source of randomness, on the device where the indices are wanted.

    Returns:
        (batch, n) int64 row-major token indices, sorted by window.

    Raises:
        ValueError: Padded windows, or a ratio that keeps no token or, but for 1, every token.
    """
    height, width = grid
    if height % window or width % window:
        raise ValueError(f"a {height} x {width} token grid has padded windows of {window}")
    down, across = height // window, width // window
    slots = kept_of_window(keep_ratio, window)
    device = generator.device
    noise = torch.rand(batch, down * across, window**2, generator=generator, device=device)
    inside = noise.argsort(dim=-1)[..., :slots].sort(dim=-1).values  # (B, windows, slots)
    index = torch.arange(down * across, device=device)[:, None]
    rows = index // across * window + inside // window
    columns = index % across * window + inside % window
    return (rows * width + columns).flatten(1)
