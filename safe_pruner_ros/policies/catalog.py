"""Policy name -> policy, imported only when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from safe_pruner_ros.policies.policy import Policy

POLICIES = ('embedded',)


def build_policy(
    name: str,
    method: str,
    pruner_settings: Mapping[str, Any],
    checkpoint: str = '',
    device: str = 'cpu',
) -> Policy:
    """A fresh policy under a fresh pruner. ``checkpoint`` '' takes the weights that ship.

    Raises ValueError for an unknown name, method, setting or a checkpoint that does not fit;
    FileNotFoundError for a checkpoint that is not there.
    """
    if name not in POLICIES:
        raise ValueError(f'unknown policy {name!r}; choose from {POLICIES}')
    module = import_module('safe_pruner_ros.policies.embedded')
    model = module.load_weights(Path(checkpoint) if checkpoint else None)
    policy: Policy = module.EmbeddedPolicy(model, method, pruner_settings, device)
    return policy
