"""One table in four forms: what is read is the same, and nothing is taken for markup."""

import csv
import math
import re
from html.parser import HTMLParser

from finetune.evaluation.comparison.forms import (
    Column,
    Table,
    comma_separated,
    html,
    interval,
    latex,
    markdown,
    number,
    spread,
    words,
)
from finetune.evaluation.statistics import Mean

HOSTILE = r"[a|b_c & 50% <script> \input{x} #1 $y$ ~ ^ *"
TABLE = Table(
    "table",
    "Figures of " + HOSTILE,
    [Column("run", ("run",)), spread("Dice", "dice"), Column("p", ("p",))],
    [
        [words(HOSTILE), interval(Mean(0.81234, 0.8, 0.82, 9)), number(0.0123456)],
        [words("b"), interval(Mean(-0.5, math.nan, math.nan, 1), "-0.500"), number(math.nan)],
    ],
    ["A note with 5 %.", "`p`: another."],
)


def test_markdown_keeps_cells_apart() -> None:
    lines = markdown(TABLE).splitlines()
    assert lines[0] == "| run | Dice | p |"
    assert lines[2].startswith(r"| [a\|b_c & 50%") and len(re.split(r"(?<!\\)\|", lines[2])) == 5
    assert lines[2].endswith("| 0.812 (0.800 to 0.820) | 0.0123 |")
    assert lines[3:] == ["| b | -0.500 | - |", "", "A note with 5 %. `p`: another."]


def test_csv_has_the_values() -> None:
    first, second = csv.DictReader(comma_separated(TABLE).splitlines())
    assert first["run"] == HOSTILE
    assert [float(first[name]) for name in ("dice", "dice_low", "dice_high", "p")] == [
        *(0.81234, 0.8, 0.82),
        0.0123456,
    ]
    assert second == {"run": "b", "dice": "-0.5", "dice_low": "", "dice_high": "", "p": ""}


def test_latex_is_balanced_and_escaped() -> None:
    text = latex(TABLE)
    assert r"\begin{longtable}{lll}" in text and r"\end{longtable}" in text
    (line,) = [line for line in text.splitlines() if line.startswith("{[}")]
    assert line == (
        r"{[}a\textbar{}b\_c \& 50\% \textless{}script\textgreater{} \textbackslash{}input\{x\}"
        r" \#1 \$y\$ \textasciitilde{} \textasciicircum{} {*} & 0.812 (0.800 to 0.820) & 0.0123 \\"
    )
    assert r"b & $-$0.500 & - \\" in text.splitlines()
    body = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert [len(re.split(r"(?<!\\)&", line)) for line in body] == [3, 3, 3]
    plain = re.sub(r"\\[{}]", "", "\n".join(ln for ln in text.splitlines() if ln[0] != "%"))
    assert plain.count("{") == plain.count("}")
    assert text.startswith("% A note with 5 %.\n% `p`: another.\n")


def test_html_shows_text_as_text() -> None:
    read: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert tag in ("h2", "div", "table", "tr", "th", "td", "p")

        def handle_data(self, data):
            read.append(data)

    Reader().feed("".join(html(TABLE)))
    assert HOSTILE in read and "0.812 (0.800 to 0.820)" in read and TABLE.title in read
    assert "A note with 5 %. 'p': another." in read
