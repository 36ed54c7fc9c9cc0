"""What GPUs can compute at most; imports no PyTorch."""

BF16, FP32 = "bf16", "fp32"

PEAKS: dict[str, tuple[float, float]] = {
    "GB200": (2500e12, 80e12),
    "B200": (2250e12, 75e12),
    "GH200": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "H800": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "A800": (312e12, 19.5e12),
    "A40": (149.7e12, 37.4e12),
    "A30": (165e12, 10.3e12),
    "A10G": (70e12, 35e12),
    "A10": (125e12, 31.2e12),
    "L40S": (362e12, 91.6e12),
    "L40": (181e12, 90.5e12),
    "L4": (121e12, 30.3e12),
    "V100": (125e12, 15.7e12),
    "RTX 6000 Ada": (364e12, 91.1e12),
    "RTX A6000": (155e12, 38.7e12),
    "RTX A5000": (111e12, 27.8e12),
    "RTX 5090": (209.5e12, 104.8e12),
    "RTX 4090": (165e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12),
    "RTX 3080": (59.5e12, 29.8e12),
    "RTX 3070": (40.6e12, 20.3e12),
}
"""FLOP/s of a GPU in bf16 on its matrix units, dense and accumulated in fp32, and in fp32 outside
them, as its maker states them (V100: in fp16, for it has no bf16). The first name that a device's
own name holds counts."""


def known_peak(device: str, precision: str) -> float | None:
    """FLOP/s that the maker of a GPU states; None if the table has no such device.

    Args:
        device: Name as CUDA gives it, such as `NVIDIA A100-SXM4-80GB`, or one of `PEAKS`.
        precision: `bf16` or `fp32`.
    """
    words = device.replace("-", " ").split()
    if {"Laptop", "Max"} & {*words}:  # of the same name and slower
        return None
    for name, (bf16, fp32) in PEAKS.items():
        wanted = name.split()
        starts = range(len(words) - len(wanted) + 1)
        if any(words[i : i + len(wanted)] == wanted for i in starts):
            return bf16 if precision == BF16 else fp32
    return None
