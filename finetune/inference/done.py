"""Which images of a table are done, and what their rows said then."""

import json
from pathlib import Path
from typing import Any

from data_prep.common.errors import UserError
from data_prep.common.files import write_text
from finetune.inference.rows import Listed
from finetune.inference.task import Task
from finetune.inference.uncertainty import Spread

RECORD = "rows.jsonl"
"""Name of the record in the folder of the masks."""


class Done:
    """The record of a folder of masks: a line per image, written once its mask is there.

    Args:
        folder: Of the masks.
        input: Of the images.
        overlay: Whether a picture is written with each mask.
        spread: Whether, if not None, a map of uncertainty is.
    """

    def __init__(
        self, folder: Path, input: Path, overlay: bool, spread: Spread | None = None
    ) -> None:
        self._folder, self._input, self._overlay, self._spread = folder, input, overlay, spread
        self._records = _read(folder / RECORD)
        lines = (json.dumps(each, ensure_ascii=False) for each in self._records.values())
        write_text(folder / RECORD, "".join(f"{line}\n" for line in lines))
        self._owners: dict[Path, str] = {}
        for name, record in self._records.items():
            task = self._task(record)
            if task.output.exists():
                self._owners |= dict.fromkeys(task.outputs, name)

    def holds(self, listed: Listed) -> bool:
        """Whether all that is to be written for an image is there, made by the same rows."""
        record = self._records.get(listed.name)
        if record is None or record["rows"] != listed.digest:
            return False
        return all(path.exists() for path in self._task(record).outputs)

    def has_changed(self, listed: Listed) -> bool:
        """Whether an image was done by other rows than it has now."""
        record = self._records.get(listed.name)
        return record is not None and record["rows"] != listed.digest

    def claim(self, task: Task, listed: Listed) -> None:
        """Refuse to write over what belongs to another image.

        Raises:
            UserError: Names both.
        """
        for path in task.outputs:
            if (other := self._owners.setdefault(path, listed.name)) != listed.name:
                raise UserError(f"{path.name} would be written for it, and is written for {other}")

    def add(self, listed: Listed, output: Path) -> None:
        """Note that the mask of an image is written."""
        where = output.relative_to(self._folder).as_posix()
        record = {"file": listed.name, "rows": listed.digest, "output": where}
        with (self._folder / RECORD).open("ab") as file:
            file.write(f"{json.dumps(record, ensure_ascii=False)}\n".encode())
        self._records[listed.name] = record

    def _task(self, record: dict[str, str]) -> Task:
        output = self._folder / record["output"]
        input = self._input / record["file"]
        return Task(
            input=input, output=output, wanted=[], overlay=self._overlay, spread=self._spread
        )


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The newest line of each image; a last one that was cut short is left out.

    Raises:
        UserError: It is something else.
    """
    records: dict[str, dict[str, Any]] = {}
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not all(isinstance(record[name], str) for name in ("file", "rows", "output")):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            if number == len(lines):  # a process was killed while it wrote
                break
            raise UserError(f"{path}: line {number} is damaged; remove it") from None
        records[record["file"]] = record
    return records
