"""Commands of a study: how they end is told, and a signal reaches them."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from finetune.few_shot.process import Commands, Ended

FAILS = """
import sys
print("step 1", file=sys.stderr)
print("error: no such option", file=sys.stderr)
sys.exit(2)
"""
SAVES = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path("begun").touch()
time.sleep(60)
"""
STUBBORN = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("begun").touch()
time.sleep(60)
"""
LAUNCHED = """
import os, sys
from pretrain.engine.stop import LAUNCHER
sys.exit(LAUNCHER != os.getppid())
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a module that the tests start."""
    paths = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", paths)
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> list[str]:
        Path("module.py").write_text(text)
        return ["module"]

    return write


def signalled(numbers: list[int]) -> threading.Thread:
    """Sends signals to this process once a module has begun."""

    def send() -> None:
        while not Path("begun").exists():
            time.sleep(0.01)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.2)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_the_last_line_says_why_a_command_failed(module, capfd):
    with Commands() as commands:
        assert commands.run(module(FAILS)) == Ended(2, "error: no such option")
        assert not commands.stopped
    assert capfd.readouterr().err.splitlines() == ["step 1", "error: no such option"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP])
def test_a_signal_asks_the_command_to_end(number, module):
    before = signal.getsignal(number)
    with Commands() as commands:
        thread = signalled([number])
        assert commands.run(module(SAVES)).status == 75
        assert commands.stopped
    thread.join()
    assert signal.getsignal(number) == before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Commands() as commands:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not commands.stopped
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_ends_it_at_once(module):
    with Commands() as commands:
        thread = signalled([signal.SIGINT, signal.SIGINT])
        assert commands.run(module(STUBBORN)).status == -signal.SIGKILL
        thread.join()


def test_training_takes_this_process_for_its_launcher_and_ends_with_it(module):
    with Commands() as commands:
        assert commands.run(module(LAUNCHED)).status == 0
