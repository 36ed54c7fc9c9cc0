"""Losses differentiated one by one have the gradients of their mean, also over processes."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.engine.one_by_one import mean_one_by_one


class Rounds(nn.Module):
    """Several losses of what an encoder gives.

    The parameter `first` is used in the first loss alone, `odd` on odd ranks alone, `unused` never.
    """

    def __init__(self, plain: bool, count: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plain, self.count = plain, count
        self.encoder = nn.Linear(3, 5)
        self.decoder = nn.Linear(5, 2)
        self.first, self.odd, self.unused = (nn.Parameter(torch.ones(2)) for _ in range(3))

    def losses(self, shared: Tensor, rank: int) -> Iterator[Tensor]:
        previous = torch.zeros(2)
        for number in range(self.count):
            out = self.decoder(shared.tanh() + number) + previous
            out = out + (self.first if number == 0 else 0) + (self.odd if rank % 2 else 0)
            yield (out - rank).square().mean() * (number + 1)
            previous = out.detach().mean(0)

    def forward(self, inputs: Tensor, rank: int) -> Tensor:
        shared, parameters = self.encoder(inputs), list(self.parameters())
        if self.plain:
            return torch.stack(list(self.losses(shared, rank))).mean()
        return mean_one_by_one(lambda leaf: self.losses(leaf, rank), shared, parameters)


def inputs_of(rank: int) -> Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(rank))


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("count", [1, 4])
def test_gradients_are_those_of_the_mean(rank: int, count: int) -> None:
    plain, ours = Rounds(True, count), Rounds(False, count)
    for model in (plain, ours):
        for _ in range(2):  # gradients of passes add up
            (model(inputs_of(rank), rank) * 0.7).backward()
    assert torch.equal(plain(inputs_of(rank), rank), ours(inputs_of(rank), rank))
    found = gradients(ours)
    for name, expected in gradients(plain).items():
        assert (expected is None) == (found[name] is None), name
        assert expected is None or torch.allclose(found[name], expected, rtol=1e-6), name
    assert found["unused"] is None and (found["odd"] is None) == (rank == 0)


def test_a_gradient_that_two_inputs_share_counts_for_both() -> None:
    one, other = (torch.zeros(3, requires_grad=True) for _ in range(2))
    weights = torch.arange(3.0)
    losses = lambda shared: (((shared + one + other) * weights).sum() for _ in range(3))  # noqa: E731
    mean_one_by_one(losses, torch.ones(3), [one, other]).backward()
    assert torch.equal(one.grad, weights) and torch.equal(other.grad, weights)


def test_only_one_graph_is_there_at_a_time() -> None:
    class Alive(torch.autograd.Function):
        count = most = 0

        @staticmethod
        def forward(context, value):
            Alive.count += 1
            Alive.most = max(Alive.most, Alive.count)
            return value.clone()

        @staticmethod
        def backward(context, gradient):
            Alive.count -= 1
            return gradient

    value = torch.ones(2, requires_grad=True)
    losses = lambda shared: (Alive.apply(shared).sum() for _ in range(5))  # noqa: E731
    mean_one_by_one(losses, value, []).backward()
    assert (Alive.most, Alive.count) == (1, 0)
    assert torch.equal(value.grad, torch.ones(2))


def test_without_gradient_there_is_none() -> None:
    model = Rounds(False)
    with torch.no_grad():
        loss = model(inputs_of(0), 0)
    assert not loss.requires_grad and torch.equal(loss, Rounds(True)(inputs_of(0), 0))


def test_a_second_backward_pass_is_refused() -> None:
    loss = Rounds(False)(inputs_of(0), 0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def _process(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = Rounds(plain=False)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    with wrapped.no_sync():  # the first of two passes
        wrapped(inputs_of(rank), rank).backward()
    wrapped(inputs_of(rank + 2), rank).backward()
    torch.save({k: v for k, v in gradients(model).items() if v is not None}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_share_the_mean_gradient(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_process, args=(port, str(tmp_path)), nprocs=2)
    plain = Rounds(plain=True)
    for rank in range(2):
        for draw in (rank, rank + 2):
            (plain(inputs_of(draw), rank) / 2).backward()
    expected = gradients(plain)
    del expected["unused"]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)
