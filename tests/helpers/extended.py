"""Images that are known by their grey value, and what a shard set of them holds."""

from pathlib import Path

from PIL import Image

from data_prep.format.index import read_json
from data_prep.loader import ShardDataset

ROOT = Path(__file__).parents[2]


def save(path, value, side=40):
    """An image of one grey value, by which its record is known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (side, side), value).save(path)


def values(output, split="train"):
    """Grey values of the images in a split, sorted."""
    dataset = ShardDataset(output, split)
    return sorted(int(dataset.record(index).image[0, 0]) for index in range(len(dataset)))


def tars(output):
    return {path.name: path.read_bytes() for path in output.glob("*.tar")}


def state(output):
    """Inode and time of each tar: another one has been written again."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in output.glob("*.tar")}


def shard_of(output, value):
    """Name of the tar that holds the image of a grey value."""
    for path in sorted((output / "private").glob("*-*.csv")):
        if f",{value:02d}.png," in path.read_text():
            return f"{path.stem}.tar"
    raise KeyError(value)


def history(output):
    entries = read_json(output / "history.json")
    assert entries == read_json(output / "dataset.json")["history"]
    for entry in entries:
        assert len(entry.pop("date")) == 10
    return entries
