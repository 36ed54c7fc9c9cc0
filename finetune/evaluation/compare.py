"""`python -m finetune compare`: runs evaluated on the same cases, side by side."""

import sys
from dataclasses import replace

from data_prep.common.cli import write_resolved_config
from data_prep.common.errors import UserError
from data_prep.common.files import new_folder, write_text
from data_prep.common.messages import nearest
from finetune.config import CompareConfig
from finetune.evaluation.comparison.clicks import way_of
from finetune.evaluation.comparison.forms import markdown
from finetune.evaluation.comparison.paired import compare
from finetune.evaluation.comparison.report import NAME, as_markdown, tables_of, write_report
from finetune.evaluation.comparison.results import Evaluated, read_evaluation
from finetune.evaluation.comparison.tables import notes_on_missing


def compare_runs(config: CompareConfig, resolved: str) -> None:
    """Compare evaluated runs case by case: tables, tests, curves and pictures."""
    names = config.names or [folder.resolve().name for folder in config.results]
    if not all(name.strip() for name in names):
        raise UserError("names: a name is empty; give each run one")
    if len(set(names)) < len(names):
        raise UserError(f"names: give different names to the runs, which are {', '.join(names)}")
    runs = {
        name: read_evaluation(folder) for name, folder in zip(names, config.results, strict=True)
    }
    _require_one_tolerance(runs)
    runs = _with_groups(runs)
    if config.protocols is not None:
        runs = _only(runs, config.protocols)
    comparison = compare({name: run.rows for name, run in runs.items()}, config.reference)
    tables = tables_of(runs, comparison)
    if config.output is not None and config.output.suffix == ".md":
        write_text(config.output, as_markdown(tables))
    elif config.output is not None:
        with new_folder(config.output) as folder:
            write_report(folder, runs, comparison, tables, config.cases)
            write_resolved_config(folder, resolved)
    print(markdown(tables[0]), end="")
    if config.output is not None:
        for note in notes_on_missing(runs):
            print(f"warning: {note}", file=sys.stderr)
        page = config.output if config.output.suffix == ".md" else config.output / f"{NAME}.html"
        print(f"\nwritten: {page}")


def _require_one_tolerance(runs: dict[str, Evaluated]) -> None:
    known = {name: run.tolerance for name, run in runs.items() if run.tolerance is not None}
    first = next(iter(known), "")
    for name, tolerance in known.items():
        if tolerance != known[first]:
            raise UserError(
                f"the NSD of {first} is at {known[first]:g} and that of {name} at {tolerance:g};"
                " evaluate both with the same --tolerance"
            )


def _with_groups(runs: dict[str, Evaluated]) -> dict[str, Evaluated]:
    """The rows of earlier versions, which know no groups, with those that other runs know.

    Raises:
        UserError: A case belongs to different groups in two runs.
    """
    groups: dict[str, str] = {}
    for name, run in runs.items():
        for row in run.rows:
            if row.group and groups.setdefault(row.case, row.group) != row.group:
                raise UserError(
                    f"{name}: case {row.case} belongs to another group, such as a patient, than in"
                    " the runs before it; evaluate all on the same shard set"
                )
    return {
        name: replace(
            run, rows=[replace(row, group=groups.get(row.case, row.group)) for row in run.rows]
        )
        for name, run in runs.items()
    }


def _only(runs: dict[str, Evaluated], protocols: list[str]) -> dict[str, Evaluated]:
    """The rows of some protocols, and the clicks of the ways in which they click.

    Raises:
        UserError: No run has one of them, or a run has none of them.
    """
    known = {row.protocol for run in runs.values() for row in run.rows}
    for wanted in protocols:
        if wanted not in known:
            raise UserError(f"protocols: no run has rows for {wanted!r}{nearest(wanted, known)}")
    ways = {way_of(protocol) for protocol in protocols}
    chosen = {
        name: replace(
            run,
            rows=[row for row in run.rows if row.protocol in protocols],
            clicks=[each for each in run.clicks if way_of(each.protocol) in ways],
        )
        for name, run in runs.items()
    }
    if empty := [name for name, run in chosen.items() if not run.rows]:
        raise UserError(f"protocols: {empty[0]} has rows for none of {', '.join(protocols)}")
    return chosen
