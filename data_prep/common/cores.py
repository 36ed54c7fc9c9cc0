"""Processor cores that are shared with other programs.

PyTorch's threads wait for each other in a loop that keeps their core busy. Where another program
needs that core, both slow down many times over. A short loop, and sleep after it, costs a lone
program little.
"""

import os

SPINS = 3000
"""Turns of GNU OpenMP's waiting loop before a thread sleeps."""


def share_cores(threads: int | None = None) -> None:
    """Let this process's threads give way to other programs. Call before PyTorch is imported.

    Args:
        threads: How many threads compute; None leaves that to PyTorch.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))  # GNU OpenMP reads it when it is loaded
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
