"""What a checkpoint folder says about itself before any weight is moved; and loading it then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.policy import Policy

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CheckpointCheck:
    """``run`` says what was found, or raises ValueError or FileNotFoundError with the next move.
    It reads small files and headers only, never a weight. With ``is_note`` an answer is worth a
    second look, and '' says that there is nothing."""

    subject: str
    run: Callable[[], str]
    is_note: bool = False


class CheckpointFiles(Protocol):
    """One folder and one deployment. Loading runs the same checks as `safe-pruner preflight`."""

    @property
    def chunk_size(self) -> int:
        """Actions a query. Raises ValueError or FileNotFoundError as a check would."""

    def checks(self) -> tuple[CheckpointCheck, ...]: ...

    def action_span(self) -> tuple[FloatArray, FloatArray]:
        """What the statistics say actions reach from and to, [n] each, in the checkpoint's
        units."""


FilesT = TypeVar('FilesT', bound=CheckpointFiles)
PolicyT = TypeVar('PolicyT', bound=Policy)


@dataclass(frozen=True)
class Backend(Generic[FilesT, PolicyT]):
    """How a big policy comes from a folder. ``files(folder, deployment, device, **sizes)`` raises
    ValueError or FileNotFoundError when the folder or the device is not there, and reads nothing
    yet; ``load(files, method, settings)`` reads the weights of files that passed their checks."""

    files: Callable[..., FilesT]
    load: Callable[[FilesT, str, Mapping[str, Any]], PolicyT]

    def build(
        self,
        folder: Path,
        deployment: Deployment,
        method: str,
        settings: Mapping[str, Any],
        device: str = 'cpu',
        **sizes: Any,
    ) -> PolicyT:
        """A policy under a fresh pruner. ``sizes``: what no file says, other than published.

        Raises FileNotFoundError or ValueError saying what is missing, unexpected or does not fit.
        """
        files = self.files(folder, deployment, device, **sizes)
        check_all(files)
        return self.load(files, method, settings)


def check_all(files: CheckpointFiles) -> None:
    """Raises what the first check that fails raises."""
    for check in files.checks():
        check.run()
