"""What a checkpoint folder says about itself before any weight is moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CheckpointCheck:
    """``run`` says what was found, or raises ValueError or FileNotFoundError with the next move.
    It reads small files and headers only, never a weight."""

    subject: str
    run: Callable[[], str]


class CheckpointFiles(Protocol):
    """One folder and one deployment. Loading runs the same checks as `safe-pruner preflight`."""

    def checks(self) -> tuple[CheckpointCheck, ...]: ...

    def action_span(self) -> tuple[FloatArray, FloatArray]:
        """What the statistics say actions reach from and to, [n] each, in the checkpoint's
        units."""


def check_all(files: CheckpointFiles) -> None:
    """Raises what the first check that fails raises."""
    for check in files.checks():
        check.run()
