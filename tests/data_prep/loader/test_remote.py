"""Shard sets behind a URL: a server on this machine gives what the folder gives."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.common.errors import UserError
from data_prep.loader import remote
from data_prep.loader.batches import build_loader
from data_prep.loader.dataset import ShardDataset


class Server:
    """Serves a folder, counts what is asked for, and may fail at first.

    Attributes:
        failures: How many answers from now on are `status`.
        slow: Whether tars are sent by halves: the second half waits for `go_on`.
        halfway: Set when a first half has been sent.
    """

    def __init__(self, folder):
        server = self
        self.asked = []
        self.slow, self.halfway, self.go_on = False, threading.Event(), threading.Event()
        self.failures, self.status = 0, 503

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path.lstrip("/"))
                if server.failures:
                    server.failures -= 1
                    self.send_error(server.status)
                elif server.slow and self.path.endswith(".tar"):
                    data = (folder / self.path.lstrip("/")).read_bytes()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2])
                    server.halfway.set()
                    server.go_on.wait(60)
                else:
                    super().do_GET()

            def log_message(self, *arguments):
                pass

        handler = partial(Handler, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(shard_set, tmp_path):
    server = Server(shutil.copytree(shard_set, tmp_path / "served"))
    yield server
    server.close()


def keys_and_pixels(record, generator):
    return record.key, int(record.image.sum()), float(generator.random())


def as_list(samples):
    return samples


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_those_of_the_folder(server, shard_set, tmp_path, workers):
    far = ShardDataset(server.url, transform=keys_and_pixels, cache=tmp_path / "cache")
    near = ShardDataset(shard_set, transform=keys_and_pixels)
    both = [
        list(islice(build_loader(dataset, 4, workers=workers, collate=as_list), 14))
        for dataset in (far, near)
    ]
    assert both[0] == both[1]
    assert len(server.asked) == len(set(server.asked)) == 13  # each file once, for all workers
    again = ShardDataset(server.url, cache=tmp_path / "cache")
    assert np.array_equal(again.record(5).image, near.record(5).image)
    assert server.asked[13:] == ["dataset.json"]


def test_the_cache_is_bounded(server, shard_set, tmp_path):
    sizes = {path.name: path.stat().st_size for path in shard_set.glob("*.tar")}
    limit = 3 * max(sizes.values())
    cache = tmp_path / "cache"
    far = ShardDataset(server.url, shuffle_shards=1, cache=cache, cache_bytes=limit)
    far._open_limit = 1
    near = ShardDataset(shard_set)
    for index in (*range(24), *range(24)):
        assert far.record(index).key == near.record(index).key
        copies = list(cache.glob("*/*.tar"))
        assert len(copies) >= 1 and sum(path.stat().st_size for path in copies) <= limit
        assert {path.with_suffix(".index.json") for path in copies} == {
            *cache.glob("*/*.index.json")
        }
    assert server.asked.count("train-000000.tar") == 2  # deleted meanwhile, and fetched again


def test_the_least_recently_used_copy_goes(server, tmp_path):
    cache = tmp_path / "cache"
    far = ShardDataset(server.url, cache=cache, cache_bytes=10**9)
    for shard in (0, 1, 0, 2):
        far._open.clear()
        far.record(4 * shard)
    used = sum(path.stat().st_size for path in cache.glob("*/*.tar"))
    far._cache.limit = used
    far.record(12)
    assert sorted(path.name for path in cache.glob("*/*.tar")) == [
        f"train-{number:06d}.tar" for number in (0, 2, 3)
    ]


def test_failures_that_pass_are_not_the_end(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    server.failures = 2
    far = ShardDataset(server.url, cache=tmp_path / "cache")
    assert waits == [1, 2]
    server.failures = 9
    with pytest.raises(UserError, match=r"train-000000.*cannot be fetched"):
        far.record(0)
    assert not list((tmp_path / "cache").glob("*/*.partial"))
    server.failures = 0
    assert far.record(0).image.size


def test_what_is_not_the_set_is_refused(server, tmp_path):
    with pytest.raises(UserError, match=r"nothing/dataset\.json: does not exist"):
        ShardDataset(f"{server.url}/nothing", cache=tmp_path / "cache")
    shard = tmp_path / "served" / "train-000001.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    far = ShardDataset(server.url, cache=tmp_path / "cache")
    with pytest.raises(UserError, match=r"train-000001\.tar: is not the file .*SHA-256 differs"):
        far.record(4)
    assert far.record(0).image.size
    assert len(list((tmp_path / "cache").glob("*/*.tar"))) == 1


def test_another_version_of_a_set_is_not_mixed_with_the_first(
    server, image_folder, tmp_path, shard_folder
):
    first = ShardDataset(server.url, cache=tmp_path / "cache").record(0)
    shutil.rmtree(tmp_path / "served")
    shard_folder(image_folder, tmp_path / "served", seed=9)
    second = ShardDataset(server.url, cache=tmp_path / "cache").record(0)
    local = ShardDataset(tmp_path / "served").record(0)
    assert second.key == local.key != first.key


@pytest.mark.parametrize("status", [401, 403, 410])
def test_refusals_are_not_tried_again(server, tmp_path, monkeypatch, status):
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    server.failures, server.status = 9, status
    reason = "cannot be fetched" if status == 410 else "access denied"
    with pytest.raises(UserError, match=rf"dataset\.json: {reason} .*{status}"):
        ShardDataset(server.url, cache=tmp_path / "cache")
    assert waits == [] and len(server.asked) == 1


def test_a_set_of_an_earlier_version_does_not_say_the_sums_of_its_indexes(server, tmp_path):
    path = tmp_path / "served" / "dataset.json"
    document = json.loads(path.read_text())
    for shard in document["splits"]["train"]["shards"]:
        del shard["index_sha256"]
    path.write_text(json.dumps(document))
    assert ShardDataset(server.url, cache=tmp_path / "cache").record(0).image.size


def test_a_full_disk_is_told_with_its_folder(server, tmp_path, monkeypatch):
    far = ShardDataset(server.url, cache=tmp_path / "cache")

    class Files:
        def get_file(self, remote, path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remote.fsspec.core, "url_to_fs", lambda url: (Files(), url))
    reason = r"^/\S+/cache/\w+: no space left to download http.*/train-000000\.index\.json$"
    with pytest.raises(UserError, match=reason):
        far.record(0)


def test_a_shard_outside_the_folder_is_refused(server, tmp_path):
    path = tmp_path / "served" / "dataset.json"
    path.write_text(path.read_text().replace('"train-000000', '"../train-000000'))
    with pytest.raises(UserError, match=r"dataset\.json: lists the shard '\.\./train-000000\.tar'"):
        ShardDataset(server.url, cache=tmp_path / "cache")


def test_a_process_killed_in_its_download_leaves_no_shard(server, shard_set, tmp_path):
    server.slow = True
    script = (
        "import sys; from pathlib import Path; from data_prep.loader import ShardDataset;"
        "ShardDataset(sys.argv[1], cache=Path(sys.argv[2])).record(0)"
    )
    cache = tmp_path / "cache"
    process = subprocess.Popen([sys.executable, "-c", script, server.url, str(cache)])
    assert server.halfway.wait(60)
    process.kill()
    process.wait()
    server.slow = False
    server.go_on.set()
    (folder,) = cache.iterdir()
    left = {path.name for path in folder.iterdir()} - {".lock", ".train-000000.tar.partial"}
    assert left == {"dataset.json", "train-000000.index.json"}
    far, near = ShardDataset(server.url, cache=cache), ShardDataset(shard_set)
    assert np.array_equal(far.record(0).image, near.record(0).image)


def test_verify_downloads_a_set_and_tells_what_is_wrong(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    main(["verify", "--shards", server.url])
    assert capsys.readouterr().out == f"{server.url}: complete and unaltered\n"
    assert len(server.asked) == 13
    served = tmp_path / "served"
    (served / "train-000000.tar").unlink()
    for name in ("train-000001.tar", "train-000002.index.json"):
        data = bytearray((served / name).read_bytes())
        data[700] ^= 1
        (served / name).write_bytes(data)
    with pytest.raises(SystemExit):
        main(["verify", "--shards", server.url])
    printed = capsys.readouterr()
    differs = "is not the file that dataset.json describes (SHA-256 differs); upload the set again"
    assert printed.out.splitlines() == [
        f"{server.url}/train-000000.tar: does not exist",
        f"{server.url}/train-000001.tar: {differs}",
        f"{server.url}/train-000002.index.json: {differs}",
    ]
    assert f"{server.url}: 3 problems; upload the set again to fix them" in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_info_of_a_url_is_that_of_the_folder(server, shard_set, tmp_path):
    """Its copies go to the home folder, and the contact sheet to where it is started."""
    near = run_info(shard_set, tmp_path / "near")
    far = run_info(server.url, tmp_path / "far")
    assert far.splitlines()[:-1] == near.splitlines()[:-1]
    assert "24 records, 24 groups, 6 shards" in far
    sheet = tmp_path / "far" / "contact_sheet.png"
    assert sheet.read_bytes() == (shard_set / "contact_sheet.png").read_bytes()
    (shard_set / "contact_sheet.png").unlink()
    assert list((tmp_path / "far" / ".cache" / "samaritan").glob("*/*.tar"))


def run_info(shards, home):
    home.mkdir()
    command = [sys.executable, "-m", "data_prep", "info", "--shards", str(shards)]
    environment = os.environ | {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
