"""The parts that pages are made of: each takes words and gives HTML; text becomes text, never markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from deploy import figures


def paragraph(text: str) -> str:
    """Write a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def nothing(text: str) -> str:
    """Say in words that there is nothing to show."""
    return f'<p class="nothing">{html.escape(text)}</p>'


def picture(figure: Figure, caption: str) -> str:
    """Put a picture into the page, with words below it."""
    words = html.escape(caption)
    return (
        f'<figure><img src="{figures.to_data_uri(figure)}" alt="{words}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Write a table of names and values."""
    body = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows)
    return f'<table class="facts"><tbody>{body}</tbody></table>'


def counted(number: int, noun: str) -> str:
    """Write a number with its noun, in the plural where there is not one."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def folded(title: str, content: str) -> str:
    """Hide something behind its title until it is asked for."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"
