"""A SLURM on this machine, started for the tests and gone after them."""

import contextlib
import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
CredType=cred/munge
# a requeued job starts again once its credential has expired
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=6 Gres=gpu:6
PartitionName=all Nodes=node0,node1 Default=YES GraceTime=60
PartitionName=urgent Nodes=node0,node1 PriorityTier=2
PartitionName=gpus Nodes=node2
"""
# SLURM counts these; nothing here computes on them.
GPUS = "NodeName=node2 Name=gpu File=/dev/{}\n"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Slurm:
    """The running cluster, and what the tests ask of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        # Not those of a SLURM job that the tests may run in.
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), SEARCH])
        self.environment = outer | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}

    def start(self) -> None:
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        config = CONFIG.format(
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            folder=self.folder,
            ports=free_ports(4),
        )
        (self.folder / "slurm.conf").write_text(config)
        (self.folder / "gres.conf").write_text("".join(map(GPUS.format, DEVICES)))
        files = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        files["socket"] = "sock"
        places = [f"--{name}={self.folder / f'munge.{suffix}'}" for name, suffix in files.items()]
        # --force: the temporary folder is closed to other users, which it would rather be open to
        self._daemon("munged", "--foreground", "--force", *places)
        self._daemon("slurmctld", "-D")
        for node in ("node0", "node1", "node2"):
            (self.folder / node).mkdir()
            self.start_node(node)
        self.until(lambda: self.call("sinfo", "-h", "-o", "%T", check=False) == "idle\n")

    def stop(self) -> None:
        # The daemons are ended even where they no longer answer.
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.call("scancel", f"--user={getpass.getuser()}", check=False)
            self.until(lambda: not self.call("squeue", "-h", check=False))
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def start_node(self, node: str) -> None:
        self.nodes[node] = self._daemon("slurmd", "-D", "-N", node)

    def _daemon(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        log = self.folder / f"{name}-{len(self.daemons)}.out"
        program = shutil.which(name, path=SEARCH)
        assert program is not None
        with log.open("wb") as file:
            daemon = subprocess.Popen(
                [program, *options],
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.daemons.append(daemon)
        return daemon

    def until(self, reached, seconds: float = 300) -> None:
        """Wait for a condition; fails with what the daemons said."""
        deadline = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > deadline:
                logs = sorted(self.folder.glob("*.out"))
                raise AssertionError(
                    "\n".join(f"{log}:\n{log.read_text()[-2000:]}" for log in logs)
                )
            time.sleep(0.05)

    def call(self, *command: str, check: bool = True) -> str:
        """What a SLURM command prints."""
        result = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert not check or result.returncode == 0, result.stderr
        return result.stdout

    def submit(
        self,
        script: str,
        logs: Path,
        array: str,
        *arguments: object,
        options: tuple[str, ...] = ("--cpus-per-task=1",),
    ) -> str:
        """`sbatch --array=ARRAY OPTIONS slurm/SCRIPT ARGUMENTS`; the job's id."""
        given = [f"--array={array}", f"--output={logs}/%A_%a.log", *options]
        command = ["sbatch", "--parsable", *given, f"slurm/{script}", *map(str, arguments)]
        return self.call(*command).strip()

    def tasks(self, job: str) -> dict[str, dict[str, str]]:
        """State of each task of an array, by its number: the fields of `scontrol show job`."""
        lines = self.call("scontrol", "show", "job", "--oneliner", job).splitlines()
        fields = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines]
        return {field["ArrayTaskId"]: field for field in fields}

    def wait(self, job: str) -> dict[str, dict[str, str]]:
        """The tasks of an array, once none is pending or running."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
        self.until(lambda: {t["JobState"] for t in self.tasks(job).values()} <= ended)
        return self.tasks(job)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
