"""What the processes of a run tell each other through its folder, which all must see."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator

from data_prep.common.errors import UserError
from data_prep.common.files import write_text
from pretrain.engine.resume import on_rank_0, refuse_strangers

SHARED_SECONDS = 120.0
"""How long a file may take to be seen on other nodes: NFS remembers up to a minute that there was
none."""


@contextmanager
def note(folder: Path, name: str, text: str) -> Iterator[None]:
    """A hidden file in a folder. It is gone afterwards, and so are the folders made for it.

    Raises:
        UserError: It cannot be written.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    path = folder / f".{name}"
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        except OSError as error:
            raise UserError(f"output {folder} cannot be written ({error.strerror})") from None
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
            for each in made:  # the innermost first; one that is in use stays
                each.rmdir()


def read_note(folder: Path, name: str) -> str | None:
    """The text of a note, or None if this process does not see it (yet)."""
    try:
        os.listdir(folder)  # noqa: PTH208 - makes NFS ask the server again
        return (folder / f".{name}").read_text(encoding="utf-8")
    except OSError:
        return None


def check_shared(run: Path, accelerator: Accelerator, seconds: float = SHARED_SECONDS) -> None:
    """Whether all processes see the run folder of the main one. It need not be there yet.

    Raises:
        UserError: One does not, so that the folder must be on a disk of its node; or the folder
            cannot be written.
    """
    if accelerator.num_processes == 1:
        return
    token = on_rank_0(accelerator, lambda: secrets.token_hex(16))
    name = f"shared-{token[:8]}"
    with ExitStack() as stack:
        on_rank_0(accelerator, lambda: stack.enter_context(note(run, name, token)))
        deadline = time.monotonic() + seconds
        while not (sees := read_note(run, name) == token) and time.monotonic() < deadline:
            time.sleep(0.1)
        refuse_strangers(run, accelerator, sees, "writes there")
