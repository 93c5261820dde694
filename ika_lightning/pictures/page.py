"""Pages of HTML that need no other file: their pictures are inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

__all__ = ["page", "picture", "table"]

_STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { font-weight: 600; } img { max-width: 100%; display: block; margin: .5rem 0 1.5rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { border-bottom: 1px solid #ccc; padding: .2rem .8rem .2rem 0;
text-align: left; vertical-align: top; } code { background: #f3f3f3; padding: 0 .2rem; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """Return a whole page.

    Args:
        title: The title of the window.
        parts: What is on the page, as HTML.
    """
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>\n{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def picture(name: str, png: bytes) -> str:
    """Return a picture that is inside the page.

    Args:
        name: What it shows.
        png: The picture.

    Example:
        >>> picture("a < b", b"")
        '<img alt="a &lt; b" title="a &lt; b" src="data:image/png;base64,">'
    """
    said = html.escape(name)
    return f'<img alt="{said}" title="{said}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Return a table.

    Args:
        header: Titles of the columns; if all are empty, there is no header.
        rows: Its cells, row by row.

    Example:
        >>> table(("", ""), [("a", "<b>")])
        '<table>\n<tr><td>a</td><td>&lt;b&gt;</td></tr>\n</table>'
    """
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)] if any(header) else []
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return "\n".join(["<table>", *(f"<tr>{line}</tr>" for line in lines), "</table>"])
