"""Shard sets in a bucket: a server on this machine that speaks S3 gives what the folder gives."""

import logging
import os
import subprocess
import sys
import threading
from itertools import islice

import boto3
import numpy as np
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import make_server

from data_prep.common.errors import UserError
from data_prep.loader import remote
from data_prep.loader.batches import build_loader
from data_prep.loader.dataset import ShardDataset

SOMEONE = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret"}


class Bucket:
    """S3 on loopback with one bucket; counts what is asked for, and may answer badly at first."""

    def __init__(self):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.asked: list[str] = []
        self.faults: list[tuple[str, bytes]] = []
        """Status and body of the next answers, in place of right ones."""
        self.cut = False
        """Whether answers end after their first 100 bytes."""
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.client("s3").create_bucket(Bucket="bucket")

    def client(self, service):
        keys = {"aws_access_key_id": "someone", "aws_secret_access_key": "secret"}
        return boto3.client(service, endpoint_url=self.url, region_name="us-east-1", **keys)

    def upload(self, folder, prefix):
        for path in folder.glob("*.*"):
            self.client("s3").upload_file(str(path), "bucket", f"{prefix}/{path.name}")

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ, start_response):
        if environ["REQUEST_METHOD"] != "GET":
            return self._app(environ, start_response)
        self.asked.append(environ["PATH_INFO"].rpartition("/")[2])
        if self.faults:
            status, body = self.faults.pop(0)
            start_response(status, [("Content-Length", str(len(body)))])
            return [body]
        answer = b"".join(self._app(environ, start_response))
        return [answer[:100] if self.cut else answer]


@pytest.fixture(scope="module")
def bucket(shard_set):
    bucket = Bucket()
    bucket.upload(shard_set, "sets/first")
    yield bucket
    bucket.close()


@pytest.fixture
def waits(monkeypatch):
    """Seconds that would have been waited between attempts."""
    waits: list[int] = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    return waits


@pytest.fixture
def settings(bucket, tmp_path, monkeypatch):
    """Set what S3 clients read: nothing of this machine, and what the test gives."""

    def set_to(**values):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        plain = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}
        for name, value in (
            {"HOME": str(tmp_path), "AWS_ENDPOINT_URL": bucket.url} | plain
        ).items():
            monkeypatch.setenv(name, value)
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()

    bucket.faults.clear()
    bucket.asked.clear()
    bucket.cut = False
    set_to(**SOMEONE)
    yield set_to
    S3FileSystem.clear_instance_cache()


def as_list(samples):
    return samples


def keys_and_pixels(record, generator):
    return record.key, int(record.image.sum()), float(generator.random())


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_those_of_the_folder(bucket, settings, shard_set, tmp_path, workers):
    url = "s3://bucket/sets/first"
    far = ShardDataset(url, transform=keys_and_pixels, cache=tmp_path / "cache")
    near = ShardDataset(shard_set, transform=keys_and_pixels)
    both = [
        list(islice(build_loader(dataset, 4, workers=workers, collate=as_list), 14))
        for dataset in (far, near)
    ]
    assert both[0] == both[1]
    assert len(bucket.asked) == len(set(bucket.asked)) == 13  # each file once, for all workers
    again = ShardDataset(url, cache=tmp_path / "cache")
    assert np.array_equal(again.record(5).image, near.record(5).image)
    assert bucket.asked[13:] == ["dataset.json"]


def test_credentials_and_endpoint_may_stand_in_the_files_of_aws(
    bucket, settings, monkeypatch, tmp_path
):
    settings(AWS_PROFILE="hospital")
    settings_file = "[profile hospital]\nregion = eu-central-1\n"
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(f"{settings_file}endpoint_url = {bucket.url}\n")
    keys = "[hospital]\naws_access_key_id = someone\naws_secret_access_key = secret\n"
    (tmp_path / ".aws" / "credentials").write_text(keys)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert len(ShardDataset("s3://bucket/sets/first", cache=tmp_path / "cache")) == 24


def test_a_public_bucket_needs_no_credentials(bucket, settings, tmp_path):
    """The setting is read when the file systems are imported, so by another process."""
    settings()
    document = {"Bucket": "bucket", "Key": "sets/first/dataset.json"}
    bucket.client("s3").put_object_acl(**document, ACL="public-read")
    script = (
        "import sys; from pathlib import Path; from data_prep.loader.remote import ShardCache;"
        "ShardCache('s3://bucket/sets/first', Path(sys.argv[1]), 10**9)"
    )
    for anonymous, status in (("true", 0), ("", 1)):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env=os.environ | {"FSSPEC_S3_ANON": anonymous},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
    assert "FSSPEC_S3_ANON=true reads a public bucket without" in done.stderr


@pytest.mark.parametrize(
    ("url", "values", "reason"),
    [
        ("s3://bucket/sets/none", SOMEONE, "does not exist$"),
        ("s3://bucked/sets/first", SOMEONE, "does not exist, nor does the bucket bucked; check"),
        ("s3://bucket/sets/first", {}, r"no credentials \(Unable .*\); AWS_PROFILE, `aws conf"),
        ("s3://bucket/sets/first", {"AWS_ACCESS_KEY_ID": "a"}, "no credentials .Partial cred"),
        ("s3://bucket/sets/first", {"AWS_PROFILE": "x"}, r"no credentials \(.*profile \(x\)"),
        ("s3://bucket/sets/first", SOMEONE | {"AWS_ENDPOINT_URL": "x"}, "Invalid endpoint: x"),
        ("s4://bucket/sets/first", SOMEONE, "Protocol not known: s4"),
    ],
)
def test_what_will_not_pass_is_told_at_once(bucket, settings, waits, tmp_path, url, values, reason):
    settings(**values)
    with pytest.raises(UserError, match=rf"^{url}/dataset\.json: .*{reason}") as refused:
        ShardDataset(url, cache=tmp_path / "cache")
    assert waits == [] and len(bucket.asked) <= 1
    assert "\n" not in str(refused.value)


def answer(status, code):
    return status, f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        ("403 Forbidden", "AccessDenied", r"access denied \(403\); it needs s3:GetObject"),
        ("403 Forbidden", "InvalidAccessKeyId", "credentials are not accepted .InvalidAccessKeyId"),
        ("403 Forbidden", "SignatureDoesNotMatch", "are not accepted .SignatureDoesNotMatch.; AWS"),
        ("400 Bad Request", "ExpiredToken", "are not accepted .ExpiredToken"),
        ("400 Bad Request", "AuthorizationHeaderMalformed", "in another region .*set AWS_DEFAULT_"),
    ],
)
def test_refusals_are_not_tried_again(bucket, settings, waits, tmp_path, status, code, reason):
    bucket.faults = [answer(status, code)] * 2
    with pytest.raises(UserError, match=reason):
        ShardDataset("s3://bucket/sets/first", cache=tmp_path / "cache")
    assert waits == [] and bucket.asked == ["dataset.json"]


def test_failures_that_pass_are_not_the_end(bucket, settings, waits, tmp_path):
    bucket.faults = [answer("503 Service Unavailable", "ServiceUnavailable")] * 2
    far = ShardDataset("s3://bucket/sets/first", cache=tmp_path / "cache")
    assert waits == [1, 2]
    assert far.record(0).image.size


def test_where_nothing_answers_is_told_after_some_attempts(bucket, settings, waits, tmp_path):
    settings(**SOMEONE, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"Could not connect to .*; check the network, AWS_ENDP"):
        ShardDataset("s3://bucket/sets/first", cache=tmp_path / "cache")
    assert waits == [1, 2, 4]


def test_a_download_that_breaks_off_leaves_no_file(bucket, settings, waits, tmp_path):
    far = ShardDataset("s3://bucket/sets/first", cache=tmp_path / "cache")
    bucket.cut = True
    with pytest.raises(UserError, match=r"train-000000\.index\.json: cannot be fetched"):
        far.record(0)
    (folder,) = (tmp_path / "cache").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "dataset.json"]
    bucket.cut = False
    assert far.record(0).image.size


def test_an_altered_shard_or_index_is_refused(bucket, settings, shard_set, tmp_path):
    bucket.upload(shard_set, "sets/altered")
    for name in ("train-000000.tar", "train-000001.index.json"):
        data = bytearray((shard_set / name).read_bytes())
        data[-2] ^= 1
        bucket.client("s3").put_object(Bucket="bucket", Key=f"sets/altered/{name}", Body=data)
    far = ShardDataset("s3://bucket/sets/altered", cache=tmp_path / "cache")
    for index, name in ((0, r"train-000000\.tar"), (4, r"train-000001\.index\.json")):
        with pytest.raises(UserError, match=rf"{name}: is not the file .*SHA-256 differs"):
            far.record(index)
    assert far.record(8).image.size


def test_the_cache_is_bounded(bucket, settings, shard_set, tmp_path):
    limit = 3 * max(path.stat().st_size for path in shard_set.glob("*.tar"))
    cache = tmp_path / "cache"
    far = ShardDataset("s3://bucket/sets/first", shuffle_shards=1, cache=cache, cache_bytes=limit)
    for index in range(24):
        far.record(index)
        assert sum(path.stat().st_size for path in cache.glob("*/*.tar")) <= limit


def test_without_its_package_the_extra_is_named(settings, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(UserError, match=r"needs s3fs; install it with `pip install 'samaritan\[s3"):
        ShardDataset("s3://bucket/sets/first", cache=tmp_path / "cache")
