"""Small inputs made on the fly."""

import csv
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.format.index import read_json
from data_prep.layouts import find_layout
from data_prep.loader.dataset import ShardDataset
from data_prep.options import WriteOptions
from data_prep.shards import write_shards


@pytest.fixture(scope="session")
def make_images():
    """Write PNG files, grey and RGB in turn, each of another size and content, in two folders."""

    def make(folder: Path, count: int = 24, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        for number in range(count):
            path = folder / ("healthy", "ill")[number % 2] / f"image {number:03d} é.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (40 + number, 36) if number % 3 else (40 + number, 36, 3)
            Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(path)

    return make


@pytest.fixture(scope="session")
def shard_folder():
    """Shard a folder, by default one of images, and four records per shard."""

    def shard(folder: Path, output: Path, layout: str = "folder", **options):
        writing = {"output": output, "shard_records": 4, "salt": "tests"}
        for field in fields(WriteOptions):
            if field.name in options:
                writing[field.name] = options.pop(field.name)
        found = find_layout(layout, "pretraining")(input=folder, **options)
        return write_shards(found.source(layout, found.references()), WriteOptions(**writing))

    return shard


@pytest.fixture
def read_layout(tmp_path):
    """Shard a folder by command line; gives the records of each split, darkest first."""

    def read(command: str, layout: str, folder: Path, *options: str) -> dict[str, list]:
        output = tmp_path / f"{layout}-shards"
        arguments = [command, "--layout", layout, "--input", str(folder), "--output", str(output)]
        main([*arguments, *options])
        splits = read_json(output / "dataset.json")["splits"]
        records = {}
        for split in splits:
            dataset = ShardDataset(output, split)
            found = [dataset.record(index) for index in range(len(dataset))]
            records[split] = sorted(found, key=lambda record: record.image.mean())
        return records

    return read


@pytest.fixture(scope="session")
def save_image():
    """Write an image file, with its folders."""

    def save(path: Path, image: np.ndarray, **options) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, **options)

    return save


@pytest.fixture(scope="session")
def folder_bytes():
    """Contents of every file below a folder, hidden ones too."""

    def read(folder: Path) -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read


@pytest.fixture(scope="session")
def left_out():
    """What a set left out: kind and reason of each file, as its private folder says."""

    def read(output: Path) -> dict[str, tuple[str, str]]:
        with (output / "private" / "quarantine.csv").open(newline="", encoding="utf-8") as file:
            return {row["file"]: (row["kind"], row["reason"]) for row in csv.DictReader(file)}

    return read


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory, make_images) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_images(folder)
    return folder


@pytest.fixture(scope="session")
def shard_set(image_folder, tmp_path_factory, shard_folder) -> Path:
    """24 records in shards of four."""
    output = tmp_path_factory.mktemp("set")
    shard_folder(image_folder, output, class_folders=True)
    return output
