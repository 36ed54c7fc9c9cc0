"""Shard sets from elsewhere: nothing in them leads out of their folder or is run."""

import io
import json
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from data_prep.commands.verify import find_problems
from data_prep.common.errors import UserError
from data_prep.common.files import sha256, write_json
from data_prep.format.index import index_path, load_index
from data_prep.loader.dataset import ShardDataset


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (40, 48), dtype=np.uint8)


@pytest.mark.parametrize("name", ["../outside.png", "/tmp/outside.png", "a/../../outside.png"])
def test_a_tar_with_paths_is_refused(name, tmp_path, save_image, shard_folder):
    """Someone else's shard set, whole in itself, with a member that leads out of its folder."""
    save_image(tmp_path / "images" / "a.png", picture(1))
    output = tmp_path / "set"
    document = shard_folder(tmp_path / "images", output)
    (shard,) = output.glob("*.tar")
    stream = io.BytesIO()
    Image.fromarray(picture(2)).save(stream, "PNG")
    data = stream.getvalue()
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        header = tarfile.TarInfo(name)
        header.size = len(data)
        tar.addfile(header, io.BytesIO(data))
    key = name.removesuffix(".png")
    index = json.loads(index_path(shard).read_text())
    index["records"] = [{"key": key, "members": {"png": [512, len(data), zlib.crc32(data)]}}]
    write_json(index_path(shard), index)
    document["splits"]["train"]["shards"][0] |= {"records": 1, "sha256": sha256(shard)}
    write_json(output / "dataset.json", document)
    with pytest.raises(UserError, match="has a key that is a path"):
        load_index(shard)
    with pytest.raises(UserError, match="has a key that is a path"):
        ShardDataset(output).record(0)
    assert "has a key that is a path" in find_problems(output)[0]
    index["records"][0]["key"] = "plain"
    write_json(index_path(shard), index)
    problems = find_problems(output)
    assert problems[0] == f"{shard}: has a member {name!r}, which is a path"
    assert not (tmp_path / "outside.png").exists()


def test_a_pickle_in_a_shard_is_not_loaded(tmp_path, shard_folder, save_image):
    """An array of objects is a pickle inside an NPY file."""
    save_image(tmp_path / "images" / "a.png", picture(1))
    output = tmp_path / "set"
    shard_folder(tmp_path / "images", output)
    (shard,) = output.glob("*.tar")
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    data = stream.getvalue()
    shard.write_bytes(data)
    index = json.loads(index_path(shard).read_text())
    members = {"npy": [0, len(data), zlib.crc32(data)], "json": [0, 0, 0]}
    index["records"] = [{"key": "a", "members": members}]
    write_json(index_path(shard), index)
    with pytest.raises(UserError, match="a member does not decode"):
        ShardDataset(output).record(0)
