"""A comparison as files: Markdown, CSV, LaTeX, and one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from data_prep.common.files import write_text
from finetune.evaluation import page
from finetune.evaluation.comparison.cases import draw_cases
from finetune.evaluation.comparison.clicks import curves_by_clicks
from finetune.evaluation.comparison.forms import Table, comma_separated, html, latex, markdown
from finetune.evaluation.comparison.paired import Comparison
from finetune.evaluation.comparison.results import Evaluated
from finetune.evaluation.comparison.tables import (
    MANY,
    clicks_table,
    differences_table,
    prompts_table,
    scores_table,
)
from finetune.evaluation.drawing import draw_dice_by_clicks

NAME = "comparison"
LATEX_START = r"""% Needs \usepackage{booktabs,longtable,pdflscape}, and fits a page with
% \usepackage[margin=1cm]{geometry}.
\begin{landscape}
\tiny
\setlength{\tabcolsep}{3pt}

"""
LATEX_END = "\n\\end{landscape}\n"
CASES = (
    "Blue: the prediction; yellow line: the truth. Of a volume, the slice in which the target is"
    " largest; the Dice is that of the volume. best and worst: highest and lowest mean Dice over"
    " the runs; differing: the widest range between them."
)


def tables_of(runs: Mapping[str, Evaluated], comparison: Comparison) -> list[Table]:
    """The tables of a comparison; the first one is Dice by prompt."""
    tables = [prompts_table(comparison), scores_table(runs), differences_table(comparison)]
    clicks = clicks_table(runs)
    return tables if clicks is None else [*tables, clicks]


def as_markdown(tables: Sequence[Table]) -> str:
    """The first table, and the others under headings."""
    first, *others = tables
    return "\n".join(
        [markdown(first), *(f"## {each.title}\n\n{markdown(each)}" for each in others)]
    )


def write_report(
    folder: Path,
    runs: Mapping[str, Evaluated],
    comparison: Comparison,
    tables: Sequence[Table],
    cases: int,
) -> None:
    """Write everything into a folder.

    Args:
        tables: From `tables_of`.
        cases: Number of cases to be shown of each kind, see `choose_cases`.
    """
    figures = folder / "figures"
    figures.mkdir(parents=True)
    for table in tables[1:]:  # the first one has the same figures as that of the differences
        write_text(folder / f"{table.name}.csv", comma_separated(table))
    printed = tables[1:] if len(runs) > MANY else tables  # what would be too wide for a page
    write_text(folder / f"{NAME}.tex", LATEX_START + "\n".join(map(latex, printed)) + LATEX_END)
    summaries, clicks = curves_by_clicks(runs)
    shown: dict[Path, str] = {}
    if clicks:
        path = figures / "dice_by_clicks.png"
        draw_dice_by_clicks(summaries, clicks, path)
        shown[path] = "Mean Dice by clicks, with its 95 % interval if there is one."
    pictures = draw_cases(runs, comparison.reference, cases, figures)

    links = [f"![{caption}](figures/{path.name})" for path, caption in (shown | pictures).items()]
    text = as_markdown(tables) + "".join(f"\n{link}\n" for link in links)
    write_text(folder / f"{NAME}.md", text)
    title = f"Comparison of {', '.join(runs)}"
    body = [f"<h1>{escape(title)}</h1>"]
    for table in tables:
        body += html(table)
    body += [page.figure(path, caption) for path, caption in shown.items()]
    if pictures:
        body += ["<h2>Cases side by side</h2>", page.paragraph(CASES)]
        body += [page.figure(path, caption) for path, caption in pictures.items()]
    write_text(folder / f"{NAME}.html", page.document(title, body))
