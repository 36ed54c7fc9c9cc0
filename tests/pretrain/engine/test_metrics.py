"""Trackers beside metrics.jsonl, and rates."""

import json
import sys
import types

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_prep.common.errors import UserError
from pretrain.engine import progress as progress_module
from pretrain.engine import rates
from pretrain.engine.figures import draw_rates
from pretrain.engine.metrics import Metrics, read_metrics, require_trackers
from pretrain.engine.peaks import PEAKS, known_peak
from pretrain.engine.progress import Progress


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A stand-in for the package wandb that keeps what it is told."""
    told = types.SimpleNamespace(inits=[], logs=[], finished=0)

    class Run:
        def log(self, values, step):
            told.logs.append((step, dict(values)))

        def finish(self):
            told.finished += 1

    def init(**arguments):
        told.inits.append(arguments)
        return Run()

    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "wandb.py").write_text("")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    import wandb

    wandb.init = init
    yield told
    sys.modules.pop("wandb")


def test_every_tracker_gets_what_the_file_gets(wandb, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    require_trackers(["tensorboard", "wandb"])
    metrics = Metrics(run, 0, ["tensorboard", "wandb"])
    for step in (1, 2, 3, 4):
        metrics.log(step, {"loss": 1 / step})
    metrics.close()
    again = Metrics(run, 2, ["tensorboard", "wandb"])  # resumed after step 2
    again.log(3, {"loss": 7.0})
    again.close()

    rows = [(1, 1.0), (2, 0.5), (3, 7.0)]
    assert [(row["step"], row["loss"]) for row in read_metrics(run)] == rows
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == rows
    first, second = wandb.inits
    assert first == second and first["resume"] == "allow" and first["project"] == "samaritan"
    assert first["name"] == "run" and len(first["id"]) == 32
    assert wandb.logs[-1] == (3, {"loss": 7.0}) and len(wandb.logs) == 5 and wandb.finished == 2


def test_a_tracker_whose_package_is_missing_is_refused_by_name():
    with pytest.raises(UserError, match=r"trackers: aim needs the package aim, which is not inst"):
        require_trackers(["tensorboard", "aim"])
    require_trackers([])


def test_without_trackers_there_is_the_file(tmp_path):
    metrics = Metrics(tmp_path, 0, [])
    metrics.log(1, {"loss": 1.0})
    metrics.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_rates_are_over_the_steps_since_the_last_line(monkeypatch, capsys):
    clock = iter([0.0, 2.0, 6.0])
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: next(clock))
    progress = Progress(100, 10, batch_size=50, flops=4e9, peak=1e12)
    assert progress.report(20, {"loss": 1.5}, 1e-3) == {
        "images_per_second": 250.0,
        "tflops_per_second": 1.0,
        "mfu": 1.0,
    }
    assert progress.report(30, {}, 1e-3)["mfu"] == 0.5
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "step     20/100  loss 1.5000  lr 1.00e-03  250.0 images/s  MFU 100.0%  16 s left"
    )


def test_operations_that_are_not_counted_give_no_mfu(monkeypatch, capsys):
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: next(clock))
    assert Progress(9, 0, 50).report(1, {}, 1e-3) == {"images_per_second": 25.0}
    assert "MFU" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA GeForce RTX 4090", "bf16", 165e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA RTX A6000", "bf16", 155e12),
        ("NVIDIA A10", "bf16", 125e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA TITAN V", "bf16", None),
    ],
)
def test_peaks_are_found_by_a_devices_own_name(device, precision, peak):
    assert known_peak(device, precision) == peak


def test_every_name_in_the_table_is_found_as_itself():
    assert all(known_peak(name, "bf16") == peak for name, (peak, _) in PEAKS.items())


def test_an_unknown_device_is_measured():
    peak, source = rates.device_peak(torch.device("cpu"), "no")
    assert peak > 1e8 and source == "a product of large matrices on this CPU in fp32"


def test_rates_are_drawn(tmp_path):
    (tmp_path / "figures").mkdir()
    rows = [{"step": i, "images_per_second": 5.0 * i, "mfu": 0.1} for i in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_rates(tmp_path)
    assert (tmp_path / "figures" / "rates.png").read_bytes().startswith(b"\x89PNG")
