"""Which policy is measured, from which files, on which device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safe_pruner_ros.evaluation.provenance import file_sha256, folder_sha256, training_seed
from safe_pruner_ros.policies.catalog import build_policy
from safe_pruner_ros.policies.device import choose_device
from safe_pruner_ros.policies.policy import Policy
from safe_pruner_ros.runtime.config import PolicyConfig


@dataclass(frozen=True)
class PolicySource:
    """``checkpoint`` '' is what ships; ``device`` 'auto' becomes the one that is there;
    ``deployment`` as `build_policy` takes it. Picklable: workers elsewhere take that device, too.
    """

    name: str = 'embedded'
    checkpoint: str = ''
    device: str = 'cpu'
    deployment: Mapping[str, Any] = field(default_factory=dict)

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
        """The same text for the same source."""
        return json.dumps(asdict(self), sort_keys=True)

    def facts(self) -> dict[str, Any]:
        """For the record. A checkpoint goes by its content, not its place, be it a file or a
        folder of many, of which all are read: seconds for each 10 GB."""
        place = Path(self.checkpoint).expanduser() if self.checkpoint else self._shipped()
        is_file = place.is_file()
        return {
            'policy': self.name,
            'checkpoint': self._identity(place),
            'training_seed': training_seed(place) if is_file else None,
            'device': self.device,
            **({'deployment': dict(self.deployment)} if self.deployment else {}),
        }

    def _identity(self, place: Path) -> str:
        if place.is_file():
            return file_sha256(place)
        # Path() is this process's folder: a big policy of which nobody said the checkpoint.
        is_folder = bool(self.checkpoint) and place.is_dir()
        return folder_sha256(place) if is_folder else self.checkpoint

    def _shipped(self) -> Path:
        if self.name != 'embedded':
            return Path()
        from safe_pruner_ros.policies.embedded import SHIPPED_WEIGHTS

        return SHIPPED_WEIGHTS
