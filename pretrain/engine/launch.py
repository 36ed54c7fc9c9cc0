"""Finding the other processes of a run that `srun` started, one per task.

`accelerate launch` and `torchrun` tell each process its rank and where the first one listens.
srun tells the rank only. So the first process listens on a port that the kernel chooses, which no
other program has, and writes it into the run folder; no port is derived from a job's number, and
jobs on one node cannot meet.
"""

import json
import os
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from data_prep.common.errors import UserError
from pretrain.engine.shared import note, read_note

JOIN_SECONDS = 300.0
"""How long processes wait for each other at the start, which a slow disk for programs delays."""
TRY_SECONDS = 10.0
"""How long one address is tried."""


@dataclass(frozen=True)
class Step:
    """This process's place in an srun step of several tasks."""

    rank: int
    world: int
    local_rank: int
    """Among the tasks of this node."""
    local_world: int
    name: str
    """Of the step; no other start has it."""

    @staticmethod
    def find(environment: Mapping[str, str]) -> "Step | None":
        """The step that an environment tells of.

        None for a single task, which is also what a batch script or an interactive shell is, and
        where a launcher between has numbered the processes itself.
        """
        world = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
        if world == 1 or "RANK" in environment:
            return None
        counts = environment["SLURM_STEP_TASKS_PER_NODE"]  # such as 4(x2),1
        nodes = [
            int(count)
            for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
            for _ in range(int(times or 1))
        ]
        numbers = [environment[f"SLURM_{name}_ID"] for name in ("JOB", "STEP")]
        return Step(
            rank=int(environment["SLURM_PROCID"]),
            world=world,
            local_rank=int(environment["SLURM_LOCALID"]),
            local_world=nodes[int(environment["SLURM_NODEID"])],
            name="-".join(["step", *numbers, environment.get("SLURM_RESTART_COUNT", "0")]),
        )


def join_step(output: Path, seconds: float = JOIN_SECONDS) -> None:
    """In an srun step of several tasks, make the process group that Accelerate then uses.

    Elsewhere it does nothing.

    Args:
        output: Run folder; it need not be there yet, and is left as it was.
        seconds: How long to wait for the other tasks.

    Raises:
        UserError: They cannot be reached through the run folder or over the network.
    """
    step = Step.find(os.environ)
    if step is None:
        return
    store = _listen(step, output, seconds) if step.rank == 0 else _call(step, output, seconds)
    store.set_timeout(distributed.default_pg_timeout)
    os.environ |= {"RANK": str(step.rank), "WORLD_SIZE": str(step.world)}
    os.environ |= {"LOCAL_RANK": str(step.local_rank), "LOCAL_WORLD_SIZE": str(step.local_world)}
    # Accelerate asks for an address between nodes, though the group is there.
    os.environ |= {"MASTER_ADDR": store.host, "MASTER_PORT": str(store.port)}
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as `accelerate launch` does; see use_cores
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=step.rank, world_size=step.world)


def processes_here(processes: int) -> int:
    """How many of a run's processes are on this machine, as its launcher told them.

    Args:
        processes: Of the run; all are here if there was no launcher.
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE", processes))


def allotted_cores() -> int | None:
    """Cores that `srun --cpus-per-task` gave to this process; None elsewhere."""
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    return int(given) if given and "SLURM_STEP_ID" in os.environ else None


def _listen(step: Step, output: Path, seconds: float) -> distributed.TCPStore:
    """Rank 0: a store on a free port, once all others have found it."""
    store = distributed.TCPStore("localhost", 0, step.world, is_master=True, wait_for_workers=False)
    hosts = [os.environ.get("SLURMD_NODENAME", ""), socket.gethostname()]
    hosts.append(os.environ.get("SLURM_LAUNCH_NODE_IPADDR", ""))
    address = json.dumps({"hosts": [host for host in hosts if host], "port": store.port})
    with note(output, step.name, address):
        deadline = time.monotonic() + seconds
        missing = set(range(1, step.world))
        while missing := {rank for rank in missing if not store.check([_joined(rank)])}:
            if time.monotonic() > deadline:
                raise UserError(
                    f"output {output}: of {step.world} processes, {min(missing)} and"
                    f" {len(missing) - 1} more did not join within {seconds:.0f} s; a run folder"
                    " must be on a disk that all nodes share"
                )
            time.sleep(0.05)
    return store


def _call(step: Step, output: Path, seconds: float) -> distributed.TCPStore:
    """Other ranks: the store of rank 0."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        text = read_note(output, step.name)
        address = json.loads(text) if text else {"hosts": []}
        for host in address["hosts"]:
            with suppress(OSError, distributed.DistError):  # not a name here, or not reached
                # TCPStore would try, and warn, again and again.
                socket.create_connection((host, address["port"]), TRY_SECONDS).close()
                store = distributed.TCPStore(
                    host, address["port"], step.world, timeout=timedelta(seconds=TRY_SECONDS)
                )
                store.set(_joined(step.rank), "")
                return store
        time.sleep(0.1)
    raise UserError(
        f"output {output}: process {step.rank} on {socket.gethostname()} did not find process 0"
        f" within {seconds:.0f} s; a run folder must be on a disk that all nodes share"
    )


def _joined(rank: int) -> str:
    return f"joined {rank}"
