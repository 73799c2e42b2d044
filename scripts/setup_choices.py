"""What .venv was made with, noted in its stamp. Standard library only, as setup_env.py.

make sees only how old the stamp is, and pip keeps whatever satisfies a version. So with other
choices than those of .venv a build would mix two ROS, or say "Ready" of what is not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def noted_in(stamp: Path) -> dict[str, str]:
    """Empty where there is no .venv yet, or where an older version made it."""
    try:
        noted = json.loads(stamp.read_text())
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def note(stamp: Path, choices: Mapping[str, str]) -> None:
    stamp.write_text(json.dumps(choices, indent=1) + '\n')


def contradiction(stamp: Path, choices: Mapping[str, str]) -> str:
    """How ``choices`` differ from what .venv was made with, and what to do; '' if they do not.

    An empty choice is none: what .venv has is taken.
    """
    noted = noted_in(stamp)
    for what, now in choices.items():
        before = noted.get(what, '')
        if noted and now and now != before:
            hint = ' (or change the shell back)' if what == 'source' else ''
            return (
                f'.venv was made with {what} {before or "of PyPI"}, and now it is {now}.\n'
                f'To make it anew{hint}, run: make distclean, and the same command again'
            )
    return ''
