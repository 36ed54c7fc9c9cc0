"""Memory of a run: how much there is, how much it took, and how much a pass takes."""

import re
import resource
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_memory(device: torch.device) -> float:
    """Largest memory of this process so far, in GB.

    On a GPU what its tensors took; on a CPU the whole process, without the loader's workers.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "linux":
        # Not getrusage, which starts a program with the peak of the process that started it.
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024 / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9  # Linux counts in KiB


def devices_of(device: torch.device) -> list[torch.device]:
    """The GPU whose random state a process has to keep, for `torch.random.fork_rng`; no others."""
    return [device] if device.type == "cuda" else []


def free_memory() -> int:
    """Bytes that this machine, or the job that this process is in, can still give."""
    free = int(psutil.virtual_memory().available)
    root = Path("/sys/fs/cgroup")
    try:
        group = root / Path("/proc/self/cgroup").read_text().partition("0::/")[2].strip()
    except OSError:  # not Linux
        return free
    for folder in (group, *group.parents):
        try:
            limit, used = ((folder / f"memory.{name}").read_text() for name in ("max", "current"))
        except OSError:  # the root, or an older kernel
            continue
        if limit.strip() != "max":
            free = min(free, int(limit) - int(used))
    return free


class TensorMemory(TorchDispatchMode):
    """Bytes of the tensors that were made inside and still live, and the most there ever were.

    What a kernel takes for itself while it runs is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._storages: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.device):  # most of what tensors without numbers are asked
            return result
        known = {each.untyped_storage()._cdata for each in tree_leaves(args) if is_tensor(each)}
        for each in tree_leaves(result):
            if is_tensor(each) and each.untyped_storage()._cdata not in known:
                self._count(each.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._storages:
            return
        self._storages[storage._cdata] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, address: int) -> None:
        self.live -= self._storages.pop(address)


def is_tensor(value: object) -> bool:
    """Whether a value is a tensor with a storage."""
    return isinstance(value, Tensor) and value.layout == torch.strided


def pass_memory(parameters: list[torch.nn.Parameter], one_pass: Callable[[], Tensor]) -> int:
    """Bytes that a forward and backward pass takes beside the parameters and their gradients.

    Gradients that the parameters have are dropped.

    Args:
        one_pass: The forward pass; returns the loss.
    """

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(drop) for p in parameters if p.requires_grad]
    try:
        with TensorMemory() as memory:
            one_pass().backward()
    finally:
        for hook in hooks:
            hook.remove()
    return memory.peak
