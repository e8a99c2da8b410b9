"""A report as one HTML file that needs nothing else: text escaped, figures and style inside, no script."""

import base64
import html
from collections.abc import Mapping, Sequence

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #24292f; --faint: #667080; --line: #d8dde3; --mark: #f2f4f7 }
@media (prefers-color-scheme: dark) {
  :root { --back: #15181d; --text: #dfe3e8; --faint: #98a2af; --line: #3a414b; --mark: #1f242b }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.15rem; margin: 2.4rem 0 .5rem }
p { margin: .4rem 0 } .faint { color: var(--faint) } .scroll { overflow-x: auto }
nav { margin: 1rem 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem } a { color: inherit }
figure { margin: .6rem 0; overflow-x: auto } img { display: block; height: auto; max-width: max(100%, 30rem) }
table { border-collapse: collapse; font-size: .9rem }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
td.number, th.number { text-align: right; white-space: nowrap }
td { overflow-wrap: anywhere } table.facts td:first-child { white-space: nowrap; color: var(--faint) }
code { background: var(--mark); padding: .1rem .3rem; overflow-wrap: anywhere }
summary { cursor: pointer; margin: .5rem 0 }
"""


def page(title: str, summary: str, sections: Mapping[str, str]) -> str:
    """The whole file: a heading, a line, and sections of HTML by their titles."""
    links = "".join(f'<a href="#s{number}">{html.escape(name)}</a>' for number, name in enumerate(sections))
    body = "".join(
        f'<section id="s{number}"><h2>{html.escape(name)}</h2>{content}</section>\n'
        for number, (name, content) in enumerate(sections.items())
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>{paragraph(summary)}<nav>{links}</nav>\n{body}</body></html>\n"
    )


def paragraph(text: str, faint: bool = False) -> str:
    """A paragraph of plain text."""
    return f"<p{' class=faint' if faint else ''}>{html.escape(text)}</p>"


def code(text: str) -> str:
    """A command line."""
    return f"<p><code>{html.escape(text)}</code></p>"


def figure(light: bytes, dark: bytes, text: str) -> str:
    """A picture, PNG, with a form for dark screens; `text` says what it shows to who cannot see it."""
    sources = [f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in (dark, light)]
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{sources[0]}">'
        f'<img alt="{html.escape(text)}" src="{sources[1]}"></picture></figure>'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of texts; `numbers` are the columns to align right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        mark = dict.fromkeys(numbers, " class=number")
        return "".join(f"<{tag}{mark.get(n, '')}>{html.escape(cell)}</{tag}>" for n, cell in enumerate(row))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{cells('th', header)}</tr></thead><tbody>{body}</tbody></table></div>"


def facts(rows: Mapping[str, str]) -> str:
    """Names and values."""
    body = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in rows.items()
    )
    return f"<div class=scroll><table class=facts><tbody>{body}</tbody></table></div>"


def details(summary: str, content: str) -> str:
    """Content that is shown on demand."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"
