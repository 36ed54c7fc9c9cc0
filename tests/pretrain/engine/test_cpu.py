"""Threads of a run's processes."""

import pytest
import torch

from pretrain.engine.cpu import count_cores, use_cores


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("processes", [1, 2, 1000])
def test_cores_are_divided_among_the_processes(processes: int) -> None:
    given = use_cores(processes)
    assert given == torch.get_num_threads() == max(1, count_cores() // processes)


def test_threads_that_are_named_are_used() -> None:
    assert use_cores(1, 3) == torch.get_num_threads() == 3
