"""Threads of a run's processes."""

import psutil
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


def test_two_threads_of_a_core_count_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 4, 6}, raising=False)
    assert count_cores(tmp_path) == min(4, psutil.cpu_count(logical=False))  # not told
    for number, siblings in {0: "0,4", 1: "1,5", 4: "0,4", 6: "2,6"}.items():
        file = tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(f"{siblings}\n")
    assert count_cores(tmp_path) == 3
