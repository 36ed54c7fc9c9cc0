"""How much memory a run took."""

import resource
import sys

import torch


def peak_memory(device: torch.device) -> float:
    """Largest memory of this process so far, in GB.

    On a GPU what its tensors took; on a CPU the whole process, without the loader's workers.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9  # Linux counts in KiB
