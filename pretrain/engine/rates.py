"""How fast a run is, against what its device can do."""

import time

import torch

from pretrain.engine.peaks import BF16, FP32, known_peak

INNER, COLUMNS = 768, 3072
"""Matrix product of an encoder's shape."""
REPEATS, SECONDS = 3, 0.2
"""Least number of products, and how long they are repeated: a run does not wait to be measured."""


def device_peak(device: torch.device, precision: str) -> tuple[float, str]:
    """FLOP/s that a device reaches at most, and where the figure comes from.

    That of its maker, or the rate of a product of large matrices, measured now.

    Args:
        precision: As in the options of a run: `bf16`, or `no` for fp32.
    """
    precision = BF16 if precision == BF16 else FP32
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    peak = known_peak(name, precision)
    if peak is not None:
        return peak, f"the peak of {name} in {precision}"
    rate = matrix_rate(device, torch.bfloat16 if precision == BF16 else torch.float32)
    return rate, f"a product of large matrices on {name} in {precision}"


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product, the best of a few."""
    rows = 1024 if device.type == "cpu" else 8192
    a = torch.ones(rows, INNER, device=device, dtype=dtype)
    b = torch.ones(INNER, COLUMNS, device=device, dtype=dtype)
    torch.mm(a, b)  # the first one starts threads and libraries
    seconds: list[float] = []
    while len(seconds) < REPEATS or sum(seconds) < SECONDS:
        start = time.perf_counter()
        product = a @ b
        float(product[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * rows * INNER * COLUMNS / min(seconds)
