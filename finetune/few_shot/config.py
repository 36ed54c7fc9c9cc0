"""Options of `few_shot`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_prep.common.errors import UserError
from data_prep.common.messages import nearest


@dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """Dice against the number of labelled cases: trains each arm with few cases, drawn several
    times, evaluates each run on the test split, and writes a table and a figure.

    The same command goes on after an interruption. More draws, numbers of cases and arms may be
    added later; what is there stays.
    """

    shards: Path
    """Folder of a segmentation shard set with the splits `train` and `test`."""
    arms: dict[str, Any]
    """What is compared, by name. Each arm is a mapping of options of finetune/train.py, as
    `{config: configs/finetune/laptop.yaml, encoder: runs/pretrain}`; `config` is a recipe or a list
    of them. It may have `protocols`, the simulated users of `evaluate`: without them [Clicks, Box],
    or [TargetOnly] for decoders without prompts."""
    output: Path
    """Folder for the runs, their evaluations, few_shot.md, few_shot.csv and few_shot.png; new, or
    one begun by the same command."""
    cases: list[int | Literal["all"]] = field(default_factory=lambda: [1, 3, 5, 10, "all"])
    """Numbers of labelled cases, such as patients, to train with: `1,3,5,10,all`."""
    draws: int = 3
    """Runs of each arm with each number of cases. A draw is a seed: it decides which cases are
    used, the same for all arms, and all else that is random. In a draw, more cases include
    fewer."""
    training: dict[str, Any] = field(default_factory=dict)
    """Options of finetune/train.py for all arms; those of an arm have precedence."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """Options of `evaluate` for all arms, as `{data.cases: 50}` for 50 of the test cases."""
    baseline: str | None = None
    """Arm with which the others are compared, case by case; null: the first one."""
    threads: int | None = None
    """CPU threads of each run; null: all cores."""
    task: int = 0
    """Index of this task of a job array: it makes the runs task, task + tasks, ..."""
    tasks: int = 1
    """Number of tasks of a job array."""
    keep_runs: bool = True
    """Keep the run folders; false removes each once it is evaluated, which saves disk space."""
    table_only: bool = False
    """Train nothing; write table and figure of what is there."""

    def __post_init__(self) -> None:
        if not self.arms:
            raise UserError("arms: there is none; give at least one, as {mae: {config: FILE}}")
        if not self.cases:
            raise UserError("cases: the list is empty; give at least one number, or all")
        for number in self.cases:
            if number != "all" and number < 1:
                raise UserError(f"cases: {number} is not 1 or more")
        if len(set(self.cases)) < len(self.cases):
            raise UserError("cases: a number is given twice")
        if self.draws < 1:
            raise UserError(f"draws is {self.draws}; it must be at least 1")
        if self.tasks < 1 or not 0 <= self.task < self.tasks:
            raise UserError(f"task: {self.task} is not one of 0 to {self.tasks - 1} (--tasks)")
        if self.baseline is not None and self.baseline not in self.arms:
            hint = nearest(self.baseline, self.arms) or f"; there are {', '.join(self.arms)}"
            raise UserError(f"baseline: there is no arm {self.baseline!r}{hint}")
