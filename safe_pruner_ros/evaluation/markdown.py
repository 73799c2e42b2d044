"""Markdown tables, to paste into docs."""

from __future__ import annotations

from collections.abc import Sequence

LEFT = ('task', 'method', 'run')


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; names to the left, all else to the right."""
    rules = ['---' if name in LEFT else '---:' for name in head]
    return ''.join('| ' + ' | '.join(row) + ' |\n' for row in (head, rules, *rows))
