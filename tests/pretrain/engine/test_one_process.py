"""What happens to one process of a run ends all of them, within seconds and with its line."""

import os
import signal
import socket
import time

import pytest

from data_prep.common.errors import UserError
from data_prep.loader.dataset import ShardDataset
from pretrain.engine import saving

SECONDS = 60
"""Far below the timeout of a process group, which is half an hour."""


class Member:
    """Make this process one of two; `fault` happens to one of them after some steps."""

    def __init__(self, rank: int, port: int, fault: str, faulty: int) -> None:
        self.rank, self.port, self.fault, self.faulty = rank, port, fault, faulty

    def __call__(self) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        os.environ |= {"RANK": str(self.rank), "LOCAL_RANK": str(self.rank), "WORLD_SIZE": "2"}
        if self.rank != self.faulty:
            return
        if self.fault == "save":
            saving.save_checkpoint = self.refuse
        else:
            read, self.left = ShardDataset.record, 5

            def record(dataset, index):
                self.left -= 1
                if self.left < 0:
                    self.refuse() if self.fault == "read" else os.kill(os.getpid(), signal.SIGKILL)
                return read(dataset, index)

            ShardDataset.record = record

    @staticmethod
    def refuse(*arguments) -> None:
        raise UserError("shard-7.tar: does not decode")


@pytest.mark.parametrize(
    ("fault", "faulty", "statuses"),
    [("read", 1, [1, 2]), ("read", 0, [2, 1]), ("kill", 0, [-9, 1]), ("save", 0, [2, 2])],
)
def test_it(fault, faulty, statuses, tiny, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = tmp_path / "run"
    options = ("--optim.steps=50", "--save_every=50")
    members = [
        tiny.start(run, *options, before=Member(rank, port, fault, faulty)) for rank in (0, 1)
    ]
    deadline = time.monotonic() + SECONDS
    for member in members:
        member.join(max(deadline - time.monotonic(), 0))
    found = [member.exitcode for member in members]
    for member in members:
        member.kill()
    text = tiny.printed(run)
    assert found == statuses, text
    assert not (run / "DONE").exists() and "Traceback" not in text
    last = text.splitlines()[-1]
    if fault == "save":
        assert last.startswith("error: shard-7.tar: does not decode; the last whole checkpoint")
    else:
        assert last.startswith(f"process {1 - faulty} ends, as another process of the run has")
        assert text.count("error: shard-7.tar: does not decode\n") == (fault == "read")
