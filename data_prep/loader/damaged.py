"""Records that cannot be read: listed once, and replaced by others in a reproducible way."""

import fcntl
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.errors import DamagedError, UserError
from data_prep.loader.dataset import Record, ShardDataset

MOST = 0.01
"""Largest share of the records that may be damaged."""
ATTEMPTS = 100
"""Replacements tried for one sample."""


class DamagedList:
    """A file with a line for each record that could not be read, shared by all processes of a run.

    A line holds the record's `index` in the data set, its `shard` and `position` in that, and the
    `reason`. Each process adds under a lock what none has added yet, so that a record has one line
    however often and wherever it is drawn.

    Args:
        path: The file; its folder need not exist before the first record is added.
        records: Size of the data set.
    """

    def __init__(self, path: Path, records: int) -> None:
        self.path, self.records = path, records
        self._listed: set[int] = set()
        self._read = 0  # bytes of the file that are in the set

    def add(self, index: int, shard: str, position: int, reason: str) -> None:
        """List a record, if no process has done so.

        Raises:
            UserError: More than `MOST` of the records are damaged.
        """
        if index not in self._listed:
            line = {"index": index, "shard": shard, "position": position, "reason": reason}
            try:
                self._append(line)
            except OSError as error:  # a full disk; the next start of the run lists it
                warning = f"warning: {self.path} cannot be written ({error.strerror}): {line}"
                print(warning, file=sys.stderr, flush=True)
            self._listed.add(index)
        if len(self._listed) > MOST * self.records:
            raise UserError(
                f"{self.path}: lists {len(self._listed)} damaged records, more than {MOST:.0%} of"
                f" {self.records}; the last: {reason}"
            )

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._catch_up()
            if line["index"] in self._listed:
                return
            file.truncate(self._read)  # half a line of a process that was killed
            file.write(json.dumps(line).encode() + b"\n")
            if not self._listed:
                warning = f"warning: {line['reason']}; replaced, and listed in {self.path}"
                print(warning, file=sys.stderr, flush=True)

    def count(self) -> int:
        """How many records all processes have listed, now and in earlier starts of the run."""
        self._catch_up()
        return len(self._listed)

    def _catch_up(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]  # the last one may still be written
        self._listed |= {json.loads(line)["index"] for line in whole.splitlines()}
        self._read += len(whole)


def read_or_replace(
    part: ShardDataset, index: int, draw: int, damaged: DamagedList, first: int = 0
) -> Record:
    """A record, or where it is damaged another one of the same set.

    Which one is a pure function of (seed, index, draw): all that is damaged in one shard is
    replaced from one other shard per epoch, which keeps reading local, by a record drawn for each
    sample.

    Args:
        index: The record's index in `part`.
        draw: Position of the sample in the endless stream.
        first: Index in the whole data set of the first record of `part`.

    Raises:
        UserError: Too much is damaged, see `DamagedList.add`, or nothing else can be read.
    """
    wanted, attempt = index, 0
    home, _ = part.position(index)
    while True:
        try:
            return part.record(wanted)
        except DamagedError as error:
            shard, position = part.position(wanted)
            damaged.add(first + wanted, part.shards[shard].name, position, str(error))
            if attempt == ATTEMPTS:
                raise UserError(f"{error}; no other record was found in its place") from None
        attempt += 1
        epoch = draw // len(part)
        near = int(np.random.default_rng([part.seed, epoch, home, attempt]).integers(len(part)))
        shard, position = part.position(near)
        drawn = np.random.default_rng([part.seed, draw, attempt]).integers(part.counts[shard])
        wanted = near - position + int(drawn)
