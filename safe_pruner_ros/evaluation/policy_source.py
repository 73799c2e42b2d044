"""Which policy is measured, from which files, on which device."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safe_pruner_ros.evaluation.provenance import file_sha256, folder_sha256, training_seed
from safe_pruner_ros.policies.catalog import build_policy
from safe_pruner_ros.policies.device import choose_device
from safe_pruner_ros.policies.policy import Policy
from safe_pruner_ros.runtime.config import PolicyConfig


class OtherCheckpoint(ValueError):
    """The files at a checkpoint's place are not those that the results are about."""


@dataclass(frozen=True)
class PolicySource:
    """``checkpoint`` '' is what ships; ``device`` 'auto' becomes the one that is there;
    ``deployment`` as `build_policy` takes it. ``identity``: what the files hold, as `pinned` found
    it, {} before. Picklable: workers elsewhere take that device, and those weights, too.
    """

    name: str = 'embedded'
    checkpoint: str = ''
    device: str = 'cpu'
    deployment: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.device == 'auto':
            object.__setattr__(self, 'device', str(choose_device('auto')))

    @classmethod
    def of(cls, policy: PolicyConfig) -> PolicySource:
        return cls(policy.name, policy.checkpoint, policy.device, policy.deployment_values())

    def build(self, method: str, settings: Mapping[str, Any]) -> Policy:
        """Raises as `build_policy`."""
        return build_policy(
            self.name, method, settings, self.checkpoint, self.device, self.deployment
        )

    @property
    def key(self) -> str:
        """The same text for the same source; once it is pinned, for the same content."""
        return json.dumps(asdict(self), sort_keys=True)

    def pinned(self) -> PolicySource:
        """This source, with what its files hold now: by that it is recorded from here on, and
        held to (`unchanged`). All files are read: seconds for each 10 GB."""
        if self.identity:
            return self
        place = self._place()
        seed = training_seed(place) if place.is_file() else None
        return replace(self, identity={'checkpoint': self._sha256(), 'training_seed': seed})

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Raises OtherCheckpoint unless the files are those of `pinned` before and after what is
        inside; a source that is not pinned takes any."""
        self._check()
        yield
        self._check()

    def facts(self) -> dict[str, Any]:
        """For the record. A checkpoint goes by its content, not its place, be it a file or a
        folder of many; reads it as `pinned` does, unless that was done."""
        return {
            'policy': self.name,
            **self.pinned().identity,
            'device': self.device,
            **({'deployment': dict(self.deployment)} if self.deployment else {}),
        }

    def _check(self) -> None:
        if not self.identity:
            return
        expected, found = self.identity['checkpoint'], self._sha256()
        if found != expected:
            place = self._place()
            raise OtherCheckpoint(
                f'{place} on {platform.node()} is not the checkpoint that these results are '
                f'about: expected SHA-256 {expected}, found '
                f'{found if place.exists() else "nothing there"}; what is finished is kept. Put '
                'the expected files there and repeat the command, or choose another --out for '
                'results of the other ones'
            )

    def _sha256(self) -> str:
        """The checkpoint as it was given where there is nothing to read: `build` refuses that."""
        place = self._place()
        if place.is_file():
            return file_sha256(place)
        # Path() is this process's folder: a big policy of which nobody said the checkpoint.
        is_folder = bool(self.checkpoint) and place.is_dir()
        return folder_sha256(place) if is_folder else self.checkpoint

    def _place(self) -> Path:
        if self.checkpoint:
            return Path(self.checkpoint).expanduser()
        if self.name != 'embedded':
            return Path()
        from safe_pruner_ros.policies.embedded import SHIPPED_WEIGHTS

        return SHIPPED_WEIGHTS
