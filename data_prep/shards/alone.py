"""Files whose decoder ends the whole process: known after it, and read in a process of their own.

While a shard is written, `.reading-SHARD` in the output folder holds the key of the reference that
is being read. A run that finds the file of an earlier one reads that reference in another process:
if that ends too, the file is to blame and is quarantined; if not, as after a power cut, it is read
as any other.
"""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from data_prep.readers.quiet import quiet
from data_prep.records import NotAnImage, Reference, Source, Unreadable, record_key
from data_prep.shards.encode import Encoded, read_reference

ENDED = "its decoder ended the process"
"""How the reason of such a file begins."""

Read = tuple[list[Encoded], list[NotAnImage | Unreadable]]


class Reading:
    """Reads the references of one shard, and notes which is being read.

    Args:
        mark: File of the note.
    """

    def __init__(self, mark: Path, source: Source, salt: str) -> None:
        self.source, self.salt = source, salt
        self._suspect = mark.read_text(encoding="ascii") if mark.is_file() else None
        self._file = os.open(mark, os.O_WRONLY | os.O_CREAT, 0o666)

    def __call__(self, reference: Reference) -> Read:
        """See `read_reference`."""
        key = record_key(reference, self.salt)
        os.pwrite(self._file, key.encode("ascii"), 0)  # keys are of one length
        if key == self._suspect:
            return read_alone(reference, self.source, self.salt)
        return read_reference(reference, self.source, self.salt)

    def close(self) -> None:
        """Close the note."""
        os.close(self._file)


@contextmanager
def reading(mark: Path, source: Source, salt: str) -> Iterator[Reading]:
    """A `Reading` whose note is removed at the end, and stays if the process ends before."""
    reader = Reading(mark, source, salt)
    try:
        yield reader
    finally:
        reader.close()
        mark.unlink(missing_ok=True)


def read_alone(reference: Reference, source: Source, salt: str) -> Read:
    """As `read_reference`, in a process of its own, which a decoder may end."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    alone = replace(source, references=[])
    process = context.Process(target=_send, args=(sender, reference, alone, salt), daemon=True)
    process.start()
    sender.close()
    try:
        result: Read = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"status {code}"
        return [], [Unreadable(f"{ENDED} ({how})")]
    finally:
        receiver.close()
    process.join()
    return result


def _send(sender: Connection, reference: Reference, source: Source, salt: str) -> None:
    with quiet():
        sender.send(read_reference(reference, source, salt))
