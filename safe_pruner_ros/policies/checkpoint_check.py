"""What `safe-pruner preflight` asks of a checkpoint folder, one question at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointCheck:
    """``run`` says what was found, or raises ValueError or FileNotFoundError with the next move.
    It reads small files and headers only, never a weight. Loading asks the same questions."""

    subject: str
    run: Callable[[], str]
