"""Training on a CPU: all its cores, and no page fault for each new tensor."""

import ctypes
import os
from pathlib import Path

import psutil
import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def count_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores that this process may use, not counting a core's second thread.

    Args:
        topology: Where Linux tells which processors are threads of one core; SLURM, for one, gives
            a job processors, which may be two to a core.
    """
    cores = psutil.cpu_count(logical=False) or 1
    if not hasattr(os, "sched_getaffinity"):
        return cores
    allowed = os.sched_getaffinity(0)
    try:
        siblings = [topology / f"cpu{each}/topology/thread_siblings_list" for each in allowed]
        return len({path.read_text() for path in siblings})
    except OSError:
        return min(cores, len(allowed))


def use_cores(processes: int, threads: int | None = None, allotted: int | None = None) -> int:
    """Set this process's threads, and return how many.

    `accelerate launch` sets one thread per process unless it is given a number.

    Args:
        processes: Processes of the run on this machine.
        threads: Threads of this process; None divides the machine's cores among the processes.
        allotted: Cores that a scheduler gave to this process alone, which need not be divided.
    """
    share = min(allotted, count_cores()) if allotted else count_cores() // processes
    threads = threads or max(1, share)
    torch.set_num_threads(threads)
    return threads


def keep_freed_memory() -> bool:
    """Let glibc keep large freed blocks for the next tensor, not return them to the kernel.

    Saves about a tenth of a training step. False where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def has_fast_bf16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware (Linux on x86 only)."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def bf16_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 saves time there: on a GPU, and on processors that multiply it in hardware.

    On others PyTorch may take a hundred times as long as in float32.
    """
    return device.type != "cpu" or has_fast_bf16()
