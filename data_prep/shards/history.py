"""What became of a set since its first run."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.common.files import write_json
from data_prep.format.index import index_path, read_json
from data_prep.shards.manifest import Shard
from data_prep.shards.private import table_path

HISTORY = "history.json"


def read_history(output: Path) -> list[dict[str, Any]]:
    """The extensions of a set so far."""
    path = output / HISTORY
    history: list[dict[str, Any]] = read_json(path) if path.is_file() else []
    return history


def extension_number(output: Path) -> int:
    """Number of the extension that is under way or comes next; the first run is 0."""
    return len(read_history(output)) + 1


def extended_history(
    shards: Sequence[Shard], indexes: Sequence[dict[str, Any]], output: Path
) -> list[dict[str, Any]]:
    """The history of a set that is whole now, with the extension that made it so.

    Shards of which no file is left in the input are removed.

    Args:
        indexes: Those of `shards`, without their records.
    """
    removed = _remove_others({shard.name for shard in shards}, output)
    history = read_history(output)
    number = len(history) + 1
    added = sum(len(shard.references) for shard in shards if shard.extension == number)
    revised = sum(index.get("revised") == number for index in indexes)
    if added or revised or removed:
        history.append(
            {
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "files": sum(len(shard.references) for shard in shards),
                "files_added": added,
                "shards_made_again": revised,
                "shards_removed": removed,
            }
        )
        write_json(output / HISTORY, history)
    return history


def _remove_others(names: set[str], output: Path) -> int:
    removed = 0
    for path in output.glob("*-*.index.json"):
        name = path.name.removesuffix(".index.json")
        if name not in names:
            tar = output / f"{name}.tar"
            for part in (tar, table_path(output, name), index_path(tar)):
                part.unlink(missing_ok=True)
            removed += 1
    return removed
