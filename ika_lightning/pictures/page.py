"""Pages of HTML that need no other file: their pictures are inside."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence

__all__ = ["gallery", "page", "picture", "table"]

# Pictures have a white card in the dark, too: their colours are made for it. A click makes a picture the target of the
# page's address, and a target fills the window, without a script; the way back is a link or the browser's own.
_STYLE = """\
:root { color-scheme: light dark; --text: #222; --quiet: #555; --back: #fff; --line: #ccc; --code: #f3f3f3; }
@media (prefers-color-scheme: dark) {
:root { --text: #ddd; --quiet: #aaa; --back: #17191c; --line: #444; --code: #26292d; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; color: var(--text);
background: var(--back); overflow-wrap: anywhere; }
h1, h2 { font-weight: 600; line-height: 1.2; } p { max-width: 46rem; } a { color: inherit; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
.table { overflow-x: auto; } table { border-collapse: collapse; margin: 1rem 0; }
td, th { border-bottom: 1px solid var(--line); padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top;
min-width: 4rem; } th, td:first-child { overflow-wrap: normal; } .numbers td { white-space: nowrap; }
code { background: var(--code); padding: 0 .2rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 29rem), 1fr)); gap: 1.5rem;
align-items: start; margin: 1rem 0 2rem; }
figure { margin: 0; } figcaption { color: var(--quiet); font-size: .875rem; line-height: 1.4; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
border-radius: .3rem; box-sizing: border-box; } figure img[src*="svg"] { width: 100%; }
figure > a { display: block; cursor: zoom-in; } figure > .close { display: none; }
figure:target { position: fixed; inset: 0; z-index: 1; overflow: auto; padding: 0 1rem 1rem; background: var(--back); }
figure:target > .close { display: block; position: sticky; left: 0; top: 0; width: 5rem; padding: .6rem 0;
cursor: pointer; }
figure:target img { max-width: none; min-width: 48rem; } figure:target figcaption { max-width: 46rem; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """Return a whole page, for windows of any width, bright or dark as its reader likes it.

    Args:
        title: The title of the window.
        parts: What is on the page, as HTML.
    """
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>\n{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def gallery(pictures: Sequence[str]) -> str:
    """Put pictures side by side, as many as the window has room for."""
    return "\n".join(['<div class="gallery">', *pictures, "</div>"])


def picture(name: str, image: bytes, caption: str = "") -> str:
    """Return a picture that is inside the page, and fills the window after a click.

    Args:
        name: What it shows.
        image: The picture, a PNG or an SVG.
        caption: What there is to know of it.

    Example:
        >>> print(picture("a/b < c", b"<svg/>", "Of 3 & more."))
        <div id="a-b-c"><figure id="a-b-c-full">
        <a class="close" href="#a-b-c">close</a>
        <a href="#a-b-c-full"><img alt="a/b &lt; c" src="data:image/svg+xml;base64,PHN2Zy8+"></a>
        <figcaption><strong>a/b &lt; c</strong> Of 3 &amp; more.</figcaption>
        </figure></div>
    """
    said, place = html.escape(name), re.sub(r"\W+", "-", name).strip("-") or "picture"
    kind = "png" if image.startswith(b"\x89PNG") else "svg+xml"
    source = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    return (
        f'<div id="{place}"><figure id="{place}-full">\n<a class="close" href="#{place}">close</a>\n'
        f'<a href="#{place}-full"><img alt="{said}" src="{source}"></a>\n'
        f"<figcaption><strong>{said}</strong> {html.escape(caption)}</figcaption>\n</figure></div>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    r"""Return a table, which scrolls by itself where the window is too narrow for it.

    Args:
        header: Titles of the columns; if all are empty, there is no header.
        rows: Its cells, row by row.
        numbers: Whether its cells are numbers, which are misread where a line breaks them.

    Example:
        >>> table(("", ""), [("a", "<b>")])
        '<div class="table"><table>\n<tr><td>a</td><td>&lt;b&gt;</td></tr>\n</table></div>'
    """
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)] if any(header) else []
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    kind = "table numbers" if numbers else "table"
    return "\n".join([f'<div class="{kind}"><table>', *(f"<tr>{line}</tr>" for line in lines), "</table></div>"])
