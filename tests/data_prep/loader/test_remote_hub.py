"""Shard sets on the Hugging Face Hub: a hub on this machine gives what the folder gives."""

import json
import os
import subprocess
import sys

import pytest

from data_prep.loader.dataset import ShardDataset

READ = """
import json, sys
from itertools import islice
from pathlib import Path
from data_prep.loader import remote
from data_prep.loader.batches import build_loader
from data_prep.loader.dataset import ShardDataset

def describe(record, generator):
    return record.key, int(record.image.sum()), float(generator.random())

def as_list(samples):
    return samples

if __name__ == "__main__":
    *urls, cache, workers = sys.argv[1:]
    for url in urls:
        waits = []
        remote.time.sleep = waits.append
        try:
            far = ShardDataset(url, transform=describe, cache=Path(cache))
            loader = build_loader(far, 4, workers=int(workers), collate=as_list)
            print(json.dumps({"waits": waits, "batches": list(islice(loader, 14))}))
        except remote.UserError as error:
            print(json.dumps({"waits": waits, "error": str(error)}))
"""


@pytest.fixture
def hub(hub, shard_set):
    """A hub with the set in the folder `first` of a data set, and beside it."""
    files = {path.name: path.read_bytes() for path in shard_set.glob("*.*")}
    hub.sets["clinic/images"] = {f"first/{name}": data for name, data in files.items()}
    return hub


@pytest.fixture
def read(hub, tmp_path):
    """What another process reads: the library takes its endpoint when it is imported.

    Of several sets it is a list.
    """
    script = tmp_path / "read.py"
    script.write_text(READ)

    def run(*urls, workers=0, **settings):
        urls = urls or ("hf://datasets/clinic/images/first",)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            **settings,
        }
        command = [sys.executable, str(script), *urls, str(tmp_path / "cache"), str(workers)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        return answers if len(urls) > 1 else answers[0]

    return run


def files_read(hub):
    return [line.rpartition("/")[2] for line in hub.asked if line.startswith("GET /datasets/")]


def describe(record, generator):
    return record.key, int(record.image.sum()), float(generator.random())


def expected(shard_set):
    dataset = ShardDataset(shard_set, transform=describe)
    order = [(draw // 24, draw % 24, draw) for draw in range(56)]
    samples = [dataset[int(dataset.order(epoch)[place]), draw] for epoch, place, draw in order]
    return [[list(sample) for sample in samples[start : start + 4]] for start in range(0, 56, 4)]


def test_samples_are_those_of_the_folder_and_workers_share_the_cache(hub, shard_set, read):
    answer = read(workers=2)
    assert answer == {"waits": [], "batches": expected(shard_set)}
    files = files_read(hub)
    assert len(files) == len(set(files)) == 13  # each file once, for all workers
    hub.asked.clear()
    assert read()["batches"] == expected(shard_set)
    assert files_read(hub) == ["dataset.json"]


def test_a_private_set_is_read_with_the_token_of_a_login(hub, shard_set, read, tmp_path):
    hub.token = "hf_secret"
    refused = read()
    assert refused["error"] == (
        "hf://datasets/clinic/images/first/dataset.json: does not exist on the Hub, or is private;"
        " check its name, or log in with `hf auth login` as someone with access"
    )
    assert refused["waits"] == []
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "token").write_text("hf_secret")
    assert read()["batches"] == expected(shard_set)


def test_what_will_not_pass_is_told_at_once(hub, read):
    reasons = {
        "hf://datasets/clinic/images/second": "does not exist",
        "hf://datasets/clinic/imagines/first": "does not exist on the Hub, or is private; check",
        "hf://datasets/clinic/a b/first": "cannot be fetched (HfUriError: Invalid",
    }
    for (url, reason), answer in zip(reasons.items(), read(*reasons), strict=True):
        assert answer["error"].startswith(f"{url}/dataset.json: {reason}"), answer
        assert answer["waits"] == [] and "\n" not in answer["error"]
    hub.faults = [403]
    answer = read()
    assert "access denied (403); log in with `hf auth login`" in answer["error"]
    assert answer["waits"] == []


def test_failures_that_pass_are_not_the_end(hub, shard_set, read):
    hub.faults = [500, 500]
    assert read() == {"waits": [1, 2], "batches": expected(shard_set)}


def test_where_nothing_answers_is_told_after_some_attempts(read):
    answer = read(HF_ENDPOINT="http://127.0.0.1:9")
    assert answer["error"].endswith("; check the network and HF_ENDPOINT")
    assert answer["waits"] == [1, 2, 4]


def test_a_download_that_breaks_off_leaves_no_file(hub, read, tmp_path):
    hub.cut = True
    assert "dataset.json: cannot be fetched" in read()["error"]
    assert not list((tmp_path / "cache").glob("**/*.json"))


def test_an_altered_shard_is_refused(hub, read, tmp_path):
    data = bytearray(hub.sets["clinic/images"]["first/train-000002.tar"])
    data[700] ^= 1
    hub.sets["clinic/images"]["first/train-000002.tar"] = bytes(data)
    assert "train-000002.tar: is not the file that dataset.json describes" in read()["error"]
    assert not list((tmp_path / "cache").glob("*/train-000002.tar"))
