"""What a check before the start found, one line each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal['ok', 'note', 'problem']


@dataclass(frozen=True)
class Finding:
    """``text`` of a problem ends with what to do about it."""

    level: Level
    subject: str
    text: str

    def __str__(self) -> str:
        return f'{self.level.upper():8} {self.subject}: {self.text}'


def ask(subject: str, question: Callable[[], str]) -> Finding:
    """'ok' with the answer, or a problem with what was raised."""
    try:
        return Finding('ok', subject, question())
    except (ValueError, FileNotFoundError) as error:  # the package's word for what does not fit
        return Finding('problem', subject, str(error))
    except Exception as error:  # one odd file must not hide what the other questions find
        text = f'{type(error).__name__}: {error}; is this the folder of an official checkpoint?'
        return Finding('problem', subject, text)


def is_good(findings: Iterable[Finding]) -> bool:
    return not any(finding.level == 'problem' for finding in findings)
