"""HTML of a report: one self-contained page with escaped text, embedded figures and style, and no script."""

import base64
import html
import importlib.resources
import string
from collections.abc import Mapping, Sequence

_PAGE = string.Template(importlib.resources.files(__package__).joinpath("report_page.html").read_text())


def page(title: str, summary: str, sections: Mapping[str, str]) -> str:
    """The whole page.

    Args:
      title, summary: plain text.
      sections: HTML of each section, by its heading.
    """
    names = [html.escape(name) for name in sections]
    links = "".join(f'<a href="#s{number}">{name}</a>' for number, name in enumerate(names))
    body = "".join(
        f'<section id="s{number}"><h2>{name}</h2>{content}</section>\n'
        for number, (name, content) in enumerate(zip(names, sections.values(), strict=True))
    )
    return _PAGE.substitute(title=html.escape(title), summary=paragraph(summary), links=links, sections=body)


def paragraph(text: str, faint: bool = False) -> str:
    """A paragraph of plain text, in a faint colour for captions and notes."""
    return f"<p{' class=faint' if faint else ''}>{html.escape(text)}</p>"


def code(text: str) -> str:
    """A paragraph with a command line."""
    return f"<p><code>{html.escape(text)}</code></p>"


def figure(light: bytes, dark: bytes, text: str) -> str:
    """A figure from two PNG files, for light and dark screens, with a caption that is also its alternative text."""
    sources = [f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in (dark, light)]
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{sources[0]}">'
        f'<img alt="{html.escape(text)}" src="{sources[1]}"></picture></figure>{paragraph(text, faint=True)}'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of plain text; the columns listed in `numbers` are aligned right."""
    head, body = _cells("th", header, numbers), "".join(f"<tr>{_cells('td', row, numbers)}</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def facts(rows: Mapping[str, str]) -> str:
    """A table of two columns, names and values."""
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows.items())
    return f"<div class=scroll><table class=facts><tbody>{body}</tbody></table></div>"


def _cells(tag: str, row: Sequence[str], numbers: Sequence[int] = ()) -> str:
    mark = dict.fromkeys(numbers, " class=number")
    return "".join(f"<{tag}{mark.get(n, '')}>{html.escape(cell)}</{tag}>" for n, cell in enumerate(row))


def details(summary: str, content: str) -> str:
    """HTML content that is hidden until its summary is clicked."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"
