"""slurm/shard.sbatch on a SLURM of two nodes: the set is that of one process, or the job fails."""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from data_prep.__main__ import main


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """120 names of six photographs that take a while to scale, and of one that takes long.

    The latter is in shards 7, 10 and so on, of the second of three tasks, which is stopped at work.
    """
    folder = tmp_path_factory.mktemp("my images")
    generator = np.random.default_rng(0)
    large = generator.integers(0, 256, (2400, 2400, 3), dtype=np.uint8)
    for number in range(120):
        path = folder / f"photo {number:03d}.png"
        if number >= 35 and number % 15 == 5:
            if number == 35:
                Image.fromarray(large).save(path, compress_level=1)
            else:
                os.link(folder / "photo 035.png", path)
        elif number < 6:
            pixels = generator.integers(0, 256, (600 + number, 600, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path, compress_level=1)
        else:
            os.link(folder / f"photo {number % 6:03d}.png", path)
    return folder


def options(images: Path, output: Path) -> list[str]:
    sizes = ["--max-size=300", "--shard-records=5", "--salt=tests"]
    return ["shard", "--layout=folder", *sizes, "--input", str(images), "--output", str(output)]


@pytest.fixture(scope="module")
def expected(images, tmp_path_factory) -> dict[str, bytes]:
    """The set that a single process makes."""
    output = tmp_path_factory.mktemp("one") / "set"
    main(options(images, output))
    assert len(list(output.glob("*.tar"))) == 24
    return contents(output)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones too, but config.yaml, which names the folder and the workers."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    del files["private/config.yaml"]
    assert yaml.safe_load(files.pop("config.yaml"))["tasks"] == 1
    return files


def modified(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}


def states(tasks: dict[str, dict[str, str]]) -> dict[str, str]:
    return {number: task["JobState"] for number, task in tasks.items()}


def log(folder: Path, job: str, task: int) -> str:
    return (folder / f"{job}_{task}.log").read_text()


def test_an_array_on_two_nodes(slurm, images, expected, tmp_path):
    output = tmp_path / "my shards"
    job = slurm.submit("shard.sbatch", tmp_path, "0-2", *options(images, output))
    tasks = slurm.wait(job)
    assert states(tasks) == dict.fromkeys("012", "COMPLETED")
    assert {task["NodeList"] for task in tasks.values()} == {"node0", "node1"}
    assert contents(output) == expected
    main(["verify", "--shards", str(output)])  # ends the program if anything is wrong
    assert any("120 records" in log(tmp_path, job, task) for task in range(3))


def test_a_failed_task_fails_the_job_until_its_file_is_mended(slurm, images, expected, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in images.iterdir():
        os.link(path, copy / path.name)
    bad = copy / "photo 050.png"
    whole, times = bad.read_bytes(), (bad.stat().st_atime_ns, bad.stat().st_mtime_ns)
    bad.unlink()
    bad.write_bytes(whole[:1000])
    arguments = [*options(copy, tmp_path / "set"), "--max-bad=0"]
    first = slurm.submit("shard.sbatch", tmp_path, "0-2", *arguments)
    assert set(states(slurm.wait(first)).values()) == {"COMPLETED", "FAILED"}
    assert any("1 images of 120 files" in log(tmp_path, first, task) for task in range(3))
    assert not (tmp_path / "set" / "dataset.json").exists()
    written = modified(tmp_path / "set")
    assert len(written) == 24
    bad.write_bytes(whole)
    os.utime(bad, ns=times)  # which the private folder holds
    second = slurm.submit("shard.sbatch", tmp_path, "0-2", *arguments)
    assert states(slurm.wait(second)) == dict.fromkeys("012", "COMPLETED")
    assert contents(tmp_path / "set") == expected
    assert len(written.items() & modified(tmp_path / "set").items()) == 23


@pytest.mark.parametrize("end", ["requeued", "killed"])
def test_a_task_killed_at_work(end, slurm, images, expected, tmp_path):
    output = tmp_path / "set"
    arguments = options(images, output)
    job = slurm.submit("shard.sbatch", tmp_path, "0-2", *arguments)
    mine = [output / f"train-{number:06d}.tar" for number in range(1, 24, 3)]
    slurm.until(lambda: mine[1].exists())
    if end == "requeued":
        slurm.call("scontrol", "requeue", f"{job}_1")
    else:
        slurm.call("scancel", "--signal=KILL", "--full", f"{job}_1")
        tasks = slurm.wait(job)
        assert states(tasks) == {"0": "COMPLETED", "1": "CANCELLED", "2": "COMPLETED"}
        assert not (output / "dataset.json").exists()
    slurm.until(lambda: slurm.tasks(job)["1"]["JobState"] != "RUNNING")
    done = modified(output)
    assert 2 <= len(done.keys() & {path.name for path in mine}) < len(mine)
    if end == "killed":
        job = slurm.submit("shard.sbatch", tmp_path, "0-2", *arguments)
    tasks = slurm.wait(job)
    assert states(tasks) == dict.fromkeys("012", "COMPLETED")
    assert tasks["1"]["Restarts"] == ("1" if end == "requeued" else "0")
    assert done.items() <= modified(output).items()  # none was written twice
    assert contents(output) == expected


@pytest.mark.parametrize(
    ("array", "arguments", "message"),
    [("1-3", ["shard"], "--array must be 0-N"), ("0-1", ["info"], "takes shard or shard-seg")],
)
def test_what_is_refused(array, arguments, message, slurm, tmp_path):
    job = slurm.submit("shard.sbatch", tmp_path, array, *arguments)
    assert set(states(slurm.wait(job)).values()) == {"FAILED"}
    assert message in log(tmp_path, job, 1)
