"""Check a shard set member by member."""

import hashlib
import os
import tarfile
import tempfile
import zlib
from pathlib import Path

from tqdm import tqdm

from data_prep.common.errors import UserError
from data_prep.common.files import sha256
from data_prep.format.index import ShardIndex, index_path, load_index, read_json
from data_prep.options import VerifyOptions


def verify(config: VerifyOptions, resolved: str) -> None:
    """Check a shard set: what is missing, truncated or altered."""
    remote = "://" in config.shards
    problems = find_remote_problems(config.shards) if remote else find_problems(Path(config.shards))
    for problem in problems:
        print(problem)
    if problems:
        again = "upload the set" if remote else "shard"
        raise UserError(f"{config.shards}: {len(problems)} problems; {again} again to fix them")
    print(f"{config.shards}: complete and unaltered")


def find_problems(root: Path) -> list[str]:
    """What differs between the shards in a folder and `dataset.json`, one line each.

    Raises:
        UserError: There is no `dataset.json`.
    """
    problems = []
    listed = set()
    splits = read_json(root / "dataset.json")["splits"]
    shards = [shard for split in splits.values() for shard in split["shards"]]
    for shard in tqdm(shards, desc="verify", unit="shard"):
        listed.add(shard["name"])
        path = root / shard["name"]
        problems += _check_shard(path, shard["sha256"], shard["records"])
        index = index_path(path)
        expected = shard.get("index_sha256")  # sets of earlier versions do not say
        if expected is not None and index.is_file() and sha256(index) != expected:
            problems.append(f"{index}: altered (SHA-256 differs)")
    for path in sorted(root.glob("*.tar")):
        if path.name not in listed:
            problems.append(f"{path}: not listed in dataset.json")
    return problems


def find_remote_problems(url: str) -> list[str]:
    """As `find_problems`, of a set behind a URL; each shard is downloaded and deleted in turn.

    Shards that `dataset.json` does not list are not looked for.

    Raises:
        UserError: `dataset.json` cannot be fetched.
    """
    # The loader imports torch, which a folder needs not wait for.
    from data_prep.loader.remote import ShardCache

    problems = []
    with tempfile.TemporaryDirectory() as folder:
        cache = ShardCache(url, Path(folder), limit=0)
        splits = read_json(cache.folder / "dataset.json")["splits"]
        shards = [shard for split in splits.values() for shard in split["shards"]]
        for shard in tqdm(shards, desc="verify", unit="shard"):
            try:
                descriptor, _ = cache.open(shard["name"])
            except UserError as error:
                problems.append(str(error))
                continue
            os.close(descriptor)
            found = _check_shard(cache.folder / shard["name"], shard["sha256"], shard["records"])
            problems += [line.replace(str(cache.folder), cache.url) for line in found]
    return problems


def _check_shard(path: Path, expected: str, records: int) -> list[str]:
    if not path.is_file():
        return [f"{path}: missing"]
    try:
        index = load_index(path)
    except UserError as error:
        return [str(error)]
    problems = []
    if len(index.keys) != records:
        problems.append(f"{index_path(path)}: {len(index.keys)} records, not {records}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == expected:
            return problems + _check_names(path, index)
        problems.append(f"{path}: altered (SHA-256 differs)")
        size = file.seek(0, 2)
        for key, members in zip(index.keys, index.members, strict=True):
            for name, (offset, length, crc) in members.items():
                if offset + length > size:
                    problems.append(f"{path}: {key}.{name} is truncated")
                    continue
                file.seek(offset)
                if zlib.crc32(file.read(length)) != crc:
                    problems.append(f"{path}: {key}.{name} is altered")
    return problems


def _check_names(path: Path, index: ShardIndex) -> list[str]:
    """Whether an unaltered tar and its index list the same members at the same offsets."""
    with tarfile.open(path, "r:") as tar:
        found = {member.name: (member.offset_data, member.size) for member in tar}
    expected = {
        f"{key}.{name}": (offset, size)
        for key, members in zip(index.keys, index.members, strict=True)
        for name, (offset, size, _) in members.items()
    }
    wrong = sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    )
    unsafe = sorted(name for name in found if "/" in name or name.startswith("."))
    return [f"{path}: has a member {name!r}, which is a path" for name in unsafe] + [
        f"{index_path(path)}: wrong location of {name}" for name in wrong if name not in unsafe
    ]
