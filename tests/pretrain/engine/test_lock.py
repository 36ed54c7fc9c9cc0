"""A run folder has one writer."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

from pretrain.engine import lock as lock_module
from pretrain.engine.lock import RunLock

OPTIONS = ("--optim.steps=100000", "--save_every=2", "--keep=1")


def impatient() -> None:
    lock_module.LOCK_SECONDS = 0.5


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_second_job_is_refused_in_one_line_and_changes_nothing(tiny, tmp_path):
    run = tmp_path / "run"
    first = tiny.start(run, *OPTIONS)
    try:
        wait_for(run / "checkpoints" / "step-00000002")
        os.kill(first.pid, signal.SIGSTOP)
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        said = len(tiny.printed(run))
        assert tiny(run, *OPTIONS, before=impatient) == 2
        after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        assert after == before
        waiting, refused = tiny.printed(run)[said:].splitlines()
        assert f"{run}: process {first.pid} on" in waiting and "waiting for its end" in waiting
        assert refused.startswith(f"error: output {run}: process {first.pid} on")
        assert "name another folder" in refused
    finally:
        first.kill()
        first.join()


def test_a_killed_writer_leaves_no_lock_although_its_workers_live(tiny, tmp_path):
    run = tmp_path / "run"
    first = tiny.start(run, *OPTIONS, "--workers=2")
    wait_for(run / "checkpoints" / "step-00000002")
    workers = children(first.pid)
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)  # they would notice
    first.kill()
    first.join()
    try:
        lock = RunLock()
        lock.take(run)  # at once: a wait would fail the test by its line
        lock.release()
        assert all(Path(f"/proc/{worker}").exists() for worker in workers)
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)


def _hold(folder: Path, seconds: float) -> None:
    lock = RunLock()
    lock.take(folder)
    (folder / "held").touch()
    time.sleep(seconds)


def test_a_requeued_job_waits_for_the_process_before(tmp_path, capsys):
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path, 1))
    process.start()
    wait_for(tmp_path / "held")
    RunLock().take(tmp_path)
    process.join()
    assert f"process {process.pid} on" in capsys.readouterr().err


def test_without_locks_the_run_goes_on_with_a_warning(tmp_path, capsys, monkeypatch):
    def unsupported(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    RunLock().take(tmp_path)
    assert "without locks (Operation not supported)" in capsys.readouterr().err
