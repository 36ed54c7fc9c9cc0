"""Metrics of a run: `metrics.jsonl`, and the same as TensorBoard events."""

import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from data_prep.common.files import write_text


class Metrics:
    """Writes one line per logged step.

    Args:
        folder: Run folder.
        step: Steps already done; later lines of an earlier try are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.file = self.path.open("a", encoding="utf-8")
        self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append the values of one step."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close both."""
        self.file.close()
        self.events.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Rows of a run's `metrics.jsonl`; a last line cut short by a crash is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
