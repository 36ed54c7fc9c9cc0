"""Tiny shard sets and runs, made on the fly."""

import contextlib
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import constants
from PIL import Image
from scipy.ndimage import gaussian_filter

from data_prep.__main__ import main as data_prep
from helpers import dicom_series
from helpers.hub_server import Hub
from pretrain.engine.checkpoint import latest_checkpoint
from pretrain.engine.progress import IMAGES_PER_SECOND, MFU, TFLOPS_PER_SECOND
from pretrain.sizes import SIZES, EncoderSize

ROOT = Path(__file__).parent.parent
LONGEST = (ROOT / "tests/test_documents.py", ROOT / "tests/slurm/test_pretrain.py")
PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
MISSING = [
    name
    for name in ("munged", "slurmctld", "slurmd", "sbatch")
    if not shutil.which(name, path=PLACES)
]
collect_ignore = ["slurm"] if MISSING else []
gc.disable()  # until all tests are imported, of which nothing is garbage


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MISSING:
        terminalreporter.write_line(f"tests/slurm was left out: {MISSING[0]} was not found")


def pytest_configure(config: pytest.Config) -> None:
    """Keep each process of `make test`, and what it starts, on one core.

    Ctrl-C is heard, also where a shell started the tests in the background, which ignores it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = getattr(config, "workerinput", {}).get("workerid")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
        # PyTorch counted the cores when it was imported: more threads would wait for each other
        torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The processes of `make test` leave their core to the one whose file takes longest."""
    if hasattr(item.config, "workerinput") and item.path != LONGEST[0] and os.nice(0) == 0:
        os.nice(5)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files start first, so that `make test` does not wait for one at its end."""
    places = {path: place for place, path in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def _shapes(folder: Path, count: int) -> None:
    """Grey images with a bright disc and a dim square inside it, and their label maps."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :80]
    for number in range(count):
        y, x, radius = rng.integers(35, 61), rng.integers(30, 50), rng.integers(14, 26)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        square = np.maximum(abs(rows - y), abs(columns - x)) < radius // 3
        image = gaussian_filter(rng.normal(60, 40, disc.shape), 2) + 90.0 * disc - 50.0 * square
        label = np.where(square, 2, np.where(disc, 1, 0)).astype(np.uint8)
        for name, pixels in (("image", image.clip(0, 255).astype(np.uint8)), ("label", label)):
            path = folder / name / f"case{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


@pytest.fixture(autouse=True)
def no_accelerator_of_another_test() -> Iterator[None]:
    """Accelerate keeps the precision and the device of the first training in a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def image_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 unlabelled images in five shards."""
    folder = tmp_path_factory.mktemp("stage_one")
    _shapes(folder / "files", 40)
    options = ["--layout=folder", f"--input={folder / 'files' / 'image'}"]
    data_prep(["shard", *options, f"--output={folder / 'shards'}", "--shard_records=8"])
    return folder / "shards"


@pytest.fixture(scope="session")
def labelled_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images with two targets, disc and square, split into train and test."""
    folder = tmp_path_factory.mktemp("stage_two")
    _shapes(folder / "files", 20)
    data_prep(
        [
            "shard-seg",
            "--layout=pairs",
            f"--input={folder / 'files'}",
            "--image=image/*.png",
            "--mask=label/*.png",
            "--labels={disc: [1, 2], square: [2]}",
            "--split={train: 0.8, test: 0.2}",
            f"--output={folder / 'shards'}",
        ]
    )
    return folder / "shards"


@pytest.fixture(scope="session")
def make_series():
    """Write a series of single-frame DICOM files, see `helpers/dicom_series.py`."""
    return dicom_series.make_series


@pytest.fixture(scope="session")
def make_enhanced():
    """Write a multi-frame DICOM file, see `helpers/dicom_series.py`."""
    return dicom_series.make_enhanced


@pytest.fixture
def contributed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples of CONTRIBUTING.md as files, from which they can be imported."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        name = block.split("\n")[0].removeprefix("# ")
        (tmp_path / name).write_text(block)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def hub():
    """An empty Hugging Face Hub on this machine, see `helpers/hub_server.py`."""
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def refused(publish, capsys):
    """The line that publishing is refused with; `publish` is of the tests that use it."""

    def start(*options: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            publish(*options)
        assert stopped.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        return error

    return start


@pytest.fixture
def on_hub(hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The hub, which this process is logged in to; failed requests are tried again at once."""
    hub.token = "hf_secret"
    home = tmp_path / "hub_home"
    home.mkdir()
    (home / "token").write_text(hub.token)
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_"))]:
        monkeypatch.delenv(name)
    files = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": files,
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_CACHE": str(home / "cache"),
        "HF_HUB_DISABLE_XET": True,  # the hub speaks plain LFS
    }.items():
        monkeypatch.setattr(constants, name, value)
    at_once = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", at_once)
    hub.token_file = home / "token"
    return hub


class Launch:
    """Start training scripts as a user does."""

    @staticmethod
    def command(script: str, *options: str, processes: int = 1) -> list[str]:
        config = "single" if processes == 1 else "cpu2"
        launcher = [sys.executable, "-m", "accelerate.commands.launch"]
        return [*launcher, f"--config_file=configs/accelerate/{config}.yaml", script, *options]

    def _command(self, script: str, *options: str, processes: int) -> list[str]:
        """One process is started as the launcher would start it, which itself takes seconds."""
        if processes == 1:
            return [sys.executable, script, *options]
        return self.command(script, *options, processes=processes)

    def __call__(
        self, script: str, *options: str, processes: int = 1
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        command = self._command(script, *options, processes=processes)
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)

    def signalled(
        self, script: str, *options: str, output: Path, lines: int, number: int, processes: int = 1
    ) -> subprocess.CompletedProcess[str]:
        """Run until metrics.jsonl has so many lines, then signal every process of the run."""
        command = self._command(script, *options, processes=processes)
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        metrics = output / "metrics.jsonl"
        deadline = time.monotonic() + 240
        while not metrics.exists() or len(metrics.read_text().splitlines()) < lines:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # The launcher starts its processes in sessions of their own.
        started = psutil.Process(process.pid)
        training = [started] if processes == 1 else []
        for each in (*training, *started.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)
        if number == signal.SIGKILL:
            process.kill()
        out, _ = process.communicate(timeout=120)
        return subprocess.CompletedProcess(command, process.returncode, out, "")

    def killed_and_resumed(
        self, script: str, *options: str, output: Path, lines: int, steps: int, processes: int
    ) -> None:
        """Kill a run of `steps` steps once metrics.jsonl has so many lines, and run it again."""
        killed = self.signalled(
            script, *options, output=output, lines=lines, number=signal.SIGKILL, processes=processes
        )
        assert killed.returncode != 0
        assert not (output / "DONE").exists()
        saved = latest_checkpoint(output)
        assert saved is not None
        again = self(script, *options, processes=processes)
        assert again.returncode == 0, again.stderr
        step = int(saved.folder.name.removeprefix("step-"))
        assert 2 <= step < steps
        assert f"resuming after step {step}" in again.stdout
        assert (output / "DONE").exists()


@pytest.fixture(scope="session")
def launch() -> Launch:
    return Launch()


def losses(run: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = {IMAGES_PER_SECOND, TFLOPS_PER_SECOND, MFU}
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


@pytest.fixture(scope="session")
def read_losses():
    return losses


@pytest.fixture(scope="module")
def no_curves() -> Iterator[None]:
    """Training in this process draws no curves, which takes as long as a tiny run does."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_losses", "draw_rates"):
            patch.setattr(f"pretrain.engine.loop.{name}", lambda *run: None)
        yield


@pytest.fixture(scope="module")
def shallow(no_curves: None) -> Iterator[None]:
    """vit_t has two blocks instead of twelve, and stage one draws nothing, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrain.stage.PretrainStage.draw", lambda stage: {})
        patch.setitem(SIZES, "vit_t", EncoderSize(192, 2, 3, (1,)))
        yield


@pytest.fixture(scope="session")
def kill() -> int:
    return signal.SIGKILL
