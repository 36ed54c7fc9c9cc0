"""Programs of another package, started one after the other; each one's output is kept in a log."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from data_prep.common.errors import UserError
from pretrain.engine.stop import INTERRUPTED

CHUNK = 1 << 16


def find_program(name: str) -> Path | None:
    """A program of this Python's environment, or else of the user's."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(places))
    return None if found is None else Path(found)


@contextmanager
def _held_signals() -> Iterator[Callable[[], None]]:
    """Inside, what asks this process to end waits until the function given is called.

    It is raised there, or where it arrives afterwards: by then the program that was started is
    known, and can be ended, too.
    """
    arrived: list[BaseException] = []
    is_held = True

    def stop(number: int, frame: FrameType | None) -> None:
        ending = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(INTERRUPTED)
        if not is_held:
            raise ending
        arrived.append(ending)

    def release() -> None:
        nonlocal is_held
        is_held = False
        if arrived:
            raise arrived[0]

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
    heard = [each for each in numbers if signal.getsignal(each) != signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield release
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_logged(words: Sequence[str | Path], log: Path, environment: Mapping[str, str]) -> None:
    """Run a program, show what it prints, and add that to a log.

    Args:
        environment: What it finds in its environment beside what this process has.

    Raises:
        UserError: It fails; says with which last line, and where the log is.
    """
    line = [str(word) for word in words]
    name = Path(line[0]).name
    print(f"\n$ {shlex.join([name, *line[1:]])}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    started = log.stat().st_size if log.exists() else 0
    with (
        _held_signals() as release,
        log.open("ab", buffering=0) as file,
        subprocess.Popen(
            line,
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            process_group=0,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            release()
            while chunk := process.stdout.read(CHUNK):
                file.write(chunk)
                sys.stdout.write(chunk.decode(errors="replace"))
                sys.stdout.flush()
        except BaseException:  # an interruption ends it and all that it has started
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            raise
    if process.returncode:
        with log.open("rb") as written:
            written.seek(started)
            printed = written.read().decode(errors="replace").split("\n")
        last = next((each.strip() for each in reversed(printed) if each.strip()), "no output")
        code = process.returncode
        how = f"failed with status {code}" if code > 0 else f"was ended by signal {-code}"
        raise UserError(f"{name} {how} ({last}); all that it printed is in {log}")
