"""Several optimiser steps per batch: the same however a batch is split, and after a kill."""

import os
import signal
import socket

import torch
from safetensors.torch import load_file

from pretrain.engine.checkpoint import latest_checkpoint
from pretrain.engine.stage import Stage

STEPS = 3
"""Per batch."""


class Several:
    """Let the stage step several times per batch, in one process or as one of two.

    Args:
        port: Where two processes meet; None for one process.
        last: The process kills itself when it is asked for this loss, counted from 1.
    """

    def __init__(self, rank: int = 0, port: int | None = None, last: int | None = None) -> None:
        self.rank, self.port, self.last, self.asked = rank, port, last, 0

    def __call__(self) -> None:
        if self.port is not None:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
            os.environ |= {"RANK": str(self.rank), "LOCAL_RANK": str(self.rank), "WORLD_SIZE": "2"}
        Stage.rounds = STEPS
        Stage.round_losses = lambda stage, model, batch, seed: self.losses(model, batch[0])

    def losses(self, model, pixels):
        for index in range(STEPS):
            self.asked += 1
            if self.asked == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            loss = (model(pixels) - index * pixels).square().mean()
            yield loss, {"loss": loss}


def test_passes_and_processes_give_the_same_steps(tiny, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    whole, passes, processes = (tmp_path / name for name in ("whole", "passes", "processes"))
    members = [
        tiny.start(whole, before=Several()),
        tiny.start(passes, "--optim.accumulate=2", before=Several()),
        *(tiny.start(processes, before=Several(rank, port)) for rank in (0, 1)),
    ]
    for member in members:
        member.join(100)
        assert member.exitcode == 0
    state = torch.load(latest_checkpoint(whole).folder / "optimizer.pt", weights_only=True)
    assert {int(each["step"]) for each in state["state"].values()} == {6 * STEPS}
    expected = load_file(latest_checkpoint(whole).folder / "encoder.safetensors")
    for run in (passes, processes):
        found = load_file(latest_checkpoint(run).folder / "encoder.safetensors")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_killed_between_two_steps_of_a_batch_it_ends_the_same(tiny, tmp_path, same_end):
    expected, run = tmp_path / "expected", tmp_path / "run"
    assert tiny(expected, before=Several()) == 0, tiny.printed(expected)
    assert tiny(run, before=Several(last=4 * STEPS + 2)) == -signal.SIGKILL
    assert latest_checkpoint(run).folder.name == "step-00000004"
    assert tiny(run, before=Several()) == 0, tiny.printed(run)
    same_end(run, expected)
