"""Shards: the same bytes however they are made, and nothing lost on the way."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from data_prep.common.errors import UserError
from data_prep.format.tar import TarWriter
from data_prep.layouts.folder import Folder
from data_prep.loader.dataset import ShardDataset
from data_prep.options import WriteOptions
from data_prep.records import Reference, record_key
from data_prep.shards.manifest import plan_shards
from data_prep.shards.summary import exact_sums
from data_prep.shards.write import write_shards

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("workers", [2, 5])
def test_bytes_do_not_depend_on_workers(
    workers, image_folder, tmp_path, shard_folder, folder_bytes
):
    shard_folder(image_folder, tmp_path / "one")
    shard_folder(image_folder, tmp_path / "many", workers=workers)
    one = folder_bytes(tmp_path / "one")
    # tar, index and private table of six shards; dataset.json, plan.json, quarantine.jsonl, salt
    # and quarantine.csv
    assert len(one) == 6 * 3 + 5
    assert folder_bytes(tmp_path / "many") == one


_SLOW_SHARD = """
import sys, time
from dataclasses import replace
from functools import partial
from pathlib import Path
from data_prep.layouts.folder import Folder
from data_prep.options import WriteOptions
from data_prep.records import Reference, record_key
from data_prep.shards.manifest import plan_shards
from data_prep.shards import write_shards

def slowly(reference, read):
    time.sleep(0.02)
    return list(read(reference))

if __name__ == "__main__":
    layout = Folder(input=Path(sys.argv[1]))
    options = WriteOptions(output=Path(sys.argv[2]), shard_records=3, workers=2, salt="tests")
    source = layout.source("folder", layout.references())
    write_shards(replace(source, read=partial(slowly, read=source.read)), options)
"""


def start_slowly(folder: Path, output: Path) -> psutil.Popen:
    """Shard folder/images with two workers, 20 ms an image, in a process of its own."""
    script = folder / "slow_shard.py"
    script.write_text(_SLOW_SHARD)
    command = [sys.executable, str(script), str(folder / "images"), str(output)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return psutil.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def test_killed_runs_end_with_the_same_bytes(tmp_path, make_images, shard_folder, folder_bytes):
    make_images(tmp_path / "images", count=120)
    shard_folder(tmp_path / "images", tmp_path / "whole", shard_records=3)
    output = tmp_path / "killed"
    generator = np.random.default_rng(0)
    done = [0]
    for _ in range(4):
        process = start_slowly(tmp_path, output)
        deadline = time.monotonic() + 60
        while len(list(output.glob("*.tar"))) < done[-1] + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done.append(len(list(output.glob("*.tar"))))
    assert 0 < done[1] < done[-1] < 40  # each run was killed at work, and went on from the last
    time.sleep(1)  # until the workers have noticed
    shard_folder(tmp_path / "images", output, shard_records=3)
    assert folder_bytes(output) == folder_bytes(tmp_path / "whole")


def test_workers_die_with_their_parent(tmp_path, make_images):
    make_images(tmp_path / "images", count=60)
    process = start_slowly(tmp_path, tmp_path / "set")
    workers = []
    while process.poll() is None and len(workers) < 2:
        children = process.children()
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    process.kill()
    process.wait()
    assert len(workers) == 2
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert len(gone) == 2 and not alive


def test_a_truncated_shard_is_written_again(image_folder, tmp_path, shard_folder, folder_bytes):
    shard_folder(image_folder, tmp_path / "set")
    before = folder_bytes(tmp_path / "set")
    os.truncate(tmp_path / "set" / "train-000002.tar", 1000)
    (tmp_path / "set" / "train-000003.index.json").unlink()
    shard_folder(image_folder, tmp_path / "set")
    assert folder_bytes(tmp_path / "set") == before


def test_unreadable_files_are_left_out_with_a_reason(
    tmp_path, make_images, shard_folder, folder_bytes, left_out
):
    make_images(tmp_path / "images", count=10)
    shard_folder(tmp_path / "images", tmp_path / "good", shard_records=100)
    good = ShardDataset(tmp_path / "good")
    whole = (tmp_path / "images" / "ill" / "image 001 é.png").read_bytes()
    (tmp_path / "images" / "empty.png").touch()
    (tmp_path / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "images" / "text.jpg").write_text("Patient: Jane Roe")
    for workers in (1, 2):
        output = tmp_path / f"set{workers}"
        with pytest.raises(UserError, match="3 images of 13 files could not be read"):
            shard_folder(tmp_path / "images", output, workers=workers)
    assert folder_bytes(tmp_path / "set1") == folder_bytes(tmp_path / "set2")
    assert not (tmp_path / "set1" / "dataset.json").exists()
    reasons = {file: reason for file, (_, reason) in left_out(tmp_path / "set1").items()}
    assert reasons["empty.png"] == "the file is empty"
    assert "truncated or damaged" in reasons["cut.png"]
    assert "not an image" in reasons["text.jpg"]
    document = shard_folder(tmp_path / "images", tmp_path / "set1", max_bad=0.25)
    assert document["records"] == 10
    kept = ShardDataset(tmp_path / "set1")
    assert {kept.record(i).key for i in range(10)} == {good.record(i).key for i in range(10)}
    assert len(kept) == 10 and kept.info["unreadable"] == 3
    with pytest.raises(UserError, match=r"more than --max-bad 0\.2:"):  # a set that was good before
        shard_folder(tmp_path / "images", tmp_path / "set1", max_bad=0.2)
    assert not (tmp_path / "set1" / "dataset.json").exists()


def test_names_that_are_not_utf_8_are_read_as_latin_1(tmp_path, make_images, shard_folder):
    make_images(tmp_path / "images", count=4)
    latin = os.fsencode(tmp_path / "images") + "/début".encode("latin-1")
    os.rename(tmp_path / "images" / "ill", latin)  # noqa: PTH104 (a name that is not text)
    document = shard_folder(tmp_path / "images", tmp_path / "set", class_folders=True)
    assert document["classes"] == {"début": 2, "healthy": 2}
    dataset = ShardDataset(tmp_path / "set")
    assert {dataset.record(i).meta["label"] for i in range(4)} == {"début", "healthy"}


class Panic(BaseException):
    """As a decoder in Rust raises it."""


def panicking(reference, read):
    if reference.path == "ill/image 003 é.png":
        raise Panic
    return read(reference)


def test_a_decoder_that_panics_costs_one_record(tmp_path, make_images):
    make_images(tmp_path / "images", count=10)
    layout = Folder(input=tmp_path / "images")
    source = layout.source("folder", layout.references())
    options = WriteOptions(output=tmp_path / "set", shard_records=4, max_bad=0.2)
    document = write_shards(replace(source, read=partial(panicking, read=source.read)), options)
    assert (document["records"], document["unreadable"]) == (9, 1)
    assert "its decoder failed (Panic)" in (tmp_path / "set" / "quarantine.jsonl").read_text()


def ending(reference, read, victim):
    if reference.path == victim:
        os.abort()
    return list(read(reference))


def test_a_file_whose_decoder_ends_the_process_is_quarantined_on_the_rerun(
    tmp_path, make_images, shard_folder, folder_bytes, left_out
):
    make_images(tmp_path / "images", count=10)
    layout = Folder(input=tmp_path / "images")
    source = layout.source("folder", layout.references())
    victim = "ill/image 003 é.png"
    source = replace(source, read=partial(ending, read=source.read, victim=victim))
    options = WriteOptions(
        output=tmp_path / "set", shard_records=4, workers=2, max_bad=0.2, salt="tests"
    )
    with pytest.raises(UserError, match=r"a worker process died .* Run the command again"):
        write_shards(source, options)
    assert list((tmp_path / "set").glob(".reading-*"))
    document = write_shards(source, options)
    assert (document["records"], document["unreadable"]) == (9, 1)
    assert left_out(tmp_path / "set") == {
        victim: ("unreadable", "its decoder ended the process (signal 6)")
    }
    assert not list((tmp_path / "set").glob(".reading-*"))
    before = folder_bytes(tmp_path / "set")
    write_shards(source, options)  # asks in another process whether the file has been fixed
    assert folder_bytes(tmp_path / "set") == before

    shard_folder(tmp_path / "images", tmp_path / "set", shard_records=4)
    shard_folder(tmp_path / "images", tmp_path / "plain", shard_records=4)
    assert folder_bytes(tmp_path / "set") == folder_bytes(tmp_path / "plain")


def test_a_run_that_was_killed_blames_no_file(tmp_path, make_images, shard_folder, folder_bytes):
    make_images(tmp_path / "images", count=10)
    shard_folder(tmp_path / "images", tmp_path / "plain", shard_records=4)
    references = Folder(input=tmp_path / "images").references()
    shards = plan_shards(references, 4, 0)
    (tmp_path / "set").mkdir()
    for shard in shards:
        key = record_key(shard.references[1], "tests")
        (tmp_path / "set" / f".reading-{shard.name}").write_text(key)
    shard_folder(tmp_path / "images", tmp_path / "set", shard_records=4)
    assert folder_bytes(tmp_path / "set") == folder_bytes(tmp_path / "plain")


def test_a_full_disk_is_told_and_leaves_no_file(image_folder, tmp_path, monkeypatch, shard_folder):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_prep.format.tar.TarWriter.add", full)
    with pytest.raises(UserError, match="No space left on device"):
        shard_folder(image_folder, tmp_path / "set")
    assert [path.name for path in (tmp_path / "set").glob("*.*")] == ["plan.json"]


def test_no_input_is_refused(tmp_path, shard_folder):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="found no image"):
        shard_folder(tmp_path / "images", tmp_path / "set")
    with pytest.raises(UserError, match="is not a folder"):
        shard_folder(tmp_path / "nowhere", tmp_path / "set")
    with pytest.raises(UserError, match=r"no layout 'folders'; did you mean folder\?$"):
        shard_folder(tmp_path / "images", tmp_path / "set", layout="folders")
    layouts = "dicom, eyepacs, folder, hf, isic, nifti, radimagenet, samples$"
    with pytest.raises(UserError, match=f"no layout 'x'; for pretraining there are {layouts}"):
        shard_folder(tmp_path / "images", tmp_path / "set", layout="x")
    with pytest.raises(UserError, match=r"busi is for `shard-seg`, not for pretraining data"):
        shard_folder(tmp_path / "images", tmp_path / "set", layout="busi")


def test_members_have_fixed_headers_and_hashed_names(shard_set):
    for path in shard_set.glob("*.tar"):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert members
        for member in members:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert member.uname == member.gname == ""
            key, extension = member.name.split(".")
            assert len(key) == 32 and int(key, 16) and extension in ("png", "json")
    everything = b"".join(path.read_bytes() for path in shard_set.glob("train-*"))
    assert b"image 0" not in everything


def test_salt_changes_keys_and_groups(image_folder, tmp_path, shard_set, shard_folder):
    shard_folder(image_folder, tmp_path / "set", class_folders=True, salt="secret")
    ours, theirs = ShardDataset(shard_set), ShardDataset(tmp_path / "set")
    assert not {ours.record(i).key for i in range(24)} & {theirs.record(i).key for i in range(24)}
    groups = [{s.meta(i)["group"] for i in range(24)} for s in (ours, theirs)]
    assert not groups[0] & groups[1]


def test_statistics_are_those_of_the_stored_pixels(shard_set):
    dataset = ShardDataset(shard_set)
    pixels = []
    for index in range(len(dataset)):
        image = dataset.record(index).image
        pixels.append(np.broadcast_to(image.reshape(len(image), 36, -1), (*image.shape[:2], 3)))
    values = np.concatenate([array.reshape(-1, 3) for array in pixels]) / 255
    assert dataset.info["mean"] == pytest.approx(values.mean(axis=0), abs=1e-6)
    assert dataset.info["std"] == pytest.approx(values.std(axis=0), abs=1e-6)
    assert dataset.info["classes"] == {"healthy": 12, "ill": 12}
    assert dataset.info["sizes"] == {"smallest": [40, 36], "median": [51, 36], "largest": [63, 36]}


def test_files_of_one_name_in_two_folders_are_two_records(tmp_path, shard_folder):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        image = np.full((40, 40), ord(name), np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / name / "1.png")
    shard_folder(tmp_path / "images", tmp_path / "set")
    dataset = ShardDataset(tmp_path / "set")
    assert {dataset.record(i).image[0, 0] for i in range(2)} == {ord("a"), ord("b")}


def test_a_source_without_any_image_is_told(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    source = Folder(input=tmp_path / "images").source("folder", [Reference("a.png")])
    options = WriteOptions(output=tmp_path / "set")
    with pytest.raises(UserError, match="no file yielded an image"):
        write_shards(source, options)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 123456])
def test_the_archive_is_the_one_that_tarfile_writes(size, tmp_path):
    data = np.random.default_rng(size).bytes(size)
    ours, theirs = io.BytesIO(), io.BytesIO()
    writer = TarWriter(ours)
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key in ("0123456789abcdef0123456789abcdef", "b-0001"):
            writer.add(key, {"mask.png": data, "json": b"{}"})
            for name, content in ((f"{key}.mask.png", data), (f"{key}.json", b"{}")):
                header = tarfile.TarInfo(name)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    writer.close()
    assert ours.getvalue() == theirs.getvalue()
    with pytest.raises(ValueError, match="does not fit"):
        writer.add("k" * 97, {"json": b""})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_sums_are_exact(dtype):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, 3 * 2**19, dtype)
    values[: 2**20] = np.iinfo(dtype).max  # the largest sums that there are
    whole = values.astype(np.uint64)
    expected = (values.size, int(whole.sum()), int((whole * whole).sum()))
    assert exact_sums(values) == expected
