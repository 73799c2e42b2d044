"""Which policy is measured, from which files, on which device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safe_pruner_ros.evaluation.provenance import file_sha256, training_seed
from safe_pruner_ros.policies.catalog import build_policy
from safe_pruner_ros.policies.policy import Policy
from safe_pruner_ros.runtime.config import PolicyConfig


@dataclass(frozen=True)
class PolicySource:
    """``checkpoint`` '' is what ships; ``deployment`` as `build_policy` takes it. Picklable."""

    name: str = 'embedded'
    checkpoint: str = ''
    device: str = 'cpu'
    deployment: Mapping[str, Any] = field(default_factory=dict)

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
        """For the record. A checkpoint file goes by its content, not its place; a folder of many
        files by its name."""
        file = Path(self.checkpoint) if self.checkpoint else self._shipped()
        is_file = file.is_file()
        return {
            'policy': self.name,
            'checkpoint': file_sha256(file) if is_file else self.checkpoint,
            'training_seed': training_seed(file) if is_file else None,
            'device': self.device,
            **({'deployment': dict(self.deployment)} if self.deployment else {}),
        }

    def _shipped(self) -> Path:
        if self.name != 'embedded':
            return Path()
        from safe_pruner_ros.policies.embedded import SHIPPED_WEIGHTS

        return SHIPPED_WEIGHTS
