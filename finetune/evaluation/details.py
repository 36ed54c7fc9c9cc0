"""What an evaluation keeps for `compare`, beside its rows: files of its own in the result folder.

`clicks.csv` has the Dice after each click, `times.csv` the time of each answer, `model.json` the
number of parameters, and `pictures.zip` small pictures. Only these depend on the machine, so that
`results.csv` is the same wherever it is made.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

from data_prep.common.files import write_text
from finetune.evaluation.thumbnails import ThumbnailWriter

CLICKS, TIMES, MODEL, PICTURES = "clicks.csv", "times.csv", "model.json", "pictures.zip"
PROGRAM = "program"
"""Key of `MODEL` where another program made the masks: its name."""


@dataclass(frozen=True)
class ClickDice:
    """Dice of one target of a case after a number of clicks."""

    case: str
    target: str
    protocol: str
    """As `3 clicks` or `3 clicks per slice`."""
    clicks: int
    dice: float
    group: str = ""
    """As of `Row`."""


@dataclass(frozen=True)
class Seconds:
    """How long the model took for one target of a case under one protocol."""

    case: str
    target: str
    protocol: str
    seconds: float
    """Of encoding and decoding. Targets that were asked for together have equal shares, so that
    those of a case add up to the time of the case."""


@dataclass
class Details:
    """What was kept of an evaluation.

    Args:
        side: Longest side of the pictures in pixels; 0: none.
    """

    side: int = 0
    clicks: list[ClickDice] = field(default_factory=list)
    seconds: list[Seconds] = field(default_factory=list)
    thumbnails: ThumbnailWriter = field(default_factory=ThumbnailWriter)

    def write(self, folder: Path) -> None:
        """Write its files; one that would hold nothing is left out."""
        for name, kind, rows in (
            (CLICKS, ClickDice, self.clicks),
            (TIMES, Seconds, self.seconds),
        ):
            if rows:
                columns = [column.name for column in fields(kind)]
                write_text(folder / name, to_csv(columns, map(astuple, rows)))
        if self.thumbnails:
            self.thumbnails.write(folder / PICTURES)


def to_csv(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A table as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()
