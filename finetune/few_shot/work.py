"""Making the runs of a study, each by the commands that a user would type."""

import fcntl
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from data_prep.common.files import lock_file
from finetune.few_shot.config import FewShotConfig
from finetune.few_shot.process import Commands
from finetune.few_shot.study import EXAMINATION, RECIPE, Run
from pretrain.engine.checkpoint import checkpoints_of
from pretrain.engine.progress import format_time
from pretrain.engine.stop import DONE_FILE, INTERRUPTED


class Failure(NamedTuple):
    """A run that could not be made."""

    run: Run
    reason: str


class Interrupted(Exception):
    """A signal asked to stop; what was being trained has saved."""


def make_runs(config: FewShotConfig, runs: Sequence[Run]) -> list[Failure]:
    """Train and evaluate the runs of this task that are not done; one that fails stops no other.

    Other processes may make runs of the same study: a run that one of them holds is left to it.

    Raises:
        Interrupted: After a signal.
    """
    mine = runs[config.task :: config.tasks]
    left = [run for run in mine if not run.is_done]
    if not config.keep_runs:
        for run in mine:
            if run.is_done:  # but the process that made it ended before it removed the folder
                shutil.rmtree(run.folder, ignore_errors=True)
    share = f", {len(mine)} of them of this task" if config.tasks > 1 else ""
    print(f"runs: {len(runs)}{share}; done before: {len(mine) - len(left)}", flush=True)
    failures: list[Failure] = []
    with Commands() as commands:
        for index, run in enumerate(left):
            with _held(run) as free:
                if not free:
                    print(f"\n{run.title}: skipped, since another process is making it", flush=True)
                    continue
                if run.is_done:  # by a process that has ended meanwhile
                    continue
                remaining = _seconds(left[index:], runs)
                time_left = "" if remaining is None else f", about {format_time(remaining)} left"
                print(f"\n[{index + 1}/{len(left)}] {run.title}{time_left}", flush=True)
                reason = _make(run, config, commands)
                if commands.stopped and not run.is_done:
                    raise Interrupted
                if reason:
                    failures.append(Failure(run, reason))
            if commands.stopped:
                raise Interrupted
    return failures


def _make(run: Run, config: FewShotConfig, commands: Commands) -> str:
    """Train and evaluate a run; returns why that failed, or ""."""
    arm = run.output / "arms" / run.arm.folder
    threads = [] if config.threads is None else ["--threads", str(config.threads)]
    begun, resumed = time.perf_counter(), bool(checkpoints_of(run.folder))
    words = ["finetune.train", "--config", str(arm / RECIPE)]
    words += ["--data.shards", str(config.shards)]
    words += ["--data.cases", str(run.cases or "null"), "--seed", str(run.draw)]
    words += ["--output", str(run.folder), "--resume", "auto", *threads]
    if not (run.folder / DONE_FILE).is_file() and (reason := _failure(words, commands)):
        return reason

    shutil.rmtree(run.evaluation, ignore_errors=True)  # of an evaluation that was stopped
    words = ["finetune", "evaluate", "--config", str(arm / EXAMINATION)]
    words += ["--run", str(run.folder), "--data.shards", str(config.shards)]
    words += ["--output", str(run.evaluation), *threads]
    if reason := _failure(words, commands):
        return reason
    run.write_record(None if resumed else time.perf_counter() - begun)
    if not config.keep_runs:
        shutil.rmtree(run.folder)
    return ""


def _failure(words: Sequence[str], commands: Commands) -> str:
    """Run a command; why it failed, or ""."""
    if commands.stopped:
        return "stopped"
    print(f"$ python -m {shlex.join(words)}", flush=True)
    status, reason = commands.run(words)
    if status == INTERRUPTED:
        commands.stopped = True  # the signal came to it alone
    if status == 0:
        return ""
    how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
    return f"{reason.removeprefix('error: ')} ({how})" if reason else how


def _seconds(left: Sequence[Run], runs: Sequence[Run]) -> float | None:
    """How long runs will take, by those of the same arm that are done, or of any; None if none is.

    Args:
        left: Those to be made.
        runs: All of the study.
    """
    taken: dict[str, list[float]] = {}
    for run in runs:
        if run.is_done and (seconds := run.record()["seconds"]) is not None:
            taken.setdefault(run.arm.name, []).append(seconds)
    if not taken:
        return None
    of_any = float(np.mean([seconds for found in taken.values() for seconds in found]))
    return sum(float(np.mean(taken.get(run.arm.name, of_any))) for run in left)


@contextmanager
def _held(run: Run) -> Iterator[bool]:
    """Keep other processes from making a run; gives whether none does."""
    path = run.output / "locks" / f"{run.arm.folder}-{run.place.name}"
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        try:
            free = lock_file(file, 0, fcntl.lockf)
        except OSError:  # a file system without locks, where each task has its share
            free = True
        yield free
