"""Files whose decoder ends the whole process: known after it, and read in a process of their own.

While a shard is written, `.reading-SHARD` in the output folder holds the key of the reference that
is being read. A run that finds the file of an earlier one reads that reference in another process:
if that ends too, the file is to blame and is quarantined; if not, as after a power cut, it is read
as any other.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
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


@contextmanager
def reading(mark: Path, source: Source, salt: str) -> Iterator[Callable[[Reference], Read]]:
    """A function that reads a reference as `read_reference`, and notes which it is reading.

    Args:
        mark: File of the note. It is removed at the end, and stays if the process ends before.
    """
    suspect = mark.read_text(encoding="ascii") if mark.is_file() else None
    file = os.open(mark, os.O_WRONLY | os.O_CREAT, 0o666)

    def read(reference: Reference) -> Read:
        key = record_key(reference, salt)
        os.pwrite(file, key.encode("ascii"), 0)  # keys are of one length
        read_it = read_alone if key == suspect else read_reference
        return read_it(reference, source, salt)

    try:
        yield read
    finally:
        os.close(file)
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
