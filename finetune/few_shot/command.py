"""`python -m finetune few_shot`: runs of few cases, their table and their curves."""

import sys

from data_prep.common.errors import UserError
from finetune.few_shot.arms import find_arms
from finetune.few_shot.config import FewShotConfig
from finetune.few_shot.report import write_report
from finetune.few_shot.study import check_folder, runs_of, take_folder
from finetune.few_shot.work import Failure, Interrupted, make_runs
from pretrain.engine.stop import INTERRUPTED


def few_shot(config: FewShotConfig, resolved: str) -> None:
    """Make the runs of a study that are not done, and write its table and figure.

    Raises:
        UserError: The options or the folder cannot be used; or, when all else is done, some runs
            could not be made.
        SystemExit: With status `INTERRUPTED`, after a signal.
    """
    runs = runs_of(config, find_arms(config))
    failures: list[Failure] = []
    if config.table_only:
        check_folder(config.output, runs)
    else:
        take_folder(config.output, resolved, runs)
        try:
            failures = make_runs(config, runs)
        except Interrupted:
            print("stopped; the same command goes on from there", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
    write_report(config, runs)
    if failures:
        reasons = dict.fromkeys(failure.reason for failure in failures)
        found = "; ".join(
            f"{' | '.join(run.title for run, why in failures if why == reason)}: {reason}"
            for reason in reasons
        )
        raise UserError(
            f"{len(failures)} of {len(runs)} runs failed: {found}. Fix the cause and run the same"
            " command again; finished runs are kept"
        )
