"""Pieces of a self-contained HTML page: text, tables, and pictures as part of the file."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = """
body { margin: 0 auto; padding: 2rem 1.5rem 5rem; max-width: 70rem; color: #1d2329;
  background: #fff; font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .6rem; padding-top: .9rem; border-top: 1px solid #d7dce1; }
p, ul { max-width: 46rem; margin: .6rem 0; }
li { margin: .3rem 0; }
.limits { background: #fdf6e3; border-left: 4px solid #d9a520; padding: .2rem 1.2rem .4rem;
  max-width: 45rem; margin: 1.2rem 0; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .28rem 1.3rem .28rem 0; border-bottom: 1px solid #e6e9ec;
  vertical-align: top; }
th { border-bottom: 2px solid #9aa4ad; font-weight: 600; }
figure { margin: 1.2rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
@media (max-width: 40rem) {
  figure { overflow-x: auto; }
  figure img.wide { max-width: none; width: 44rem; }
}
figcaption { color: #57616b; font-size: .88rem; max-width: 46rem; margin-top: .4rem; }
"""


def document(title: str, body: Iterable[str]) -> str:
    """A whole page that refers to nothing outside itself."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def paragraph(text: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text, which scrolls sideways on a narrow screen.

    Every row has as many cells as the header.
    """
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows]
    return '<div class="table"><table>\n' + "\n".join(lines) + "\n</table></div>"


def figure(path: Path, caption: str, width: int | None = None) -> str:
    """A PNG file as part of the page, with its caption.

    Args:
        width: Pixels at most. None: a wide picture, which scrolls sideways on a narrow screen.
    """
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    size = f' style="width: {width}px"' if width is not None else ' class="wide"'
    alt = escape(caption or path.stem)
    return (
        f'<figure><img alt="{alt}"{size} src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
